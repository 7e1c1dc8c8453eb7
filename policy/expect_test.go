package policy

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// pod returns a pod of the node as the API server reports it, with or without addresses.
func pod(name string, uid types.UID, addrs ...netip.Addr) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: uid, Labels: map[string]string{"app": name}},
		Spec:       corev1.PodSpec{NodeName: "node"},
	}
	for _, a := range addrs {
		p.Status.PodIPs = append(p.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return p
}

func (n *node) expects(t *testing.T, name, uid string) error {
	t.Helper()
	return n.engine.ExpectPod(t.Context(), api.PolicyPodRequest{Pod: "default/" + name, UID: uid, Addresses: []netip.Addr{n.addrs[name]}})
}

// A pod is isolated before it runs, although the API server reports its address later. The section
// "Pod lifecycle" of the NetworkPolicy documentation requires that.
func TestExpectPodIsolatesBeforeStatus(t *testing.T) {
	n := newNode(t, "a", "b")
	n.echo(t, "b", 8080)
	n.engine.SetPolicy(allow("b", 8080))
	n.engine.SetPod(pod("b", "1"))
	if err := n.engine.Enforced(); err == nil {
		t.Error("policies are enforced before Synced")
	}
	early := make(chan error, 1)
	go func() { early <- n.expects(t, "b", "1") }()
	n.reportAllExcept("b")
	if err := <-early; err != nil {
		t.Fatal(err)
	}
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	if err := n.engine.Enforced(); err != nil {
		t.Error(err)
	}

	// These are old states of the pod: without an address, or with one of an earlier pod.
	n.engine.SetPod(pod("b", "1", netip.MustParseAddr("10.40.7.7")))
	n.awaitEnforced(t)
	n.mustNotReach(t, "a", n.addrPort("b", 8080))

	// The end of an earlier pod has no effect; the end of this pod has.
	forget := func(addr netip.Addr) {
		t.Helper()
		if err := n.engine.ForgetPod(t.Context(), api.PolicyPodRequest{Pod: "default/b", Addresses: []netip.Addr{addr}}); err != nil {
			t.Fatal(err)
		}
		n.awaitEnforced(t)
	}
	forget(netip.MustParseAddr("10.40.7.7"))
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	n.engine.DeletePod("default", "b") // deleted by force: it keeps running
	n.awaitEnforced(t)
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	forget(n.addrs["b"])
	n.mustReach(t, "a", n.addrPort("b", 8080))
}

// reportAllExcept reports the namespace and all pods but one to the engine, and then that this is
// the whole cluster.
func (n *node) reportAllExcept(but string) {
	n.engine.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	for name, a := range n.addrs {
		if name != but {
			n.engine.SetPod(pod(name, "", a))
		}
	}
	n.engine.Synced()
}

// An expectation does not match pods that had the same name or address before.
func TestExpectationFollowsUID(t *testing.T) {
	n := newNode(t, "a", "b")
	n.echo(t, "b", 8080)
	n.engine.SetPolicy(allow("b", 8080))
	n.reportAllExcept("b")
	n.engine.SetPod(pod("b", "old"))
	n.awaitEnforced(t)
	early := make(chan error, 1)
	go func() { early <- n.expects(t, "b", "new") }()
	n.engine.DeletePod("default", "b")
	n.engine.SetPod(pod("b", "new"))
	if err := <-early; err != nil {
		t.Fatal(err)
	}
	n.mustNotReach(t, "a", n.addrPort("b", 8080))

	// The API server still reports a newer pod with the address that it had before.
	young := pod("c", "c", n.addrs["b"])
	young.CreationTimestamp = metav1.Now()
	n.engine.SetPod(young)
	n.awaitEnforced(t)
	n.mustNotReach(t, "a", n.addrPort("b", 8080))

	// The sandbox could not be created, the plugin did not withdraw the expectation, and another
	// pod got the address.
	n.engine.SetPod(pod("c", "c"))
	if err := n.engine.ExpectPod(t.Context(), api.PolicyPodRequest{Pod: "default/c", Addresses: []netip.Addr{n.addrs["b"]}}); err != nil {
		t.Fatal(err)
	}
	n.mustReach(t, "a", n.addrPort("b", 8080))
}

// A kubelet without an API server runs pods that nobody knows. They may start, but not while
// policies are not enforced.
func TestExpectUnknownPod(t *testing.T) {
	n := newNode(t, "a", "b")
	if err := n.expects(t, "b", ""); api.ClassOf(err) != api.Unavailable {
		t.Errorf("ExpectPod before Synced: %v", err)
	}
	n.reportAllExcept("b")
	n.awaitEnforced(t)
	if err := n.expects(t, "b", "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"); api.ClassOf(err) != api.Unavailable {
		t.Errorf("ExpectPod for a pod that the API server does not report yet: %v", err)
	}
	start := time.Now()
	if err := n.expects(t, "b", ""); err != nil || time.Since(start) < expectTimeout {
		t.Errorf("ExpectPod for a static pod: %v after %s", err, time.Since(start))
	}
	if err := n.engine.ExpectPod(t.Context(), api.PolicyPodRequest{Pod: "b"}); api.ClassOf(err) != api.Usage {
		t.Errorf("ExpectPod without a namespace: %v", err)
	}
}

// Once the plugin reports the pod's interface, policies filter multicast packets by the pod's port
// of the bridge.
func TestExpectPodIsolatesItsPort(t *testing.T) {
	n := newNode(t, "a", "b", "c")
	n.echo(t, "b", 8080)
	n.engine.SetPolicy(udp(allow("b", 7000, "c")))
	n.reportAllExcept("b")
	n.engine.SetPod(pod("b", "1"))
	plug := func(bridge string) {
		t.Helper()
		do(t, n.host, func() error {
			port, err := netlink.LinkByName("vethb")
			if err != nil || bridge == "" {
				return errors.Join(err, netlink.LinkSetNoMaster(port))
			}
			br, err := netlink.LinkByName(bridge)
			return errors.Join(err, netlink.LinkSetMaster(port, br))
		})
	}
	plug("")
	if err := n.expects(t, "b", "1"); err != nil {
		t.Fatal(err)
	}
	plug(netdev.BridgeName)
	if err := n.expects(t, "b", "1"); err != nil {
		t.Fatal(err)
	}
	b := n.listenUDP(t, "b", "239.1.2.3:7000")
	n.mustReach(t, "host", n.addrPort("b", 8080)) // its port forwards from now on
	n.sendUDP(t, "a", "239.1.2.3:7000", "from a")
	n.sendUDP(t, "c", "239.1.2.3:7000", "from c")
	if got := firstMessage(t, b); got != "from c" {
		t.Errorf("b receives %q, want what c sent", got)
	}
}
