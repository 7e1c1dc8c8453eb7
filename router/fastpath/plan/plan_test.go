package plan

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

func name(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func hop(i int) Hop {
	return Hop{Remote: at(i), Local: at(0), Gateway: at(i), Ifindex: 2, MTU: mtu, Up: true}
}

// line is h0 -- h1 -- h2 -- h3, seen from h0, and h4 aside.
func line() (map[peer.Name]uint16, map[peer.Name]peer.Name, map[peer.Name]Hop) {
	ids := map[peer.Name]uint16{name(0): 10, name(1): 11, name(2): 12, name(3): 13, name(4): 14}
	next := map[peer.Name]peer.Name{name(1): name(1), name(2): name(1), name(3): name(1), name(4): name(4)}
	return ids, next, map[peer.Name]Hop{name(1): hop(1), name(4): hop(4)}
}

// over returns the neighbours over which frames of a peer come, if the paths are the same in
// both directions.
func over(next map[peer.Name]peer.Name) func(peer.Name) []peer.Name {
	return func(n peer.Name) []peer.Name {
		if via, ok := next[n]; ok && via != n {
			return []peer.Name{via}
		}
		return nil
	}
}

func TestPlan(t *testing.T) {
	ids, next, hops := line()
	got := Plan(name(0), ids, next, hops, over(next))
	from11 := [MaxFrom]uint16{11}
	want := Tables{
		Peers:   map[uint16]Peer{11: {Hop: hop(1), Next: 11}, 12: {Hop: hop(1), Next: 11, From: from11}, 13: {Hop: hop(1), Next: 11, From: from11}, 14: {Hop: hop(4), Next: 14}},
		Remotes: map[netip.Addr]Remote{at(1): {Peer: 11, Local: at(0)}, at(4): {Peer: 14, Local: at(0)}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v", got)
	}
	h := hops[name(1)]
	h.Up = false
	hops[name(1)] = h
	delete(next, name(4))
	got = Plan(name(0), ids, next, hops, over(next))
	for _, id := range []uint16{11, 12, 13, 14} {
		if p, known := got.Peers[id]; !known || p.Hop != (Hop{}) || p.Next != 0 {
			t.Errorf("peer %d: %+v", id, p)
		}
	}
	if len(got.Remotes) != 2 {
		t.Error("a neighbour that does not answer may still send")
	}
}

// A neighbour may relay frames of peers that come over it. The kernel's entry has space for
// a few; more than that and it does not distinguish.
func TestPlanSaysWhoMayRelay(t *testing.T) {
	ids, next, hops := line()
	relays := []peer.Name{name(4), name(1), name(9)} // nobody has an id for the last one
	from := func(n peer.Name) []peer.Name {
		if n == name(3) {
			return relays
		}
		return nil
	}
	p := Plan(name(0), ids, next, hops, from).Peers
	if p[13].From != [MaxFrom]uint16{11, 14} || p[13].FromAny || p[12].From != [MaxFrom]uint16{} {
		t.Errorf("relays of 13 are %v, of 12 %v", p[13], p[12])
	}
	for i := range MaxFrom {
		relays = append(relays, name(100+i))
		ids[name(100+i)] = uint16(100 + i)
	}
	if p := Plan(name(0), ids, next, hops, from).Peers[13]; p.From != [MaxFrom]uint16{} || !p.FromAny {
		t.Errorf("too many relays: %v", p)
	}
}

func TestPlanLeavesOut(t *testing.T) {
	ids, next, hops := line()
	delete(ids, name(3))
	hops[name(4)] = hop(1) // at the address of h1
	got := Plan(name(0), ids, next, hops, over(next))
	if len(got.Remotes) != 0 || got.Peers[11] != (Peer{}) {
		t.Errorf("two neighbours at one address: %+v", got)
	}
	if _, ok := got.Peers[13]; ok {
		t.Error("a peer without an id")
	}
}

// Exactly the affected entries change.
func TestDiffIsLeast(t *testing.T) {
	ids, next, hops := line()
	old := Plan(name(0), ids, next, hops, over(next))
	if c := old.Diff(old); !c.Empty() {
		t.Errorf("nothing changed, but %+v", c)
	}
	next[name(3)] = name(4)
	if c := Plan(name(0), ids, next, hops, over(next)).Diff(old); !reflect.DeepEqual(c, Changes{PutPeers: []uint16{13}}) {
		t.Errorf("a route changed: %+v", c)
	}
	delete(hops, name(4))
	delete(ids, name(4))
	next[name(3)] = name(1)
	if c := Plan(name(0), ids, next, hops, over(next)).Diff(old); !reflect.DeepEqual(c, Changes{DeletePeers: []uint16{14}, DeleteRemotes: []netip.Addr{at(4)}}) {
		t.Errorf("a neighbour went: %+v", c)
	}
}

// randomTables plans for a random mesh of 20.
func randomTables(rng *rand.Rand) Tables {
	ids, next, hops := map[peer.Name]uint16{}, map[peer.Name]peer.Name{}, map[peer.Name]Hop{}
	for i := range 20 {
		if rng.IntN(4) > 0 {
			ids[name(i)] = uint16(100 + i)
		}
		next[name(i)] = name(rng.IntN(20))
		if rng.IntN(2) > 0 {
			h := hop(i)
			h.Up, h.MTU = rng.IntN(3) > 0, 1000+rng.IntN(2)
			hops[name(i)] = h
		}
	}
	return Plan(name(0), ids, next, hops, over(next))
}

// Applied in their order, changes make of any table any other, and at no step
// does a fast peer lead over a neighbour that is not known.
func TestDiffLeadsThere(t *testing.T) {
	rng := seed.Rand(t)
	have := randomTables(rng)
	for range 500 {
		want := randomTables(rng)
		c := want.Diff(have)
		now := Tables{maps.Clone(have.Peers), maps.Clone(have.Remotes)}
		for _, id := range c.DeletePeers {
			delete(now.Peers, id)
		}
		for _, a := range c.PutRemotes {
			now.Remotes[a] = want.Remotes[a]
		}
		for _, id := range c.PutPeers {
			now.Peers[id] = want.Peers[id]
			if p := want.Peers[id]; p.Next != 0 && now.Remotes[p.Remote].Peer != p.Next {
				t.Fatalf("peer %d leads to %v before that is known", id, p.Remote)
			}
		}
		for _, a := range c.DeleteRemotes {
			delete(now.Remotes, a)
		}
		if !reflect.DeepEqual(now, want) {
			t.Fatal("the changes lead elsewhere")
		}
		have = now
	}
}

// flaky is a Writer to maps that fails now and then.
type flaky struct {
	Tables
	rng *rand.Rand
}

func (f flaky) try() error {
	if f.rng.IntN(3) == 0 {
		return errors.New("no memory")
	}
	return nil
}

func (f flaky) PutPeer(id uint16, p Peer) error {
	err := f.try()
	if err == nil {
		f.Peers[id] = p
	}
	return err
}

func (f flaky) DeletePeer(id uint16) error {
	err := f.try()
	if err == nil {
		delete(f.Peers, id)
	}
	return err
}

func (f flaky) PutRemote(a netip.Addr, r Remote) error {
	err := f.try()
	if err == nil {
		f.Remotes[a] = r
	}
	return err
}

func (f flaky) DeleteRemote(a netip.Addr) error {
	err := f.try()
	if err == nil {
		delete(f.Remotes, a)
	}
	return err
}

// Whatever fails, have is what the maps hold, and trying again ends with what is
// wanted.
func TestApplyGoesOnAfterFailures(t *testing.T) {
	rng := seed.Rand(t)
	empty := func() Tables { return Tables{Peers: make(map[uint16]Peer), Remotes: make(map[netip.Addr]Remote)} }
	kernel, have := flaky{empty(), rng}, empty()
	for range 100 {
		want := randomTables(rng)
		for tries := 0; ; tries++ {
			err := want.Apply(have, kernel)
			if !maps.Equal(have.Peers, kernel.Peers) || !maps.Equal(have.Remotes, kernel.Remotes) {
				t.Fatalf("have %+v, in the kernel %+v", have, kernel.Tables)
			}
			if err == nil {
				break
			}
			if tries > 100 {
				t.Fatal(err)
			}
		}
		if c := want.Diff(have); !c.Empty() {
			t.Fatalf("applied, and still %+v is left to do", c)
		}
	}
}
