package tap

import (
	"errors"
	"fmt"
	"math"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router/offload"
)

const (
	// largeSlots is the number of frames of any size that a reader holds, and
	// smallSlots the number of those that fit into smallLen bytes with the space
	// around them: two milliseconds of a full link, in 2 MB.
	largeSlots = 24
	smallSlots = 256
	smallLen   = 2048
	// Bounds of a batch of bulk frames, in frames and in bytes: large, so that one
	// system call sends many; but only quickBytes while sparse frames come, which
	// wait for the batch. There are none any more after calmBatches without one,
	// some milliseconds of a full link.
	unitFrames  = 64
	unitBytes   = 256 << 10
	quickBytes  = 64 << 10
	calmBatches = 32
)

// reader reads frames from a TAP, with or without a header. It reads ahead, so that it
// can return sparse frames first.
type reader struct {
	name   string
	file   *file
	head   int // length of the header in front of each frame
	sparse func(frame []byte) bool

	// Slots: empty ones by size, full ones in the order of arrival, and those of the
	// caller, as frames.
	large, small [][]byte
	largeLen     int // capacity of a large one
	first, rest  []arrival
	frames       []Frame
	wasLight     bool
	calm         int    // batches since the last sparse frame
	seq          uint64 // of the last frame that came

	err  error
	poll bool                  // do not wait: no frame is a result, too
	call func(fd uintptr) bool // made once, so that a call allocates nothing
}

// arrival is a frame that came as the seq-th.
type arrival struct {
	Frame
	seq uint64
}

func newReader(name string, f *file, head, largest int) *reader {
	r := &reader{name: name, file: f, head: head, calm: calmBatches}
	r.call = r.drain
	if Headroom+largest+Tailroom <= smallLen {
		r.large = slots(smallSlots, largest)
	} else {
		r.large, r.small = slots(largeSlots, largest), slots(smallSlots, smallLen-Headroom-Tailroom)
	}
	all := len(r.large) + len(r.small)
	r.largeLen = cap(r.large[0])
	r.first, r.rest, r.frames = make([]arrival, 0, all), make([]arrival, 0, all), make([]Frame, 0, all)
	return r
}

// slots makes n slots for frames of up to size bytes. Each begins at a cache line
// of its own.
func slots(n, size int) [][]byte {
	each := (Headroom + size + Tailroom + 63) &^ 63
	b := make([]byte, n*each)
	s := make([][]byte, n)
	for i := range s {
		s[i] = b[i*each:][:each:each]
	}
	return s
}

// Prioritize implements Prioritizer.
func (r *reader) Prioritize(sparse func(frame []byte) bool) { r.sparse = sparse }

// ReadBatch implements Reader.
func (r *reader) ReadBatch() ([]Frame, error) {
	for _, f := range r.frames {
		r.release(f.Buf)
	}
	r.frames = r.frames[:0]
	for {
		r.err, r.poll = nil, len(r.first)+len(r.rest) > 0
		o := r.file.now.Load()
		// The file has no deadline, so an error means that it is closed or its device is
		// gone. The error that os returns here is not one that callers could check for.
		if o.raw.Read(r.call) == nil && !errors.Is(r.err, unix.EBADFD) {
			break
		}
		if !r.file.replaced(o) {
			return nil, fmt.Errorf("read TAP %s: %w", r.name, os.ErrClosed)
		}
	}
	if r.err != nil {
		return nil, fmt.Errorf("read TAP %s: %w", r.name, r.err)
	}
	r.choose()
	return r.frames, nil
}

// choose moves the frames of the next batch to frames. Sparse ones go first, but take
// turns with frames that came before them, which would else starve. Frames that came
// after them never go before them: they may be of a flow that was sparse until then.
func (r *reader) choose() {
	var bound uint64 = math.MaxUint64
	if len(r.first) > 0 {
		bound = r.first[0].seq
	}
	if r.wasLight = len(r.first) > 0 && (!r.wasLight || len(r.rest) == 0 || r.rest[0].seq > bound); r.wasLight {
		for _, f := range r.first {
			r.frames = append(r.frames, f.Frame)
		}
		r.first, r.calm = r.first[:0], 0
		return
	}
	unit := unitBytes
	if r.calm++; r.calm < calmBatches {
		unit = quickBytes
	}
	n, size := 0, 0
	for n < len(r.rest) && n < unitFrames && size < unit && r.rest[n].seq < bound {
		size += len(r.rest[n].Buf)
		r.frames = append(r.frames, r.rest[n].Frame)
		n++
	}
	r.rest = r.rest[:copy(r.rest, r.rest[n:])]
}

// release returns the memory of a frame to the empty slots.
func (r *reader) release(b []byte) {
	b = b[:cap(b)]
	if cap(b) == r.largeLen {
		r.large = append(r.large, b)
	} else {
		r.small = append(r.small, b)
	}
}

// drain reads frames until no frame or no slot is left. It is false if it must wait for
// a frame.
func (r *reader) drain(fd uintptr) bool {
	for len(r.large) > 0 {
		b := r.large[len(r.large)-1]
		n, err := rawRead(fd, b[Headroom-r.head:len(b)-Tailroom])
		switch {
		case err == nil && n < r.head:
			r.err = offload.ErrShort
			return true
		case err == nil:
			if r.err = r.add(b, n-r.head); r.err != nil {
				return true
			}
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return r.poll || len(r.first)+len(r.rest) > 0
		default:
			if len(r.first)+len(r.rest) == 0 {
				r.err = err
			}
			return true
		}
	}
	return true
}

// add adds the frame of n bytes that was read to the last empty large slot.
func (r *reader) add(b []byte, n int) (err error) {
	f := Frame{Buf: b[:Headroom+n]}
	if r.head > 0 {
		if f.Header, err = offload.ParseHeader(b[Headroom-r.head:]); err != nil {
			return err
		}
	}
	if k := len(r.small); k > 0 && Headroom+n+Tailroom <= smallLen {
		f.Buf = r.small[k-1][:Headroom+n]
		copy(f.Buf[Headroom:], b[Headroom:])
		r.small = r.small[:k-1]
	} else {
		r.large = r.large[:len(r.large)-1]
	}
	r.seq++
	if f.Sparse = r.sparse != nil && r.sparse(f.Buf[Headroom:]); f.Sparse {
		r.first = append(r.first, arrival{f, r.seq})
	} else {
		r.rest = append(r.rest, arrival{f, r.seq})
	}
	return nil
}

// rawRead is read(2) on a descriptor that does not block, without notifying the
// scheduler of Go. For an ordinary system call the scheduler's monitor checks every 20
// microseconds whether it still runs, which it often does, as the kernel handles much of
// the packet's path in it, and then hands the processor to another thread. Under bulk
// load that cost a fifth of the CPU. The call takes no longer than a long function.
func rawRead(fd uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
