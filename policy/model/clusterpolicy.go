package model

import (
	"cmp"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Tier states whether a ClusterPolicy is evaluated before the Policies or after them.
type Tier int

// The tiers. A decision of the Admin tier is final; Baseline applies to pods that no Policy
// isolates.
const (
	Admin Tier = iota
	Baseline
)

// String returns the API's word.
func (t Tier) String() string {
	if t == Baseline {
		return "Baseline"
	}
	return "Admin"
}

// Action is the action of a ClusterRule for flows that it matches.
type Action int

// The actions.
const (
	Accept Action = iota
	Deny
	Pass // skip the other rules of this tier
)

// String returns the API's word in lower case.
func (a Action) String() string {
	switch a {
	case Deny:
		return "deny"
	case Pass:
		return "pass"
	}
	return "accept"
}

// ClusterPolicy is a validated ClusterNetworkPolicy. The first rule of a tier that matches a flow
// decides.
type ClusterPolicy struct {
	Name     string
	Tier     Tier
	Priority int32            // lower values are evaluated first
	Subject  Peer             // the pods that it applies to
	Rules    [2][]ClusterRule // by Direction
}

// ClusterRule is a rule of a ClusterPolicy.
type ClusterRule struct {
	Rule
	Action Action
}

// Key returns a key that differs from the key of every Policy: its namespace is "".
func (p *ClusterPolicy) Key() Key { return Key{Name: p.Name} }

// compareCluster orders policies of a tier by their evaluation. The API does not define the order
// of two policies with the same priority.
func compareCluster(a, b *ClusterPolicy) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Name, b.Name))
}

// ClusterPolicyOf converts an API object. The error lists the parts that it cannot read; the
// returned policy is never nil. Unreadable peers or ports match everything in a rule that denies,
// and nothing in any other rule. If the subject or the tier is unreadable, the policy applies to
// no pod.
func ClusterPolicyOf(cnp *v1alpha2.ClusterNetworkPolicy) (*ClusterPolicy, error) {
	p := &ClusterPolicy{Name: cnp.Name, Priority: cnp.Spec.Priority}
	r := reader{policy: p.Key()}
	var err error
	subject := cnp.Spec.Subject
	p.Subject, err = clusterPeer(subject.Namespaces, subject.Pods)
	if err != nil {
		r.addError("subject", err)
		p.Subject = Peer{Namespaces: labels.Nothing(), Pods: labels.Nothing()}
	}
	switch cnp.Spec.Tier {
	case v1alpha2.AdminTier:
	case v1alpha2.BaselineTier:
		p.Tier = Baseline
	default:
		r.addError("tier", fmt.Errorf("%q is not Admin or Baseline", cnp.Spec.Tier))
		p.Subject = Peer{Namespaces: labels.Nothing(), Pods: labels.Nothing()}
	}
	for i, in := range cnp.Spec.Ingress {
		from := make([]v1alpha2.ClusterNetworkPolicyEgressPeer, len(in.From))
		for i, peer := range in.From {
			from[i] = v1alpha2.ClusterNetworkPolicyEgressPeer{Namespaces: peer.Namespaces, Pods: peer.Pods}
		}
		p.Rules[Ingress] = append(p.Rules[Ingress], r.clusterRule(fmt.Sprintf("ingress[%d]", i), in.Action, from, in.Protocols))
	}
	for i, out := range cnp.Spec.Egress {
		p.Rules[Egress] = append(p.Rules[Egress], r.clusterRule(fmt.Sprintf("egress[%d]", i), out.Action, out.To, out.Protocols))
	}
	return p, errors.Join(r.errs...)
}

func (r *reader) clusterRule(where string, action v1alpha2.ClusterNetworkPolicyRuleAction,
	peers []v1alpha2.ClusterNetworkPolicyEgressPeer, protocols []v1alpha2.ClusterNetworkPolicyProtocol) ClusterRule {
	rule := ClusterRule{Rule: Rule{AnyPort: len(protocols) == 0}}
	switch action {
	case v1alpha2.ClusterNetworkPolicyRuleActionAccept:
	case v1alpha2.ClusterNetworkPolicyRuleActionPass:
		rule.Action = Pass
	case v1alpha2.ClusterNetworkPolicyRuleActionDeny:
		rule.Action = Deny
	default:
		r.addError(where, fmt.Errorf("action %q is not Accept, Deny or Pass", action))
		rule.Action = Deny
	}
	if len(peers) == 0 {
		r.addError(where, errors.New("no peers"))
		rule.AnyPeer = rule.Action == Deny
	}
	for i, p := range peers {
		some, err := clusterPeers(p)
		if err != nil {
			r.addError(fmt.Sprintf("%s peer %d", where, i), err)
			rule.AnyPeer = rule.Action == Deny
		}
		rule.Peers = append(rule.Peers, some...)
	}
	for i, p := range protocols {
		some, err := clusterPorts(p)
		if err != nil {
			r.addError(fmt.Sprintf("%s protocol %d", where, i), err)
			rule.AnyPort = rule.Action == Deny
		}
		rule.Ports = append(rule.Ports, some...)
	}
	return rule
}

// clusterPeers returns the peers of one entry of a peer list: pods, or networks.
func clusterPeers(p v1alpha2.ClusterNetworkPolicyEgressPeer) (peers []Peer, err error) {
	switch {
	case p.Nodes != nil:
		return nil, errors.New("nodes as peers are not supported")
	case len(p.DomainNames) > 0:
		return nil, errors.New("domainNames as peers are not supported")
	case len(p.Networks) > 0 && (p.Namespaces != nil || p.Pods != nil):
		return nil, errors.New("networks and a selector in one peer")
	case len(p.Networks) == 0:
		peer, err := clusterPeer(p.Namespaces, p.Pods)
		if err != nil {
			return nil, err
		}
		return []Peer{peer}, nil
	}
	for _, n := range p.Networks {
		block, err := parsePrefix(string(n))
		if err != nil {
			return nil, fmt.Errorf("networks: %w", err)
		}
		peers = append(peers, Peer{Block: block})
	}
	return peers, nil
}

// clusterPeer returns the pods that either namespaces or pods selects.
func clusterPeer(namespaces *metav1.LabelSelector, pods *v1alpha2.NamespacedPod) (p Peer, err error) {
	switch {
	case namespaces != nil && pods != nil:
		return p, errors.New("both namespaces and pods are set")
	case namespaces == nil && pods == nil:
		return p, errors.New("no supported selector is set")
	case namespaces != nil:
		p.Pods = labels.Everything()
		p.Namespaces, err = metav1.LabelSelectorAsSelector(namespaces)
		return p, err
	}
	if p.Namespaces, err = metav1.LabelSelectorAsSelector(&pods.NamespaceSelector); err != nil {
		return p, err
	}
	p.Pods, err = metav1.LabelSelectorAsSelector(&pods.PodSelector)
	return p, err
}

// clusterPorts returns the ports of one entry of a list of protocols.
func clusterPorts(p v1alpha2.ClusterNetworkPolicyProtocol) (ports []Port, err error) {
	add := func(proto Protocol, port *v1alpha2.Port) {
		one, cause := clusterPort(proto, port)
		if cause != nil {
			err = errors.Join(err, cause)
			return
		}
		ports = append(ports, one)
	}
	if p.TCP != nil {
		add(TCP, p.TCP.DestinationPort)
	}
	if p.UDP != nil {
		add(UDP, p.UDP.DestinationPort)
	}
	if p.SCTP != nil {
		add(SCTP, p.SCTP.DestinationPort)
	}
	if name := p.DestinationNamedPort; name != "" {
		for _, proto := range []Protocol{TCP, UDP, SCTP} {
			ports = append(ports, Port{Protocol: proto, Name: name})
		}
	}
	if len(ports) == 0 && err == nil {
		err = errors.New("no supported protocol or port is set")
	}
	return ports, err
}

// clusterPort converts a port; nil means any port.
func clusterPort(proto Protocol, p *v1alpha2.Port) (Port, error) {
	switch {
	case p == nil:
		return Port{Protocol: proto, From: 0, To: 65535}, nil
	case p.Range != nil && p.Number != 0:
		return Port{}, fmt.Errorf("both number %d and a range of ports are set", p.Number)
	case p.Range != nil:
		return portRange(proto, p.Range.Start, p.Range.End)
	}
	return portRange(proto, p.Number, p.Number)
}
