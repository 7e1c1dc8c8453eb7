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
	tb := New(0)
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

func TestAPeerCanNotFillTheTable(t *testing.T) {
	tb := New(10)
	tb.Learn(m1, p1, 0)
	full := 0
	for i := range 100 {
		if tb.Learn(ethernet.MAC{2, 1, 0, 0, 0, byte(i)}, p2, 0) == Full {
			full++
		}
	}
	if full != 90 || tb.Learn(m2, p1, 0) != Added {
		t.Errorf("%d of 100 refused; another peer was hurt", full)
	}
	if tb.Learn(m1, p2, 0) != Full {
		t.Error("a move to a full peer was taken")
	}
	if at, ok := tb.Lookup(m1, 0); ok {
		t.Errorf("still sent to %s, where it is not", at)
	}
}

// TestCountsMatch compares the per-peer counts with the entries after random
// operations from several goroutines.
func TestCountsMatch(t *testing.T) {
	tb := New(20)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(g)))
			for i := range 20000 {
				p := peer.Name{2, 0, 0, 0, 0, byte(r.IntN(4))}
				tb.Learn(ethernet.MAC{2, 0, 0, 0, byte(r.IntN(2)), byte(r.IntN(40))}, p, time.Duration(i)*time.Second)
				switch r.IntN(1000) {
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
	}
	for p, n := range tb.byPeer {
		if want[p] != n || n > 20 {
			t.Errorf("%s: counted %d, has %d", p, n, want[p])
		}
	}
}

func TestNoAllocation(t *testing.T) {
	tb := New(0)
	tb.Learn(m1, p1, 0)
	now := time.Duration(0)
	if n := testing.AllocsPerRun(1000, func() {
		now += time.Second
		tb.Learn(m1, p1, now)
		tb.Lookup(m1, now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTouchAndRemove(t *testing.T) {
	tb := New(0)
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
