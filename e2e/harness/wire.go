package harness

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab/testbed"
)

// Wire sends and receives whole frames at an interface.
type Wire struct{ fd int }

// OpenWire opens an interface of a place.
func OpenWire(t *testing.T, lab *testbed.Lab, place testbed.Place, iface string) *Wire {
	t.Helper()
	w := &Wire{}
	Within(t, lab, place, func() error {
		link, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8)
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		return errors.Join(
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: link.Attrs().Index}),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 50_000}),
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
		)
	})
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// Send sends a frame. A full queue drops it.
func (w *Wire) Send(frame []byte) error {
	if _, err := unix.Write(w.fd, frame); err != nil && !errors.Is(err, unix.ENOBUFS) {
		return err
	}
	return nil
}

// Read reads the next frame into b. It is an error if none comes for 50 ms.
func (w *Wire) Read(b []byte) (n int, err error) { return unix.Read(w.fd, b) }

// Capture collects the frames that match until the returned function is called.
func (w *Wire) Capture(match func(frame []byte) bool) (stop func() [][]byte) {
	var done atomic.Bool
	var frames [][]byte
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 1<<16)
		for !done.Load() {
			n, err := w.Read(b)
			if err == nil && match(b[:n]) {
				frames = append(frames, slices.Clone(b[:n]))
			}
		}
	})
	return func() [][]byte {
		done.Store(true)
		wg.Wait()
		return frames
	}
}
