package netdev_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// The kernel alone says whose each port is, and which addresses are behind it.
func TestUsedPorts(t *testing.T) {
	host, a, b := nstest.New(t, "host"), nstest.New(t, "a"), nstest.New(t, "b")
	bridge(t, host)
	ports := func() (list []netdev.UsedPort) {
		t.Helper()
		do(t, host, func() (err error) { list, err = netdev.UsedPorts("weft"); return err })
		return list
	}
	same := func(what string, got []netip.Prefix, want ...string) {
		t.Helper()
		var ps []netip.Prefix
		for _, s := range want {
			ps = append(ps, pfx(s))
		}
		if !slices.Equal(got, ps) {
			t.Errorf("%s: %v, want %v", what, got, ps)
		}
	}
	if got := ports(); len(got) != 0 {
		t.Fatalf("ports of an empty bridge: %+v", got)
	}
	at := netdev.Attachment{NS: a, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}, Owner: "netns:1", Name: "web"}
	attach(t, host, at)
	at.Addrs = []netip.Prefix{pfx("10.32.0.6/12"), pfx("fd00::6/64")}
	attach(t, host, at)
	do(t, a, func() error {
		l, err := netlink.LinkByName("ethwe")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: []byte{10, 32, 0, 9}, Mask: []byte{255, 255, 255, 0}}})
	})
	got := ports()
	if len(got) != 1 || got[0].Owner != "netns:1" || got[0].PortUser.Name != "web" {
		t.Fatalf("ports: %+v", got)
	}
	do(t, host, func() error {
		owners, err := netdev.PortOwners("weft")
		if len(owners) != 1 || owners["netns:1"] != got[0].Name {
			t.Errorf("owners: %v", owners)
		}
		return err
	})
	same("given", got[0].Addrs, "10.32.0.5/12", "10.32.0.6/12", "fd00::6/64")
	behind := slices.SortedFunc(slices.Values(got[0].Behind), netip.Prefix.Compare)
	same("behind", behind, "10.32.0.5/12", "10.32.0.6/12", "10.32.0.9/24", "fd00::6/64")

	// The kernel also knows its MAC address, and that of the bridge.
	do(t, host, func() error {
		macs, err := netdev.PortMACs("weft")
		var inside net.HardwareAddr
		if err == nil {
			err = netdev.Do(a, func() error {
				l, err := netlink.LinkByName("ethwe")
				if err == nil {
					inside = l.Attrs().HardwareAddr
				}
				return err
			})
		}
		if len(macs) != 2 || macs[got[0].Name].String() != inside.String() || macs["weft"].String() != mac.String() {
			t.Errorf("MAC addresses: %v, want %s inside", macs, inside)
		}
		return err
	})

	// Other software took the port from the bridge: the container lives on.
	do(t, host, func() error {
		l, err := netlink.LinkByName(got[0].Name)
		if err != nil {
			return err
		}
		return netlink.LinkSetNoMaster(l)
	})
	if got := ports(); len(got) != 1 {
		t.Errorf("without the bridge: %+v", got)
	}
	do(t, host, func() error {
		_, err := netdev.Detach(a, "ethwe", []netip.Prefix{pfx("10.32.0.5/12")})
		return err
	})
	same("given after a detach", ports()[0].Addrs, "10.32.0.6/12", "fd00::6/64")

	// A port that another program made is a port of a container too.
	do(t, host, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "other"
		br, err := netlink.LinkByName("weft")
		if err != nil {
			return err
		}
		attrs.MasterIndex = br.Attrs().Index
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(nsFile(t, b))
		return netlink.LinkAdd(veth)
	})
	if got := ports(); len(got) != 2 || !slices.ContainsFunc(got, func(p netdev.UsedPort) bool { return p.Name == "other" && p.Owner == "" }) {
		t.Errorf("with a port of others: %+v", got)
	}

	// Other software removed the bridge, too.
	do(t, host, func() error {
		br, err := netlink.LinkByName("weft")
		if err != nil {
			return err
		}
		return netlink.LinkDel(br)
	})
	if got := ports(); len(got) != 1 || got[0].Owner != "netns:1" {
		t.Errorf("after the bridge was removed: %+v", got)
	}
}

// nsFile opens the namespace at path until the test ends.
func nsFile(t *testing.T, path string) int {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return int(f.Fd())
}

// A port that Docker's driver makes says whose it is before its other end is in a container.
func TestUsedPortsOfDocker(t *testing.T) {
	host := nstest.New(t, "host")
	bridge(t, host)
	user := netdev.PortUser{Owner: "docker:endpoint:" + strings.Repeat("0123456789abcdef", 4), Addrs: []netip.Prefix{pfx("10.32.0.5/12")}}
	do(t, host, func() error {
		if err := netdev.MakePort("weft", "vethwe01", "vethwe01c", mac, 1376, user, netdev.ProcSys, nil); err != nil {
			return err
		}
		ports, err := netdev.UsedPorts("weft")
		if len(ports) != 1 || ports[0].Owner != user.Owner || !slices.Equal(ports[0].Addrs, user.Addrs) {
			t.Errorf("ports: %+v", ports)
		}
		return err
	})
}

// The host's end says which MAC address weft gave to a container, also after the container has
// taken another one.
func TestGivenPorts(t *testing.T) {
	host, a := nstest.New(t, "host"), nstest.New(t, "a")
	bridge(t, host)
	given := func() (list []netdev.GivenPort) {
		t.Helper()
		do(t, host, func() error {
			v, err := netdev.ReadView()
			if err == nil {
				list = netdev.GivenPorts(v)
			}
			return err
		})
		if len(list) != 1 {
			t.Fatalf("ports: %+v", list)
		}
		return list
	}
	current := func() (mac string) {
		t.Helper()
		do(t, a, func() error {
			l, err := netlink.LinkByName("ethwe")
			if err == nil {
				mac = l.Attrs().HardwareAddr.String()
			}
			return err
		})
		return mac
	}
	at := netdev.Attachment{NS: a, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}, Owner: "netns:1"}
	attach(t, host, at)
	first := given()[0].MAC.String()
	if first != current() {
		t.Errorf("given %s, and the container has %s", first, current())
	}
	do(t, a, func() error {
		l, err := netlink.LinkByName("ethwe")
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 1, 2, 3, 4, 5})
	})
	attach(t, host, at)
	if got := given()[0].MAC.String(); got != first || current() == first {
		t.Errorf("the container took %s, and was given %s; the port says %s", current(), first, got)
	}
	at.MAC = net.HardwareAddr{2, 5, 4, 3, 2, 1}
	attach(t, host, at)
	if got := given()[0].MAC.String(); got != at.MAC.String() || current() != got {
		t.Errorf("given %s, the container has %s, the port says %s", at.MAC, current(), got)
	}
}

// More addresses than fit into an alias are written down too, and taken back.
func TestGivenPortHasManyAddresses(t *testing.T) {
	host, a := nstest.New(t, "host"), nstest.New(t, "a")
	bridge(t, host)
	at := netdev.Attachment{NS: a, Iface: "ethwe", Bridge: "weft", MTU: 1376, Owner: "netns:1"}
	for i := range 40 {
		at.Addrs = append(at.Addrs, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 32, 0, byte(i + 1)}), 12))
	}
	at.Addrs = append(at.Addrs, pfx("fd00::1/64"))
	var guarded []netdev.GivenPort
	at.Guard = func(p netdev.GivenPort) error { guarded = append(guarded, p); return nil }
	attach(t, host, at)
	check := func(want []netip.Prefix) {
		t.Helper()
		do(t, host, func() error {
			v, err := netdev.ReadView()
			if err != nil {
				return err
			}
			list := netdev.GivenPorts(v)
			if len(list) != 1 || !slices.Equal(list[0].Addrs, want) {
				t.Fatalf("ports: %+v, want one with %s", list, want)
			}
			one, ok, err := netdev.FindGivenPort(list[0].Name)
			if !ok || !slices.Equal(one.Addrs, want) || one.Index != list[0].Index || one.Owner != "netns:1" {
				t.Errorf("port: %+v, %v", one, ok)
			}
			used, err2 := netdev.UsedPorts("weft")
			if len(used) != 1 || !slices.Equal(used[0].Addrs, want) {
				t.Errorf("used: %+v", used)
			}
			return errors.Join(err, err2)
		})
	}
	check(at.Addrs)
	if len(guarded) != 1 || !slices.Equal(guarded[0].Addrs, at.Addrs) || guarded[0].MAC == nil {
		t.Errorf("guarded: %+v", guarded)
	}
	do(t, host, func() error { _, err := netdev.Detach(a, "ethwe", at.Addrs[1:30]); return err })
	check(append(at.Addrs[:1:1], at.Addrs[30:]...))
	do(t, host, func() error { _, err := netdev.Detach(a, "ethwe", at.Addrs[30:]); return err })
	check(at.Addrs[:1])
	do(t, host, func() error {
		l, err := netlink.LinkByName(guarded[0].Name)
		if err == nil && len(l.Attrs().AltNames) > 0 {
			t.Errorf("names are left: %q", l.Attrs().AltNames)
		}
		return err
	})
}

// The guard of a port is called before the first frame can pass.
func TestGuardComesFirst(t *testing.T) {
	host, a := nstest.New(t, "host"), nstest.New(t, "a")
	bridge(t, host)
	down := func(p netdev.GivenPort) error {
		l, err := netlink.LinkByIndex(p.Index)
		if err == nil && l.Attrs().Flags&net.FlagUp != 0 {
			t.Error("the port is up already")
		}
		return err
	}
	attach(t, host, netdev.Attachment{NS: a, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}, Guard: down})
	do(t, host, func() error {
		return netdev.MakePort("weft", "vethwe01", "vethwe01c", mac, 1376, netdev.PortUser{}, netdev.ProcSys, down)
	})
	refuse := func(netdev.GivenPort) error { return errors.New("no guard") }
	do(t, host, func() error {
		err := netdev.MakePort("weft", "vethwe02", "vethwe02c", mac, 1376, netdev.PortUser{}, netdev.ProcSys, refuse)
		if err == nil || !strings.Contains(err.Error(), "no guard") {
			t.Errorf("made a port without a guard: %v", err)
		}
		if _, err := netlink.LinkByName("vethwe02"); err == nil {
			t.Error("the port is there")
		}
		return nil
	})
}

// An attachment that fails leaves the container with the addresses that it had.
func TestFailedAttachmentChangesNothing(t *testing.T) {
	host, a := nstest.New(t, "host"), nstest.New(t, "a")
	bridge(t, host)
	var guarded [][]netip.Prefix
	at := netdev.Attachment{NS: a, Iface: "ethwe", Bridge: "weft", MTU: 1376, Addrs: []netip.Prefix{pfx("10.32.0.5/12")}, Owner: "netns:1"}
	attach(t, host, at)
	more := at
	more.Addrs, more.AllowSpoof = []netip.Prefix{pfx("10.32.0.6/12")}, true
	more.Guard = func(p netdev.GivenPort) error {
		guarded = append(guarded, p.Addrs)
		if len(guarded) == 1 {
			return errors.New("no guard")
		}
		return nil
	}
	do(t, host, func() error {
		if _, err := netdev.Attach(more); err == nil {
			t.Error("it is attached without a guard")
		}
		v, err := netdev.ReadView()
		if err != nil {
			return err
		}
		if list := netdev.GivenPorts(v); len(list) != 1 || !slices.Equal(list[0].Addrs, at.Addrs) || list[0].AllowSpoof {
			t.Errorf("ports: %+v", list)
		}
		return nil
	})
	if len(guarded) != 2 || !slices.Equal(guarded[1], at.Addrs) {
		t.Errorf("guarded: %v", guarded)
	}
}
