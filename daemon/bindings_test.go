package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/resolve"
)

// bindingHosts are services that hear all of each other, and a ring of the addresses 10.32.0.0/16.
type bindingHosts struct {
	services map[peer.Name]*bindingService
	epoch    atomic.Uint64

	mu   sync.Mutex
	ring map[netip.Addr]peer.Name
}

func (m *bindingHosts) setOwner(a netip.Addr, n peer.Name) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ring[a] = n
	m.epoch.Add(1)
}

func newBindingHosts(t *testing.T, names ...peer.Name) *bindingHosts {
	m := &bindingHosts{services: make(map[peer.Name]*bindingService), ring: make(map[netip.Addr]peer.Name)}
	keys := make(map[peer.Name]peer.Key)
	for _, n := range names {
		id := peer.Cheap{ID: peer.Key{n[5]}}
		keys[n] = id.ID
		m.services[n] = newBindingService(bindingConfig{
			self: n, signer: id, verifier: id, epoch: m.epoch.Load, moved: func(bindings.MAC, peer.Name) {}, resolved: func([]resolve.Change) {}, now: time.Now, log: slog.New(slog.DiscardHandler),
			ownerOf: func(a netip.Addr) (peer.Name, bool) {
				m.mu.Lock()
				defer m.mu.Unlock()
				return m.ring[a], netip.MustParsePrefix("10.32.0.0/16").Contains(a)
			},
			announce: func(delta []byte) {
				for to, s := range m.services {
					if to != n {
						if _, err := s.Channel().Merge(n, delta); err != nil {
							t.Errorf("merge at %s: %v", to, err)
						}
					}
				}
			},
		})
	}
	for _, s := range m.services {
		known := make(map[peer.Name]peer.Key)
		for n, k := range keys {
			known[n] = k
		}
		s.PeersChanged(known)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	for _, s := range m.services {
		running.Go(func() { s.run(ctx) })
	}
	t.Cleanup(func() { cancel(); running.Wait() })
	return m
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(20*time.Second, 5*time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// A binding is believed once the ring says that its host owns the address, whichever arrives first,
// and ends with the host.
func TestBindingsFollowTheRing(t *testing.T) {
	one, two := peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}
	m := newBindingHosts(t, one, two)
	a := netip.MustParseAddr("10.32.0.5")
	web := bindings.Binding{MAC: bindings.MAC{2, 1, 1, 1, 1, 1}, Kind: bindings.Container, Addrs: []netip.Addr{a}}
	if err := m.services[one].announce([]bindings.Binding{web}); err != nil {
		t.Fatal(err)
	}
	table := m.services[two].table
	eventually(t, "the MAC address is known", func() bool { _, _, ok := table.ByMAC(web.MAC); return ok })
	if _, ok := table.ByAddr(a); ok {
		t.Error("an address that nobody owns is bound")
	}
	m.setOwner(a, one)
	eventually(t, "the address is known", func() bool { l, ok := table.ByAddr(a); return ok && l.Owner == one })
	if list, omitted := m.services[two].list(10); len(list) != 1 || list[0].Refused != "" || omitted != 0 {
		t.Errorf("list %+v, %d omitted", list, omitted)
	}
	if _, omitted := m.services[two].list(0); omitted != 1 {
		t.Errorf("%d are omitted of 1", omitted)
	}
	if all, own := m.services[one].counts(); all.Bindings != 1 || own != 1 {
		t.Errorf("the host itself counts %d, %d own", all.Bindings, own)
	}
	if all, own := m.services[two].counts(); all.Bindings != 1 || own != 0 {
		t.Errorf("the other host counts %d, %d own", all.Bindings, own)
	}
	m.setOwner(a, two)
	eventually(t, "the address is not its any more", func() bool { _, ok := table.ByAddr(a); return !ok })
	m.services[two].PeersChanged(nil)
	eventually(t, "the host is gone", func() bool { _, _, ok := table.ByMAC(web.MAC); return !ok })
}

func givenPort(name string, index int, mac, owner string, addrs ...string) netdev.GivenPort {
	hw, err := net.ParseMAC(mac)
	if err != nil {
		panic(err)
	}
	p := netdev.GivenPort{Name: name, Index: index, MAC: hw, PortUser: netdev.PortUser{Owner: owner}}
	for _, a := range addrs {
		p.Addrs = append(p.Addrs, netip.MustParsePrefix(a))
	}
	return p
}

// The ports of containers, whoever made them, and the exposed host are bound.
func TestOwnBindings(t *testing.T) {
	var got []string
	full := 0
	o := newOwnBindings("weft", slog.New(slog.DiscardHandler))
	o.announce = func(list []bindings.Binding) error {
		if full > 0 && len(list) > full {
			return fmt.Errorf("too many: %w", bindings.ErrFull)
		}
		got = got[:0]
		for _, b := range list {
			got = append(got, fmt.Sprintf("%v %s %v", b.Kind, b.MAC, b.Addrs))
		}
		return nil
	}
	want := func(what string, list ...string) {
		t.Helper()
		o.update()
		slices.Sort(got)
		list = slices.Sorted(slices.Values(list))
		if !slices.Equal(got, list) {
			t.Errorf("%s:\n%s\nwant\n%s", what, strings.Join(got, "\n"), strings.Join(list, "\n"))
		}
	}
	want("nothing is there")
	o.ports = []netdev.GivenPort{
		givenPort("p1", 1, "02:00:00:00:00:01", api.OwnerNetns+"1", "10.32.0.1/12", "fd00::1/64"),
		givenPort("p2", 2, "02:00:00:00:00:02", api.OwnerCNI+"n:c:eth0", "10.32.0.2/12"),
		givenPort("p3", 3, "02:00:00:00:00:03", "docker:x", "10.32.0.3/12"),
		givenPort("p4", 4, "02:00:00:00:00:04", strings.Repeat("0", 64), "10.32.0.4/12", "224.0.0.1/4"),
	}
	o.mac = net.HardwareAddr{2, 0, 0, 0, 0, 9}
	all := []string{
		"port 02:00:00:00:00:01 [10.32.0.1 fd00::1]", "container 02:00:00:00:00:02 [10.32.0.2]",
		"container 02:00:00:00:00:03 [10.32.0.3]", "container 02:00:00:00:00:04 [10.32.0.4]",
	}
	want("four containers", all...)
	o.expose([]netip.Prefix{netip.MustParsePrefix("10.32.0.9/12")})
	exposed := "host 02:00:00:00:00:09 [10.32.0.9]"
	want("the host is exposed", append(slices.Clone(all), exposed)...)

	// A container that is given the address of another one does not get its binding, and one that
	// takes it loses its own. A container that is given that of the bridge has none.
	before := o.ports
	o.ports = append([]netdev.GivenPort{
		givenPort("p5", 0, "02:00:00:00:00:01", api.OwnerCNI+"n:d:eth0", "10.32.0.5/12"),
		givenPort("p6", 0, "02:00:00:00:00:09", api.OwnerCNI+"n:e:eth0", "10.32.0.6/12"),
	}, before...)
	want("two MAC addresses twice", append(slices.Clone(all), exposed)...)
	o.macs = func(string) (map[string]net.HardwareAddr, error) {
		return map[string]net.HardwareAddr{"p2": {2, 0, 0, 0, 0, 1}, "p3": {2, 0, 0, 0, 0, 3}, "weft": o.mac}, nil
	}
	o.look()
	want("one took the address of another", append(all[:1:1], all[2], all[3], exposed)...)
	o.macs = func(string) (map[string]net.HardwareAddr, error) { return nil, errors.New("no") }
	o.look()
	want("the kernel does not answer", append(all[:1:1], all[2], all[3], exposed)...)
	o.macs = func(string) (map[string]net.HardwareAddr, error) { return nil, nil }
	o.look()
	want("it has its own again", append(slices.Clone(all), exposed)...)
	o.ports = slices.DeleteFunc(o.ports, func(p netdev.GivenPort) bool { return p.Name == "p1" })
	want("the first holder is gone", append(slices.Clone(all[1:]), exposed, "container 02:00:00:00:00:01 [10.32.0.5]")...)

	// If others would refuse so many, a part of them is announced.
	o.expose(nil)
	o.ports, full = before, 2
	o.update()
	if len(got) != 2 {
		t.Errorf("%d are announced where 2 fit", len(got))
	}
}
