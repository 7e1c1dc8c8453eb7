package model

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Direction distinguishes flows to a pod from flows of a pod.
type Direction int

// A flow is evaluated twice: as egress of its source and as ingress of its destination.
const (
	Ingress Direction = iota
	Egress
)

// String returns the API's word in lower case.
func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Policy is a validated NetworkPolicy with its defaults filled in.
type Policy struct {
	Key
	Pods     labels.Selector // the pods of its namespace that it applies to
	Isolates [2]bool         // by Direction: whether flows that no rule allows are denied
	Rules    [2][]Rule       // by Direction
}

// Rule matches flows from (ingress) or to (egress) one of the peers, at one of the ports. Rules of
// a Policy allow the flows that they match.
type Rule struct {
	AnyPeer bool
	Peers   []Peer
	AnyPort bool // and any protocol
	Ports   []Port
}

// Peer is a set of pods, or a block of addresses if Block is valid.
type Peer struct {
	Namespace  string          // of the pods, if Namespaces is nil
	Namespaces labels.Selector // selects the pods' namespaces
	Pods       labels.Selector
	Block      netip.Prefix
	Except     []netip.Prefix // within Block
}

// Port is a range of ports of a protocol, or a port by the name that the receiving pod gives it.
type Port struct {
	Protocol Protocol
	From, To uint16 // inclusive
	Name     string // if set, From and To are 0
}

// PolicyOf converts an API object. The error lists the parts that it cannot read; they match
// nothing in the returned policy, which is never nil.
func PolicyOf(np *networkingv1.NetworkPolicy) (*Policy, error) {
	p := &Policy{Key: Key{np.Namespace, np.Name}}
	r := reader{policy: p.Key}
	p.Pods = r.selector("podSelector", &np.Spec.PodSelector, labels.Everything())
	types := np.Spec.PolicyTypes
	if len(types) == 0 {
		types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(np.Spec.Egress) > 0 {
			types = append(types, networkingv1.PolicyTypeEgress)
		}
	}
	for _, t := range types {
		switch t {
		case networkingv1.PolicyTypeIngress:
			p.Isolates[Ingress] = true
		case networkingv1.PolicyTypeEgress:
			p.Isolates[Egress] = true
		default:
			r.addError("policyTypes", fmt.Errorf("%q is not Ingress or Egress", t))
		}
	}
	if p.Isolates[Ingress] {
		for i, in := range np.Spec.Ingress {
			p.Rules[Ingress] = append(p.Rules[Ingress], r.rule(fmt.Sprintf("ingress[%d]", i), in.From, in.Ports))
		}
	}
	if p.Isolates[Egress] {
		for i, out := range np.Spec.Egress {
			p.Rules[Egress] = append(p.Rules[Egress], r.rule(fmt.Sprintf("egress[%d]", i), out.To, out.Ports))
		}
	}
	return p, errors.Join(r.errs...)
}

// reader collects the errors of one policy.
type reader struct {
	policy Key
	errs   []error
}

func (r *reader) addError(where string, err error) {
	r.errs = append(r.errs, fmt.Errorf("read policy %s: %s: %w", r.policy, where, err))
}

func (r *reader) selector(where string, s *metav1.LabelSelector, unreadable labels.Selector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		r.addError(where, err)
		return unreadable
	}
	return sel
}

func (r *reader) rule(where string, peers []networkingv1.NetworkPolicyPeer, ports []networkingv1.NetworkPolicyPort) Rule {
	rule := Rule{AnyPeer: len(peers) == 0, AnyPort: len(ports) == 0}
	for i, p := range peers {
		if peer, ok := r.peer(fmt.Sprintf("%s peer %d", where, i), p); ok {
			rule.Peers = append(rule.Peers, peer)
		}
	}
	for i, p := range ports {
		port, err := parsePort(p)
		if err != nil {
			r.addError(fmt.Sprintf("%s port %d", where, i), err)
			continue
		}
		rule.Ports = append(rule.Ports, port)
	}
	return rule
}

func (r *reader) peer(where string, p networkingv1.NetworkPolicyPeer) (Peer, bool) {
	if p.IPBlock != nil {
		block, err := parseBlock(p.IPBlock)
		if err == nil && (p.PodSelector != nil || p.NamespaceSelector != nil) {
			err = errors.New("ipBlock and a selector in one peer")
		}
		if err != nil {
			r.addError(where, err)
		}
		return block, err == nil
	}
	if p.PodSelector == nil && p.NamespaceSelector == nil {
		r.addError(where, errors.New("neither selector nor ipBlock"))
		return Peer{}, false
	}
	peer := Peer{Namespace: r.policy.Namespace, Pods: labels.Everything()}
	if p.PodSelector != nil {
		peer.Pods = r.selector(where, p.PodSelector, labels.Nothing())
	}
	if p.NamespaceSelector != nil {
		peer.Namespace, peer.Namespaces = "", r.selector(where, p.NamespaceSelector, labels.Nothing())
	}
	return peer, true
}

// parseBlock fails if any exception cannot be read: without the exception the block would allow
// too much.
func parseBlock(b *networkingv1.IPBlock) (Peer, error) {
	block, err := parsePrefix(b.CIDR)
	if err != nil {
		return Peer{}, fmt.Errorf("ipBlock: %w", err)
	}
	peer := Peer{Block: block}
	for _, e := range b.Except {
		except, err := parsePrefix(e)
		if err != nil {
			return Peer{}, fmt.Errorf("ipBlock %s: except: %w", block, err)
		}
		if except.Addr().BitLen() == block.Addr().BitLen() {
			peer.Except = append(peer.Except, except)
		}
	}
	return peer, nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return p, err
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return p, fmt.Errorf("%s is neither IPv4 nor IPv6", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

func parsePort(p networkingv1.NetworkPolicyPort) (Port, error) {
	var word corev1.Protocol
	if p.Protocol != nil {
		word = *p.Protocol
	}
	proto, err := parseProtocol(word)
	if err != nil {
		return Port{}, err
	}
	switch {
	case p.Port == nil && p.EndPort != nil:
		return Port{}, fmt.Errorf("endPort %d without a port", *p.EndPort)
	case p.Port == nil:
		return Port{Protocol: proto, From: 0, To: 65535}, nil
	case p.Port.Type == intstr.String && p.EndPort != nil:
		return Port{}, fmt.Errorf("endPort %d with the named port %q", *p.EndPort, p.Port.StrVal)
	case p.Port.Type == intstr.String && p.Port.StrVal == "":
		return Port{}, errors.New("port has an empty name")
	case p.Port.Type == intstr.String:
		return Port{Protocol: proto, Name: p.Port.StrVal}, nil
	}
	from, to := p.Port.IntVal, p.Port.IntVal
	if p.EndPort != nil {
		to = *p.EndPort
	}
	return portRange(proto, from, to)
}

func portRange(proto Protocol, from, to int32) (Port, error) {
	if from < 1 || to > 65535 || to < from {
		return Port{}, fmt.Errorf("%d to %d is not a range of ports", from, to)
	}
	return Port{Protocol: proto, From: uint16(from), To: uint16(to)}, nil
}

// Matches reports whether the peer's selectors match a pod. namespace has the labels of the pod's
// namespace; nil means that the namespace is unknown. A block never matches.
func (p *Peer) Matches(pod *Pod, namespace labels.Set) bool {
	if p.Block.IsValid() {
		return false
	}
	if p.Namespaces == nil && pod.Namespace != p.Namespace {
		return false
	}
	if p.Namespaces != nil && (namespace == nil || !p.Namespaces.Matches(namespace)) {
		return false
	}
	return p.Pods.Matches(pod.Labels)
}

// Contains reports whether the peer is a block that contains an address.
func (p *Peer) Contains(a netip.Addr) bool {
	return p.Block.IsValid() && p.Block.Contains(a) &&
		!slices.ContainsFunc(p.Except, func(e netip.Prefix) bool { return e.Contains(a) })
}
