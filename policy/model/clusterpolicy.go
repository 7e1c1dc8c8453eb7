package model

import (
	"cmp"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Tier says whether a ClusterPolicy comes before the Policies or after them.
type Tier int

// The tiers. What Admin decides is not looked at any more; Baseline is for pods that no
// Policy isolates.
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

// Action is what a rule of a ClusterPolicy does with what it matches.
type Action int

// The actions.
const (
	Accept Action = iota
	Deny
	Pass // no more rules of this tier
)

// String returns the API's word in small letters.
func (a Action) String() string {
	switch a {
	case Deny:
		return "deny"
	case Pass:
		return "pass"
	}
	return "accept"
}

// ClusterPolicy is a ClusterNetworkPolicy, checked. The first of the rules of a tier that
// matches a flow decides.
type ClusterPolicy struct {
	Name     string
	Tier     Tier
	Priority int32            // lower ones come first
	Subject  Peer             // the pods that it applies to
	Rules    [2][]ClusterRule // by Direction
}

// ClusterRule is a rule of a ClusterPolicy.
type ClusterRule struct {
	Rule
	Action Action
}

// Key returns the name by which it is told from Policies.
func (p *ClusterPolicy) Key() Key { return Key{Name: p.Name} }

// compareCluster sorts policies of a tier in the order in which they are asked. The API leaves
// it open which of two with the same priority comes first.
func compareCluster(a, b *ClusterPolicy) int {
	return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Name, b.Name))
}

// ClusterPolicyOf reads an API object. What it cannot read is in the error. A rule that denies
// takes it for all peers or ports, any other rule for none; whom the policy applies to
// must be read, else it applies to nobody. What is returned is never nil.
func ClusterPolicyOf(cnp *v1alpha2.ClusterNetworkPolicy) (*ClusterPolicy, error) {
	p := &ClusterPolicy{Name: cnp.Name, Priority: cnp.Spec.Priority}
	r := reader{policy: p.Key()}
	var faults error
	subject := cnp.Spec.Subject
	p.Subject, faults = clusterPeer(subject.Namespaces, subject.Pods)
	if faults != nil {
		r.addError("subject", faults)
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

// clusterPeers returns what an entry of a list of peers stands for: pods, or networks.
func clusterPeers(p v1alpha2.ClusterNetworkPolicyEgressPeer) (peers []Peer, err error) {
	switch {
	case p.Nodes != nil:
		return nil, errors.New("nodes as peers are not supported")
	case len(p.DomainNames) > 0:
		return nil, errors.New("domainNames as peers are not supported")
	case len(p.Networks) > 0 && (p.Namespaces != nil || p.Pods != nil):
		return nil, errors.New("networks next to a selector")
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

// clusterPeer returns the pods that one of two ways to select them selects.
func clusterPeer(namespaces *metav1.LabelSelector, pods *v1alpha2.NamespacedPod) (p Peer, err error) {
	switch {
	case namespaces != nil && pods != nil:
		return p, errors.New("namespaces next to pods")
	case namespaces == nil && pods == nil:
		return p, errors.New("nothing that is known selects")
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

// clusterPorts returns the ports that an entry of a list of protocols stands for.
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
		err = errors.New("nothing that is known matches")
	}
	return ports, err
}

// clusterPort reads a port; nil is any.
func clusterPort(proto Protocol, p *v1alpha2.Port) (Port, error) {
	switch {
	case p == nil:
		return Port{Protocol: proto, From: 0, To: 65535}, nil
	case p.Range != nil && p.Number != 0:
		return Port{}, fmt.Errorf("number %d next to a range of ports", p.Number)
	case p.Range != nil:
		return portRange(proto, p.Range.Start, p.Range.End)
	}
	return portRange(proto, p.Number, p.Number)
}
