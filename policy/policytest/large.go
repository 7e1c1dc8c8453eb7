package policytest

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/policy/model"
)

// Size is how large a cluster is.
type Size struct {
	Namespaces, Pods, Policies int
	Local                      int // of the pods, spread over the namespaces
}

// Cluster is the size that policies are meant for, with as many pods on this node
// as a kubelet takes.
var Cluster = Size{Namespaces: 500, Pods: 5000, Policies: 1000, Local: 110}

// Large returns a cluster as they are: pods of a namespace are a few applications
// of a team, and each namespace has policies that let in its own pods, those of a
// team, and blocks, and let out to a few others.
func Large(s Size) model.Snapshot {
	c := model.Snapshot{Node: Node, Namespaces: map[string]labels.Set{}}
	for i := range s.Namespaces {
		c.Namespaces[namespace(i)] = labels.Set{"team": fmt.Sprintf("team-%d", i%20), "kubernetes.io/metadata.name": namespace(i)}
	}
	for i := range s.Pods {
		c.Pods = append(c.Pods, LargePod(s, i))
	}
	for i := range s.Policies {
		c.Policies = append(c.Policies, largePolicy(s, i))
	}
	return c
}

func namespace(i int) string { return fmt.Sprintf("namespace-%d", i) }

// LargePod returns a pod of a large cluster.
func LargePod(s Size, i int) *model.Pod {
	p := &model.Pod{
		Key:    model.Key{Namespace: namespace(i % s.Namespaces), Name: fmt.Sprintf("pod-%d", i)},
		Node:   "elsewhere",
		Labels: labels.Set{"app": fmt.Sprintf("app-%d", i/s.Namespaces%5), "pod-template-hash": fmt.Sprintf("%08x", i%s.Namespaces), "version": "1"},
		Addrs:  []netip.Addr{netip.AddrFrom4([4]byte{10, 64 + byte(i>>16), byte(i >> 8), byte(i)})},
		Ports:  []model.NamedPort{{Name: "http", Protocol: model.TCP, Port: 8080}},
	}
	if i < s.Local {
		p.Node = Node
	}
	return p
}

// largePolicy returns a policy. The first of each namespace isolates ingress, the
// second egress too, and so on.
func largePolicy(s Size, i int) *model.Policy {
	by := func(key, value string) labels.Selector { return labels.SelectorFromSet(labels.Set{key: value}) }
	n, nth := i%s.Namespaces, i/s.Namespaces
	p := &model.Policy{
		Key:      model.Key{Namespace: namespace(n), Name: fmt.Sprintf("policy-%d", nth)},
		Pods:     labels.Everything(),
		Isolates: [2]bool{true, nth%2 == 1},
	}
	own := model.Peer{Namespace: namespace(n), Pods: by("app", fmt.Sprintf("app-%d", nth%5))}
	team := model.Peer{Namespaces: by("team", fmt.Sprintf("team-%d", n%20)), Pods: labels.Everything()}
	block := model.Peer{Block: netip.MustParsePrefix("10.0.0.0/8"), Except: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(n), 0}), 24)}}
	p.Rules[model.Ingress] = []model.Rule{
		{Peers: []model.Peer{own}, AnyPort: true},
		{Peers: []model.Peer{team, block}, Ports: []model.Port{{Protocol: model.TCP, From: 80, To: 80}, {Protocol: model.TCP, From: 443, To: 443}, {Protocol: model.TCP, Name: "http"}}},
	}
	if p.Isolates[model.Egress] {
		p.Rules[model.Egress] = []model.Rule{{Peers: []model.Peer{own, team}, Ports: []model.Port{{Protocol: model.UDP, From: 53, To: 53}}}}
	}
	return p
}
