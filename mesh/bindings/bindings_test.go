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
		for _, k := range rng.Perm(6)[:rng.IntN(5)] {
			b := Binding{MAC: mac(k), Kind: Container}
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
		for k := range 6 {
			_, got, _ := table.ByMAC(mac(k))
			if want := slowMAC(m, said, away, mac(k)); got != want {
				t.Fatalf("%s is at %s, want %s", mac(k), got, want)
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
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// 1,000 hosts with 50 containers each take less memory than the router of a small host can spare.
func TestMemoryOfALargeMesh(t *testing.T) {
	const hosts, containers, most = 1000, 50, 30 << 20
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	m := newMesh(t, 1)
	all, known := m.states[name(0)], make(map[peer.Name]peer.Key)
	for h := 1; h <= hosts; h++ {
		known[name(h)] = peer.Key{1, byte(h), byte(h >> 8)}
	}
	all.SetOwners(known)
	for h := 1; h <= hosts; h++ {
		id := peer.Cheap{ID: known[name(h)]}
		s := New(Config{Self: name(h), Signer: id, Verifier: id, Start: time.Unix(1_700_000_000, 0), OwnerOf: m.ownerOf})
		var list []Binding
		for c := range containers {
			n := h*containers + c
			a := netip.AddrFrom4([4]byte{10, 32 + byte(n>>16), byte(n >> 8), byte(n)})
			m.ring[a] = name(h)
			list = append(list, Binding{mac(n), Container, []netip.Addr{a}})
		}
		deltas, err := s.Announce(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range deltas {
			if _, err := all.Merge(name(1), d); err != nil {
				t.Fatal(err)
			}
		}
	}
	all.Table().Update(false)
	if _, ok := all.Table().ByAddr(netip.MustParseAddr("10.32.100.1")); !ok {
		t.Fatal("an address is not bound")
	}
	clear(m.ring)
	m.ring = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d bindings take %.1f MB", hosts*containers, float64(used)/1e6)
	if used > most {
		t.Errorf("%d bindings take %d bytes, want at most %d", hosts*containers, used, int64(most))
	}
	runtime.KeepAlive(all)
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
