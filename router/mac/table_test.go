package mac

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
)

var (
	p1, p2 = peer.Name{2, 0, 0, 0, 0, 1}, peer.Name{2, 0, 0, 0, 0, 2}
	m1, m2 = ethernet.MAC{2, 0, 0, 0, 1, 1}, ethernet.MAC{2, 0, 0, 0, 1, 2}
)

func TestLearnMoveAge(t *testing.T) {
	tb := New(Limits{})
	at := func(m ethernet.MAC, now time.Duration, want peer.Name) {
		t.Helper()
		if got, ok := tb.Lookup(m, now); got != want || ok != (want != peer.Name{}) {
			t.Errorf("at %v: %s is behind %s, want %s", now, m, got, want)
		}
	}
	learn := func(m ethernet.MAC, p peer.Name, now time.Duration, want Change) {
		t.Helper()
		if got := tb.Learn(m, p, now); got != want {
			t.Errorf("at %v: learn %s behind %s: %d, want %d", now, m, p, got, want)
		}
	}
	at(m1, 0, peer.Name{})
	learn(m1, p1, 0, Added)
	learn(m1, p1, time.Minute, Same)
	at(m1, 11*time.Minute, p1)
	at(m1, 11*time.Minute+1, peer.Name{})
	learn(m1, p2, 2*time.Minute, Moved)
	at(m1, 2*time.Minute, p2)
	learn(m2, p1, 5*time.Minute, Added)
	if n := tb.Expire(13 * time.Minute); n != 1 {
		t.Errorf("%d expired, want 1", n)
	}
	if e := tb.Entries(13 * time.Minute); len(e) != 1 || e[0] != (Entry{m2, p1, 8 * time.Minute}) {
		t.Errorf("entries: %v", e)
	}
	learn(m2, p1, 20*time.Minute, Added) // known, but too old to count
	if n := tb.Forget(p1); n != 1 {
		t.Errorf("%d forgotten, want 1", n)
	}
	at(m2, 20*time.Minute, peer.Name{})
	if len(tb.byPeer) != 0 {
		t.Errorf("counts left: %v", tb.byPeer)
	}
}

// invent makes a peer claim n addresses that nobody else has, and returns how many the
// table took.
func invent(tb *Table, p peer.Name, n int) (taken int) {
	for i := range n {
		if tb.Learn(ethernet.MAC{2, p[5], 0, 0, byte(i >> 8), byte(i)}, p, 0) == Added {
			taken++
		}
	}
	return taken
}

func TestAPeerCannotFillTheTable(t *testing.T) {
	tb := New(Limits{PerPeer: 10})
	tb.Learn(m1, p1, 0)
	if n := invent(tb, p2, 100); n != 10 || tb.Learn(m2, p1, 0) != Added {
		t.Errorf("%d of 100 taken; another peer was hurt", n)
	}
	if tb.Learn(m1, p2, 0) != Full {
		t.Error("a move to a full peer was taken")
	}
	if at, ok := tb.Lookup(m1, 0); !ok || at != p1 {
		t.Error("a full peer made another's address forgotten")
	}
	if s := tb.Stats(); s != (Stats{Entries: 12, Refused: 91}) {
		t.Errorf("stats %+v", s)
	}
	tb.Forget(p2)
	if tb.Learn(m1, p2, 0) != Moved || tb.Stats() != (Stats{Entries: 2, Moves: 1, Refused: 91}) {
		t.Errorf("after it has space again: stats %+v", tb.Stats())
	}
}

// Many names of one liar take what is shared, and leave to each peer what is reserved.
func TestManyPeersCannotFillTheTable(t *testing.T) {
	tb := New(Limits{PerPeer: 50, Reserved: 5, Shared: 100})
	total := 0
	for i := range 20 {
		total += invent(tb, peer.Name{2, 0, 0, 0, 0, byte(100 + i)}, 100)
	}
	if want := 20*5 + 100; total != want {
		t.Errorf("the table took %d addresses, want %d", total, want)
	}
	if n := invent(tb, p1, 10); n != 5 {
		t.Errorf("another peer got %d of its 5 reserved addresses", n)
	}
	some, omitted := tb.Some(0, 50)
	if len(some) > 50 || len(some)+omitted != total+5 {
		t.Errorf("of 205 entries %d are returned and %d omitted", len(some), omitted)
	}
	share := map[peer.Name]int{}
	for _, e := range some {
		share[e.Peer]++
	}
	if share[p1] != 2 || len(share) != 21 {
		t.Errorf("%d peers have entries, %s has %d", len(share), p1, share[p1])
	}
	if all, omitted := tb.Some(0, total+5); len(all) != total+5 || omitted != 0 {
		t.Errorf("%d entries, %d omitted, although all fit", len(all), omitted)
	}
}

// TestCountsMatch compares the per-peer counts with the entries after random
// operations from several goroutines.
func TestCountsMatch(t *testing.T) {
	tb := New(Limits{PerPeer: 20, Reserved: 4, Shared: 30})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for i := range 20000 {
				p := peer.Name{2, 0, 0, 0, 0, byte(r.IntN(4))}
				tb.Learn(ethernet.MAC{2, 0, 0, 0, byte(r.IntN(2)), byte(r.IntN(40))}, p, time.Duration(i)*time.Second)
				switch r.IntN(1000) {
				case 2, 3, 4, 5:
					tb.Bind(ethernet.MAC{2, 0, 0, 0, byte(r.IntN(2)), byte(r.IntN(40))}, p)
				case 6:
					tb.Bind(ethernet.MAC{2, 0, 0, 0, byte(r.IntN(2)), byte(r.IntN(40))}, peer.Name{})
				case 0:
					tb.Forget(p)
				case 1:
					tb.Expire(time.Duration(i) * time.Second)
				}
			}
		})
	}
	wg.Wait()
	want := map[peer.Name]int{}
	for _, e := range tb.Entries(0) {
		want[e.Peer]++
		if at, bound := tb.BoundTo(e.MAC); bound && at != e.Peer {
			t.Errorf("%s is bound to %s and at %s", e.MAC, at, e.Peer)
		}
	}
	total, shared := 0, 0
	for p, n := range tb.byPeer {
		if want[p] != n || n > 20 {
			t.Errorf("%s: counted %d, has %d", p, n, want[p])
		}
		total, shared = total+n, shared+max(0, n-4)
	}
	if total != tb.total || shared != tb.shared || shared > 30 {
		t.Errorf("counted %d, %d shared, want %d and %d", tb.total, tb.shared, total, shared)
	}
}

func TestNoAllocation(t *testing.T) {
	tb := New(Limits{})
	tb.Learn(m1, p1, 0)
	tb.Bind(m2, p2)
	now := time.Duration(0)
	if n := testing.AllocsPerRun(1000, func() {
		now += time.Second
		tb.Learn(m1, p1, now)
		tb.Learn(m2, p1, now) // bound elsewhere
		tb.Lookup(m1, now)
		tb.Find(m2, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTouchAndRemove(t *testing.T) {
	tb := New(Limits{})
	tb.Learn(m1, p1, time.Minute)
	if tb.Touch(m1, p2, 5*time.Minute) || tb.Touch(m2, p1, 5*time.Minute) {
		t.Error("touched what is not known to be there")
	}
	if !tb.Touch(m1, p1, 5*time.Minute) || !tb.Touch(m1, p1, 2*time.Minute) {
		t.Error("did not touch what is known to be there")
	}
	if _, ok := tb.Lookup(m1, 15*time.Minute); !ok {
		t.Error("last use is not the latest one")
	}
	if _, ok := tb.Lookup(m1, 15*time.Minute+1); ok {
		t.Error("known for too long")
	}
	tb.Remove(m1)
	tb.Remove(m2)
	if _, ok := tb.Lookup(m1, 5*time.Minute); ok {
		t.Error("known after it was removed")
	}
	tb.Learn(m1, p1, 6*time.Minute)
	if n := tb.Forget(p1); n != 1 {
		t.Errorf("%d addresses are left of one", n)
	}
}

// Frames from elsewhere do not move an address that is bound. A binding moves it at once, and when it
// ends the address follows frames again.
func TestBoundAddresses(t *testing.T) {
	tb := New(Limits{})
	at := func(what string, want peer.Name) {
		t.Helper()
		if got, _ := tb.Lookup(m1, 0); got != want {
			t.Errorf("%s: at %s, want %s", what, got, want)
		}
	}
	if tb.Bind(m1, p1) {
		t.Error("a binding moved an address that nobody has seen")
	}
	at("bound and not seen", peer.Name{})
	if tb.Learn(m1, p2, 0) != Bound || tb.Learn(m1, p1, 0) != Added || tb.Learn(m1, p2, 0) != Bound || tb.Learn(m1, p1, 0) != Same {
		t.Error("frames of others count")
	}
	at("seen elsewhere too", p1)
	if !tb.Bind(m1, p2) || tb.Bind(m1, p2) {
		t.Error("the binding moves: want a move, once")
	}
	at("bound to another peer", p2)
	if tb.Learn(m1, p1, 0) != Bound {
		t.Error("a frame from its former place moves it back")
	}
	if to, ok := tb.BoundTo(m1); !ok || to != p2 {
		t.Errorf("bound to %s, %v", to, ok)
	}
	if tb.Bind(m1, peer.Name{}) {
		t.Error("the end of a binding moved the address")
	}
	at("not bound any more", p2)
	if tb.Learn(m1, p1, 0) != Moved {
		t.Error("it is not bound any more, and a frame does not move it")
	}
	if s := tb.Stats(); s != (Stats{Entries: 1, Moves: 2, Elsewhere: 3}) {
		t.Errorf("stats %+v", s)
	}
}

// A frame for a bound address goes where the binding says, although none came from there. The table
// has the address from then on.
func TestFindBoundAddress(t *testing.T) {
	tb := New(Limits{PerPeer: 10})
	find := func(what string, now time.Duration, want peer.Name, change Change) {
		t.Helper()
		if at, c, ok := tb.Find(m1, now); at != want || c != change || ok == want.IsZero() {
			t.Errorf("%s: at %s, change %d, %v; want %s, %d", what, at, c, ok, want, change)
		}
	}
	find("neither bound nor seen", 0, peer.Name{}, Same)
	tb.Bind(m1, p1)
	find("bound", 0, p1, Added)
	find("found before", 0, p1, Same)
	if at, ok := tb.Lookup(m1, 0); !ok || at != p1 {
		t.Errorf("the table has it at %s, %v", at, ok)
	}
	find("long after", MaxAge+time.Second, p1, Added)
	tb.Bind(m1, p2)
	find("moved", MaxAge+2*time.Second, p2, Same)
	tb.Bind(m1, peer.Name{})
	find("not bound any more", MaxAge+3*time.Second, p2, Same)
	tb.Expire(3 * MaxAge)
	find("forgotten", 3*MaxAge, peer.Name{}, Same)
	invent(tb, p2, 10)
	tb.Bind(m1, p2)
	find("bound to a peer that has too many", 3*MaxAge, p2, Full)
	tb.Learn(m2, p1, 0)
	if at, c, ok := tb.Find(m2, 0); !ok || c != Same || at != p1 {
		t.Errorf("seen: at %s, change %d, %v", at, c, ok)
	}
}

// A binding to a peer that has too many addresses takes the address from the other one all the same.
func TestBoundToAFullPeer(t *testing.T) {
	tb := New(Limits{PerPeer: 10})
	invent(tb, p2, 10)
	tb.Learn(m1, p1, 0)
	if !tb.Bind(m1, p2) {
		t.Error("the address did not move")
	}
	if at, ok := tb.Lookup(m1, 0); ok {
		t.Errorf("it is at %s", at)
	}
	if s := tb.Stats(); s.Entries != 10 || len(tb.byPeer) != 1 {
		t.Errorf("stats %+v of %d peers", s, len(tb.byPeer))
	}
}
