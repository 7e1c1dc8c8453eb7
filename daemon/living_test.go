package daemon

import (
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"testing"

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
		for i := range 3 * maxStrange {
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
		l, err := readLiving(netdev.BridgeName)
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
	if got := b.addresses.given[own.Addr()]; !strings.HasPrefix(got, netnsOwner) {
		t.Errorf("%s is in use by %q", own, got)
	}
	if got, want := b.addresses.count(), 2+maxStrange; got != want {
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
