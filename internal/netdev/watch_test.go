package netdev_test

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

func newWatch(t *testing.T, ns string) (w *netdev.Watch) {
	t.Helper()
	do(t, ns, func() (err error) { w, err = netdev.NewWatch(); return err })
	t.Cleanup(w.Close)
	return w
}

func TestWatchSeesContainersAndRoutes(t *testing.T) {
	host, far := nstest.New(t, "host"), nstest.New(t, "far")
	nstest.Veth(t, 1500, host, "up", pfx("192.0.2.1/24"), far, "up", pfx("192.0.2.2/24"))
	bridge(t, host)
	w := newWatch(t, host)
	changes := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- w.Run(ctx, func() {
			select {
			case changes <- struct{}{}:
			default:
			}
		})
	}()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	// await waits for what a change brings about; the first may come before Run
	// watches.
	await := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.After(timeout); !ok(); {
			select {
			case <-changes:
			case <-time.After(100 * time.Millisecond):
			case <-deadline:
				t.Fatalf("%s: not seen", what)
			}
		}
	}
	ports := func() int {
		p, err := w.Containers("weft", "vethwe-bridge")
		if err != nil {
			t.Fatal(err)
		}
		return len(p)
	}
	if ports() != 0 {
		t.Error("a container before there is one")
	}
	c := nstest.New(t, "c")
	attach(t, host, netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.1/12")}})
	await("the container", func() bool { return ports() == 1 })

	hop := func(to string) netdev.Hop {
		h, err := w.Hop(netip.MustParseAddr(to), netip.Addr{})
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	if h := hop("192.0.2.2"); h.Local.String() != "192.0.2.1" || h.Gateway.String() != "192.0.2.2" || h.Ifindex == 0 {
		t.Errorf("the way to a neighbour: %+v", h)
	}
	if _, err := w.Hop(netip.MustParseAddr("198.51.100.1"), netip.Addr{}); err == nil {
		t.Error("a way to nowhere")
	}
	do(t, host, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: nil, Gw: netip.MustParseAddr("192.0.2.2").AsSlice()})
	})
	await("the route", func() bool {
		h, err := w.Hop(netip.MustParseAddr("198.51.100.1"), netip.Addr{})
		return err == nil && h.Gateway.String() == "192.0.2.2"
	})
	do(t, host, func() error { return netdev.DeleteBridge("weft") })
	await("the end", func() bool { return ports() == 0 })
}

// A container is limited while somebody has a queueing discipline at the host's end of its veth, or
// from the beginning if that is to come. What the kernel puts there, and clsact, hold nothing back.
func TestWatchSeesLimits(t *testing.T) {
	host := nstest.New(t, "host")
	bridge(t, host)
	w := newWatch(t, host)
	var port netlink.Link
	shaped := func() bool {
		t.Helper()
		ports, err := w.Containers("weft")
		if err != nil || len(ports) != 1 {
			t.Fatalf("ports %v, %v", ports, err)
		}
		do(t, host, func() (err error) { port, err = netlink.LinkByIndex(ports[0].Ifindex); return err })
		return ports[0].RateLimited
	}
	a := netdev.Attachment{NS: nstest.New(t, "c"), Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.1/12")}}
	attach(t, host, a)
	if shaped() {
		t.Error("limited by nobody")
	}
	for _, c := range []struct {
		q    netlink.Qdisc
		want bool
	}{
		{&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}, false},
		{&netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}, true},
		{&netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}, Rate: 1e6, Limit: 1e6, Buffer: 1e6}, true},
	} {
		c.q.Attrs().LinkIndex = port.Attrs().Index
		do(t, host, func() error { return netlink.QdiscAdd(c.q) })
		if got := shaped(); got != c.want {
			t.Errorf("with %s: limited %v, want %v", c.q.Type(), got, c.want)
		}
		do(t, host, func() error { return netlink.QdiscDel(c.q) })
		if shaped() {
			t.Errorf("%s is gone: still limited", c.q.Type())
		}
	}
	none := &netlink.GenericQdisc{QdiscType: "noqueue", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	}}
	do(t, host, func() error { return netlink.QdiscReplace(none) })
	if shaped() {
		t.Error("limited by what is no queue")
	}
	do(t, host, func() error { return netlink.QdiscDel(none) })
	a.RateLimited = true
	attach(t, host, a) // again, as by a runtime that was killed
	if !shaped() {
		t.Error("an attachment with a limit is not marked")
	}
	do(t, host, func() error { return netlink.LinkDel(port) })
	attach(t, host, a)
	if !shaped() {
		t.Error("a new attachment with a limit is not marked")
	}
}

// A veth of several queues is limited when one of them is. The queues that the kernel gives them by
// itself, of whatever kind net.core.default_qdisc says, are not there for that.
func TestWatchSeesLimitsOfQueues(t *testing.T) {
	host := nstest.New(t, "host")
	bridge(t, host)
	w := newWatch(t, host)
	var port netlink.Link
	do(t, host, func() error {
		br, err := netlink.LinkByName("weft")
		if err != nil {
			return err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues, attrs.MasterIndex, attrs.Flags = "vethwequeues", 4, 4, br.Attrs().Index, net.FlagUp
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.NumTxQueues, veth.NumRxQueues = "peer", 4, 4
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		port, err = netlink.LinkByName(attrs.Name)
		return err
	})
	mq := &netlink.GenericQdisc{QdiscType: "mq", QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	}}
	one := &netlink.Tbf{Rate: 1e6, Limit: 1e6, Buffer: 1e6, QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: port.Attrs().Index, Handle: netlink.MakeHandle(2, 0), Parent: netlink.MakeHandle(1, 2),
	}}
	for _, c := range []struct {
		what   string
		change func() error
		want   bool
	}{
		{"the kernel's own", func() error { return nil }, false},
		{"a queue each", func() error { return netlink.QdiscAdd(mq) }, false},
		{"one of them limited", func() error { return netlink.QdiscReplace(one) }, true},
		{"none limited any more", func() error { return netlink.QdiscDel(one) }, false},
	} {
		do(t, host, c.change)
		ports, err := w.Containers("weft")
		if err != nil || len(ports) != 1 || ports[0].RateLimited != c.want {
			t.Errorf("%s: %+v, %v; want limited %v", c.what, ports, err, c.want)
		}
	}
}

// A routing daemon may write more routes than the kernel can report.
func TestWatchGoesOnAfterItMissedChanges(t *testing.T) {
	host := nstest.New(t, "host")
	w := newWatch(t, host)
	changes, held := make(chan struct{}), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- w.Run(ctx, func() {
			select {
			case changes <- struct{}{}:
				<-held
			case <-ctx.Done():
			}
		})
	}()
	seen := func(change func(i int) error) {
		t.Helper()
		deadline := time.After(timeout)
		for i := 0; ; i++ {
			do(t, host, func() error { return change(i) })
			select {
			case <-changes:
				return
			case err := <-ended:
				t.Fatalf("the watch ended: %v", err)
			case <-time.After(100 * time.Millisecond):
			case <-deadline:
				t.Fatal("a change was not seen")
			}
		}
	}
	address := func(i int) error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrReplace(lo, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(127, 1, byte(i>>8), byte(i)), Mask: net.CIDRMask(32, 32)}})
	}
	seen(address) // and the watch is held
	do(t, host, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for i := range 1000 {
			if err := netlink.LinkSetAlias(lo, strconv.Itoa(i)); err != nil {
				return err
			}
		}
		return nil
	})
	close(held)
	for i := range 3 {
		seen(func(n int) error { return address(1000*(i+1) + n) })
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestFiltered(t *testing.T) {
	host := nstest.New(t, "host")
	w := newWatch(t, host)
	chain := "c"
	table := func(family nftables.TableFamily, name string, hook *nftables.ChainHook, add bool) {
		t.Helper()
		do(t, host, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tb := &nftables.Table{Family: family, Name: name}
			if add {
				c.AddTable(tb)
				c.AddChain(&nftables.Chain{Name: chain, Table: tb, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter})
			} else {
				c.DelTable(tb)
			}
			return c.Flush()
		})
	}
	shown := func(v string) {
		t.Helper()
		do(t, host, func() error { return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(v), 0) })
		do(t, host, func() error { return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-ip6tables", []byte(v), 0) })
	}
	want := func(words string) {
		t.Helper()
		got, err := w.Filtered("weft")
		if err != nil || (got == netdev.Filter{}) != (words == "") || !strings.Contains(got.String(), words) {
			t.Errorf("filtered by %q, want %q; %v", got, words, err)
		}
	}
	shown("1")
	want("")
	chain = "guard-in"
	table(nftables.TableFamilyINet, netdev.TableName, nftables.ChainHookForward, true)
	want("") // weft's own chains see no frames of containers
	chain = netdev.PolicyPrefix + "ingress"
	table(nftables.TableFamilyINet, netdev.TableName, nftables.ChainHookForward, true)
	want("chain policy-ingress of table weft")
	table(nftables.TableFamilyINet, netdev.TableName, nil, false)
	want("")
	table(nftables.TableFamilyINet, "own", nftables.ChainHookInput, true)
	want("") // bridged packets do not come in
	table(nftables.TableFamilyIPv4, "docker", nftables.ChainHookForward, true)
	want("table docker")
	shown("0")
	want("")
	table(nftables.TableFamilyBridge, "wall", nftables.ChainHookForward, true)
	want("table bridge wall")
	table(nftables.TableFamilyBridge, "wall", nil, false)
	want("")
}

func TestPortAddrs(t *testing.T) {
	host, a, b := nstest.New(t, "host"), nstest.New(t, "a"), nstest.New(t, "b")
	bridge(t, host)
	attach(t, host, netdev.Attachment{NS: a, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.1/12"), pfx("fd00::1/64")}})
	attach(t, host, netdev.Attachment{NS: b, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.2/12")}})
	do(t, host, func() error {
		ports, err := netdev.PortAddrs("weft")
		if err != nil {
			return err
		}
		port := func(a string) uint32 { return ports[netip.MustParseAddr(a)] }
		if len(ports) != 3 || port("10.32.0.1") == 0 || port("10.32.0.1") != port("fd00::1") || port("10.32.0.2") == port("10.32.0.1") {
			t.Errorf("ports %v", ports)
		}
		for _, index := range ports {
			if l, err := netlink.LinkByIndex(int(index)); err != nil || !strings.HasPrefix(l.Attrs().Name, netdev.HostPrefix) {
				t.Errorf("port %d: %v %v", index, l, err)
			}
		}
		none, err := netdev.PortAddrs("no-such-bridge")
		if len(none) > 0 {
			t.Errorf("ports of no bridge: %v", none)
		}
		return err
	})
}

// The container of the router on Kubernetes may not enter namespaces.
func TestWatchWithoutSysAdmin(t *testing.T) {
	if !nstest.WithoutSysAdmin(t) {
		return
	}
	if err := netdev.EnsureBridge("weft", mac, 1376, netdev.ProcSys); err != nil {
		t.Fatal(err)
	}
	w, err := netdev.NewWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if f, err := w.Filtered("weft"); f != (netdev.Filter{}) || err != nil {
		t.Errorf("Filtered() = %q, %v in a namespace without rules", f, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	changed, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- w.Run(ctx, func() {
			select {
			case changed <- struct{}{}:
			default:
			}
		})
	}()
	rules := make(chan error, 1)
	go func() { rules <- w.Rules(ctx, func() {}) }()
	defer func() {
		cancel()
		if err := <-rules; err != nil {
			t.Error(err)
		}
	}()
	// The first changes may come before Run watches.
	for i := 0; len(changed) == 0; i++ {
		select {
		case err := <-ended:
			t.Fatalf("Run() = %v", err)
		case <-time.After(100 * time.Millisecond):
		}
		if i == 100 {
			t.Fatal("no change is seen")
		}
		if err := netdev.EnsureBridge("weft", mac, 1376-i%2, netdev.ProcSys); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
