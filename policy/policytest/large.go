package policytest

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weft-net/weft/policy/model"
)

// Size is the size of a cluster.
type Size struct {
	Namespaces, Pods, Policies int
	Local                      int // number of local pods, spread over the namespaces
}

// Cluster is the size that policies are designed for, with as many local pods as a kubelet allows.
var Cluster = Size{Namespaces: 500, Pods: 5000, Policies: 1000, Local: 110}

// NodeIP is the address of the local Node.
const NodeIP = "127.0.0.1"

// Objects is the objects of a cluster in the API server.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// LargeObjects returns a realistic cluster: the pods of a namespace are a few applications of a
// team; each namespace has policies that allow ingress from its own pods, from pods of a team and
// from blocks, and egress to a few others.
func LargeObjects(s Size) (o Objects) {
	for i := range s.Namespaces {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace(i), UID: uid("namespace", i)}}
		ns.Labels = labels.Set{"team": fmt.Sprintf("team-%d", i%20), "kubernetes.io/metadata.name": namespace(i)}
		o.Namespaces = append(o.Namespaces, ns)
	}
	for i := range s.Pods {
		o.Pods = append(o.Pods, LargePodObject(s, i))
	}
	for i := range s.Policies {
		o.Policies = append(o.Policies, largePolicy(s, i))
	}
	return o
}

// Large returns the cluster of LargeObjects as a snapshot of the model.
func Large(s Size) model.Snapshot {
	o := LargeObjects(s)
	c := model.Snapshot{Node: Node, Namespaces: map[string]labels.Set{}}
	for _, ns := range o.Namespaces {
		c.Namespaces[ns.Name] = ns.Labels
	}
	for _, p := range o.Pods {
		c.Pods = append(c.Pods, must(model.PodOf(p)))
	}
	for _, p := range o.Policies {
		c.Policies = append(c.Policies, must(model.PolicyOf(p)))
	}
	return c
}

// LargePod returns a pod of a large cluster.
func LargePod(s Size, i int) *model.Pod { return must(model.PodOf(LargePodObject(s, i))) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the objects are constants of this package
	}
	return v
}

func namespace(i int) string { return fmt.Sprintf("namespace-%d", i) }

func uid(kind string, i int) types.UID { return types.UID(fmt.Sprintf("%s-%d", kind, i)) }

// LargePodObject returns a pod of a large cluster.
func LargePodObject(s Size, i int) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(i % s.Namespaces), Name: fmt.Sprintf("pod-%d", i), UID: uid("pod", i)}}
	p.Labels = labels.Set{"app": fmt.Sprintf("app-%d", i/s.Namespaces%5), "pod-template-hash": fmt.Sprintf("%08x", i%s.Namespaces), "version": "1"}
	host := "192.0.2.1"
	p.Spec.NodeName = "elsewhere"
	if i < s.Local {
		p.Spec.NodeName, host = Node, NodeIP
	}
	p.Spec.Containers = []corev1.Container{{Name: "main", Ports: []corev1.ContainerPort{{Name: "http", Protocol: corev1.ProtocolTCP, ContainerPort: 8080}}}}
	ip := fmt.Sprintf("10.%d.%d.%d", 64+(i>>16), i>>8&255, i&255)
	p.Status = corev1.PodStatus{Phase: corev1.PodRunning, HostIP: host, HostIPs: []corev1.HostIP{{IP: host}}, PodIP: ip, PodIPs: []corev1.PodIP{{IP: ip}}}
	return p
}

// largePolicy returns policy i. The first policy of each namespace isolates ingress, the second
// also egress, and so on.
func largePolicy(s Size, i int) *networkingv1.NetworkPolicy {
	n, nth := i%s.Namespaces, i/s.Namespaces
	by := func(key, format string, n int) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{key: fmt.Sprintf(format, n)}}
	}
	ports := func(protocol corev1.Protocol, ports ...intstr.IntOrString) (all []networkingv1.NetworkPolicyPort) {
		for _, p := range ports {
			all = append(all, networkingv1.NetworkPolicyPort{Protocol: &protocol, Port: &p})
		}
		return all
	}
	own := networkingv1.NetworkPolicyPeer{PodSelector: by("app", "app-%d", nth%5)}
	team := networkingv1.NetworkPolicyPeer{NamespaceSelector: by("team", "team-%d", n%20)}
	block := networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/8", Except: []string{fmt.Sprintf("10.1.%d.0/24", n&255)}}}
	p := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(n), Name: fmt.Sprintf("policy-%d", nth), UID: uid("policy", i)}}
	p.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	p.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{
		{From: []networkingv1.NetworkPolicyPeer{own}},
		{From: []networkingv1.NetworkPolicyPeer{team, block}, Ports: ports(corev1.ProtocolTCP, intstr.FromInt32(80), intstr.FromInt32(443), intstr.FromString("http"))},
	}
	if nth%2 == 1 {
		p.Spec.PolicyTypes = append(p.Spec.PolicyTypes, networkingv1.PolicyTypeEgress)
		p.Spec.Egress = []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{own, team}, Ports: ports(corev1.ProtocolUDP, intstr.FromInt32(53))}}
	}
	return p
}
