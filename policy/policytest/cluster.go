package policytest

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/weft-net/weft/policy/model"
)

// ClusterPolicy returns a random valid cluster policy.
func (r Random) ClusterPolicy(i int) *model.ClusterPolicy {
	p, err := model.ClusterPolicyOf(r.ClusterNetworkPolicy(i))
	if err != nil {
		panic(err)
	}
	return p
}

// ClusterNetworkPolicy returns a random cluster policy that an API server would accept.
func (r Random) ClusterNetworkPolicy(i int) *v1alpha2.ClusterNetworkPolicy {
	cnp := &v1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: clusterName(i)}}
	cnp.Spec.Tier = pick(r, []v1alpha2.Tier{v1alpha2.AdminTier, v1alpha2.BaselineTier})
	cnp.Spec.Priority = int32(r.IntN(3)) // collisions are intended
	cnp.Spec.Subject.Namespaces, cnp.Spec.Subject.Pods = r.clusterPods()
	for range r.IntN(3) {
		rule := v1alpha2.ClusterNetworkPolicyIngressRule{Action: r.action(), Protocols: r.clusterProtocols()}
		for range 1 + r.IntN(2) {
			var p v1alpha2.ClusterNetworkPolicyIngressPeer
			p.Namespaces, p.Pods = r.clusterPods()
			rule.From = append(rule.From, p)
		}
		cnp.Spec.Ingress = append(cnp.Spec.Ingress, rule)
	}
	for range r.IntN(3) {
		rule := v1alpha2.ClusterNetworkPolicyEgressRule{Action: r.action(), Protocols: r.clusterProtocols()}
		for range 1 + r.IntN(2) {
			var p v1alpha2.ClusterNetworkPolicyEgressPeer
			if r.oneIn(3) {
				p.Networks = []v1alpha2.CIDR{v1alpha2.CIDR(pick(r, blocks)), v1alpha2.CIDR(pick(r, blocks))}
			} else {
				p.Namespaces, p.Pods = r.clusterPods()
			}
			rule.To = append(rule.To, p)
		}
		cnp.Spec.Egress = append(cnp.Spec.Egress, rule)
	}
	return cnp
}

func clusterName(i int) string { return fmt.Sprintf("cluster-%d", i) }

func (r Random) action() v1alpha2.ClusterNetworkPolicyRuleAction {
	return pick(r, []v1alpha2.ClusterNetworkPolicyRuleAction{
		v1alpha2.ClusterNetworkPolicyRuleActionAccept, v1alpha2.ClusterNetworkPolicyRuleActionDeny, v1alpha2.ClusterNetworkPolicyRuleActionPass,
	})
}

// clusterPods selects pods in one of the two ways of the API.
func (r Random) clusterPods() (namespaces *metav1.LabelSelector, pods *v1alpha2.NamespacedPod) {
	if r.oneIn(2) {
		return r.selector(), nil
	}
	return nil, &v1alpha2.NamespacedPod{NamespaceSelector: *r.selector(), PodSelector: *r.selector()}
}

func (r Random) clusterProtocols() (all []v1alpha2.ClusterNetworkPolicyProtocol) {
	for range r.IntN(3) {
		number := int32(pick(r, Ports))
		var port *v1alpha2.Port
		switch r.IntN(3) {
		case 0:
			port = &v1alpha2.Port{Number: number}
		case 1:
			port = &v1alpha2.Port{Range: &v1alpha2.PortRange{Start: number, End: number + int32(r.IntN(1000))}}
		}
		var p v1alpha2.ClusterNetworkPolicyProtocol
		switch r.IntN(4) {
		case 0:
			p.UDP = &v1alpha2.ClusterNetworkPolicyProtocolUDP{DestinationPort: port}
		case 1:
			p.SCTP = &v1alpha2.ClusterNetworkPolicyProtocolSCTP{DestinationPort: port}
		case 2:
			p.DestinationNamedPort = pick(r, portNames)
		default:
			p.TCP = &v1alpha2.ClusterNetworkPolicyProtocolTCP{DestinationPort: port}
		}
		all = append(all, p)
	}
	return all
}
