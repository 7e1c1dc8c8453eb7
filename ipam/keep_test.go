package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

const keepRange = "10.32.0.0/24"

// removedWithoutHeir makes five nodes of which the last one is dead and was removed by
// others than the heir. It returns the heir, the dead node and the addresses in use there.
func removedWithoutHeir(t *testing.T, s *sim) (heir, dead *node, used []netip.Addr) {
	nodes := s.addAll(5, keepRange)
	for i, n := range nodes {
		n.cfg.Keep = time.Hour
		n.launch()
		n.allocate(fmt.Sprint("c", i), keepRange)
	}
	s.converged(20 * time.Second)
	dead = nodes[4]
	for i := range 5 {
		used = append(used, dead.allocate(fmt.Sprint("used", i), keepRange))
	}
	s.converged(20 * time.Second)
	dead.kill()
	var next peer.Name
	nodes[0].do(func(c *core) { next = c.heirFor(dead.self()).Name })
	var others []*node
	for _, n := range nodes[:4] {
		if n.cfg.Self == next {
			heir = n
		} else {
			others = append(others, n)
		}
	}
	if got := s.removedBy(dead, others[:2]...); got != heir {
		t.Fatalf("the heir is %v", got)
	}
	s.converged(20 * time.Second)
	return heir, dead, used
}

// fill allocates until no address is left.
func (s *sim) fill(nodes ...*node) (got []netip.Addr) {
	for _, n := range nodes {
		for i := 0; ; i++ {
			id := n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint("fill", i), pfx(keepRange)) })
			r, ok := n.await(id, 15*time.Second)
			if !ok || r.err != nil {
				n.reason(id)
				break
			}
			got = append(got, r.prefix.Addr())
		}
	}
	return got
}

// A host that was removed while it was cut off returns within the hour: its addresses are
// its own again, and nobody has used them, although all others ran out of addresses and the
// heir was restarted.
func TestHostThatReturnsGetsItsAddressesBack(t *testing.T) {
	s := newSim(t, seed.New(t))
	heir, back, used := removedWithoutHeir(t, s)
	before := addr.Total(back.ownedOnDisk())
	heir.kill()
	s.run(time.Second)
	heir.launch()
	s.run(3 * time.Second)
	for _, a := range s.fill(s.nodes[:4]...) {
		if slices.Contains(used, a) {
			t.Fatalf("%s was given to another container", a)
		}
	}
	if k := heir.core.status().Kept; len(k) != 1 || k[0].Name != back.cfg.Self || k[0].Addresses != before {
		t.Errorf("the heir keeps %+v, want %s addresses of %s", k, before, back.cfg.Self)
	}
	back.launch()
	s.converged(20 * time.Second)
	s.run(10 * time.Second)
	for _, a := range used {
		if !back.core.space.Owns(a) {
			t.Errorf("%s was not given back", a)
		}
	}
	if st := back.core.status(); len(st.Conflicts) > 0 {
		t.Errorf("conflicts %v", st.Conflicts)
	}
	if got := addr.Total(back.core.ring.Owned(back.self())); got != before {
		t.Errorf("it owns %v addresses, before it was removed %v", got, before)
	}
	if k := heir.core.status().Kept; len(k) != 0 {
		t.Errorf("the heir still keeps %+v", k)
	}
}

// ownedOnDisk returns what a dead node owned by the ring on its disk.
func (n *node) ownedOnDisk() []addr.Range {
	c := newCore(n.cfg, n, n.s.rng)
	c.load(n.disk)
	return c.ring.Owned(n.self())
}

// The addresses of a host that does not return are used after a while, or as soon as the
// operator of the heir says that it is dead.
func TestAddressesOfADeadHostAreUsedInTheEnd(t *testing.T) {
	for _, byOperator := range []bool{false, true} {
		s := newSim(t, seed.New(t))
		heir, dead, used := removedWithoutHeir(t, s)
		if byOperator {
			id := heir.removes(dead)
			if r, ok := heir.await(id, time.Second); !ok || r.err != nil {
				t.Fatal(r.err)
			}
		} else {
			s.now = s.now.Add(time.Hour)
			s.run(6 * time.Second)
		}
		s.drop(dead)
		got := s.fill(heir)
		for _, a := range used {
			if !slices.Contains(got, a) {
				t.Errorf("by the operator %v: %s is not used", byOperator, a)
			}
		}
	}
}

// What is kept is bounded, and a peer with many ranges does not take the place of others.
func TestKeptRangesAreBounded(t *testing.T) {
	s := newSim(t, 1)
	n := s.add("10.32.0.0/12", Init{Mode: Consensus, Expect: 1})
	honest := ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}
	liar := ring.Holder{Name: peer.Name{2, 8}, Key: peer.KeyID{8}}
	a := netip.MustParseAddr("10.32.0.0")
	n.do(func(c *core) {
		for i := range 2 * maxKept {
			from := liar
			if i < 10 {
				from = honest
			}
			c.keep(kept{addr.Single(a), from, c.now.Add(time.Hour)})
			a = a.Next().Next()
		}
	})
	count := 0
	for _, k := range n.core.kept {
		if k.from == honest {
			count++
		}
	}
	if len(n.core.kept) != maxKept || len(n.disk.data[bucketKept]) != maxKept || count != 10 {
		t.Errorf("%d ranges, %d on disk, %d of the honest peer", len(n.core.kept), len(n.disk.data[bucketKept]), count)
	}
}

func FuzzParseKept(f *testing.F) {
	k := kept{addr.Of(pfx("10.32.0.0/30")), ring.Holder{Name: peer.Name{2, 7}, Key: peer.KeyID{7}}, time.Unix(1_700_000_000, 0)}
	key, value := k.write()
	f.Add(key, value)
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, key, value []byte) {
		k, err := parseKept(key, value)
		if err != nil {
			return
		}
		if again, v := k.write(); !slices.Equal(again, key) || !slices.Equal(v, value) {
			t.Errorf("% x %x is written as % x %x", key, value, again, v)
		}
	})
}
