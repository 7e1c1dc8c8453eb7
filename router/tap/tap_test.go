package tap_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
)

// device is what both drivers make.
type device interface {
	tap.Queue
	Name() string
}

var drivers = map[string]func() (device, error){
	"offload": func() (device, error) { return tap.Open("vethwe-tap", tap.Linux) },
	"plain":   func() (device, error) { return tap.OpenPlain("vethwe-tap", 1600) },
}

// each runs a test with both drivers.
func each(t *testing.T, f func(t *testing.T, d device, fd int, ns string)) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) {
			d, fd, ns := up(t, open)
			f(t, d, fd, ns)
		})
	}
}

// up makes a TAP in a namespace, up, and a packet socket at the host's side of
// it, which sees and sends frames of the ethertype 88b5 only.
func up(t *testing.T, open func() (device, error)) (d device, fd int, ns string) {
	t.Helper()
	ns = nstest.New(t, "tap")
	err := netdev.Do(ns, func() (err error) {
		if d, err = open(); err != nil {
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
	return d, fd, ns
}

func frame(i, size int) []byte {
	b := []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x88, 0xb5}
	return append(fmt.Appendf(b, "%04d", i), make([]byte, size)...)
}

func TestFramesBothWays(t *testing.T) {
	each(t, func(t *testing.T, d device, fd int, _ string) {
		for i := range 100 {
			if _, err := unix.Write(fd, frame(i, i*10)); err != nil {
				t.Fatal(err)
			}
		}
		r, w := d.NewReader(), d.NewWriter()
		for got := 0; got < 100; {
			frames, err := r.ReadBatch()
			if err != nil || len(frames) == 0 {
				t.Fatalf("%d frames: %v", len(frames), err)
			}
			for _, f := range frames {
				if b := f.Buf[tap.Headroom:]; !bytes.Equal(b, frame(got, got*10)) || f.Header != (offload.Header{}) {
					t.Fatalf("frame %d is %+v, % x", got, f.Header, b)
				}
				if cap(f.Buf)-len(f.Buf) < tap.Tailroom {
					t.Fatalf("%d bytes of tailroom", cap(f.Buf)-len(f.Buf))
				}
				// All of it is ours to write, and no other frame's.
				whole := f.Buf[:len(f.Buf)+tap.Tailroom]
				for i := range whole {
					whole[i] = 0xee
				}
				got++
			}
		}

		if err := w.Write(offload.Header{}, [][]byte{frame(1, 50)}); err != nil {
			t.Error(err)
		}
		if err := w.Write(offload.Header{}, [][]byte{{1, 2, 3}}); err == nil {
			t.Error("a piece of a frame was taken")
		}
		f := frame(2, 1400)
		if err := w.Write(offload.Header{}, [][]byte{f[:20], f[20:100], f[100:]}); err != nil {
			t.Error(err)
		}
		buf := make([]byte, 2000)
		for i, size := range []int{50, 1400} {
			n, err := unix.Read(fd, buf)
			if err != nil || !bytes.Equal(buf[:n], frame(i+1, size)) {
				t.Errorf("the host got % x: %v", buf[:n], err)
			}
		}
	})
}

func TestCloseEndsReads(t *testing.T) {
	each(t, func(t *testing.T, d device, _ int, _ string) {
		done := make(chan error)
		go func() {
			_, err := d.NewReader().ReadBatch()
			done <- err
		}()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; !errors.Is(err, os.ErrClosed) {
			t.Errorf("read ended with %v", err)
		}
		if err := d.NewWriter().Write(offload.Header{}, [][]byte{frame(1, 50)}); !errors.Is(err, os.ErrClosed) {
			t.Errorf("write ended with %v", err)
		}
	})
}

func TestNoAllocation(t *testing.T) {
	each(t, func(t *testing.T, d device, fd int, _ string) {
		f := [][]byte{frame(1, 1000), make([]byte, 10)}
		r, w := d.NewReader(), d.NewWriter()
		if n := testing.AllocsPerRun(200, func() {
			_, e1 := unix.Write(fd, f[0])
			_, e2 := r.ReadBatch()
			e3 := w.Write(offload.Header{}, f)
			if e1 != nil || e2 != nil || e3 != nil {
				t.Error(e1, e2, e3)
			}
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	})
}

// TestGSOPacketsBothWays has the kernel cut a GSO packet that was written, and
// hand over one whole that a socket sent.
func TestGSOPacketsBothWays(t *testing.T) {
	d, _, ns := up(t, drivers["offload"])
	if o := d.Offloads(); !o.UDP || !o.TCP || !o.Checksum {
		nstest.Lacks(t, "TAP offload of checksums, TCP or UDP segmentation")
	}
	near, far := netip.MustParseAddrPort("192.0.2.1:7000"), netip.MustParseAddrPort("192.0.2.2:7000")
	var sock *net.UDPConn
	var mac net.HardwareAddr
	err := netdev.Do(ns, func() error {
		l, err := netlink.LinkByName(d.Name())
		if err != nil {
			return err
		}
		mac = l.Attrs().HardwareAddr
		a, _ := netlink.ParseAddr("192.0.2.1/24")
		if err := netlink.AddrAdd(l, a); err != nil {
			return err
		}
		err = netlink.NeighAdd(&netlink.Neigh{LinkIndex: l.Attrs().Index, State: netlink.NUD_PERMANENT, IP: far.Addr().AsSlice(), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}})
		if err != nil {
			return err
		}
		sock, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(near))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()

	const size, count = 100, 20
	body := make([]byte, size*count-30)
	for i := range body {
		body[i] = byte(i)
	}
	oob := make([]byte, unix.CmsgSpace(2))
	binary.NativeEndian.PutUint64(oob, uint64(unix.CmsgLen(2)))
	binary.NativeEndian.PutUint32(oob[8:], unix.IPPROTO_UDP)
	binary.NativeEndian.PutUint32(oob[12:], unix.UDP_SEGMENT)
	binary.NativeEndian.PutUint16(oob[16:], size)
	if _, _, err := sock.WriteMsgUDPAddrPort(body, oob, far); err != nil {
		t.Fatal(err)
	}
	r, w := d.NewReader(), d.NewWriter()
	var gsoFrame tap.Frame
	for gsoFrame.Header.Kind != offload.UDP {
		frames, err := r.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if l, ok := offload.Parse(f.Buf[tap.Headroom:]); ok && l.Proto == offload.ProtoUDP {
				gsoFrame = f
			}
		}
	}
	var s offload.Splitter
	b := gsoFrame.Buf[tap.Headroom:]
	if err := s.Reset(gsoFrame.Header, b); err != nil || s.Count() != count || !bytes.Equal(b[s.Layout().Payload:], body) {
		t.Fatalf("%+v: %v: %d segments", gsoFrame.Header, err, s.Count())
	}

	// And back the way it came, in three parts.
	copy(b, mac)
	copy(b[6:], []byte{2, 0, 0, 0, 0, 9})
	src, dst := [4]byte(b[26:30]), [4]byte(b[30:34])
	copy(b[26:], dst[:])
	copy(b[30:], src[:])
	if err := w.Write(gsoFrame.Header, [][]byte{b[:60], b[60:500], b[500:]}); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 70000)
	for got := 0; got < len(body); {
		n, err := sock.Read(buf)
		if err != nil || n != min(size, len(body)-got) || !bytes.Equal(buf[:n], body[got:got+n]) {
			t.Fatalf("%d bytes after %d: %v", n, got, err)
		}
		got += n
	}
}

// TestLesserKernels asks kernels that refuse.
func TestLesserKernels(t *testing.T) {
	for _, c := range []struct {
		what    string
		k       func(k *tap.Kernel)
		want    tap.Offloads
		refused bool
	}{
		{"no datagrams", func(k *tap.Kernel) {
			k.SetOffload = func(fd, flags int) error {
				if flags&unix.TUN_F_USO4 != 0 {
					return unix.EINVAL
				}
				return tap.Linux.SetOffload(fd, flags)
			}
		}, tap.Offloads{Checksum: true, TCP: true}, false},
		{"checksum only", func(k *tap.Kernel) {
			k.SetOffload = func(fd, flags int) error {
				if flags != unix.TUN_F_CSUM {
					return unix.EINVAL
				}
				return tap.Linux.SetOffload(fd, flags)
			}
		}, tap.Offloads{Checksum: true}, false},
		{"nothing", func(k *tap.Kernel) { k.SetOffload = func(int, int) error { return unix.EINVAL } }, tap.Offloads{}, true},
		{"no header", func(k *tap.Kernel) { k.SetIff = func(int, string, uint16) (string, error) { return "", unix.EINVAL } }, tap.Offloads{}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			k := tap.Linux
			c.k(&k)
			err := netdev.Do(nstest.New(t, "tap"), func() error {
				d, err := tap.Open("vethwe-tap", k)
				if err == nil {
					defer d.Close()
					if d.Offloads() != c.want {
						t.Errorf("%s, want %s", d.Offloads(), c.want)
					}
				}
				return err
			})
			if errors.Is(err, tap.ErrRefused) != c.refused || (err != nil) != c.refused {
				t.Errorf("refused should be %v: %v", c.refused, err)
			}
		})
	}
	k := tap.Linux
	k.SetIff = func(int, string, uint16) (string, error) { return "", unix.EPERM }
	if err := netdev.Do(nstest.New(t, "tap"), func() error { _, err := tap.Open("vethwe-tap", k); return err }); errors.Is(err, tap.ErrRefused) || !errors.Is(err, unix.EPERM) {
		t.Errorf("without rights: %v", err)
	}
}

// TestPlainTakesNothingUnfinished: it refuses frames that it cannot carry.
func TestPlainTakesNothingUnfinished(t *testing.T) {
	d, _, _ := up(t, drivers["plain"])
	if err := d.NewWriter().Write(offload.Header{NeedsSum: true, Start: 14, Offset: 2}, [][]byte{frame(1, 50)}); !errors.Is(err, tap.ErrOffload) {
		t.Errorf("took it: %v", err)
	}
	if d.Offloads() != (tap.Offloads{}) {
		t.Errorf("%s", d.Offloads())
	}
}
