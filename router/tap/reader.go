package tap

import (
	"errors"
	"fmt"
	"math"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router/offload"
)

const (
	// largeSlots is how many frames of any size a reader holds, and smallSlots
	// how many of those that fit smallLen bytes with what is around them: two
	// milliseconds of a full link, in 2 MB.
	largeSlots = 24
	smallSlots = 256
	smallLen   = 2048
	// A reader gives out at once at most so many frames, and bytes, that are not
	// light, so that there is much to send in one call; but only quickBytes while
	// there are light ones now and then, which wait for as long as that takes.
	// They are gone when none came for calmBatches, some milliseconds of a full
	// link.
	unitFrames  = 64
	unitBytes   = 256 << 10
	quickBytes  = 64 << 10
	calmBatches = 32
)

// reader reads frames from a TAP, with or without a header. It reads ahead, so
// that it can give out first what must not wait.
type reader struct {
	name   string
	raw    syscall.RawConn
	head   int // bytes of header in front of each frame
	sparse func(frame []byte) bool

	// Slots: empty ones, by size; full ones in the order in which they came; and
	// those that the caller has, as frames.
	large, small [][]byte
	largeLen     int // capacity of a large one
	first, rest  []arrival
	frames       []Frame
	wasLight     bool
	calm         int    // batches since there was a light frame
	seq          uint64 // of the last frame that came

	err  error
	poll bool                  // do not wait: no frame is a result too
	call func(fd uintptr) bool // made once, so that a call allocates nothing
}

// arrival is a frame that came as the seq-th.
type arrival struct {
	Frame
	seq uint64
}

func newReader(name string, raw syscall.RawConn, head, largest int) *reader {
	r := &reader{name: name, raw: raw, head: head, calm: calmBatches}
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
	r.err, r.poll = nil, len(r.first)+len(r.rest) > 0
	if r.raw.Read(r.call) != nil {
		// It has no deadline, so it is closed; the error of its own that a
		// closed file gives here is none that callers could ask for.
		return nil, fmt.Errorf("read TAP %s: %w", r.name, os.ErrClosed)
	}
	if r.err != nil {
		return nil, fmt.Errorf("read TAP %s: %w", r.name, r.err)
	}
	r.choose()
	return r.frames, nil
}

// choose moves the frames to give out now to frames. Light ones go first, but
// take turns with what came before them, or enough of them would hold that up
// for ever. What came after them never goes before them: it may be of a flow that
// was light until then.
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

// release makes a frame's memory an empty slot again.
func (r *reader) release(b []byte) {
	b = b[:cap(b)]
	if cap(b) == r.largeLen {
		r.large = append(r.large, b)
	} else {
		r.small = append(r.small, b)
	}
}

// drain reads frames until none is left, or no slot; false means to wait for
// one.
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

// add takes in the frame of n bytes that was read to the last empty large slot.
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

// rawRead is read(2) on a descriptor that does not block, without telling Go's
// scheduler. Told of a system call, the scheduler's monitor looks after it every
// 20 microseconds, finds one that has lasted longer (the kernel does a good part
// of a packet's way in there), and has another thread take over: with bulk that
// cost a fifth of the CPU. The call is as short as a long function.
func rawRead(fd uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
