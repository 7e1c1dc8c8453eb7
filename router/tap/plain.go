package tap

import (
	"fmt"
	"os"

	"github.com/songgao/water"

	"github.com/weft-net/weft/router/offload"
)

// Plain is the only queue of a TAP device without offloads.
type Plain struct {
	file
	name string
	max  int
}

// OpenPlain makes a TAP with this name, which exists as long as the Plain. It is down.
// Frames have at most largest bytes.
func OpenPlain(name string, largest int) (*Plain, error) {
	p := &Plain{max: largest}
	p.open = func() (*os.File, error) {
		ifce, err := water.New(water.Config{
			DeviceType:             water.TAP,
			PlatformSpecificParams: water.PlatformSpecificParams{Name: name},
		})
		if err != nil {
			return nil, fmt.Errorf("make TAP %s: %w", name, err)
		}
		f, ok := ifce.ReadWriteCloser.(*os.File)
		if !ok {
			ifce.Close()
			return nil, fmt.Errorf("make TAP %s: its driver has no file", name)
		}
		if p.name == "" {
			p.name, name = ifce.Name(), ifce.Name() // of a pattern like tap%d
		}
		return f, nil
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	return p, nil
}

// Name returns the name of the interface.
func (p *Plain) Name() string { return p.name }

// Offloads implements Queue.
func (p *Plain) Offloads() Offloads { return Offloads{} }

// NewReader implements Queue.
func (p *Plain) NewReader() Reader { return newReader(p.name, &p.file, 0, p.max) }

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
	if _, err := w.p.now.Load().file.Write(b); err != nil {
		return fmt.Errorf("write TAP %s: %w", w.p.name, err)
	}
	return nil
}
