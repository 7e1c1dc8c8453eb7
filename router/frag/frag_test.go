package frag

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weft-net/weft/router/wire"
)

type part struct {
	h wire.FragmentHead
	b []byte
}

func cut(id uint32, b []byte, room int) (parts []part) {
	size, count, _ := Parts(len(b), room)
	for i := range count {
		from, to := i*size, min((i+1)*size, len(b))
		parts = append(parts, part{wire.FragmentHead{ID: id, Total: len(b), Offset: from}, b[from:to]})
	}
	return parts
}

func TestPartsFit(t *testing.T) {
	for _, n := range []int{1, 2, 499, 500, 1000, 1499, 65562} {
		for _, room := range []int{11, 12, 100, 496, 1444} {
			size, count, ok := Parts(n, room)
			if !ok || size+wire.FragmentHeadLen > room || size*(count-1) >= n || size*count < n {
				t.Errorf("%d bytes with room %d: %d parts of %d, %v", n, room, count, size, ok)
			}
		}
	}
	if _, _, ok := Parts(100, wire.FragmentHeadLen); ok {
		t.Error("parts without room")
	}
}

func TestAnyOrderAndDuplicates(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		var r Reassembler
		frames, lack := map[uint32][]byte{}, map[uint32]bool{}
		var all []part
		for id := range uint32(8) {
			b := make([]byte, 1+rng.IntN(9000))
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
			frames[id], lack[id] = b, true
			all = append(all, cut(id, b, 500)...)
		}
		all = append(all, all[:5]...)
		rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, p := range all {
			if got := r.Add(p.h, p.b, 0); got != nil {
				if !bytes.Equal(got, frames[p.h.ID]) {
					t.Fatalf("seed %d: frame %d came out wrong", seed, p.h.ID)
				}
				delete(lack, p.h.ID)
			}
		}
		if len(lack) != 0 || r.Dropped != 0 {
			t.Errorf("seed %d: %d frames lack, %d dropped", seed, len(lack), r.Dropped)
		}
	}
}

func TestTimeAndRoomAreBounded(t *testing.T) {
	var r Reassembler
	half := cut(1, make([]byte, 900), 500)
	r.Add(half[0].h, half[0].b, 0)
	if r.Add(half[1].h, half[1].b, Timeout+time.Nanosecond) != nil || r.Dropped != 1 {
		t.Errorf("a late part completed a frame; %d dropped", r.Dropped)
	}
	r = Reassembler{}
	for id := range uint32(10000) {
		p := cut(id, make([]byte, 65000), 500)[0]
		r.Add(p.h, p.b, 0)
	}
	if len(r.frames) > MaxFrames || r.bytes > MaxBytes || r.Dropped != 10000-uint64(len(r.frames)) {
		t.Errorf("%d frames of %d bytes, %d dropped", len(r.frames), r.bytes, r.Dropped)
	}
	many := Reassembler{}
	for i := range 1000 {
		if many.Add(wire.FragmentHead{ID: 1, Total: 5000, Offset: 2 * i}, []byte{1}, 0) != nil {
			t.Fatal("complete")
		}
	}
	if many.Dropped == 0 {
		t.Error("a thousand parts were kept")
	}
}

func FuzzReassembler(f *testing.F) {
	f.Add([]byte{0, 0, 10, 0, 5, 0, 0, 10, 5, 5})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Reassembler
		for len(b) >= 5 {
			h := wire.FragmentHead{ID: uint32(b[0] & 3), Total: int(b[1])<<8 | int(b[2]), Offset: int(b[3])}
			n := int(b[4])
			b = b[5:]
			if n == 0 || h.Offset+n > h.Total {
				continue // ParseFragment lets none through
			}
			if got := r.Add(h, make([]byte, n), 0); got != nil && len(got) != h.Total {
				t.Fatalf("%d bytes of %d", len(got), h.Total)
			}
			sum := 0
			for _, f := range r.frames {
				sum += len(f.buf)
			}
			if sum != r.bytes || len(r.frames) > MaxFrames {
				t.Fatalf("%d bytes counted, %d there, %d frames", r.bytes, sum, len(r.frames))
			}
		}
	})
}
