// Package frag cuts frames that do not fit in a packet into parts and puts
// parts together again, within bounded memory and time.
package frag

import (
	"time"

	"github.com/weft-net/weft/router/wire"
)

// Parts returns the length of each part (the last may be shorter) and their
// number, for n bytes in packets that hold room bytes of body each. The parts
// are as even as can be, so that none is lost for being larger than its
// siblings. ok is false if room is too small for any part.
func Parts(n, room int) (size, count int, ok bool) {
	room -= wire.FragmentHeadLen
	if room < 1 || n < 1 {
		return 0, 0, false
	}
	count = (n + room - 1) / room
	return (n + count - 1) / count, count, true
}

// Bounds of a Reassembler.
const (
	Timeout   = 2 * time.Second // a frame whose parts take longer is dropped
	MaxFrames = 64              // frames under way
	MaxBytes  = 1 << 20         // of all frames under way
	maxParts  = 256             // of one frame
)

// Reassembler collects the parts of the frames of one link. The zero value is
// ready. It is not safe for concurrent use. Time is a duration since an origin
// of the caller's that never goes back.
type Reassembler struct {
	// Dropped counts frames that were given up, for time or for room.
	Dropped uint64

	frames []frame // in order of their first part
	bytes  int
	free   [][]byte // buffers to use again
}

type frame struct {
	id    uint32
	begun time.Duration
	buf   []byte // total long
	got   int    // bytes
	parts []span
}

type span struct{ from, to int }

// Add takes a part in, which is copied. When it completes a frame the frame is
// returned, to be used until the next call of Add.
func (r *Reassembler) Add(h wire.FragmentHead, part []byte, now time.Duration) []byte {
	r.expire(now)
	i := r.find(h)
	if i < 0 {
		if i = r.begin(h, now); i < 0 {
			return nil
		}
	}
	f := &r.frames[i]
	s := span{h.Offset, h.Offset + len(part)}
	for _, p := range f.parts {
		if s.from < p.to && p.from < s.to {
			return nil // a duplicate, or a sender that makes no sense
		}
	}
	if len(f.parts) == maxParts {
		r.drop(i)
		r.Dropped++
		return nil
	}
	copy(f.buf[s.from:s.to], part)
	f.parts = append(f.parts, s)
	f.got += len(part)
	if f.got < len(f.buf) {
		return nil
	}
	done := f.buf
	r.drop(i)
	return done
}

func (r *Reassembler) find(h wire.FragmentHead) int {
	for i := range r.frames {
		if r.frames[i].id == h.ID && len(r.frames[i].buf) == h.Total {
			return i
		}
	}
	return -1
}

// begin makes room for a new frame by giving up the oldest.
func (r *Reassembler) begin(h wire.FragmentHead, now time.Duration) int {
	if h.Total > MaxBytes {
		return -1
	}
	for len(r.frames) >= MaxFrames || r.bytes+h.Total > MaxBytes {
		r.drop(0)
		r.Dropped++
	}
	f := frame{id: h.ID, begun: now}
	if n := len(r.free); n > 0 && cap(r.free[n-1]) >= h.Total {
		f.buf = r.free[n-1][:h.Total]
		r.free = r.free[:n-1]
	} else {
		f.buf = make([]byte, h.Total)
	}
	r.bytes += h.Total
	r.frames = append(r.frames, f)
	return len(r.frames) - 1
}

// maxFree is how many buffers are kept for use again.
const maxFree = 4

func (r *Reassembler) drop(i int) {
	f := r.frames[i]
	r.bytes -= len(f.buf)
	r.frames = append(r.frames[:i], r.frames[i+1:]...)
	if len(r.free) < maxFree {
		r.free = append(r.free, f.buf)
	}
}

func (r *Reassembler) expire(now time.Duration) {
	for len(r.frames) > 0 && now-r.frames[0].begun > Timeout {
		r.drop(0)
		r.Dropped++
	}
}
