package tap_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
)

// A TAP that other software removes is made again under a reader and a writer, which go on.
func TestReopen(t *testing.T) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d, _, ns := up(t, open)
			reopen := func() error {
				return netdev.Do(ns, func() error {
					if err := d.(tap.Reopener).Reopen(); err != nil {
						return err
					}
					l, err := netlink.LinkByName(netdev.TAPName)
					if err != nil {
						return err
					}
					return netlink.LinkSetUp(l)
				})
			}
			read := make(chan error, 1)
			frames := make(chan struct{}, 1)
			go func() {
				for r := d.NewReader(); ; {
					if _, err := r.ReadBatch(); err != nil {
						read <- err
						return
					}
					select {
					case frames <- struct{}{}:
					default:
					}
				}
			}()
			w := d.NewWriter()
			for range 3 {
				if err := reopen(); err == nil {
					t.Fatal("reopened a TAP that exists")
				}
				if err := netdev.Do(ns, func() error {
					l, err := netlink.LinkByName(netdev.TAPName)
					if err != nil {
						return err
					}
					return netlink.LinkDel(l)
				}); err != nil {
					t.Fatal(err)
				}
				if err := w.Write(offload.Header{}, [][]byte{frame(1, 60)}); err == nil {
					t.Error("wrote to a TAP that is gone")
				}
				if err := reopen(); err != nil {
					t.Fatal(err)
				}
				if err := w.Write(offload.Header{}, [][]byte{frame(1, 60)}); err != nil {
					t.Errorf("write: %v", err)
				}
				for len(frames) > 0 {
					<-frames
				}
				send(t, ns)
				select {
				case <-frames:
				case err := <-read:
					t.Fatalf("read: %v", err)
				case <-time.After(10 * time.Second):
					t.Fatal("the reader gets no frames of the new TAP")
				}
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if err := <-read; !errors.Is(err, os.ErrClosed) {
				t.Errorf("read after Close: %v", err)
			}
			if err := reopen(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("reopen after Close: %v", err)
			}
		})
	}
}

// send sends a frame from the host's side of the TAP in a namespace.
func send(t *testing.T, ns string) {
	t.Helper()
	if err := netdev.Do(ns, func() error {
		l, err := netlink.LinkByName(netdev.TAPName)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, frame(1, 60), 0, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index})
	}); err != nil {
		t.Fatal(err)
	}
}
