package tap

import (
	"fmt"
	"os"
	"syscall"

	"github.com/songgao/water"

	"github.com/weft-net/weft/router/offload"
)

// Plain is the only queue of a TAP device without offloads.
type Plain struct {
	name string
	file *os.File
	raw  syscall.RawConn
	max  int
}

// OpenPlain makes a TAP with this name, which exists as long as the Plain. It is down.
// Frames have at most largest bytes.
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
		return nil, fmt.Errorf("make TAP %s: its driver has no file", name)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("make TAP %s: %w", name, err)
	}
	return &Plain{name: ifce.Name(), file: file, raw: raw, max: largest}, nil
}

// Name returns the name of the interface.
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
