// Package policytest makes random and large clusters for tests. Random clusters have few labels,
// ports and addresses, so that policies, pods and flows often match each other. All randomness
// comes from the source in Random. Nothing in this package is safe for concurrent use.
package policytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-net/weft/policy/model"
)

// Node is the name of the node whose rules are compiled.
const Node = "here"

// Ports are the destination ports of random flows and policies.
var Ports = []uint16{80, 81, 443, 8000, 8080, 9090}

// World is addresses that belong to no pod.
var World = []netip.Addr{
	netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.200"), netip.MustParseAddr("198.51.100.7"),
	netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8:1::1"),
}

// Groups is multicast and broadcast addresses.
var Groups = []netip.Addr{
	netip.MustParseAddr("239.1.2.3"), netip.MustParseAddr("255.255.255.255"), netip.MustParseAddr("ff15::1:2"),
}

var (
	namespaces = []string{"blue", "red", "green"}
	values     = []string{"a", "b", "c"}
	portNames  = []string{"http", "metrics"}
	protocols  = []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}
	blocks     = []string{
		"0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25", "198.51.100.7/32", "10.32.0.0/16", "10.32.0.2/31", "224.0.0.0/4",
		"::/0", "2001:db8::/32", "2001:db8:1::/48", "fd00::/64", "fd00::2/127", "ff00::/8",
	}
)

// Random generates parts of clusters.
type Random struct{ *rand.Rand }

func pick[T any](r Random, of []T) T { return of[r.IntN(len(of))] }

func (r Random) oneIn(in int) bool { return r.IntN(in) == 0 }

// Labels returns random labels for a pod or a namespace.
func (r Random) Labels() labels.Set {
	l := labels.Set{}
	for _, key := range []string{"app", "tier"} {
		if !r.oneIn(3) {
			l[key] = pick(r, values)
		}
	}
	return l
}

// NamespaceName returns one of a few names.
func (r Random) NamespaceName() string { return pick(r, namespaces) }

// Snapshot returns a cluster of n pods. Pod i has the addresses Addrs(i).
func (r Random) Snapshot(n, policies int) model.Snapshot {
	s := model.Snapshot{Node: Node, Namespaces: map[string]labels.Set{}}
	for _, name := range namespaces {
		s.Namespaces[name] = r.Labels()
	}
	for i := range n {
		s.Pods = append(s.Pods, r.Pod(i))
	}
	for i := range policies {
		s.Policies = append(s.Policies, r.Policy(i))
	}
	for i := range r.IntN(policies) {
		s.Cluster = append(s.Cluster, r.ClusterPolicy(i))
	}
	return s
}

// Addrs returns the addresses of pod i.
func Addrs(pod int) []netip.Addr {
	return []netip.Addr{
		netip.AddrFrom4([4]byte{10, 32, 0, byte(pod + 1)}),
		netip.AddrFrom16([16]byte{0xfd, 15: byte(pod + 1)}),
	}
}

// AddrOf returns the address that identifies a pod as the sender or receiver of a flow: one that
// it owns, if it owns any.
func AddrOf(c *model.Cluster, pod int) netip.Addr {
	for _, a := range Addrs(pod) {
		if c.Owner(a) != nil {
			return a
		}
	}
	return Addrs(pod)[0]
}

// Pod returns pod i. Two of three pods are local.
func (r Random) Pod(i int) *model.Pod {
	p := &model.Pod{
		Key:    model.Key{Namespace: namespaces[i%len(namespaces)], Name: fmt.Sprintf("pod-%d", i)},
		Node:   Node,
		Labels: r.Labels(),
		Addrs:  Addrs(i),
	}
	if i%3 == 2 {
		p.Node = "elsewhere"
	}
	for _, name := range portNames {
		for _, proto := range []model.Protocol{model.TCP, model.UDP} {
			if r.oneIn(2) {
				p.Ports = append(p.Ports, model.NamedPort{Name: name, Protocol: proto, Port: pick(r, Ports)})
			}
		}
	}
	return p
}

// Policy returns a random valid policy.
func (r Random) Policy(i int) *model.Policy {
	p, err := model.PolicyOf(r.NetworkPolicy(i))
	if err != nil {
		panic(err)
	}
	return p
}

// NetworkPolicy returns a random policy that an API server would accept.
func (r Random) NetworkPolicy(i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(r, namespaces), Name: fmt.Sprintf("policy-%d", i)},
	}
	if r.oneIn(2) {
		np.Spec.PodSelector = *r.selector()
	}
	in, out := r.oneIn(2), r.oneIn(2)
	if in {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeIngress)
	}
	if out {
		np.Spec.PolicyTypes = append(np.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
	}
	for range r.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: r.peers(), Ports: r.ports()})
	}
	for range r.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: r.peers(), Ports: r.ports()})
	}
	return np
}

func (r Random) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	if r.oneIn(2) {
		s.MatchLabels = map[string]string{"app": pick(r, values)}
	}
	if r.oneIn(3) {
		req := metav1.LabelSelectorRequirement{Key: "tier", Operator: metav1.LabelSelectorOpExists}
		switch r.IntN(4) {
		case 0:
			req.Operator = metav1.LabelSelectorOpDoesNotExist
		case 1:
			req.Operator, req.Values = metav1.LabelSelectorOpIn, []string{"a", "b"}
		case 2:
			req.Operator, req.Values = metav1.LabelSelectorOpNotIn, []string{pick(r, values)}
		}
		s.MatchExpressions = append(s.MatchExpressions, req)
	}
	return s
}

func (r Random) peers() (peers []networkingv1.NetworkPolicyPeer) {
	for range r.IntN(3) {
		var p networkingv1.NetworkPolicyPeer
		switch r.IntN(4) {
		case 0:
			p.PodSelector = r.selector()
		case 1:
			p.NamespaceSelector = r.selector()
		case 2:
			p.PodSelector, p.NamespaceSelector = r.selector(), r.selector()
		default:
			p.IPBlock = r.block()
		}
		peers = append(peers, p)
	}
	return peers
}

// block returns a random block with exceptions inside it.
func (r Random) block() *networkingv1.IPBlock {
	b := &networkingv1.IPBlock{CIDR: pick(r, blocks)}
	whole := netip.MustParsePrefix(b.CIDR)
	for range r.IntN(3) {
		except := netip.MustParsePrefix(pick(r, blocks))
		if whole.Contains(except.Addr()) && except.Bits() > whole.Bits() {
			b.Except = append(b.Except, except.String())
		}
	}
	return b
}

func (r Random) ports() (ports []networkingv1.NetworkPolicyPort) {
	for range r.IntN(4) {
		var p networkingv1.NetworkPolicyPort
		if !r.oneIn(3) {
			proto := pick(r, protocols)
			p.Protocol = &proto
		}
		number := pick(r, Ports)
		switch r.IntN(5) {
		case 0:
		case 1:
			name := intstr.FromString(pick(r, portNames))
			p.Port = &name
		case 2:
			from, to := intstr.FromInt32(int32(number)), int32(number)+int32(r.IntN(1000))
			p.Port, p.EndPort = &from, &to
		default:
			port := intstr.FromInt32(int32(number))
			p.Port = &port
		}
		ports = append(ports, p)
	}
	return ports
}

// LinkLocal returns the link-local address of a pod.
func LinkLocal(pod int) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 15: byte(pod + 1)})
}

// IsGroup reports whether an address is one of Groups.
func IsGroup(a netip.Addr) bool { return slices.Contains(Groups, a) }

// Flow returns a random flow between pods, World and Groups. Its Sender and Receiver are not set.
func (r Random) Flow(pods int) model.Flow {
	for {
		f := model.Flow{Src: r.address(pods), Dst: r.address(pods), Port: pick(r, Ports)}
		if r.oneIn(8) {
			f.Src = LinkLocal(r.IntN(pods))
		}
		if r.oneIn(8) {
			f.Dst = LinkLocal(r.IntN(pods))
		}
		if r.oneIn(6) {
			f.Dst = pick(r, Groups)
		}
		switch r.IntN(8) {
		case 0:
			f.Protocol, f.Port = 1, 0
			if f.Src.Is6() {
				f.Protocol = 58
			}
		case 1, 2:
			f.Protocol = model.SCTP
		case 3, 4:
			f.Protocol = model.UDP
		default:
			f.Protocol = model.TCP
		}
		if f.Src.Is4() == f.Dst.Is4() && f.Src != f.Dst {
			return f
		}
	}
}

func (r Random) address(pods int) netip.Addr {
	if r.oneIn(6) {
		return pick(r, World)
	}
	return pick(r, Addrs(r.IntN(pods)))
}

// Step makes one random change in a cluster of n pods and up to policies policies.
func (r Random) Step(c Changer, n, policies int) {
	switch r.IntN(8) {
	case 0:
		c.SetNamespace(r.NamespaceName(), r.Labels())
	case 1, 2:
		p := r.Pod(r.IntN(n))
		if r.oneIn(4) {
			p.Addrs = p.Addrs[:r.IntN(2)]
		}
		c.SetPod(p.Key, p)
	case 3:
		p := r.Pod(r.IntN(n))
		c.SetPod(p.Key, nil)
	case 4, 5:
		i := r.IntN(policies)
		if r.oneIn(3) {
			c.SetClusterPolicy(clusterName(i), nil)
		} else {
			c.SetClusterPolicy(clusterName(i), r.ClusterPolicy(i))
		}
	default:
		i := r.IntN(policies)
		for _, ns := range namespaces {
			c.SetPolicy(model.Key{Namespace: ns, Name: fmt.Sprintf("policy-%d", i)}, nil)
		}
		if !r.oneIn(3) {
			p := r.Policy(i)
			c.SetPolicy(p.Key, p)
		}
	}
}

// Changer receives the changes of a cluster.
type Changer interface {
	SetNamespace(string, labels.Set)
	SetPod(model.Key, *model.Pod)
	SetPolicy(model.Key, *model.Policy)
	SetClusterPolicy(string, *model.ClusterPolicy)
}
