package daemon

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/peer"
)

// bench is a host with a bridge and one container. Both are namespaces.
type bench struct {
	host, box string
	addresses *fakeAddresses
	store     *store.Store
	names     *dns.Service // without other peers
	as        *namespaces
	keeper    *keeper.Keeper
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{host: nstest.New(t, "host"), box: nstest.New(t, "box"), addresses: newFakeAddresses(), store: openStore(t)}
	b.on(t, func() error {
		return netdev.EnsureBridge(netdev.BridgeName, net.HardwareAddr{2, 0, 0, 0, 0, 1}, DefaultMTU, netdev.ProcSys)
	})
	b.on(t, func() (err error) { b.keeper, err = keeper.New(slog.New(slog.DiscardHandler)); return err })
	t.Cleanup(b.keeper.Close)
	b.restart()
	return b
}

// restart makes the records of a router that was just started.
func (b *bench) restart() {
	b.names = newTestNames()
	b.as = newNamespaces(attachConfig{
		store: b.store, addresses: addresses{b.addresses}, names: b.names, bridge: netdev.BridgeName, mtu: DefaultMTU, guard: new(spoofGuard), log: slog.New(slog.DiscardHandler),
	})
}

// newExposures returns the exposures of a router that was just started.
func (b *bench) newExposures() *exposures {
	es := newExposures(exposeConfig{
		gate: new(gate), keeper: b.keeper, store: b.store, addresses: addresses{b.addresses}, names: b.names, bridge: netdev.BridgeName,
		changed: func([]netip.Prefix) {}, log: slog.New(slog.DiscardHandler),
	})
	if err := es.keep(netdev.Bridge{Name: netdev.BridgeName}); err != nil {
		panic(err) // only for a kind that the table lacks
	}
	return es
}

// newTestNames is service discovery in a mesh without other peers.
func newTestNames() *dns.Service {
	id := peer.Cheap{ID: peer.Key{1}}
	return dns.New(dns.Config{
		Domain: "weft.internal", Self: peer.Name{2, 1}, Signer: id, Verifier: id, Announce: func([]byte) {}, Log: slog.New(slog.DiscardHandler), External: true,
	})
}

// on runs f in the namespace of the host.
func (b *bench) on(t *testing.T, f func() error) {
	t.Helper()
	if err := netdev.Do(b.host, f); err != nil {
		t.Fatal(err)
	}
}

func (b *bench) attach(t *testing.T, addrs ...string) (got []netip.Prefix) {
	t.Helper()
	b.on(t, func() (err error) {
		got, err = b.attachAt(t, b.box, addrs...)
		return err
	})
	return got
}

func (b *bench) detach(t *testing.T, addrs ...string) (got []netip.Prefix) {
	t.Helper()
	b.on(t, func() (err error) {
		got, err = b.detachAt(t, b.box, addrs...)
		return err
	})
	return got
}

func (b *bench) attachAt(t *testing.T, netns string, addrs ...string) ([]netip.Prefix, error) {
	p, err := namespaceAt(netns)
	if err != nil {
		return nil, err
	}
	return b.as.attach(t.Context(), p, api.AttachRequest{Addresses: parse(t, addrs...)})
}

func (b *bench) detachAt(t *testing.T, netns string, addrs ...string) ([]netip.Prefix, error) {
	p, err := namespaceAt(netns)
	if err != nil {
		return nil, err
	}
	return b.as.detach(p, parse(t, addrs...))
}

func parse(t *testing.T, addrs ...string) (list []api.Address) {
	t.Helper()
	for _, s := range addrs {
		a, err := api.ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, a)
	}
	return list
}

// has returns the addresses of the container's interface.
func (b *bench) has(t *testing.T) (ps []netip.Prefix) {
	t.Helper()
	if err := netdev.Do(b.box, func() (err error) {
		ps, err = netdev.Addresses(netdev.IfaceName)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(ps, netip.Prefix.Compare)
	return ps
}

func TestAttachAndDetach(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	first := b.attach(t)
	if again := b.attach(t, "net:default"); !slices.Equal(again, first) {
		t.Errorf("attach again gave %v, had %v", again, first)
	}
	more := b.attach(t, "10.32.7.7/24", "192.168.5.5/24", "fd01::5/64")
	if len(b.has(t)) != 4 || b.addresses.count() != 2 {
		t.Errorf("the container has %v, and %d addresses are given", b.has(t), b.addresses.count())
	}
	if list := b.as.list(); len(list) != 1 || len(list[0].Addresses) != 4 || list[0].MAC == "" {
		t.Errorf("list: %+v", list)
	}
	if gone := b.detach(t, "ip:10.32.7.7/24", "net:192.168.5.0/24"); !slices.Equal(gone, more[:2]) {
		t.Errorf("detach removed %v, want %v", gone, more[:2])
	}
	// What the container lacks is an error, and then nothing is taken.
	if err := b.detachFails(t, "fd01::5/64", "ip:10.32.7.7/24"); !strings.Contains(err.Error(), "10.32.7.7/24 is not among the addresses") || len(b.has(t)) != 2 {
		t.Errorf("detach again: %v; the container has %v", err, b.has(t))
	}
	b.detach(t)
	if len(b.has(t)) != 0 || b.addresses.count() != 0 || len(b.as.list()) != 0 {
		t.Errorf("after detach: %v, %d given, %v", b.has(t), b.addresses.count(), b.as.list())
	}
	if err := b.detachFails(t); !strings.Contains(err.Error(), "is not attached") {
		t.Errorf("detach of a container that is not attached: %v", err)
	}
}

// detachFails wants a detach to fail, and returns its error.
func (b *bench) detachFails(t *testing.T, addrs ...string) (err error) {
	t.Helper()
	b.on(t, func() error {
		_, err = b.as.detachAt(api.AttachRequest{Netns: b.box, Addresses: parse(t, addrs...)})
		return nil
	})
	if err == nil {
		t.Fatalf("detach %v succeeds", addrs)
	}
	return err
}

func TestAttachThatFailsGivesNothing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.addresses.given[netip.MustParseAddr("10.32.9.9")] = "another owner"
	b.on(t, func() error {
		_, err := b.attachAt(t, b.box, "net:default", "10.32.9.9/16")
		if err == nil {
			t.Error("an address in use was given")
		}
		return nil
	})
	// A name clash in the container, after addresses were allocated.
	nstest.In(t, b.box, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = netdev.IfaceName
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Error(err)
		}
	})
	b.on(t, func() error {
		if _, err := b.attachAt(t, b.box); err == nil {
			t.Error("attached by an interface that is not weft's")
		}
		_, err := b.attachAt(t, b.host)
		if !errors.Is(err, netdev.ErrHostNS) {
			t.Errorf("attach of the host itself: %v", err)
		}
		return nil
	})
	if n := b.addresses.count(); n != 1 || len(b.as.list()) != 0 {
		t.Errorf("%d addresses are given, want the one of the other owner only; records %v", n, b.as.list())
	}
}

// After a crash containers keep their addresses, and addresses that no container
// has are free again.
func TestRestore(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	has := b.attach(t, "net:default", "10.32.7.7/16")
	owner, err := ownerOf(b.box)
	if err != nil {
		t.Fatal(err)
	}
	// The router died after an allocation, before it wrote that down; and the
	// allocator has lost one address that the container has.
	b.addresses.given[netip.MustParseAddr("10.32.50.50")] = owner
	delete(b.addresses.given, has[1].Addr())
	b.restart()
	b.on(t, func() error { b.as.restore(t.Context()); return nil })
	if got := b.addresses.Lookup(owner); !slices.Equal(got, has) {
		t.Errorf("after a restart the owner has %v, want %v", got, has)
	}
	if list := b.as.list(); len(list) != 1 || !slices.Equal(list[0].Addresses, has) {
		t.Errorf("after a restart the record is %+v", list)
	}
}

func TestRestoreOfAnUnfinishedAttach(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	owner, err := ownerOf(b.box)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.as.put(owner, attachment{Netns: b.box}); err != nil {
		t.Fatal(err)
	}
	b.addresses.given[netip.MustParseAddr("10.32.0.1")] = owner
	b.restart()
	b.on(t, func() error { b.as.restore(t.Context()); return nil })
	if b.addresses.count() != 0 || len(b.as.list()) != 0 {
		t.Errorf("an attach that did not finish left %d addresses and %v", b.addresses.count(), b.as.list())
	}
}

func TestSweepFreesAddressesAfterTheGrace(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.attach(t)
	start := time.Unix(1_800_000_000, 0)
	sweep := func(after time.Duration, want int) {
		t.Helper()
		b.on(t, func() error { b.as.sweep(start.Add(after)); return nil })
		if n := b.addresses.count(); n != want {
			t.Errorf("after %v %d addresses are given, want %d", after, n, want)
		}
	}
	sweep(0, 1)
	sweep(time.Hour, 1) // it lives
	nstest.In(t, b.box, func() {
		l, err := netlink.LinkByName(netdev.IfaceName)
		if err == nil {
			err = netlink.LinkDel(l)
		}
		if err != nil {
			t.Error(err)
		}
	})
	sweep(time.Hour, 1)
	sweep(time.Hour+goneGrace-time.Second, 1)
	sweep(time.Hour+goneGrace, 0)
}

func TestExposures(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	open := func() *exposures {
		return b.newExposures()
	}
	es := open()
	bridge := func() (ps []netip.Prefix) {
		t.Helper()
		b.on(t, func() (err error) { ps, err = netdev.Addresses(netdev.BridgeName); return err })
		return ps
	}
	b.on(t, func() error {
		for range 2 { // twice is harmless
			ps, err := es.Expose(t.Context(), api.ExposeRequest{})
			if err != nil || len(ps) != 1 {
				t.Errorf("expose: %v, %v", ps, err)
			}
		}
		return nil
	})
	if len(bridge()) != 1 {
		t.Errorf("the bridge has %v", bridge())
	}
	// A start after a crash, on a bridge that somebody emptied.
	b.on(t, func() error { return netdev.DeleteBridge(netdev.BridgeName) })
	b.on(t, func() error {
		return netdev.EnsureBridge(netdev.BridgeName, net.HardwareAddr{2, 0, 0, 0, 0, 1}, DefaultMTU, netdev.ProcSys)
	})
	es = open()
	b.on(t, func() error { es.restore(t.Context()); return nil })
	if a, exposed := es.attachment(); !exposed || !slices.Equal(a.Addresses, bridge()) {
		t.Errorf("after a restart the bridge has %v, and %+v is shown", bridge(), a)
	}
	b.on(t, func() error {
		if ps, err := es.Hide(t.Context(), api.ExposeRequest{Addresses: parse(t, "10.99.0.1/24")}); err == nil || !strings.Contains(err.Error(), "10.99.0.1/24 is not among the addresses") {
			t.Errorf("hide of an address that the bridge lacks: %v, %v", ps, err)
		}
		for range 2 {
			if _, err := es.Hide(t.Context(), api.ExposeRequest{}); err != nil {
				t.Error(err)
			}
		}
		return nil
	})
	if _, exposed := es.attachment(); exposed || len(bridge()) != 0 || b.addresses.count() != 0 {
		t.Errorf("after hide the bridge has %v, %d addresses are given", bridge(), b.addresses.count())
	}
}

// Addresses that were given for a request that failed are free again, except those that
// the bridge has.
func TestExposeThatFailsFreesTheOtherAddresses(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	es := b.newExposures()
	expose := func(addrs ...string) (err error) {
		var want []api.Address
		for _, a := range addrs {
			want = append(want, api.Address{Kind: api.Exactly, Prefix: netip.MustParsePrefix(a)})
		}
		b.on(t, func() error { _, err = es.Expose(t.Context(), api.ExposeRequest{Addresses: want}); return nil })
		return err
	}
	if err := expose("10.32.0.5/16"); err != nil {
		t.Fatal(err)
	}
	// The kernel refuses to give an interface a multicast address.
	if err := expose("10.32.0.6/16", "ff02::5/64", "10.32.0.5/16", "10.32.0.7/16"); err == nil {
		t.Fatal("exposed a multicast address")
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.32.0.5/16"), netip.MustParsePrefix("10.32.0.6/16")}
	if got := b.addresses.Lookup(api.Exposed); !slices.Equal(got, want) || !slices.Equal(es.prefixes(), want) {
		t.Errorf("given are %v, on record %v, want %v", got, es.prefixes(), want)
	}
}
