// Package tap is the switch's way to the containers of this host: the queues
// of a TAP device.
package tap

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"
	"golang.org/x/sys/unix"
)

// Headroom is how many bytes are kept free in front of a frame that is read,
// and Tailroom behind it, so that headers and tag are put around it in place.
const (
	Headroom = 64
	Tailroom = 16
)

// Queue is one queue of a TAP. Reading and writing may be done at the same
// time; each by one goroutine, but writing by several.
type Queue interface {
	// ReadBatch waits until at least one frame has come, and fills
	// bufs[i][headroom:headroom+sizes[i]] for each i < n. bufs are borrowed
	// for the call.
	ReadBatch(bufs [][]byte, sizes []int, headroom int) (n int, err error)
	// WriteBatch gives frames to the host in order. It returns how many of
	// them the host took; an error does not keep the later ones from being
	// tried, and the first is returned. Frames are borrowed for the call.
	WriteBatch(frames [][]byte) (n int, err error)
	// Close ends all reads with os.ErrClosed.
	Close() error
}

// Device is the only queue of a TAP device of the kernel.
type Device struct {
	name string
	file *os.File
	raw  syscall.RawConn

	// Of ReadBatch; kept here so that a call allocates nothing.
	bufs     [][]byte
	sizes    []int
	headroom int
	n        int
	err      error
	read     func(fd uintptr) bool
}

// Open makes the TAP device name, which ends with the Device. It is down.
func Open(name string) (*Device, error) {
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
	d := &Device{name: ifce.Name(), file: file, raw: raw}
	d.read = d.drain
	return d, nil
}

// Name is the interface's name.
func (d *Device) Name() string { return d.name }

// ReadBatch implements Queue.
func (d *Device) ReadBatch(bufs [][]byte, sizes []int, headroom int) (int, error) {
	d.bufs, d.sizes, d.headroom, d.n, d.err = bufs, sizes, headroom, 0, nil
	if d.raw.Read(d.read) != nil {
		// It has no deadline, so it is closed; the error of its own that a
		// closed file gives here is none that callers could ask for.
		return 0, fmt.Errorf("read TAP %s: %w", d.name, os.ErrClosed)
	}
	if d.err != nil {
		return d.n, fmt.Errorf("read TAP %s: %w", d.name, d.err)
	}
	return d.n, nil
}

// drain reads frames until none is left; false means to wait for one.
func (d *Device) drain(fd uintptr) bool {
	for d.n < len(d.bufs) {
		n, err := unix.Read(int(fd), d.bufs[d.n][d.headroom:])
		switch {
		case err == nil:
			d.sizes[d.n] = n
			d.n++
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			return d.n > 0
		default:
			if d.n == 0 {
				d.err = err
			}
			return true
		}
	}
	return true
}

// WriteBatch implements Queue.
func (d *Device) WriteBatch(frames [][]byte) (n int, err error) {
	for _, f := range frames {
		if _, e := d.file.Write(f); e != nil {
			if err == nil {
				err = fmt.Errorf("write TAP %s: %w", d.name, e)
			}
			continue
		}
		n++
	}
	return n, err
}

// Close implements Queue.
func (d *Device) Close() error { return d.file.Close() }
