package tap

import (
	"testing"

	"github.com/weft-net/weft/internal/seed"
	"golang.org/x/sys/unix"
)

// TestSparseFirstAndInOrder feeds a reader frames of flows that turn bulk, and
// wants sparse ones early, none of a flow before an earlier one, and no one
// waiting for ever.
func TestSparseFirstAndInOrder(t *testing.T) {
	var pair [2]int
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	const flows = 4
	rng := seed.Rand(t)
	var sent, got [flows]uint32
	var bulk [flows]bool
	r := newReader("t", nil, 0, 1500)
	r.Prioritize(func(f []byte) bool { return !bulk[f[0]] })

	var overtaken, longest int
	waiting := make(map[[2]uint32]int) // batches since it was read, by flow and number
	for round := range 5000 {
		for range rng.IntN(8) {
			i := rng.IntN(flows)
			f := make([]byte, 60+rng.IntN(1400))
			f[0], f[1], f[2] = byte(i), byte(sent[i]>>8), byte(sent[i])
			if _, err := unix.Write(pair[1], f); err != nil {
				t.Fatal(err)
			}
			waiting[[2]uint32{uint32(i), sent[i] & 0xffff}] = round
			sent[i]++
		}
		// As for a flow whose bucket runs over, and one whose bucket is empty, with
		// nothing of it on the way.
		if i := rng.IntN(flows); sent[i] == got[i] || !bulk[i] {
			bulk[i] = !bulk[i] && i != 0 // flow 0 stays sparse
		}
		for _, f := range r.frames {
			r.release(f.Buf)
		}
		r.frames = r.frames[:0]
		r.poll = true
		r.drain(uintptr(pair[0]))
		if r.err != nil {
			t.Fatal(r.err)
		}
		before := len(r.rest)
		r.choose()
		for _, f := range r.frames {
			if f.Sparse != r.frames[0].Sparse {
				t.Fatal("a batch of both kinds")
			}
			b := f.Buf[Headroom:]
			i, n := b[0], uint32(b[1])<<8|uint32(b[2])
			if n != got[i]&0xffff {
				t.Fatalf("flow %d: frame %d after %d", i, n, got[i])
			}
			got[i]++
			at := [2]uint32{uint32(i), n}
			longest = max(longest, round-waiting[at])
			delete(waiting, at)
			if f.Sparse && before > 0 {
				overtaken++
			}
		}
	}
	if overtaken == 0 {
		t.Error("nothing went first")
	}
	if longest > 50 {
		t.Errorf("a frame waited %d batches", longest)
	}
}
