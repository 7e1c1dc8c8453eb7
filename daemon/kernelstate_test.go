package daemon

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// A router without any state takes containers and addresses from the kernel. What weft wrote
// down comes first: a container that gives itself the address of another one, and many others,
// takes nothing from it.
func TestAdoptTakesTheWordOfTheKernel(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	evil := nstest.New(t, "evil")
	web := b.attach(t)[0]
	var own netip.Prefix
	b.on(t, func() error {
		got, err := b.attachAt(t, evil)
		if err == nil {
			own = got[0]
		}
		return err
	})
	if err := netdev.Do(evil, func() error {
		l, err := netlink.LinkByName(netdev.IfaceName)
		if err != nil {
			return err
		}
		addrs := []net.IP{web.Addr().AsSlice()}
		for i := range 3 * maxUnrecorded {
			addrs = append(addrs, net.IPv4(10, 32, 7, byte(i+1)))
		}
		for _, a := range addrs {
			if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: a, Mask: net.CIDRMask(16, 32)}}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}

	b.store, b.addresses = openStore(t), newFakeAddresses() // everything is lost
	b.restart()
	d := &daemon{
		addresses: addresses{b.addresses}, namespaces: b.as, docker: newDockerContainers(b.as.attachConfig), exposures: b.newExposures(),
		leases: newTestLeases(t, b.store, b.addresses), log: slog.New(slog.DiscardHandler),
	}
	b.on(t, func() error {
		l, err := readKernelState(netdev.BridgeName)
		if err != nil {
			return err
		}
		if !l.uses(b.addresses.addrRange) {
			t.Error("no address of the range lives")
		}
		return d.adopt(l)
	})
	owner, err := ownerOf(b.box)
	if err != nil {
		t.Fatal(err)
	}
	if got := b.addresses.given[web.Addr()]; got != owner {
		t.Errorf("%s is in use by %q, want %s", web, got, owner)
	}
	if got := b.addresses.given[own.Addr()]; !strings.HasPrefix(got, api.OwnerNetns) {
		t.Errorf("%s is in use by %q", own, got)
	}
	if got, want := b.addresses.count(), 2+maxUnrecorded; got != want {
		t.Errorf("%d addresses are in use, want %d", got, want)
	}
	if list := b.as.list(); len(list) != 2 {
		t.Errorf("attached: %+v", list)
	}
	// The container is attached as before: it can be detached, and its address is free then.
	b.on(t, func() error {
		_, err := b.as.detachAt(api.AttachRequest{Netns: b.box})
		return err
	})
	if got := b.addresses.given[web.Addr()]; got != "" {
		t.Errorf("after detach %s is in use by %q", web, got)
	}
}

// A container that gives itself the addresses of owners that have no port of weft's takes
// nothing from them, and they do not become free when it is gone.
func TestAdoptLeavesAddressesOfOwnersWithoutAPort(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.store, b.addresses = openStore(t), newFakeAddresses()
	b.restart()
	d := &daemon{
		addresses: addresses{b.addresses}, namespaces: b.as, docker: newDockerContainers(b.as.attachConfig), exposures: b.newExposures(),
		leases: newTestLeases(t, b.store, b.addresses), log: slog.New(slog.DiscardHandler),
	}
	const evil, other = "vethweevil", "vethweother"
	own, unrecorded, moved := netip.MustParsePrefix("10.32.0.5/16"), netip.MustParsePrefix("10.32.0.6/16"), netip.MustParsePrefix("10.32.0.7/16")
	owners := map[string]netip.Prefix{
		"cni:pods:abc:eth0":       netip.MustParsePrefix("10.32.0.9/16"), // another plugin made the interface
		"docker:lease:0123456789": netip.MustParsePrefix("10.32.0.1/16"), // the gateway of a network
		"netns:gone":              netip.MustParsePrefix("10.32.0.2/16"),
		portOwner + other:         netip.MustParsePrefix("10.32.0.3/16"),
	}
	behind := []netip.Prefix{own, unrecorded, moved}
	for owner, p := range owners {
		d.addresses.hold(owner, p, d.log)
		behind = append(behind, p)
	}
	d.addresses.hold(portOwner+"vethwegone", moved, d.log)
	if err := d.adopt(kernelState{ports: []netdev.UsedPort{
		{Name: evil, PortUser: netdev.PortUser{Owner: "netns:77", Addrs: []netip.Prefix{own}}, Behind: behind},
		{Name: other},
	}}); err != nil {
		t.Fatal(err)
	}
	for _, p := range []netip.Prefix{unrecorded, moved} {
		if got := b.addresses.given[p.Addr()]; got != portOwner+evil {
			t.Errorf("%s is in use by %q, want the port", p, got)
		}
	}
	ports := &otherPorts{addresses: d.addresses, log: d.log, gone: make(map[string]time.Time)}
	for owner, p := range owners {
		if got := b.addresses.given[p.Addr()]; got != owner {
			t.Errorf("%s is in use by %q, want %s", p, got, owner)
		}
	}
	now := time.Now()
	ports.sweep(now) // no link has the name
	ports.sweep(now.Add(goneGrace))
	delete(owners, portOwner+other)
	for owner, p := range owners {
		if got := b.addresses.given[p.Addr()]; got != owner {
			t.Errorf("after the container is gone %s is in use by %q, want %s", p, got, owner)
		}
	}
}
