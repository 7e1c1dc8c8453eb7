package policy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/policy/enginetest"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// node is a host, pods with network stacks of their own on its bridge, and an engine.
type node struct {
	host   string
	pods   map[string]string // path of the network namespace, by pod
	addrs  map[string]netip.Addr
	engine *Engine
	log    *lines
	reg    *prometheus.Registry
	stop   func()
}

// lines is a log that tests can search.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var gateway = netip.MustParseAddr("10.40.0.1")

// service is an address that the host translates to an address of pod b.
const service = "10.96.0.1"

func newNode(t *testing.T, pods ...string) *node {
	t.Helper()
	n := &node{host: nstest.New(t, "node"), pods: make(map[string]string), addrs: make(map[string]netip.Addr), log: &lines{}}
	do(t, n.host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = netdev.BridgeName
		br := &netlink.Bridge{LinkAttrs: attrs}
		if err := netlink.LinkAdd(br); err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(gateway.String() + "/16")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(br, addr), netlink.LinkSetUp(br),
			os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644))
	})
	for i, name := range pods {
		n.pods[name] = nstest.New(t, name)
		n.addrs[name] = netip.AddrFrom4([4]byte{10, 40, 0, byte(i + 2)})
		nstest.Veth(t, 1500, n.pods[name], "eth0", netip.PrefixFrom(n.addrs[name], 16), n.host, "veth"+name, netip.MustParsePrefix("169.254.0.1/32"))
		do(t, n.host, func() error {
			l, err := netlink.LinkByName("veth" + name)
			if err != nil {
				return err
			}
			br, err := netlink.LinkByName(netdev.BridgeName)
			if err != nil {
				return err
			}
			return netlink.LinkSetMaster(l, br)
		})
		do(t, n.pods[name], func() error {
			return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
		})
	}
	n.start(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the engine's log:\n%s", n.log)
		}
	})
	return n
}

// start runs an engine. It ends with the test, unless the test stops it earlier.
func (n *node) start(t *testing.T) {
	t.Helper()
	n.reg = prometheus.NewRegistry()
	do(t, n.host, func() (err error) {
		n.engine, err = New(Config{Node: "node", Log: slog.New(slog.NewTextHandler(n.log, nil)), Metrics: n.reg})
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	e, ended := n.engine, make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-ended, e.Close()); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { n.stop() })
}

// reportAll reports all pods to the engine. The label app is the name of the pod.
func (n *node) reportAll() {
	n.engine.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	for name, a := range n.addrs {
		n.engine.SetPod(&corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": name}},
			Spec:       corev1.PodSpec{NodeName: "node"},
			Status:     corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: a.String()}}},
		})
	}
	n.engine.Synced()
}

// allow returns a policy by which only some pods reach pod to, at one port.
func allow(to string, port int32, from ...string) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "only-" + to}}
	np.Spec.PodSelector.MatchLabels = map[string]string{"app": to}
	for _, name := range from {
		p := intstr.FromInt32(port)
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{
			From:  []networkingv1.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}}},
			Ports: []networkingv1.NetworkPolicyPort{{Port: &p}},
		})
	}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	return np
}

// How long a test waits for an event that must happen, on a busy machine, and for one that must
// not.
const (
	timeout = 30 * time.Second
	silence = 700 * time.Millisecond
)

// await waits until a condition is true.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(timeout, 20*time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: not within %s", what, timeout)
	}
}

// awaitEnforced waits until the kernel has everything that was reported to the engine.
func (n *node) awaitEnforced(t *testing.T) {
	t.Helper()
	await(t, "the rules are in the kernel", func() bool {
		n.engine.mu.Lock()
		reported := len(n.engine.pending.pods)+len(n.engine.pending.policies)+len(n.engine.pending.cluster)+len(n.engine.pending.namespaces) == 0
		n.engine.mu.Unlock()
		var same bool
		err := n.engine.ask(t.Context(), func(c *rules.Compiler) {
			diff, err := n.engine.kernel.differs(c.Rules(), hooksFor(c))
			same = diff == "" && err == nil
		})
		return err == nil && reported && same
	})
}

// echo serves TCP on a pod's port and sends back all bytes.
func (n *node) echo(t *testing.T, pod string, port int) {
	t.Helper()
	var l net.Listener
	do(t, n.pods[pod], func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); c.Close() }()
		}
	}()
}

// dial connects from a pod or from the host.
func (n *node) dial(t *testing.T, from, to string) (c net.Conn, err error) {
	t.Helper()
	ns, ok := n.pods[from]
	if !ok {
		ns = n.host
	}
	_ = netdev.Do(ns, func() error {
		c, err = net.DialTimeout("tcp4", to, silence)
		return nil
	})
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (n *node) addrPort(pod string, port int) string {
	return netip.AddrPortFrom(n.addrs[pod], uint16(port)).String()
}

// echoes reports whether a connection carries bytes to the echo server and back within a time.
func echoes(c net.Conn, within time.Duration) bool {
	_ = c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte("x")); err != nil {
		return false
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err == nil
}

// translate makes the host translate service to an address and port of a pod.
func (n *node) translate(t *testing.T, pod string, port uint16) {
	t.Helper()
	do(t, n.host, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "services", Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{Name: "services", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		x := exprs{}.within(rules.IPv4, daddr, netip.MustParsePrefix(service+"/32")).protocol(unix.IPPROTO_TCP)
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(x,
			&expr.Immediate{Register: 1, Data: n.addrs[pod].AsSlice()},
			&expr.Immediate{Register: 2, Data: be16(port)},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1, RegProtoMin: 2})})
		return c.Flush()
	})
}

// mustReach retries for a while: a new port of a bridge does not forward at once.
func (n *node) mustReach(t *testing.T, from, to string) (c net.Conn) {
	t.Helper()
	await(t, from+" reaches "+to, func() bool {
		var err error
		c, err = n.dial(t, from, to)
		return err == nil && echoes(c, silence)
	})
	return c
}

func (n *node) mustNotReach(t *testing.T, from, to string) {
	t.Helper()
	if _, err := n.dial(t, from, to); err == nil {
		t.Fatalf("%s reached %s, want it denied", from, to)
	}
}

// TestEngineEnforces checks on one node that policies filter bridged and translated connections
// but not probes of the host, that denied flows are logged, and that exactly those live
// connections are cut that are no longer allowed.
func TestEngineEnforces(t *testing.T) {
	n := newNode(t, "a", "b", "c")
	n.echo(t, "b", 8080)
	n.echo(t, "b", 9090)
	n.translate(t, "b", 8080)
	n.reportAll()
	n.awaitEnforced(t)
	b, svc := n.addrPort("b", 8080), service+":80"
	byA, byC := n.mustReach(t, "a", b), n.mustReach(t, "c", b)
	svcA, svcC := n.mustReach(t, "a", svc), n.mustReach(t, "c", svc)

	n.engine.SetPolicy(allow("b", 8080, "a"))
	n.awaitEnforced(t)
	n.mustReach(t, "a", b)
	n.mustReach(t, "a", svc)
	n.mustNotReach(t, "a", n.addrPort("b", 9090))
	n.mustNotReach(t, "c", b)
	n.mustNotReach(t, "c", svc)
	n.mustReach(t, "host", n.addrPort("b", 9090)) // as a probe of the kubelet does
	await(t, "the connections of c are cut", func() bool {
		return strings.Count(n.log.String(), "connection cut") >= 2
	})
	if !echoes(byA, timeout) || !echoes(svcA, timeout) {
		t.Error("an allowed connection was cut")
	}
	if echoes(byC, silence) || echoes(svcC, silence) {
		t.Error("a denied connection was not cut")
	}
	await(t, "a line about the denied flow", func() bool {
		log := n.log.String()
		return strings.Contains(log, "direction=ingress") && strings.Contains(log, "srcPod=default/c") &&
			strings.Contains(log, "dst="+b+" dstPod=default/b protocol=tcp isolatedBy=[default/only-b]")
	})
	if got := n.counter(t, "weft_npc_blocked_connections_total", "9090"); got != 1 {
		t.Errorf("%v flows to port 9090 counted as denied, want 1", got)
	}

	n.engine.DeletePolicy("default", "only-b")
	n.awaitEnforced(t)
	n.mustReach(t, "c", svc)
}

// A cluster policy takes effect before those of namespaces, is named in the log, and has no effect
// after it is deleted.
func TestEngineEnforcesClusterPolicies(t *testing.T) {
	n := newNode(t, "a", "b")
	n.echo(t, "b", 8080)
	n.reportAll()
	n.engine.SetPolicy(allow("b", 8080, "a"))
	n.awaitEnforced(t)
	live := n.mustReach(t, "a", n.addrPort("b", 8080))

	n.engine.SetClusterPolicy(&v1alpha2.ClusterNetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "guard"},
		Spec: v1alpha2.ClusterNetworkPolicySpec{
			Tier: v1alpha2.AdminTier, Subject: v1alpha2.ClusterNetworkPolicySubject{Namespaces: &metav1.LabelSelector{}},
			Ingress: []v1alpha2.ClusterNetworkPolicyIngressRule{{
				Action: v1alpha2.ClusterNetworkPolicyRuleActionDeny,
				From:   []v1alpha2.ClusterNetworkPolicyIngressPeer{{Namespaces: &metav1.LabelSelector{}}},
			}},
		},
	})
	n.awaitEnforced(t)
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	n.mustReach(t, "host", n.addrPort("b", 8080)) // as a probe of the kubelet does
	await(t, "the connection is cut", func() bool { return strings.Contains(n.log.String(), "connection cut") })
	if echoes(live, silence) {
		t.Error("a denied connection was not cut")
	}
	await(t, "a line about the denied flow", func() bool {
		return strings.Contains(n.log.String(), "dst="+n.addrPort("b", 8080)+" dstPod=default/b protocol=tcp isolatedBy=[guard]")
	})

	n.engine.DeleteClusterPolicy("guard")
	n.awaitEnforced(t)
	n.mustReach(t, "a", n.addrPort("b", 8080))
}

// counter returns the value of a counter for a label value.
func (n *node) counter(t *testing.T, name, label string) float64 {
	t.Helper()
	families, err := n.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if f.GetName() == name && l.GetValue() == label {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// TestEgressToHost checks that policies filter packets from a pod to its own host.
func TestEgressToHost(t *testing.T) {
	n := newNode(t, "a")
	var l net.Listener
	do(t, n.host, func() (err error) { l, err = net.Listen("tcp4", "10.40.0.1:8080"); return err })
	defer l.Close()
	n.reportAll()
	n.awaitEnforced(t)
	await(t, "a reaches the host", func() bool {
		_, err := n.dial(t, "a", "10.40.0.1:8080")
		return err == nil
	})
	np := allow("a", 1)
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	n.engine.SetPolicy(np)
	n.awaitEnforced(t)
	n.mustNotReach(t, "a", "10.40.0.1:8080")
}

// newIsolated makes a node with pods a and b, where b serves port 8080 and a policy denies
// everyone that port.
func newIsolated(t *testing.T) *node {
	t.Helper()
	n := newNode(t, "a", "b")
	n.echo(t, "b", 8080)
	n.reportAll()
	n.engine.SetPolicy(allow("b", 8080))
	n.awaitEnforced(t)
	return n
}

// TestRulesStayAfterEngineStops checks that rules stay when the engine ends, that the next engine
// does not touch them until it knows the cluster, and that it then changes nothing.
func TestRulesStayAfterEngineStops(t *testing.T) {
	n := newIsolated(t)
	n.stop()
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	before := n.generation(t)
	n.start(t)
	n.engine.SetNamespace(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	if err := n.engine.ask(t.Context(), func(*rules.Compiler) {}); err != nil {
		t.Fatal(err)
	}
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	n.engine.SetPolicy(allow("b", 8080))
	n.reportAll()
	n.awaitEnforced(t)
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	if after := n.generation(t); after != before {
		t.Errorf("the new engine made %d transactions, want none", after-before)
	}
	n.engine.SetPolicy(allow("b", 8080, "a"))
	n.awaitEnforced(t)
	n.mustReach(t, "a", n.addrPort("b", 8080))
}

func (n *node) generation(t *testing.T) uint32 {
	t.Helper()
	g, err := generationAt(n.host)
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// TestRemove checks that Remove deletes all chains and sets of policies.
func TestRemove(t *testing.T) {
	n := newIsolated(t)
	n.stop()
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	for range 2 {
		do(t, n.host, Remove)
	}
	n.mustReach(t, "a", n.addrPort("b", 8080))
	do(t, n.host, func() error {
		chains, err := (&nftables.Conn{}).ListChains()
		if err == nil && len(chains) > 0 {
			err = fmt.Errorf("%d chains are left, as %s", len(chains), chains[0].Name)
		}
		return err
	})
}

// TestRemovedRulesAreRestored checks that rules which another program removes are restored within
// 10 s on an idle machine: the table, the rules of a chain, an element.
func TestRemovedRulesAreRestored(t *testing.T) {
	n := newIsolated(t)
	for what, remove := range map[string]func(*nftables.Conn){
		"the ruleset": func(c *nftables.Conn) { c.FlushRuleset() },
		"a chain's rules": func(c *nftables.Conn) {
			c.FlushChain(&nftables.Chain{Name: "policy-ingress", Table: inetTable})
		},
		"an element": func(c *nftables.Conn) {
			c.FlushSet(&nftables.Set{Name: rules.IPv4.Name(rules.IngressMap), Table: inetTable})
		},
		"the bridge's table": func(c *nftables.Conn) { c.DelTable(bridgeTable) },
	} {
		do(t, n.host, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			remove(c)
			return c.Flush()
		})
		await(t, what+" is there again", func() bool {
			var diff string
			err := n.engine.ask(t.Context(), func(c *rules.Compiler) {
				diff, _ = n.engine.kernel.differs(c.Rules(), hooked)
			})
			return err == nil && diff == ""
		})
		n.mustNotReach(t, "a", n.addrPort("b", 8080))
	}
}

// TestPoliciesApplyToGroups checks that multicast and broadcast packets reach isolated pods only
// from senders that their policies allow, and other pods from everyone.
func TestPoliciesApplyToGroups(t *testing.T) {
	n := newNode(t, "a", "b", "c", "d")
	for _, pod := range []string{"b", "d"} {
		n.echo(t, pod, 8080)
		n.mustReach(t, "a", n.addrPort(pod, 8080))
		n.mustReach(t, "c", n.addrPort(pod, 8080))
	}
	n.reportAll()
	n.engine.SetPolicy(udp(allow("b", 7000, "c")))
	n.awaitEnforced(t)
	for _, to := range []string{"239.1.2.3:7000", "10.40.255.255:7000"} {
		b, d := n.listenUDP(t, "b", to), n.listenUDP(t, "d", to)
		n.sendUDP(t, "a", to, "from a")
		n.sendUDP(t, "c", to, "from c")
		if got := firstMessage(t, b); got != "from c" {
			t.Errorf("%s: b receives %q, want what c sent", to, got)
		}
		if got := firstMessage(t, d); got != "from a" {
			t.Errorf("%s: d receives %q, want what a sent", to, got)
		}
		b.Close()
		d.Close()
	}
	np := udp(allow("c", 1))
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	n.engine.SetPolicy(np)
	n.awaitEnforced(t)
	l := n.listenUDP(t, "a", "239.1.2.4:7000")
	n.sendUDP(t, "c", "239.1.2.4:7000", "from c")
	n.sendUDP(t, "b", "239.1.2.4:7000", "from b")
	if got := firstMessage(t, l); got != "from b" {
		t.Errorf("a receives %q from b and c; c may send nothing", got)
	}
}

func udp(np *networkingv1.NetworkPolicy) *networkingv1.NetworkPolicy {
	proto := corev1.ProtocolUDP
	for _, in := range np.Spec.Ingress {
		for i := range in.Ports {
			in.Ports[i].Protocol = &proto
		}
	}
	return np
}

// listenUDP receives, in a pod, packets to a multicast group or to the broadcast address.
func (n *node) listenUDP(t *testing.T, pod, to string) (c *net.UDPConn) {
	t.Helper()
	do(t, n.pods[pod], func() error {
		addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(to))
		if addr.IP.IsMulticast() {
			eth0, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			c, err = net.ListenMulticastUDP("udp4", eth0, addr)
			return err
		}
		var err error
		c, err = net.ListenUDP("udp4", addr)
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

func (n *node) sendUDP(t *testing.T, pod, to, words string) {
	t.Helper()
	do(t, n.pods[pod], func() error {
		c, err := net.ListenUDP("udp4", nil) // this socket may send broadcasts
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.WriteToUDPAddrPort([]byte(words), netip.MustParseAddrPort(to))
		if errors.Is(err, unix.EPERM) {
			return nil // a denied packet fails at once
		}
		return err
	})
}

// firstMessage returns the first message that arrives.
func firstMessage(t *testing.T, c *net.UDPConn) string {
	t.Helper()
	b := make([]byte, 100)
	_ = c.SetReadDeadline(time.Now().Add(timeout))
	k, err := c.Read(b)
	if err != nil {
		t.Error(err)
	}
	return string(b[:k])
}

// TestPolicyAPI asks a running engine through the API that `weft policy` uses.
func TestPolicyAPI(t *testing.T) {
	n := newNode(t, "a", "b")
	n.reportAll()
	n.engine.SetPolicy(allow("b", 8080, "a"))
	n.awaitEnforced(t)
	socket := filepath.Join(t.TempDir(), "policy.sock")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- n.engine.Serve(ctx, socket) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	client := api.NewClient(socket)
	await(t, "the socket", func() bool { _, err := os.Stat(socket); return err == nil })
	for _, c := range []struct{ src, dst, port, want string }{
		{"a", "default/b", "8080", "allowed: tcp from 10.40.0.2 to 10.40.0.3:8080; egress of default/a: allowed, no policy isolates the pod; ingress of default/b: allowed by default/only-b"},
		{"a", "b", "udp/8080", "denied: udp from 10.40.0.2 to 10.40.0.3:8080; egress of default/a: allowed, no policy isolates the pod; ingress of default/b: denied, isolated by default/only-b"},
		{"192.0.2.1", "b", "icmp", "denied: icmp from 192.0.2.1 to 10.40.0.3; egress: no policy applies, the address belongs to no pod; ingress of default/b: denied, isolated by default/only-b"},
		{"b", "b", "1", "allowed: tcp from 10.40.0.3 to 10.40.0.3:1; a pod may always connect to itself"},
	} {
		reply, err := client.TracePolicy(ctx, api.PolicyTraceRequest{Source: c.src, Destination: c.dst, Port: c.port})
		for i := range reply.Lines {
			reply.Lines[i] = strings.TrimSpace(reply.Lines[i])
		}
		if got := strings.Join(reply.Lines, "; "); err != nil || got != c.want || reply.Allowed != strings.HasPrefix(c.want, "allowed") {
			t.Errorf("trace %s %s %s: %v\n%s\nwant\n%s", c.src, c.dst, c.port, err, got, c.want)
		}
	}
	for port, want := range map[string]string{"gre/1": "want tcp, udp or sctp", "0": "want a number", "http": "name of a port", "70000": "want a number"} {
		_, err := client.TracePolicy(ctx, api.PolicyTraceRequest{Source: "a", Destination: "b", Port: port})
		if err == nil || !strings.Contains(err.Error(), want) || api.ClassOf(err) != api.Usage {
			t.Errorf("trace to port %s: %v", port, err)
		}
	}
	if _, err := client.TracePolicy(ctx, api.PolicyTraceRequest{Source: "x/y", Destination: "b", Port: "1"}); err == nil || !strings.Contains(err.Error(), "look up pod x/y") {
		t.Errorf("trace from an unknown pod: %v", err)
	}
	reply, err := client.ShowPolicy(ctx, api.PolicyShowRequest{Pod: "b"})
	if err != nil || len(reply.Lines) != 5 || reply.Lines[3] != "    from pods with app=a in namespace default at tcp 8080" {
		t.Errorf("show: %v %q", err, reply.Lines)
	}
}

// TestEngineWithoutSysAdmin runs an engine without CAP_SYS_ADMIN, as on Kubernetes: it cannot
// enter other namespaces, and enforces and logs denials in its own.
func TestEngineWithoutSysAdmin(t *testing.T) {
	if !nstest.WithoutSysAdmin(t) {
		return
	}
	w := enginetest.WireInThread(t, 1)
	from, to := w.Ends[0], w.Ends[1]
	n := &node{host: "/proc/self/ns/net", log: &lines{}, addrs: map[string]netip.Addr{
		"a": netip.MustParseAddr("10.40.0.2"), "b": netip.MustParseAddr("10.40.0.3"),
	}}
	n.start(t)
	n.reportAll()
	n.engine.SetPolicy(allow("b", 8080, "a"))
	n.awaitEnforced(t)
	p := enginetest.Probe{Flow: model.Flow{Src: n.addrs["a"], Dst: n.addrs["b"], Protocol: model.TCP, Port: 9090}, Sport: 20000, ID: 1}
	// The first packets are sent before the bridge forwards, or before the engine listens.
	await(t, "a line about the denied flow", func() bool {
		if err := unix.Send(from.FD, p.Frame(from.MAC, to.MAC), 0); err != nil {
			t.Fatal(err)
		}
		return strings.Contains(n.log.String(), "dstPod=default/b")
	})
	n.stop()
	for line := range strings.Lines(n.log.String()) {
		if !strings.Contains(line, "level=INFO") && !strings.Contains(line, "flow denied") {
			t.Error(line)
		}
	}
}

// TestHostSysctlOpensNothing sets the sysctls by which other software shows or hides the frames of
// all bridges. Policies do not depend on them, not even for a moment.
func TestHostSysctlOpensNothing(t *testing.T) {
	n := newIsolated(t)
	do(t, n.host, func() error {
		for _, key := range []string{"iptables", "ip6tables"} {
			if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-"+key, []byte("0"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	n.mustNotReach(t, "a", n.addrPort("b", 8080))
	do(t, n.host, func() error {
		got, err := os.ReadFile("/proc/sys/net/bridge/bridge-nf-call-iptables")
		if string(got) != "0\n" {
			t.Errorf("the sysctl of the host is %q", got)
		}
		return err
	})
}
