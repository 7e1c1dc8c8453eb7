package bindings

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

// mesh is some States that hear all of each other at once, and a ring.
type mesh struct {
	t      testing.TB
	states map[peer.Name]*State
	keys   map[peer.Name]peer.Key
	ring   map[netip.Addr]peer.Name
}

var inRing = netip.MustParsePrefix("10.32.0.0/12")

func name(n int) peer.Name { return peer.Name{2, 0, 0, 0, byte(n >> 8), byte(n)} }

func mac(n int) MAC { return MAC{2, 0x42, 10, byte(n >> 16), byte(n >> 8), byte(n)} }

func addrs(list ...string) (out []netip.Addr) {
	for _, a := range list {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func newMesh(t testing.TB, peers int) *mesh {
	m := &mesh{t: t, states: make(map[peer.Name]*State), keys: make(map[peer.Name]peer.Key), ring: make(map[netip.Addr]peer.Name)}
	for n := range peers {
		id := peer.Cheap{ID: peer.Key{1, byte(n), byte(n >> 8)}}
		m.keys[name(n)] = id.ID
		m.states[name(n)] = New(Config{Self: name(n), Signer: id, Verifier: peer.Cheap{}, Start: time.Unix(1_700_000_000, 0), OwnerOf: m.ownerOf})
	}
	m.reachable()
	return m
}

func (m *mesh) ownerOf(a netip.Addr) (peer.Name, bool) { return m.ring[a], inRing.Contains(a) }

// reachable makes all peers see each other, except for some that are away.
func (m *mesh) reachable(away ...int) {
	for _, s := range m.states {
		known := maps.Clone(m.keys)
		for _, n := range away {
			delete(known, name(n))
		}
		s.SetOwners(known)
		s.Table().Update(false)
	}
}

// announce makes a peer announce its bindings, and returns the changes at peer 0.
func (m *mesh) announce(n int, list ...Binding) (changes []Change) {
	m.t.Helper()
	deltas, err := m.states[name(n)].Announce(list)
	if err != nil {
		m.t.Fatal(err)
	}
	for to, s := range m.states {
		for _, d := range deltas {
			if to != name(n) {
				if _, err := s.Merge(name(n), d); err != nil {
					m.t.Fatal(err)
				}
			}
		}
		if c := s.Table().Update(false); to == name(0) {
			changes = c
		}
	}
	return changes
}

// at returns on whose host all peers believe an IP address to be, "nobody", or "several" if they
// do not agree.
func (m *mesh) at(a string) string {
	return m.agreed(func(t *Table) (peer.Name, bool) {
		l, ok := t.ByAddr(netip.MustParseAddr(a))
		return l.Owner, ok
	})
}

func (m *mesh) agreed(look func(*Table) (peer.Name, bool)) string {
	found := make(map[string]bool)
	for _, s := range m.states {
		if n, ok := look(s.Table()); ok {
			found[n.String()] = true
		} else {
			found["nobody"] = true
		}
	}
	if len(found) > 1 {
		return "several"
	}
	return slices.Collect(maps.Keys(found))[0]
}

func (m *mesh) macAt(x MAC) string {
	return m.agreed(func(t *Table) (peer.Name, bool) {
		_, owner, ok := t.ByMAC(x)
		return owner, ok
	})
}

func (m *mesh) want(what, got, want string) {
	m.t.Helper()
	if got != want {
		m.t.Errorf("%s is at %s, want %s", what, got, want)
	}
}

// The bindings of a host are known everywhere. They end with the container and with the host.
func TestBindingsComeAndGo(t *testing.T) {
	m := newMesh(t, 3)
	m.ring[netip.MustParseAddr("10.32.0.5")] = name(1)
	web := Binding{mac(5), Container, addrs("10.32.0.5", "fd00::5")}
	changes := m.announce(1, web, Binding{mac(6), Exposed, addrs("192.168.7.1")})
	if len(changes) != 5 {
		t.Errorf("%d changes, want those of 2 MAC and 3 IP addresses: %+v", len(changes), changes)
	}
	for _, a := range []string{"10.32.0.5", "fd00::5", "192.168.7.1"} {
		m.want(a, m.at(a), name(1).String())
	}
	m.want("the MAC address", m.macAt(mac(5)), name(1).String())
	if l, _ := m.states[name(0)].Table().ByAddr(netip.MustParseAddr("fd00::5")); l.MAC != mac(5) {
		t.Errorf("fd00::5 has MAC address %v", l.MAC)
	}
	if b, _, _ := m.states[name(2)].Table().ByMAC(mac(6)); b.Kind != Exposed {
		t.Errorf("its kind is %v", b.Kind)
	}
	if again := m.announce(1, web, Binding{mac(6), Exposed, addrs("192.168.7.1")}); len(again) > 0 {
		t.Errorf("changes without a change: %+v", again)
	}
	m.announce(1, web)
	m.want("192.168.7.1", m.at("192.168.7.1"), "nobody")
	m.want("its MAC address", m.macAt(mac(6)), "nobody")
	m.want("10.32.0.5", m.at("10.32.0.5"), name(1).String())
	delete(m.states, name(1))
	m.reachable(1)
	m.want("an address of a dead host", m.at("10.32.0.5"), "nobody")
	m.want("a MAC address of a dead host", m.macAt(mac(5)), "nobody")
	m.reachable()
	m.want("an address of a host that is back", m.at("10.32.0.5"), name(1).String())
}

// A peer that lies takes no binding from another one.
func TestLiarTakesNoBinding(t *testing.T) {
	m := newMesh(t, 4)
	m.ring[netip.MustParseAddr("10.32.0.5")], m.ring[netip.MustParseAddr("10.32.0.9")] = name(1), name(2)
	for _, first := range []bool{true, false} {
		honest := func() { m.announce(1, Binding{mac(5), Container, addrs("10.32.0.5")}) }
		if first {
			honest()
		}
		m.announce(2, Binding{mac(6), Container, addrs("10.32.0.5")})
		m.announce(3, Binding{mac(5), Container, addrs("192.168.7.1")})
		honest()
		m.want("an address that a liar binds too", m.at("10.32.0.5"), name(1).String())
		m.want("a MAC address that a liar binds too", m.macAt(mac(5)), name(1).String())
		// With an address of its own the liar can end the binding of a MAC address.
		m.announce(2, Binding{mac(5), Container, addrs("10.32.0.9")})
		m.want("a MAC address of two owners of addresses", m.macAt(mac(5)), "nobody")
		m.want("its address", m.at("10.32.0.5"), name(1).String())
		for n := 1; n < 4; n++ {
			m.announce(n)
		}
	}
	m.announce(2, Binding{mac(7), Container, addrs("10.32.0.77")})
	m.want("an address that nobody owns", m.at("10.32.0.77"), "nobody")
	m.announce(2, Binding{mac(7), Container, addrs("192.168.7.7")})
	m.want("an address that no ring divides", m.at("192.168.7.7"), name(2).String())
	m.announce(3, Binding{mac(8), Container, addrs("192.168.7.7")})
	m.want("one that two bind", m.at("192.168.7.7"), "nobody")
}

// Containers choose link-local addresses themselves, and hosts would answer for a liar that binds them.
func TestLinkLocalAddressesAreNotBound(t *testing.T) {
	for _, a := range []string{"fe80::42:aff:fe20:5", "169.254.1.1"} {
		b := Binding{mac(5), Container, addrs(a)}
		if got, err := decode(bucketOf(b.MAC), encode([]Binding{b})); err == nil {
			t.Errorf("%s is bound: %v", a, got)
		}
	}
}

// Who owns an IP address cannot have frames for it sent to the MAC address of another peer.
func TestAddressAtTheMACOfAnotherPeer(t *testing.T) {
	m := newMesh(t, 3)
	m.ring[netip.MustParseAddr("10.32.0.5")], m.ring[netip.MustParseAddr("10.32.0.9")] = name(1), name(2)
	derived := MAC{0x02, 0x42, 10, 32, 0, 5}
	resolves := func(a string) string {
		return m.agreed(func(t *Table) (peer.Name, bool) {
			l, ok := t.Resolve(netip.MustParseAddr(a))
			return l.Owner, ok
		})
	}
	m.announce(1, Binding{derived, Container, addrs("10.32.0.5")})
	m.announce(2, Binding{derived, Container, addrs("10.32.0.9")})
	m.want("the address of the liar", m.at("10.32.0.9"), name(2).String())
	m.want("the address of the liar, with its MAC address", resolves("10.32.0.9"), "nobody")
	m.want("the address of the other one, with its MAC address", resolves("10.32.0.5"), name(1).String())
	m.announce(2, Binding{mac(9), Container, addrs("10.32.0.9")})
	m.want("the address of the liar at a MAC address of its own", resolves("10.32.0.9"), name(2).String())
	m.want("an address that is not bound", resolves("10.32.0.7"), "nobody")
}

// A MAC address that proves whose it is cannot be bound by another peer, whatever that owns.
func TestMACThatProvesItsOwner(t *testing.T) {
	m := newMesh(t, 4)
	derived := MAC{0x02, 0x42, 10, 32, 0, 5}
	m.ring[netip.MustParseAddr("10.32.0.5")], m.ring[netip.MustParseAddr("10.32.0.9")] = name(1), name(2)
	lie := func() {
		m.announce(2, Binding{derived, Container, addrs("10.32.0.9")}, Binding{MAC(name(3)), Container, addrs("10.32.0.10")})
	}
	lie()
	m.want("a MAC address of an address of a peer that does not bind it", m.macAt(derived), "nobody")
	m.announce(1, Binding{derived, Container, addrs("10.32.0.5")})
	m.announce(3, Binding{MAC(name(3)), Exposed, addrs("192.168.7.1")})
	m.want("a MAC address of an address", m.macAt(derived), name(1).String())
	m.want("the MAC address of a bridge", m.macAt(MAC(name(3))), name(3).String())
	m.announce(2)
	lie() // the last word
	m.want("a MAC address of an address", m.macAt(derived), name(1).String())
	m.want("the MAC address of a bridge", m.macAt(MAC(name(3))), name(3).String())
	outside := MAC{0x02, 0x42, 172, 17, 0, 2}
	m.announce(2, Binding{outside, Container, addrs("172.17.0.2")})
	m.want("one of an address that no ring divides", m.macAt(outside), name(2).String())
}

// The status shows all bindings, and why some are not believed.
func TestList(t *testing.T) {
	m := newMesh(t, 3)
	m.ring[netip.MustParseAddr("10.32.0.5")] = name(1)
	m.announce(1, Binding{mac(5), Container, addrs("10.32.0.5")}, Binding{mac(6), Port, addrs("192.168.7.1")})
	m.announce(2, Binding{mac(5), Container, nil}, Binding{mac(7), Container, addrs("10.32.0.5")}, Binding{mac(8), Port, addrs("192.168.7.1")}, Binding{mac(9), Port, addrs("10.32.0.77")})
	s := m.states[name(0)]
	list, omitted := s.List(100)
	s.Table().MarkRefused(list)
	var got []string
	for _, l := range list {
		got = append(got, fmt.Sprintf("%s on %d: %s", l.MAC, l.Owner[5], l.Refused))
	}
	want := []string{
		"02:42:0a:00:00:05 on 1: ",
		"02:42:0a:00:00:06 on 1: 192.168.7.1 has several MAC addresses",
		"02:42:0a:00:00:05 on 2: the MAC address is that of another peer",
		"02:42:0a:00:00:07 on 2: 10.32.0.5 belongs to another peer",
		"02:42:0a:00:00:08 on 2: 192.168.7.1 has several MAC addresses",
		"02:42:0a:00:00:09 on 2: it is not known yet to whom 10.32.0.77 belongs",
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || omitted > 0 {
		t.Errorf("%d omitted; got\n%s", omitted, strings.Join(got, "\n"))
	}
	if c := s.Table().Counts(); c != (Counts{Bindings: 6, Refused: 5}) {
		t.Errorf("%+v", c)
	}
	if list, omitted := s.List(4); len(list) != 4 || omitted != 2 {
		t.Errorf("%d of 6 with a limit of 4, and %d omitted", len(list), omitted)
	}
}

// The ring is asked while no lock is held: lookups go on, and changes of the State in the meantime
// are not lost.
func TestRingThatAnswersLate(t *testing.T) {
	m := newMesh(t, 2)
	a, b := netip.MustParseAddr("10.32.0.5"), netip.MustParseAddr("10.32.0.6")
	m.ring[a], m.ring[b] = name(1), name(1)
	id := peer.Cheap{ID: peer.Key{1}}
	var s *State
	busy := false
	s = New(Config{Self: name(0), Signer: id, Verifier: id, Start: time.Unix(1_700_000_000, 0), OwnerOf: func(x netip.Addr) (peer.Name, bool) {
		if x == a && !busy {
			busy = true
			deltas, err := m.states[name(1)].Announce([]Binding{{mac(6), Container, []netip.Addr{b}}})
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range deltas {
				if _, err := s.Merge(name(1), d); err != nil {
					t.Fatal(err)
				}
			}
			s.Table().ByAddr(a)
		}
		return m.ownerOf(x)
	}})
	s.SetOwners(maps.Clone(m.keys))
	deltas, err := m.states[name(1)].Announce([]Binding{{mac(5), Container, []netip.Addr{a}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range deltas {
		if _, err := s.Merge(name(1), d); err != nil {
			t.Fatal(err)
		}
	}
	s.Table().Update(false)
	s.Table().Update(false)
	if _, ok := s.Table().ByAddr(a); ok {
		t.Errorf("%s is bound, and its binding ended while the ring was asked", a)
	}
	if _, ok := s.Table().ByAddr(b); !ok {
		t.Errorf("%s is not bound", b)
	}
}

// What is announced and withdrawn again before the next Update takes no memory.
func TestChangesBetweenUpdatesAreBounded(t *testing.T) {
	m := newMesh(t, 1)
	s := m.states[name(0)]
	said := func(n int) []Binding {
		return []Binding{{mac(n), Container, addrs(fmt.Sprintf("192.168.%d.%d", n>>8, n&255))}}
	}
	for n := range 1000 {
		if _, err := s.Announce(said(n)); err != nil {
			t.Fatal(err)
		}
	}
	if x := s.table; len(x.macs.changed) > 1 || len(x.macs.entries) > 1 || len(x.addrs.changed) > 1 || len(x.addrs.entries) > 1 {
		t.Errorf("%d MAC addresses and %d IP addresses are remembered of one binding", len(x.macs.changed), len(x.addrs.changed))
	}
	s.Table().Update(false)
	if _, err := s.Announce(nil); err != nil {
		t.Fatal(err)
	}
	if c := s.Table().Update(false); len(c) != 2 || c[0].New.Owner != (peer.Name{}) {
		t.Errorf("the end of a binding: %+v", c)
	}
	if x := s.table; len(x.macs.entries)+len(x.addrs.entries) > 0 || x.Counts() != (Counts{}) {
		t.Errorf("%d entries stay, %+v", len(x.macs.entries)+len(x.addrs.entries), x.Counts())
	}
}

// A router that starts again changes nothing for the others if it announces the same bindings.
func TestRestartChangesNothing(t *testing.T) {
	m := newMesh(t, 2)
	web := Binding{mac(5), Container, addrs("192.168.7.1")}
	m.announce(1, web)
	m.states[name(1)] = New(Config{
		Self: name(1), Signer: peer.Cheap{ID: m.keys[name(1)]}, Verifier: peer.Cheap{}, Start: time.Unix(1_700_000_100, 0), OwnerOf: m.ownerOf,
	})
	m.reachable()
	if changes := m.announce(1, web); len(changes) > 0 {
		t.Errorf("changes: %+v", changes)
	}
	m.announce(1)
	m.want("a binding of the former run", m.macAt(mac(5)), "nobody")
}

// A container moves with its addresses to another host. Whatever arrives first, it is at the new
// host once both have said so.
func TestBindingMoves(t *testing.T) {
	m := newMesh(t, 3)
	a := netip.MustParseAddr("10.32.0.5")
	for _, joinFirst := range []bool{true, false} {
		m.ring[a] = name(1)
		c := Binding{mac(5), Container, []netip.Addr{a}}
		m.announce(1, c)
		steps := []func(){func() { m.announce(1) }, func() { m.announce(2, c) }}
		if joinFirst {
			slices.Reverse(steps)
		}
		for _, step := range steps {
			step()
		}
		m.ring[a] = name(2) // the ring decides last
		for _, s := range m.states {
			s.Table().Update(true)
		}
		m.want("the address", m.at(a.String()), name(2).String())
		m.want("the MAC address", m.macAt(mac(5)), name(2).String())
		m.announce(2)
	}
}

// After any changes of bindings, ring and reachable peers the table is as a slow search says.
func TestTableAgainstASlowOne(t *testing.T) {
	rng := rand.New(rand.NewPCG(seed.New(t), 1))
	m := newMesh(t, 5)
	said := make(map[int][]Binding)
	for range 400 {
		n := rng.IntN(5)
		var list []Binding
		for _, k := range rng.Perm(8)[:rng.IntN(5)] {
			b := Binding{MAC: someMAC(k), Kind: Container}
			for _, x := range rng.Perm(8)[:rng.IntN(3)] {
				b.Addrs = append(b.Addrs, netip.AddrFrom4([4]byte{10, byte(32 + 100*(x/4)), 0, byte(x)}))
			}
			slices.SortFunc(b.Addrs, netip.Addr.Compare)
			list = append(list, b)
		}
		said[n] = list
		m.announce(n, list...)
		m.ring[netip.AddrFrom4([4]byte{10, 32, 0, byte(rng.IntN(4))})] = name(rng.IntN(5))
		away := 1 + rng.IntN(4)
		m.states[name(0)].SetOwners(func() map[peer.Name]peer.Key {
			known := maps.Clone(m.keys)
			delete(known, name(away))
			return known
		}())
		table := m.states[name(0)].Table()
		table.Update(true)
		for k := range 8 {
			_, got, _ := table.ByMAC(someMAC(k))
			if want := slowMAC(m, said, away, someMAC(k)); got != want {
				t.Fatalf("%s is at %s, want %s", someMAC(k), got, want)
			}
		}
		for x := range 8 {
			a := netip.AddrFrom4([4]byte{10, byte(32 + 100*(x/4)), 0, byte(x)})
			got, _ := table.ByAddr(a)
			if want := slowAddr(m, said, away, a); got != want {
				t.Fatalf("%s is at %v, want %v", a, got, want)
			}
		}
		m.reachable()
	}
}

// someMAC returns MAC addresses of which some prove whose they are.
func someMAC(k int) MAC {
	switch k {
	case 6:
		return MAC(name(2))
	case 7:
		return MAC{0x02, 0x42, 10, 32, 0, 1}
	}
	return mac(k)
}

func slowMAC(m *mesh, said map[int][]Binding, away int, x MAC) peer.Name {
	var all, proved []peer.Name
	for n, list := range said {
		for _, b := range list {
			if n == away || b.MAC != x {
				continue
			}
			all = append(all, name(n))
			if slices.ContainsFunc(b.Addrs, func(a netip.Addr) bool { return inRing.Contains(a) && m.ring[a] == name(n) }) {
				proved = append(proved, name(n))
			}
		}
	}
	for _, by := range []peer.Name{peer.Name(x), m.ring[netip.MustParseAddr("10.32.0.1")]} {
		if slices.Contains(all, by) && (by == peer.Name(x) || x == someMAC(7)) {
			return by
		}
	}
	if x == someMAC(7) {
		return peer.Name{}
	}
	if len(proved) > 0 {
		all = proved
	}
	if len(all) == 1 {
		return all[0]
	}
	return peer.Name{}
}

func slowAddr(m *mesh, said map[int][]Binding, away int, a netip.Addr) Location {
	var all []Location
	for n, list := range said {
		for _, b := range list {
			if n != away && slices.Contains(b.Addrs, a) && (!inRing.Contains(a) || m.ring[a] == name(n)) {
				all = append(all, Location{b.MAC, name(n)})
			}
		}
	}
	if len(all) == 1 {
		return all[0]
	}
	return Location{}
}

func TestRefusedBindings(t *testing.T) {
	m := newMesh(t, 1)
	many := make([]netip.Addr, MaxAddrs+1)
	for i := range many {
		many[i] = netip.AddrFrom4([4]byte{10, 32, 0, byte(i)})
	}
	for _, c := range []struct {
		list []Binding
		want string
	}{
		{[]Binding{{mac(1), 0, nil}}, "kind 0"},
		{[]Binding{{MAC{1}, Container, nil}}, "unicast MAC address"},
		{[]Binding{{MAC{}, Container, nil}}, "unicast MAC address"},
		{[]Binding{{mac(1), Container, many}}, "17 addresses, want at most 16"},
		{[]Binding{{mac(1), Container, addrs("224.0.0.1")}}, "unicast address"},
		{[]Binding{{mac(1), Container, addrs("::ffff:10.32.0.1")}}, "unicast address"},
		{[]Binding{{mac(1), Container, nil}, {mac(1), Port, nil}}, "twice"},
	} {
		if _, err := m.states[name(0)].Announce(c.list); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.list, err, c.want)
		}
	}
}

// A lookup is made for each new flow, so it must not allocate.
func TestNoAllocation(t *testing.T) {
	m := newMesh(t, 2)
	m.announce(1, Binding{mac(5), Container, addrs("192.168.7.1")})
	table, a := m.states[name(0)].Table(), netip.MustParseAddr("192.168.7.1")
	if n := testing.AllocsPerRun(100, func() {
		table.ByMAC(mac(5))
		table.ByAddr(a)
		table.Resolve(a)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// inUse returns the bytes in use after a collection.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers held
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// fill makes a State know the bindings of many hosts, which list returns, and calls f with it.
func fill(t *testing.T, hosts int, ownerOf func(netip.Addr) (peer.Name, bool), list func(host int) []Binding, f func(s *State)) {
	t.Helper()
	id := peer.Cheap{ID: peer.Key{1}}
	s := New(Config{Self: name(0), Signer: id, Verifier: id, Start: time.Unix(1_700_000_000, 0), OwnerOf: ownerOf})
	known := make(map[peer.Name]peer.Key)
	for h := 1; h <= hosts; h++ {
		known[name(h)] = peer.Key{1, byte(h), byte(h >> 8)}
	}
	s.SetOwners(maps.Clone(known))
	for h := 1; h <= hosts; h++ {
		id := peer.Cheap{ID: known[name(h)]}
		far := New(Config{Self: name(h), Signer: id, Verifier: id, Start: time.Unix(1_700_000_000, 0), OwnerOf: ownerOf})
		deltas, err := far.Announce(list(h))
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range deltas {
			if _, err := s.Merge(name(h), d); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.Table().Update(false)
	f(s)
}

// 1,000 hosts with 50 containers each take less memory than the router of a small host can spare.
func TestMemoryOfALargeMesh(t *testing.T) {
	const hosts, containers, most = 1000, 50, 30e6
	before := inUse()
	addr := func(n int) netip.Addr { return netip.AddrFrom4([4]byte{10, 32 + byte(n>>16), byte(n >> 8), byte(n)}) }
	ownerOf := func(a netip.Addr) (peer.Name, bool) {
		b := a.As4()
		n := int(b[1]-32)<<16 | int(b[2])<<8 | int(b[3])
		return name(n / containers), true
	}
	list := func(h int) (list []Binding) {
		for c := range containers {
			n := h*containers + c
			a := addr(n).As4()
			list = append(list, Binding{MAC{0x02, 0x42, a[0], a[1], a[2], a[3]}, Container, []netip.Addr{addr(n)}})
		}
		return list
	}
	fill(t, hosts, ownerOf, list, func(s *State) {
		if c := s.Table().Counts(); c.Bindings != hosts*containers || c.Refused != 0 {
			t.Fatalf("%+v, want all believed", c)
		}
		used := inUse() - before
		t.Logf("%d bindings take %.1f MB", hosts*containers, float64(used)/1e6)
		if used > most {
			t.Errorf("%d bindings take %d bytes, want at most %d", hosts*containers, used, int64(most))
		}
		runtime.KeepAlive(s)
	})
}

// What a liar announces takes no more memory than it is charged for, whatever its bindings look like.
func TestCostIsMemory(t *testing.T) {
	const hosts, each = 10, 400 // when maps have just grown
	nobody := func(netip.Addr) (peer.Name, bool) { return peer.Name{}, false }
	for _, c := range []struct {
		what      string
		addresses int
		ipv6      bool
		same      bool // all hosts bind the same
	}{
		{"no addresses", 0, false, false}, {"an IPv4 address", 1, false, false}, {"16 IPv4 addresses", 16, false, false},
		{"16 IPv6 addresses", 16, true, false}, {"the same 16 IPv6 addresses", 16, true, true},
	} {
		n := 0
		before := inUse()
		fill(t, hosts, nobody, func(h int) (list []Binding) {
			if c.same {
				n = 0
			}
			for range each {
				n++
				b := Binding{MAC: mac(n), Kind: Container}
				for i := range c.addresses {
					if a := [16]byte{10, byte(n >> 16), byte(n >> 8), byte(n), byte(i)}; c.ipv6 {
						b.Addrs = append(b.Addrs, netip.AddrFrom16(a))
					} else {
						b.Addrs = append(b.Addrs, netip.AddrFrom4([4]byte{10 + byte(i), byte(n >> 16), byte(n >> 8), byte(n)}))
					}
				}
				list = append(list, b)
			}
			return list
		}, func(s *State) {
			used, charged := inUse()-before, int64(s.Stats().Bytes)
			t.Logf("%s: %d bytes each, charged %d", c.what, used/(hosts*each), charged/(hosts*each))
			if used > charged {
				t.Errorf("%s: %d bytes are used and %d charged", c.what, used, charged)
			}
			runtime.KeepAlive(s)
		})
	}
}

func FuzzDecode(f *testing.F) {
	for _, list := range [][]Binding{
		nil,
		{{mac(5), Container, addrs("10.32.0.5", "fd00::5")}},
		{{mac(5), Exposed, nil}, {mac(0x15 ^ 0x10 ^ 5), Port, addrs("192.168.7.1")}},
	} {
		b := uint8(0)
		if len(list) > 0 {
			b = bucketOf(list[0].MAC)
		}
		f.Add(b, encode(list))
	}
	f.Fuzz(func(t *testing.T, bucket uint8, b []byte) {
		list, err := decode(bucket, b)
		if err != nil {
			return
		}
		if again := encode(list); !slices.Equal(again, b) {
			t.Errorf("% x is written as % x", b, again)
		}
		for _, x := range list {
			if err := x.check(); err != nil {
				t.Error(err)
			}
		}
	})
}

func Example_wire() {
	fmt.Printf("% x\n", encode([]Binding{{mac(5), Container, addrs("10.32.0.5")}}))
	// Output: 01 02 42 0a 00 00 05 01 04 0a 20 00 05
}

// Peers that a member makes up bind one address to as many MAC addresses as there is space for. A change of
// one of them takes as long as if nobody else bound the address.
func TestManyClaimsOfOneAddressCostNoMore(t *testing.T) {
	const peers, each, changed = 4, 4000, 200
	fastest := func(addr func(i, k int) netip.Addr) time.Duration {
		table := newTable(func(netip.Addr) (peer.Name, bool) { return peer.Name{}, false })
		var last []Binding
		for i := range peers {
			var list []Binding
			for k := range each {
				list = append(list, Binding{MAC: MAC{2, 7, byte(i), 0, byte(k >> 8), byte(k)}, Kind: Container, Addrs: []netip.Addr{addr(i, k)}})
			}
			table.replace(name(i), nil, list)
			last = list[:changed]
		}
		table.Update(false)
		best := time.Hour
		for range 5 {
			start := time.Now()
			table.replace(name(peers-1), last, nil)
			best = min(best, time.Since(start))
			table.replace(name(peers-1), nil, last)
		}
		return best
	}
	alone := fastest(func(i, k int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i), byte(k >> 8), byte(k)}) })
	crowded := fastest(func(int, int) netip.Addr { return netip.MustParseAddr("192.0.2.1") })
	if crowded > 20*alone {
		t.Errorf("%d changes take %v, and %v if %d others bind the same address", changed, alone, crowded, peers*each)
	}
}
