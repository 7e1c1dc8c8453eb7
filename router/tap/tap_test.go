package tap_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router/tap"
)

// open makes a TAP in a namespace, up, and a packet socket at the host's side
// of it, which sees and sends frames of the ethertype 88b5 only.
func open(t *testing.T) (d *tap.Device, fd int) {
	t.Helper()
	ns := nstest.New(t, "tap")
	err := netdev.Do(ns, func() (err error) {
		if d, err = tap.Open("vethwe-tap"); err != nil {
			return err
		}
		t.Cleanup(func() { d.Close() })
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/vethwe-tap/disable_ipv6", []byte("1"), 0); err != nil {
			return err
		}
		l, err := netlink.LinkByName(d.Name())
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: l.Attrs().Index, Protocol: 0xb588})
	})
	if err != nil {
		t.Fatal(err)
	}
	return d, fd
}

func frame(i, size int) []byte {
	b := []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5}
	return append(fmt.Appendf(b, "%04d", i), make([]byte, size)...)
}

func TestFramesBothWays(t *testing.T) {
	d, fd := open(t)
	const headroom = 32
	bufs, sizes := make([][]byte, 8), make([]int, 8)
	for i := range bufs {
		bufs[i] = make([]byte, headroom+1600)
	}
	for i := range 100 {
		if _, err := unix.Write(fd, frame(i, i*10)); err != nil {
			t.Fatal(err)
		}
	}
	for got := 0; got < 100; {
		n, err := d.ReadBatch(bufs, sizes, headroom)
		if err != nil || n == 0 {
			t.Fatalf("%d frames: %v", n, err)
		}
		for i := range n {
			if b := bufs[i][headroom : headroom+sizes[i]]; !bytes.Equal(b, frame(got, got*10)) {
				t.Fatalf("frame %d is % x", got, b)
			}
			got++
		}
	}

	n, err := d.WriteBatch([][]byte{frame(1, 50), {1, 2, 3}, frame(2, 1400)})
	if n != 2 || err == nil {
		t.Errorf("wrote %d of two frames and a piece of one: %v", n, err)
	}
	buf := make([]byte, 2000)
	for i, size := range []int{50, 1400} {
		n, err := unix.Read(fd, buf)
		if err != nil || !bytes.Equal(buf[:n], frame(i+1, size)) {
			t.Errorf("the host got % x: %v", buf[:n], err)
		}
	}
}

func TestCloseEndsReads(t *testing.T) {
	d, _ := open(t)
	done := make(chan error)
	go func() {
		_, err := d.ReadBatch([][]byte{make([]byte, 100)}, make([]int, 1), 0)
		done <- err
	}()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("read ended with %v", err)
	}
}

func TestNoAllocation(t *testing.T) {
	d, fd := open(t)
	bufs, sizes, f := [][]byte{make([]byte, 2000)}, make([]int, 1), [][]byte{frame(1, 1000)}
	if n := testing.AllocsPerRun(200, func() {
		_, e1 := unix.Write(fd, f[0])
		_, e2 := d.ReadBatch(bufs, sizes, 0)
		_, e3 := d.WriteBatch(f)
		if e1 != nil || e2 != nil || e3 != nil {
			t.Error(e1, e2, e3)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
