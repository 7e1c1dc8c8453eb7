package netdev_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// timeout is how long a test waits for an expected event on a busy machine.
const timeout = 30 * time.Second

var mac = net.HardwareAddr{2, 0xab, 0xcd, 0, 0, 1}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// do runs f in the namespace and fails the test with its error.
func do(t *testing.T, ns string, f func() error) {
	t.Helper()
	if err := netdev.Do(ns, f); err != nil {
		t.Fatal(err)
	}
}

func bridge(t *testing.T, ns string) {
	t.Helper()
	do(t, ns, func() error { return netdev.EnsureBridge("weft", mac, 1376, netdev.ProcSys) })
}

func attach(t *testing.T, host string, a netdev.Attachment) (added []netip.Prefix) {
	t.Helper()
	do(t, host, func() (err error) { added, err = netdev.Attach(a); return err })
	return added
}

// A container whose runtime has IPv6 off gets its IPv6 address all the same. Its other
// interfaces stay as they are.
func TestAttachWhereIPv6IsOff(t *testing.T) {
	host, c := nstest.New(t, "h"), nstest.New(t, "c")
	bridge(t, host)
	flags := func() (all string) {
		do(t, c, func() error {
			for _, name := range []string{"all", "default", "lo", "ethwe"} {
				b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
				if err != nil {
					return err
				}
				all += strings.TrimSpace(string(b))
			}
			return nil
		})
		return all
	}
	do(t, c, func() error {
		for _, name := range []string{"all", "default"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	attach(t, host, netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.2/24")}})
	if got := flags(); got != "1111" {
		t.Errorf("with an IPv4 address the switches are %s", got)
	}
	attach(t, host, netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("fd00::2/64")}})
	if got := flags(); got != "1110" {
		t.Errorf("with an IPv6 address the switches are %s", got)
	}
}

// Each container takes one of the ports that the kernel allows.
func TestPortsAreCounted(t *testing.T) {
	host := nstest.New(t, "h")
	used := func(want uint64) {
		t.Helper()
		do(t, host, func() error {
			got, err := netdev.Ports("weft")
			if err == nil && (got.Used != want || got.Max != 1023 || got.NearlyFull()) {
				t.Errorf("%+v, want %d ports", got, want)
			}
			return err
		})
	}
	used(0) // there is no bridge
	bridge(t, host)
	used(0)
	for i, name := range []string{"a", "b"} {
		attach(t, host, netdev.Attachment{NS: nstest.New(t, name), Iface: "ethwe", Bridge: "weft", MTU: 1376})
		used(uint64(i + 1))
	}
}

// Docker makes the file of a namespace before it mounts the namespace there.
func TestAddressesWaitForTheNamespace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	for range 2 {
		if err := netdev.AddAddresses(path, mac, nil); !errors.Is(err, netdev.ErrNotReady) {
			t.Errorf("the error is %v", err)
		}
		if err := os.WriteFile(path, nil, 0); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNamedNamespaces(t *testing.T) {
	path := nstest.New(t, "a")
	name := filepath.Base(path)
	names, err := netdev.ListNS()
	if err != nil || !slices.Contains(names, name) {
		t.Fatalf("ListNS() = %v, %v; want %s among them", names, err, name)
	}
	if err := netdev.NewNS(name); !errors.Is(err, os.ErrExist) {
		t.Errorf("making %s again: %v, want ErrExist", name, err)
	}
	if _, err := netdev.IdentifyNS(path); err != nil {
		t.Errorf("the refused second NewNS damaged the first namespace: %v", err)
	}
	own, _ := netdev.IdentifyNS(netdev.NSByPID(os.Getpid()))
	id, err := netdev.IdentifyNS(path)
	if err != nil || id == own {
		t.Errorf("IdentifyNS(%s) = %v, %v; our own is %v", path, id, err, own)
	}
	if err := netdev.DeleteNS(name); err != nil {
		t.Fatal(err)
	}
	if err := netdev.DeleteNS(name); err != nil {
		t.Errorf("deleting twice: %v", err)
	}
	if err := netdev.NewNS("../x"); err == nil {
		t.Error("a name with a slash was accepted")
	}
}

func TestDoDoesNotMoveTheCaller(t *testing.T) {
	path := nstest.New(t, "a")
	want, _ := netdev.IdentifyNS(path)
	do(t, path, func() error {
		got, err := netdev.IdentifyNS("/proc/thread-self/ns/net")
		if got != want {
			t.Errorf("inside: %v, want %v", got, want)
		}
		return err
	})
	if got, _ := netdev.IdentifyNS("/proc/thread-self/ns/net"); got == want {
		t.Error("the caller is in the namespace after Do")
	}
}

func TestEnsureBridgeIsIdempotent(t *testing.T) {
	host := nstest.New(t, "h")
	for range 2 {
		bridge(t, host)
	}
	do(t, host, func() error {
		l, err := netlink.LinkByName("weft")
		if err != nil {
			return err
		}
		b := l.(*netlink.Bridge)
		if b.HardwareAddr.String() != mac.String() || b.MTU != 1376 || *b.MulticastSnooping || b.Flags&net.FlagUp == 0 {
			t.Errorf("bridge is %+v", b)
		}
		ra, err := os.ReadFile("/proc/sys/net/ipv6/conf/weft/accept_ra")
		if string(ra) != "0\n" {
			t.Errorf("accept_ra is %q", ra)
		}
		return err
	})
	do(t, host, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "other"}, PeerName: "another"}); err != nil {
			return err
		}
		if err := netdev.EnsureBridge("other", mac, 1376, netdev.ProcSys); err == nil || !strings.Contains(err.Error(), "of type veth") {
			t.Errorf("EnsureBridge on a veth: %v", err)
		}
		return nil
	})
	do(t, host, func() error { return netdev.DeleteBridge("weft") })
	do(t, host, func() error { return netdev.DeleteBridge("weft") })
}

func TestAttachAndDetach(t *testing.T) {
	host, c := nstest.New(t, "h"), nstest.New(t, "c")
	bridge(t, host)
	a := netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, MulticastRoute: true,
		Addrs: []netip.Prefix{pfx("10.32.0.5/12")}}
	if got := attach(t, host, a); !slices.Equal(got, a.Addrs) {
		t.Errorf("first attach added %v", got)
	}
	a.Addrs = append(a.Addrs, pfx("10.40.0.1/24"), pfx("fd00::5/64"))
	if got := attach(t, host, a); !slices.Equal(got, a.Addrs[1:]) {
		t.Errorf("second attach added %v", got)
	}
	var ifs []netdev.Iface
	do(t, host, func() (err error) { ifs, err = netdev.Attached(c, "weft"); return err })
	if len(ifs) != 1 || ifs[0].Name != "ethwe" || ifs[0].MTU != 1376 || len(ifs[0].Addrs) != 3 ||
		!strings.HasPrefix(ifs[0].HostName, "vethwe") || len(ifs[0].MAC) != 6 {
		t.Fatalf("attached: %+v", ifs)
	}
	do(t, c, func() error {
		routes, err := netlink.RouteListFiltered(netlink.FAMILY_V4,
			&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(224, 0, 0, 0), Mask: net.CIDRMask(4, 32)}}, netlink.RT_FILTER_DST)
		if len(routes) != 1 {
			t.Errorf("multicast routes: %v", routes)
		}
		return err
	})

	detach := func(addrs ...netip.Prefix) (removed []netip.Prefix) {
		do(t, host, func() (err error) { removed, err = netdev.Detach(c, "ethwe", addrs); return err })
		return removed
	}
	if got := detach(a.Addrs[0], pfx("10.99.0.1/24")); !slices.Equal(got, a.Addrs[:1]) {
		t.Errorf("detach removed %v", got)
	}
	if got := detach(a.Addrs[1:]...); !slices.Equal(got, a.Addrs[1:]) {
		t.Errorf("detach removed %v", got)
	}
	do(t, host, func() error {
		links, err := netlink.LinkList()
		if len(links) != 2 { // lo and the bridge
			t.Errorf("the pair exists without an address: %d interfaces", len(links))
		}
		return err
	})
	if got := detach(a.Addrs...); got != nil {
		t.Errorf("detaching again removed %v", got)
	}
}

func TestAttachRefusesAndUndoes(t *testing.T) {
	host, c := nstest.New(t, "h"), nstest.New(t, "c")
	a := netdev.Attachment{NS: host, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}}
	check := func(what string, ok func(error) bool) {
		t.Helper()
		do(t, host, func() error {
			if _, err := netdev.Attach(a); err == nil || !ok(err) {
				t.Errorf("%s: %v", what, err)
			}
			links, err := netlink.LinkList()
			for _, l := range links {
				if strings.HasPrefix(l.Attrs().Name, "vethwe") {
					t.Errorf("%s: %s is left", what, l.Attrs().Name)
				}
			}
			return err
		})
	}
	a.NS = c
	check("no bridge", func(err error) bool { return errors.Is(err, unix.ENODEV) })
	bridge(t, host)
	a.NS = host
	check("host's own namespace", func(err error) bool { return errors.Is(err, netdev.ErrHostNS) })
	a.NS = c
	a.Addrs = append(a.Addrs, pfx("ff02::9/64")) // the kernel gives nobody a multicast address
	check("second address refused", func(err error) bool { return strings.Contains(err.Error(), "ff02::9") })
	do(t, c, func() error {
		return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "ethwe"}})
	})
	check("foreign ethwe", func(err error) bool { return strings.Contains(err.Error(), "not weft's") })
}

func TestAttachUsesARecreatedBridge(t *testing.T) {
	host, c := nstest.New(t, "h"), nstest.New(t, "c")
	bridge(t, host)
	a := netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}}
	attach(t, host, a)
	do(t, host, func() error { return netdev.DeleteBridge("weft") })
	bridge(t, host)
	if got := attach(t, host, a); got != nil {
		t.Errorf("added %v", got)
	}
	do(t, host, func() error {
		ifs, err := netdev.Attached(c, "weft")
		if len(ifs) != 1 {
			t.Errorf("attached: %v", ifs)
		}
		return err
	})
}

// Neighbours learn that an address moved to another container: with RFC 5227 section 3
// for IPv4 and RFC 4861 section 7.2.6 for IPv6.
func TestAnnouncement(t *testing.T) {
	for _, addr := range []string{"10.32.0.9/12", "fd00::9/64"} {
		host, watcher, c := nstest.New(t, "h"), nstest.New(t, "w"), nstest.New(t, "c")
		bridge(t, host)
		p := pfx(addr)
		w := p.Addr().Next()
		attach(t, host, netdev.Attachment{NS: watcher, Iface: "ethwe", Bridge: "weft", MTU: 1376,
			Addrs: []netip.Prefix{netip.PrefixFrom(w, p.Bits())}})
		family := netlink.FAMILY_V4
		if w.Is6() {
			family = netlink.FAMILY_V6
		}
		var index int
		do(t, watcher, func() error {
			l, err := netlink.LinkByName("ethwe")
			if err != nil {
				return err
			}
			index = l.Attrs().Index
			return netlink.NeighSet(&netlink.Neigh{LinkIndex: index, Family: family, State: netlink.NUD_STALE,
				IP: p.Addr().AsSlice(), HardwareAddr: net.HardwareAddr{2, 9, 9, 9, 9, 9}})
		})
		attach(t, host, netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{p}})
		var now net.HardwareAddr
		do(t, host, func() error {
			ifs, err := netdev.Attached(c, "weft")
			if len(ifs) == 1 {
				now = ifs[0].MAC
			}
			return err
		})
		deadline := time.Now().Add(timeout)
		for learned := ""; learned != now.String(); {
			if time.Now().After(deadline) {
				t.Fatalf("%s: the neighbour still has %s, want %s", addr, learned, now)
			}
			do(t, watcher, func() error {
				neighs, err := netlink.NeighList(index, family)
				for _, n := range neighs {
					if n.IP.Equal(p.Addr().AsSlice()) {
						learned = n.HardwareAddr.String()
					}
				}
				return err
			})
		}
	}
}

func TestOverlapping(t *testing.T) {
	host, other := nstest.New(t, "h"), nstest.New(t, "o")
	nstest.Veth(t, 1500, host, "eth0", pfx("10.36.1.1/16"), other, "eth0", pfx("10.36.1.2/16"))
	bridge(t, host)
	do(t, host, func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(10, 36, 1, 2)}); err != nil {
			return err
		}
		gw := net.IPv4(10, 36, 1, 2)
		for _, r := range []netlink.Route{
			{Dst: ipNet("0.0.0.0/1"), Gw: gw}, // of a VPN
			{Dst: ipNet("10.0.0.0/8"), Type: unix.RTN_BLACKHOLE},
			{Dst: ipNet("10.40.0.0/16"), Gw: gw, Table: 52},
			{Dst: ipNet("10.41.0.0/16"), Gw: gw, Table: 53},
			{Dst: ipNet("10.42.0.0/16"), Gw: gw, Table: 54},
		} {
			r.LinkIndex = l.Attrs().Index
			if r.Type == unix.RTN_BLACKHOLE {
				r.LinkIndex = 0
			}
			if err := netlink.RouteAdd(&r); err != nil {
				return fmt.Errorf("add route %v: %w", r, err)
			}
		}
		for _, mark := range []uint32{0, 7} { // table 52 for all packets, 53 for those with a mark
			rule := netlink.NewRule()
			rule.Table, rule.Mark, rule.Priority, rule.Family = 52, mark, 100, netlink.FAMILY_V4
			if mark != 0 {
				rule.Table = 53
			}
			if err := netlink.RuleAdd(rule); err != nil {
				return err
			}
		}
		for _, c := range []struct{ p, hides, others string }{
			{"10.32.0.0/12", "[10.36.0.0/16 dev eth0 10.40.0.0/16 dev eth0 table 52]", "[blackhole 10.0.0.0/8 0.0.0.0/1 dev eth0]"},
			{"10.36.7.0/24", "[]", "[10.36.0.0/16 dev eth0 blackhole 10.0.0.0/8 0.0.0.0/1 dev eth0]"},
			{"192.168.0.0/16", "[]", "[]"},
			{"fd00::/64", "[]", "[]"},
		} {
			all, err := netdev.Overlapping(pfx(c.p), "weft")
			if err != nil {
				return err
			}
			var hides, others []netdev.Route
			for _, r := range all {
				if r.Hides(pfx(c.p)) {
					hides = append(hides, r)
				} else {
					others = append(others, r)
				}
			}
			if fmt.Sprint(hides) != c.hides || fmt.Sprint(others) != c.others {
				t.Errorf("Overlapping(%s): %v hide it, and %v; want %s and %s", c.p, hides, others, c.hides, c.others)
			}
		}
		_, err = expose("weft", netdev.Exposure{Addr: pfx("172.16.0.1/12")})
		if all, err := netdev.Overlapping(pfx("172.16.0.0/12"), "weft"); len(all) > 0 || err != nil {
			t.Errorf("overlap with weft's own route: %v, %v", all, err)
		}
		return err
	})
}

func ipNet(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func TestDeleteAll(t *testing.T) {
	host, c := nstest.New(t, "h"), nstest.New(t, "c")
	bridge(t, host)
	attach(t, host, netdev.Attachment{NS: c, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}})
	do(t, host, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "vethwe0other"}}); err != nil {
			return err
		}
		_, err := expose("weft", netdev.Exposure{Addr: pfx("10.32.0.1/12"), Masquerade: true})
		return err
	})
	for range 2 {
		do(t, host, func() error { return netdev.DeleteAll("weft", "vethwe-tap") })
	}
	do(t, host, func() error {
		links, err := netlink.LinkList()
		for _, l := range links {
			if n := l.Attrs().Name; n != "lo" && n != "vethwe0other" {
				t.Errorf("%s is left", n)
			}
		}
		conn, _ := nftables.New()
		if tables, _ := conn.ListTables(); len(tables) != 0 {
			t.Errorf("tables are left: %v", tables[0].Name)
		}
		return err
	})
	do(t, c, func() error {
		links, err := netlink.LinkList()
		if len(links) != 1 {
			t.Errorf("the container still has %d interfaces", len(links))
		}
		return err
	})
}

// The mount point of a namespace may be left as a plain file.
func TestRemoveWithoutNamespace(t *testing.T) {
	left := filepath.Join(t.TempDir(), "ns")
	if err := os.WriteFile(left, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	do(t, nstest.New(t, "host"), func() error {
		for _, path := range []string{left, left + "-never"} {
			if err := netdev.Remove(path, "eth0"); err != nil {
				t.Error(err)
			}
			if got, err := netdev.Detach(path, "eth0", nil); len(got) > 0 || err != nil {
				t.Errorf("%v %v", got, err)
			}
		}
		return nil
	})
}
