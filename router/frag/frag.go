// Package frag computes the fragments of frames that do not fit into a packet, and
// reassembles them within bounded memory and time.
package frag

import (
	"time"

	"github.com/weft-net/weft/router/wire"
)

// Parts returns the length of each fragment (the last may be shorter) and their
// number, for n bytes in packets that hold space bytes of body each. The fragments
// are as even as possible, so that none is lost because it is larger than the
// others. ok is false if space is too small for any fragment.
func Parts(n, space int) (size, count int, ok bool) {
	space -= wire.FragmentHeadLen
	if space < 1 || n < 1 {
		return 0, 0, false
	}
	count = (n + space - 1) / space
	return (n + count - 1) / count, count, true
}

// Bounds of a Reassembler.
const (
	Timeout   = 2 * time.Second // a frame whose fragments take longer is dropped
	MaxFrames = 64              // incomplete frames
	MaxBytes  = 1 << 20         // of all incomplete frames
	maxParts  = 256             // of one frame
)

// Reassembler collects the fragments of the frames of one link. The zero value is
// ready to use. It is not safe for concurrent use. Times are durations since an
// origin that the caller chooses, and never go back.
type Reassembler struct {
	// Dropped counts frames that were given up because of their age or the bounds.
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

// Add copies a fragment. If it completes a frame, Add returns the frame, which is
// valid until the next call.
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
			return nil // a duplicate, or a faulty sender
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

// begin makes a new frame, giving up the oldest ones if there is no space.
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

// maxFree is the number of buffers that are kept for reuse.
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
