package gossip

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Unix(1_700_000_000, 0)

// A neighbour that fills the list does not push out what others put there.
func TestEachNeighbourHasAShareOfTheWaitlist(t *testing.T) {
	for _, limits := range []WaitLimits{{Items: 100, TTL: time.Minute}, {Bytes: 1000, TTL: time.Minute}} {
		l := NewWaitlist[int, string](limits)
		for i := range 10 {
			l.Add(i, "honest", 10, peer.Name{2, byte(i)})
		}
		dropped := 0
		for i := range 1000 {
			dropped += l.Add(100+i, "flood", 10, peer.Name{2, 0xff})
		}
		for i := range 10 {
			if w := l.Get(i); w == nil || w.Value != "honest" || w.From != (peer.Name{2, byte(i)}) {
				t.Errorf("item %d: %+v", i, w)
			}
		}
		if l.Len() != 100 || l.Bytes() != 1000 || dropped != 910 || l.Get(1099) == nil || l.Get(100) != nil {
			t.Errorf("%d items, %d bytes, %d dropped; the oldest must go first", l.Len(), l.Bytes(), dropped)
		}
	}
}

// Items go after their time, and nothing of them stays.
func TestWaitlistForgets(t *testing.T) {
	l := NewWaitlist[int, int](WaitLimits{Items: 50, Bytes: 3000, TTL: time.Minute})
	rng := rand.New(rand.NewPCG(seed.New(t), 1))
	now, added := epoch, make(map[int]time.Time)
	for i := range 5000 {
		now = now.Add(time.Second)
		k := rng.IntN(200)
		l.Add(k, i, 1+rng.IntN(100), peer.Name{2, byte(rng.IntN(5))})
		added[k] = now
		if rng.IntN(3) == 0 {
			l.Remove(rng.IntN(200))
		}
		l.Expire(now)
		sum := 0
		for w := range l.All() {
			sum += w.bytes
			if now.Sub(added[w.Key]) > time.Minute {
				t.Fatalf("item %d waits for %v", w.Key, now.Sub(added[w.Key]))
			}
		}
		queued := 0
		for _, s := range l.shares {
			queued += len(s.queue)
		}
		if sum != l.Bytes() || sum > 3000 || l.Len() > 50 || queued != l.Len() {
			t.Fatalf("%d items, %d bytes, the list says %d, %d in queues", l.Len(), sum, l.Bytes(), queued)
		}
	}
	l.Expire(now.Add(time.Minute))
	if l.Len() != 0 || l.Bytes() != 0 || len(l.shares) != 0 {
		t.Errorf("%d items, %d bytes, %d neighbours are left", l.Len(), l.Bytes(), len(l.shares))
	}
}
