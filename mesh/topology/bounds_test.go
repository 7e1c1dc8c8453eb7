package topology

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

// madeUp returns entries of peers that do not exist, which list all links of a peer to
// each other and to those in to.
func madeUp(n, first int, to ...peer.Name) (entries []*Entry) {
	name := func(i int) peer.Name {
		return peer.Name{2, 0xee, 0, byte((first + i) >> 16), byte((first + i) >> 8), byte(first + i)}
	}
	for i := range n {
		id := peer.Cheap{ID: peer.Key{0xee, byte(i), byte(i >> 8), byte(first)}}
		e := &Entry{Name: name(i), Key: id.Key(), Version: 5}
		for j := max(0, i-20); j < min(n, i+20); j++ {
			if j != i {
				e.Links = append(e.Links, Link{To: name(j), Flags: LinkSession})
			}
		}
		for _, t := range to {
			e.Links = append(e.Links, Link{To: t, Flags: LinkSession})
		}
		slices.SortFunc(e.Links, func(a, b Link) int { return a.To.Compare(b.To) })
		e.sign(id)
		entries = append(entries, e)
	}
	return entries
}

func cheapState(t testing.TB, i int, limit int) *State {
	t.Helper()
	id := peer.Cheap{ID: peer.Key{1, byte(i >> 8), byte(i)}}
	s, err := New(Config{Self: simName(i), Instance: uint64(i), Signer: id, Verifier: id, Book: new(peer.Book), Start: epoch, maxCost: limit * (baseCost + 50)})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A squatter does not get the name of a host that is away, and the host gets in at once
// when it comes back.
func TestNameOfAnAbsentPeerStaysItsOwn(t *testing.T) {
	given, squatter := identity(t, 2), identity(t, 3)
	given.Name, squatter.Name = peer.Name{0, 0, 0, 0, 0, 9}, peer.Name{0, 0, 0, 0, 0, 9}
	derived, thief := identity(t, 4), identity(t, 5)
	thief.Name = derived.Name
	for _, c := range []struct{ owner, rival *peer.Identity }{{given, squatter}, {derived, thief}} {
		a := newState(t, identity(t, 1), 1, epoch)
		s := newState(t, c.owner, 1, epoch)
		s.SetLinks(meet(a, s.cfg.Self))
		if _, err := a.Merge(s.cfg.Self, s.own.raw); err != nil || a.Entry(s.cfg.Self) == nil {
			t.Fatalf("entry %v, %v", a.Entry(s.cfg.Self), err)
		}
		a.SetLinks(nil)
		a.Expire(epoch)
		if gone, _ := a.Expire(epoch.Add(ForgetAfter)); len(gone) != 1 {
			t.Fatalf("forgot %v", gone)
		}
		id := *c.rival
		id.Name = peer.Name{2, 1} // its own State would not take the name
		e := &Entry{Name: s.cfg.Self, Key: id.Key(), Version: s.own.Version + 100, Links: meet(a, s.cfg.Self)}
		e.sign(&id)
		if news, err := a.Merge(s.cfg.Self, e.raw); err != nil || news != nil || a.Entry(s.cfg.Self) != nil {
			t.Errorf("the squatter is in the mesh: %x, %v", news, err)
		}
		if r := a.Refused(); len(r) != 1 || !errors.Is(r[0].Cause, peer.ErrNameTaken) {
			t.Errorf("refusals %+v", r)
		}
		s.SetLinks(nil)
		s.SetLinks([]Link{{To: a.cfg.Self, Flags: LinkSession}})
		if news, err := a.Merge(s.cfg.Self, s.own.raw); err != nil || news == nil {
			t.Errorf("the host is not in the mesh: %v", err)
		}
	}
}

// An operator removed a name: another key may use it, and the old entry, which a slower
// neighbour still passes on, does not bring the old key back.
func TestRemovedNameIsFree(t *testing.T) {
	old, next := identity(t, 2), identity(t, 3)
	old.Name, next.Name = peer.Name{0, 0, 0, 0, 0, 9}, peer.Name{0, 0, 0, 0, 0, 9}
	book := new(peer.Book)
	a, err := New(Config{Self: identity(t, 1).Name, Signer: identity(t, 1), Verifier: peer.Ed25519{}, Book: book, Start: epoch})
	if err != nil {
		t.Fatal(err)
	}
	s, s2 := newState(t, old, 1, epoch), newState(t, next, 2, epoch.Add(-time.Hour))
	s.SetLinks(meet(a, s.cfg.Self))
	s2.SetLinks(s.own.Links)
	a.Merge(peer.Name{}, s.own.raw)
	a.Remove(old.Name)
	book.Forget(old.Name)
	if news, _ := a.Merge(peer.Name{}, s.own.raw); news != nil {
		t.Error("the old entry came back")
	}
	if news, _ := a.Merge(peer.Name{}, s2.own.raw); news == nil || a.Entry(next.Name).Key != next.Key() {
		t.Error("the new key may not use the name")
	}
}

// Neither a peer itself nor a copy of its key can use up the versions of a name.
func TestVersionsCannotBeUsedUp(t *testing.T) {
	id := identity(t, 2)
	a := newState(t, identity(t, 1), 1, epoch)
	s := newState(t, id, 1, epoch)
	links := meet(a, id.Name)
	for _, version := range []uint64{math.MaxUint64, math.MaxUint64 - 1, 1 << 63, uint64(epoch.Add(maxAhead + time.Second).UnixMicro())} {
		e := &Entry{Name: id.Name, Key: id.Key(), Instance: 9, Version: version, Links: links}
		e.sign(id)
		for _, to := range []*State{a, s} {
			if news, err := to.Merge(a.cfg.Self, e.raw); err != nil || news != nil {
				t.Errorf("version %d: news %x, %v", version, news, err)
			}
			if r := to.Refused(); len(r) != 1 || !errors.Is(r[0].Cause, ErrAhead) {
				t.Errorf("version %d: refusals %+v", version, r)
			}
		}
		// The signature of an entry that is ahead is not even checked.
		e.raw[len(e.raw)-1] ^= 1
		a.Merge(a.cfg.Self, e.raw)
		if r := a.Refused(); len(r) != 1 || !errors.Is(r[0].Cause, ErrAhead) {
			t.Errorf("version %d: refusals %+v", version, r)
		}
	}
	s.SetLinks(links)
	if news, err := a.Merge(id.Name, s.own.raw); err != nil || news == nil {
		t.Errorf("the true entry: %v", err)
	}
	// The copy of the key goes as far as it may. The peer still has the last word.
	e := &Entry{Name: id.Name, Key: id.Key(), Instance: 9, Version: a.newest(), Links: links}
	e.sign(id)
	a.Merge(a.cfg.Self, e.raw)
	s.SetTime(epoch.Add(time.Second))
	a.SetTime(epoch.Add(time.Second))
	news, _ := s.Merge(a.cfg.Self, e.raw)
	if a.Merge(id.Name, news); a.Entry(id.Name).Instance != 1 {
		t.Error("the copy of the key has the last word")
	}
}

// A host whose clock was far ahead at launch joins all the same, once it learns from its
// neighbours what time it is.
func TestHostWithAWrongClockJoins(t *testing.T) {
	a := newState(t, identity(t, 1), 1, epoch)
	s := newState(t, identity(t, 2), 1, epoch.Add(365*24*time.Hour))
	links := meet(a, s.cfg.Self)
	if news, _ := a.Merge(s.cfg.Self, s.SetLinks(links)); news != nil {
		t.Fatal("an entry of next year is accepted")
	}
	s.SetTime(epoch)
	if news, _ := a.Merge(s.cfg.Self, s.SetLinks(links)); news == nil {
		t.Error("the corrected entry is refused")
	}
	// A peer that had accepted the first entry gets the second one, too.
	b := newState(t, identity(t, 3), 1, epoch.Add(365*24*time.Hour))
	ahead := newState(t, identity(t, 2), 1, epoch.Add(365*24*time.Hour))
	b.Merge(ahead.cfg.Self, ahead.SetLinks(meet(b, ahead.cfg.Self)))
	if b.Entry(ahead.cfg.Self) == nil {
		t.Fatal("not accepted")
	}
	b.SetTime(epoch)
	b.Expire(epoch)
	s.SetLinks([]Link{{To: b.cfg.Self, Flags: LinkSession}})
	if news, _ := b.Merge(s.cfg.Self, s.own.raw); news == nil {
		t.Error("the corrected entry is refused by a peer that had accepted the wrong one")
	}
}

// Made-up peers that confirm links only among each other are not stored, and cost a
// bounded amount of memory.
func TestEntriesWithoutALinkToTheMeshAreNotStored(t *testing.T) {
	a := cheapState(t, 0, 4096)
	evil := cheapState(t, 1, 4096)
	evil.SetLinks(meet(a, evil.cfg.Self))
	a.Merge(evil.cfg.Self, evil.own.raw)
	digest := slices.Clone(a.Digest())
	for i, e := range madeUp(6000, 0, simName(1)) { // evil does not confirm their links
		a.SetTime(epoch.Add(time.Duration(i) * time.Millisecond))
		if news, err := a.Merge(evil.cfg.Self, e.raw); err != nil || news != nil {
			t.Fatalf("%x, %v", news, err)
		}
	}
	if !bytes.Equal(a.Digest(), digest) || len(a.entries) != 2 {
		t.Errorf("%d entries are stored", len(a.entries))
	}
	st := a.Stats()
	if st.Waiting > maxWaitlist || a.waitlist.Bytes() > maxWaitlistBytes || st.Unverified == 0 {
		t.Errorf("%+v, %d bytes wait", st, a.waitlist.Bytes())
	}
	a.Expire(epoch)
	a.Expire(epoch.Add(time.Hour))
	if a.Stats().Waiting != 0 || a.waitlist.Bytes() != 0 {
		t.Errorf("after an hour %d entries with %d bytes wait", a.Stats().Waiting, a.waitlist.Bytes())
	}
}

// One neighbour's flood of entries to check does not keep this peer from checking those of
// another one.
func TestChecksOfSignaturesAreBoundedForEachNeighbour(t *testing.T) {
	a := cheapState(t, 0, 4096)
	checks := 0
	a.cfg.Verifier = verifierFunc(func(k peer.Key, d string, m []byte, s peer.Signature) bool {
		checks++
		return peer.Cheap{}.Verify(k, d, m, s)
	})
	links := meet(a, simName(2))
	for _, e := range madeUp(3*verifyBurst, 0) {
		a.Merge(simName(1), e.raw)
	}
	if checks > verifyBurst {
		t.Errorf("%d checks at once, want at most %d", checks, verifyBurst)
	}
	if !a.Exhausted() || a.Exhausted() {
		t.Error("the flood is not reported, or twice")
	}
	b := cheapState(t, 2, 4096)
	b.SetLinks(links)
	if news, _ := a.Merge(simName(2), b.own.raw); news == nil {
		t.Error("the entry of another neighbour is not checked")
	}
	checks = 0
	a.SetTime(epoch.Add(time.Second))
	for _, e := range madeUp(3*verifyBurst, 1<<17) {
		a.Merge(simName(1), e.raw)
	}
	if checks != verifyPerSecond {
		t.Errorf("%d checks in the next second, want %d", checks, verifyPerSecond)
	}
}

type verifierFunc func(peer.Key, string, []byte, peer.Signature) bool

func (f verifierFunc) Verify(k peer.Key, d string, m []byte, s peer.Signature) bool {
	return f(k, d, m, s)
}

// crowd is a mesh of honest peers in which each of some members gives all of the same
// made-up peers a session.
func crowd(t *testing.T, rng *rand.Rand, honest, members, fakes, degree int) (entries map[peer.Name]*Entry, good []peer.Name) {
	links := make(map[int]map[int]bool)
	join := func(i, j int) {
		for _, p := range [][2]int{{i, j}, {j, i}} {
			if links[p[0]] == nil {
				links[p[0]] = make(map[int]bool)
			}
			links[p[0]][p[1]] = true
		}
	}
	for i := range honest {
		join(i, (i+1)%honest)
		for range degree {
			if j := rng.IntN(honest); j != i {
				join(i, j)
			}
		}
	}
	evil := madeUp(fakes, 0)
	entries = make(map[peer.Name]*Entry)
	add := func(n peer.Name, key peer.Key, l []Link) {
		slices.SortFunc(l, func(a, b Link) int { return a.To.Compare(b.To) })
		e := &Entry{Name: n, Key: key, Version: 5, Links: l}
		e.sign(peer.Cheap{ID: key})
		entries[n] = e
	}
	for i := range honest {
		var l []Link
		for j := range links[i] {
			l = append(l, Link{To: simName(j), Flags: LinkSession})
		}
		if i < members {
			for _, e := range evil {
				l = append(l, Link{To: e.Name, Flags: LinkSession})
			}
		}
		add(simName(i), peer.Key{1, byte(i >> 8), byte(i)}, l)
		if i >= members {
			good = append(good, simName(i))
		}
	}
	for _, e := range evil {
		l := slices.Clone(e.Links)
		for i := range members {
			l = append(l, Link{To: simName(i), Flags: LinkSession})
		}
		add(e.Name, e.Key, l)
	}
	return entries, good
}

// Whoever has made-up peers behind it, and however many: they do not take the place of an
// honest peer, and all honest peers choose alike.
func TestMadeUpPeersTakeNoPlaceOfHonestOnes(t *testing.T) {
	rng := seed.Rand(t)
	for _, c := range []struct {
		honest, members, fakes, degree int
		alike                          bool
	}{
		{40, 1, 300, 20, true}, // nearly a full mesh
		{40, 1, 300, 2, true},  // sparse
		{40, 3, 300, 30, false},
	} {
		t.Run(fmt.Sprint(c), func(t *testing.T) {
			entries, good := crowd(t, rng, c.honest, c.members, c.fakes, c.degree)
			limit := 0
			for _, n := range good {
				limit += entries[n].cost()
			}
			for i := range c.members {
				limit += entries[simName(i)].cost()
			}
			limit += 50 * (baseCost + 50) // space for some of the made-up peers
			var first map[peer.Name]bool
			for _, self := range good {
				keep := places(entries[self], entries, limit)
				cost := 0
				for n := range keep {
					cost += entries[n].cost()
				}
				if cost > limit {
					t.Fatalf("%s keeps entries of cost %d, limit %d", self, cost, limit)
				}
				for _, n := range good {
					if !keep[n] {
						t.Fatalf("%s does not keep %s", self, n)
					}
				}
				if first == nil {
					first = keep
				}
				if c.alike && !equal(first, keep) {
					t.Errorf("%s keeps %d entries, the first %d, and they differ", self, len(keep), len(first))
				}
			}
			if len(first) <= c.honest {
				t.Error("no space is left to made-up peers although there is some")
			}
		})
	}
}

func equal(a, b map[peer.Name]bool) bool {
	for n := range a {
		if !b[n] {
			return false
		}
	}
	return len(a) == len(b)
}

// dominators by definition: without d, no path leads to x.
func TestDominatorsAreThoseOfTheDefinition(t *testing.T) {
	rng := seed.Rand(t)
	for range 30 {
		entries, _ := crowd(t, rng, 3+rng.IntN(12), rng.IntN(3), rng.IntN(6), rng.IntN(2))
		own := entries[simName(0)]
		tree := newPlaceTree(own, entries)
		reach := func(without int) map[int]bool {
			seen := map[int]bool{0: true}
			for queue := []int{0}; len(queue) > 0; queue = queue[1:] {
				for _, j := range tree.nodes[queue[0]].links {
					if !seen[j] && j != without {
						seen[j] = true
						queue = append(queue, j)
					}
				}
			}
			return seen
		}
		for x := 1; x < len(tree.nodes); x++ {
			nearest := 0
			for d := 1; d < x; d++ {
				if !reach(d)[x] && d > nearest {
					nearest = d
				}
			}
			if got := tree.nodes[x].idom; got != nearest {
				t.Fatalf("peer %d of %d: dominated by %d, want %d", x, len(tree.nodes), got, nearest)
			}
		}
	}
}

// A flood of made-up peers behind one member, of which each honest peer gets another part
// first. An honest peer that joins later gets its place, and the honest ones agree.
func TestHonestPeersAgreeWhileAMemberMakesUpPeers(t *testing.T) {
	const honest, limit = 12, 40
	w := newSim(t, seed.New(t), honest+1, 6, 0)
	evil := honest // it is linked with its two neighbours of the ring and some others
	for i, n := range w.nodes {
		n.cfg.maxCost = limit * (baseCost + 60)
		if i == evil {
			n.cfg.maxCost = math.MaxInt
		}
	}
	w.unlinkAll(3) // it joins later
	w.settleAll(t)
	fakes := madeUp(150, 0, simName(evil))
	links := slices.Clone(w.nodes[evil].own.Links)
	for _, e := range fakes {
		links = append(links, Link{To: e.Name, Flags: LinkSession})
	}
	w.nodes[evil].SetLinks(links)
	w.rng.Shuffle(len(fakes), func(i, j int) { fakes[i], fakes[j] = fakes[j], fakes[i] })
	for j := range w.nodes[evil].links {
		n := w.nodes[j]
		n.engine.Announce(1, n.mustMerge(t, simName(evil), w.nodes[evil].own.raw))
		for _, e := range fakes {
			n.engine.Announce(1, n.mustMerge(t, simName(evil), e.raw))
		}
		w.rng.Shuffle(len(fakes), func(i, j int) { fakes[i], fakes[j] = fakes[j], fakes[i] })
	}
	w.nodes[evil].dead = true // it does not take part in the comparison
	for range 30 {
		w.stepAndExpire(t)
	}
	for _, j := range []int{1, 5, 8} {
		w.link(3, j)
	}
	for range 150 {
		w.stepAndExpire(t)
	}
	if d := w.differing(); d > 0 {
		t.Errorf("%d of %d honest peers know other entries than the first", d, honest)
	}
	for i, n := range w.nodes[:honest] {
		if n.cost > n.cfg.maxCost {
			t.Errorf("peer %d stores entries of cost %d, limit %d", i, n.cost, n.cfg.maxCost)
		}
		for j := range honest {
			if n.Entry(simName(j)) == nil {
				t.Errorf("peer %d does not know the honest peer %d", i, j)
			}
		}
	}
	if w.nodes[0].Stats().NoPlace == 0 {
		t.Error("no entry lost its place")
	}
	clear(w.sent)
	for range 60 {
		w.stepAndExpire(t)
	}
	for i, n := range w.sent[:honest] {
		if n > 60*2000 {
			t.Errorf("peer %d sends %d bytes a second while nothing changes", i, n/60)
		}
	}
}

func (n *simNode) mustMerge(t *testing.T, from peer.Name, raw []byte) []byte {
	t.Helper()
	news, err := n.Merge(from, raw)
	if err != nil {
		t.Fatal(err)
	}
	return news
}

func (w *sim) unlinkAll(i int) {
	for j := range w.nodes[i].links {
		w.unlink(i, j)
	}
}

func (w *sim) settleAll(t *testing.T) {
	for range 20 {
		w.stepAndExpire(t)
	}
}

func (w *sim) stepAndExpire(t *testing.T) {
	for _, n := range w.nodes {
		n.SetTime(w.now)
		if _, moved := n.Expire(w.now); moved {
			n.engine.Compare(1)
		}
	}
	w.step(t, 4)
}

// The most that members can make this peer compute: all places are taken by made-up peers
// with many links among each other.
func BenchmarkFullTopology(b *testing.B) {
	const fakes = 1600
	name := func(i int) peer.Name { return peer.Name{2, 0xee, 0, 0, byte(i >> 8), byte(i)} }
	s := newState(b, identity(b, 1), 1, epoch)
	meet(s, name(0))
	all := map[peer.Name]*Entry{s.cfg.Self: s.own}
	for i := range fakes {
		id := peer.Cheap{ID: peer.Key{0xee, byte(i), byte(i >> 8)}}
		e := &Entry{Name: name(i), Key: id.Key(), Version: 5}
		for j := max(0, i-500); j < min(fakes, i+500); j++ {
			if j != i {
				e.Links = append(e.Links, Link{To: name(j), Flags: LinkSession | LinkData})
			}
		}
		if i == 0 {
			e.Links = append(e.Links, Link{To: s.cfg.Self, Flags: LinkSession})
			slices.SortFunc(e.Links, func(a, b Link) int { return a.To.Compare(b.To) })
		}
		e.sign(id)
		s.put(e)
		all[e.Name] = e
	}
	b.Run("places", func(b *testing.B) {
		for range b.N {
			places(s.own, all, maxCost/2)
		}
	})
	b.Run("graph", func(b *testing.B) {
		for range b.N {
			s.graph = nil
			s.Graph()
		}
	})
	b.Run("routes", func(b *testing.B) {
		for range b.N {
			s.Graph().Routes(LinkSession)
		}
	})
}

// A peer is behind another one if every path leads over that one.
func TestDominatorsOfMadeUpPeers(t *testing.T) {
	name := func(i int) peer.Name { return peer.Name{2, byte(i)} }
	links := map[int][]int{0: {1, 2}, 1: {0, 2, 3}, 2: {0, 1, 3, 4}, 3: {1, 2}, 4: {2, 5, 6}, 5: {4, 6}, 6: {4, 5}}
	var entries []*Entry
	for i := range len(links) {
		e := &Entry{Name: name(i)}
		for _, to := range links[i] {
			e.Links = append(e.Links, Link{To: name(to), Flags: LinkSession})
		}
		entries = append(entries, e)
	}
	// 3 has two ways; 4 hangs behind 2, and 5 and 6 behind 4 although they state a link.
	want := map[peer.Name]peer.Name{name(4): name(2), name(5): name(4), name(6): name(4)}
	if got := Dominators(name(0), entries); !maps.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
