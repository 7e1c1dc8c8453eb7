package replay

import (
	"math"
	"math/rand/v2"
	"testing"
)

// twin is the obvious window: it remembers every number for ever.
type twin struct {
	seen map[uint64]bool
	next uint64
}

func (w *twin) accept(seq uint64) (fresh, newest bool) {
	if seq == math.MaxUint64 || w.seen[seq] || seq < w.next && w.next-seq > Size {
		return false, false
	}
	w.seen[seq] = true
	if newest = seq >= w.next; newest {
		w.next = seq + 1
	}
	return true, newest
}

func TestWindowAgainstTwin(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 0))
		var w Window
		tw := twin{seen: map[uint64]bool{}}
		base := uint64(0)
		for range 50000 {
			switch r.IntN(200) {
			case 0:
				base += r.Uint64N(3 * Size)
			case 1:
				base = w.next
			default:
				base++
			}
			seq := base - min(base, r.Uint64N(2+r.Uint64N(2*Size)))
			if check := w.Check(seq); check != (seq >= tw.next || tw.next-seq <= Size && !tw.seen[seq]) {
				t.Fatalf("seed %d: Check(%d) = %v", seed, seq, check)
			}
			f, n := w.Accept(seq)
			if wf, wn := tw.accept(seq); f != wf || n != wn {
				t.Fatalf("seed %d: Accept(%d) = %v, %v, want %v, %v (next %d)", seed, seq, f, n, wf, wn, tw.next)
			}
		}
	}
}

func TestExtremes(t *testing.T) {
	var w Window
	for _, c := range []struct {
		seq           uint64
		fresh, newest bool
	}{
		{math.MaxUint64, false, false},
		{0, true, true}, {0, false, false},
		{Size, true, true}, {1, true, false}, {1, false, false},
		{Size + 1, true, true}, {1, false, false}, {2, true, false},
		{math.MaxUint64 - 1, true, true}, {math.MaxUint64 - 1, false, false},
		{math.MaxUint64, false, false}, {math.MaxUint64 - 2, true, false}, {5, false, false},
	} {
		if f, n := w.Accept(c.seq); f != c.fresh || n != c.newest {
			t.Errorf("Accept(%d) = %v, %v", c.seq, f, n)
		}
	}
}

func BenchmarkAccept(b *testing.B) {
	var w Window
	for i := uint64(0); b.Loop(); i++ {
		w.Accept(i)
	}
}
