package tap

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router/offload"
)

// Plain is the only queue of a TAP device without offloads.
type Plain struct {
	name string
	file *os.File
	raw  syscall.RawConn
	max  int
}

// OpenPlain makes the TAP device name, which ends with the Plain. It is down.
// Frames have largest bytes at most.
func OpenPlain(name string, largest int) (*Plain, error) {
	ifce, err := water.New(water.Config{
		DeviceType:             water.TAP,
		PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
	})
	if err != nil {
		return nil, fmt.Errorf("make TAP %s: %w", name, err)
	}
	file, ok := ifce.ReadWriteCloser.(*os.File)
	if !ok {
		ifce.Close()
		return nil, fmt.Errorf("make TAP %s: its driver gives no file", name)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make TAP %s: %w", name, err)
	}
	return &Plain{name: ifce.Name(), file: file, raw: raw, max: largest}, nil
}

// Name is the interface's name.
func (p *Plain) Name() string { return p.name }

// Offloads implements Queue.
func (p *Plain) Offloads() Offloads { return Offloads{} }

// Close implements Queue.
func (p *Plain) Close() error { return p.file.Close() }

// NewReader implements Queue.
func (p *Plain) NewReader() Reader { return newReader(p.name, p.raw, 0, p.max) }

// NewWriter implements Queue.
func (p *Plain) NewWriter() Writer { return &plainWriter{p: p, buf: make([]byte, 0, p.max)} }

type plainWriter struct {
	p   *Plain
	buf []byte
}

// Write implements Writer.
func (w *plainWriter) Write(h offload.Header, parts [][]byte) error {
	if h != (offload.Header{}) {
		return fmt.Errorf("write TAP %s: %w", w.p.name, ErrOffload)
	}
	b := parts[0]
	if len(parts) > 1 {
		w.buf = w.buf[:0]
		for _, p := range parts {
			w.buf = append(w.buf, p...)
		}
		b = w.buf
	}
	if _, err := w.p.file.Write(b); err != nil {
		return fmt.Errorf("write TAP %s: %w", w.p.name, err)
	}
	return nil
}

// reader reads frames from a TAP, with or without a header.
type reader struct {
	name string
	raw  syscall.RawConn
	head int // bytes of header in front of each frame
	*batch
	err  error
	call func(fd uintptr) bool // made once, so that a call allocates nothing
}

func newReader(name string, raw syscall.RawConn, head, largest int) *reader {
	r := &reader{name: name, raw: raw, head: head, batch: newBatch(largest)}
	r.call = r.drain
	return r
}

// ReadBatch implements Reader.
func (r *reader) ReadBatch() ([]Frame, error) {
	r.reset()
	r.err = nil
	if r.raw.Read(r.call) != nil {
		// It has no deadline, so it is closed; the error of its own that a
		// closed file gives here is none that callers could ask for.
		return nil, fmt.Errorf("read TAP %s: %w", r.name, os.ErrClosed)
	}
	if r.err != nil {
		return nil, fmt.Errorf("read TAP %s: %w", r.name, r.err)
	}
	return r.frames, nil
}

// drain reads frames until none is left; false means to wait for one.
func (r *reader) drain(fd uintptr) bool {
	for b := r.room(r.head); b != nil; b = r.room(r.head) {
		n, err := rawRead(fd, b)
		switch {
		case err == nil && n < r.head:
			r.err = offload.ErrShort
			return true
		case err == nil:
			var h offload.Header
			if r.head > 0 {
				if h, r.err = offload.ParseHeader(b); r.err != nil {
					return true
				}
			}
			r.add(h, n-r.head)
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return len(r.frames) > 0
		default:
			if len(r.frames) == 0 {
				r.err = err
			}
			return true
		}
	}
	return true
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
