package router_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/offload/packets"
	"github.com/weft-net/weft/router/tap"
)

// offloads is what this kernel's TAPs take: those for datagrams need Linux 6.2.
func offloads(t testing.TB) (o tap.Offloads) {
	t.Helper()
	err := netdev.Do(nstest.New(t, "tap"), func() error {
		d, err := tap.Open("probe", tap.Linux)
		if err != nil {
			return err
		}
		o = d.Offloads()
		return d.Close()
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// bulk moves n bytes by TCP from one container to an address of another's and
// compares them. It returns the sender's kernel's statistics of the connection.
func bulk(t *testing.T, from, to *host, at netip.Addr, n int) (info *unix.TCPInfo) {
	t.Helper()
	var l net.Listener
	to.in(func() (err error) { l, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()); return err })
	defer l.Close()
	var out net.Conn
	from.in(func() (err error) {
		out, err = (&net.Dialer{Timeout: timeout, FallbackDelay: -1}).Dial("tcp", l.Addr().String())
		return err
	})
	defer out.Close()
	in, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	_ = in.SetDeadline(time.Now().Add(timeout))
	_ = out.SetDeadline(time.Now().Add(timeout))
	want := make([]byte, n)
	r := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range want {
		want[i] = byte(r.Uint32())
	}
	sent := make(chan error, 1)
	go func() {
		_, err := out.Write(want)
		sent <- errors.Join(err, out.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(in)
	if err := errors.Join(err, <-sent); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d of %d bytes came, or not the same: %v", at, len(got), n, err)
	}
	raw, err := out.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return info
}

// train sends datagrams in one call, as a sender with UDP_SEGMENT does, and
// waits for them.
func train(t *testing.T, from, to *host, a, b netip.Addr, size, n int) {
	t.Helper()
	src, dst := from.listen(a), to.listen(b)
	defer src.Close()
	defer dst.Close()
	body := make([]byte, n)
	for i := range body {
		body[i] = byte(i * 7)
	}
	oob := make([]byte, unix.CmsgSpace(2))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
	h.SetLen(unix.CmsgLen(2))
	binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], uint16(size))
	buf := make([]byte, 70000)
	var err error
	for range tries {
		if _, _, err = src.WriteMsgUDPAddrPort(body, oob, dst.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			t.Fatal(err)
		}
		_ = dst.SetReadDeadline(time.Now().Add(time.Second))
		for got := 0; ; {
			var k int
			if k, err = dst.Read(buf); err != nil {
				break // lost while neighbours were looked up; once more
			}
			if k != min(size, n-got) || !bytes.Equal(buf[:k], body[got:got+k]) {
				t.Fatalf("%s: %d bytes after %d are not what was sent", b, k, got)
			}
			if got += k; got == n {
				return
			}
		}
	}
	t.Errorf("%s: the train does not arrive: %v", b, err)
}

// tagged sends a GSO packet in a VLAN from one container's card to another's
// and puts together what arrives there, whole or in segments. Where the card
// gives GSO packets it returns how many came.
func tagged(t *testing.T, from, to *host, udp bool) (gsoPackets int) {
	t.Helper()
	a, b := from.card(), to.card()
	for _, fd := range []int{a.fd, b.fd} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			t.Fatal(err)
		}
	}
	body := make([]byte, 9500)
	for i := range body {
		body[i] = byte(i * 13)
	}
	f := packets.Spec{UDP: udp, Tags: 1, TTL: 64, DF: true, Flags: 0x18, Window: 100, Seq: 1000, Payload: body}.Frame()
	copy(f, b.mac)
	copy(f[6:], a.mac)
	l, ok := offload.Parse(f)
	if !ok {
		t.Fatal("the frame is not what it should be")
	}
	h := l.Partial()
	h.Kind, h.Size, h.HeaderLen = offload.TCP4, 1000, uint16(l.Payload)
	if udp {
		h.Kind = offload.UDP
	}
	binary.BigEndian.PutUint16(f[l.SumAt():], l.PseudoSum(f, l.End-l.L4))
	out := make([]byte, offload.HeaderLen, offload.HeaderLen+len(f))
	h.Put(out)
	a.send(t, append(out, f...))

	buf, oob := make([]byte, 70000), make([]byte, 200)
	for got := 0; got < len(body); {
		n, oobn, _, _, err := unix.Recvmsg(b.fd, buf, oob, 0)
		if err != nil {
			t.Fatalf("after %d bytes: %v", got, err)
		}
		h, err := offload.ParseHeader(buf[:n])
		if err != nil {
			t.Fatal(err)
		}
		frame := buf[offload.HeaderLen:n]
		l, ok := offload.Parse(frame)
		if !ok || !bytes.Equal(frame[6:12], a.mac) {
			continue
		}
		if tci := tagOf(t, oob[:oobn]); tci != 5 {
			t.Errorf("the VLAN tag is %d", tci)
		}
		p := frame[l.Payload:l.End]
		if got+len(p) > len(body) || !bytes.Equal(p, body[got:got+len(p)]) {
			t.Fatalf("%d bytes after %d are not what was sent", len(p), got)
		}
		if l.Proto == offload.ProtoTCP && binary.BigEndian.Uint32(frame[l.L4+4:]) != uint32(1000+got) {
			t.Fatalf("sequence number %d after %d bytes", binary.BigEndian.Uint32(frame[l.L4+4:]), got)
		}
		if !h.NeedsSum && !l.Valid(frame) {
			t.Fatal("a wrong checksum")
		}
		if h.Kind != offload.None {
			gsoPackets++
		}
		got += len(p)
	}
	return gsoPackets
}

// TestGSOPacketsInVLANs: every segment keeps the VLAN tag.
func TestGSOPacketsInVLANs(t *testing.T) {
	for _, off := range []bool{false, true} {
		hosts := newHosts(t, 2, options{mtu: 1376, underlayMTU: 1500, config: func(i int, c *router.Config) { c.NoTAPOffload = off && i == 1 }})
		for _, udp := range []bool{false, true} {
			if udp && !offloads(t).UDP {
				continue // the container's card takes none of datagrams
			}
			if n := tagged(t, hosts[0], hosts[1], udp); n == 0 && !off {
				t.Errorf("udp %v: no GSO packet arrives as one", udp)
			}
		}
	}
}

// noTAP and noUDP are kernels that refuse.
func noTAP(calls *int) *tap.Kernel {
	k := tap.Linux
	k.SetOffload = func(int, int) error { *calls++; return unix.EINVAL }
	return &k
}

func noUDP(segment syscall.Errno) *udp.Kernel {
	k := udp.Linux
	k.SetGRO = func(int) error { return unix.ENOPROTOOPT }
	k.Mmsg = func(trap, fd uintptr, p unsafe.Pointer, n int) (int, syscall.Errno) {
		type mmsghdr struct {
			hdr unix.Msghdr
			n   uint32
		}
		if trap == unix.SYS_SENDMMSG && (*mmsghdr)(p).hdr.Controllen > 0 {
			return -1, segment
		}
		return udp.Linux.Mmsg(trap, fd, p, 1)
	}
	return &k
}

// TestOffloadsOfMixedPeers: whatever offloads the ends have, switched off or
// refused, streams and datagrams of both IP versions come as they were sent,
// in VLANs too.
func TestOffloadsOfMixedPeers(t *testing.T) {
	all, off := offloads(t).String()+" | segment, gro", "switched off | switched off"
	for _, c := range []struct {
		what   string
		config func(i int, c *router.Config)
		words  [2]string
		gso    bool // whether containers are given GSO packets at the far end
	}{
		{"all", nil, [2]string{all, all}, true},
		{"off at the sender", func(i int, c *router.Config) { c.NoTAPOffload, c.NoUDPOffload = i == 0, i == 0 }, [2]string{off, all}, true},
		{"off at the receiver", func(i int, c *router.Config) { c.NoTAPOffload, c.NoUDPOffload = i == 1, i == 1 }, [2]string{all, off}, false},
		{"refused at the sender", func(i int, c *router.Config) {
			if i == 0 {
				c.TAPKernel, c.UDPKernel = noTAP(new(int)), noUDP(unix.EIO)
			}
		}, [2]string{"none | none", all}, true},
		{"refused at the receiver", func(i int, c *router.Config) {
			if i == 1 {
				c.TAPKernel, c.UDPKernel = noTAP(new(int)), noUDP(unix.EIO)
			}
		}, [2]string{all, "none | none"}, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			hosts := newHosts(t, 2, options{mtu: 1376, underlayMTU: 1500, config: c.config})
			a, b := hosts[0], hosts[1]
			bulk(t, a, b, addr(1).Addr(), 3<<20)
			bulk(t, a, b, addr6(1).Addr(), 3<<20)
			bulk(t, b, a, addr(0).Addr(), 1<<20)
			for _, size := range []int{20, 100, 1300} {
				train(t, a, b, addr(0).Addr(), addr(1).Addr(), size, 20*size-7)
				train(t, a, b, addr6(0).Addr(), addr6(1).Addr(), size, 20*size-7)
			}
			echo(t, a, b, addr(0).Addr(), addr(1).Addr(), 1300)
			for i, h := range hosts {
				s := h.Status()
				if got := s.TAPOffloads + " | " + s.UDPOffloads; got != c.words[i] {
					t.Errorf("host %d: offloads are %q, want %q", i, got, c.words[i])
				}
				if s.Drops["tap"] != 0 || s.Drops["malformed"] != 0 {
					t.Errorf("host %d: drops %v", i, s.Drops)
				}
			}
			if got := b.Status().TAPGSOOut > 0; got != c.gso {
				t.Errorf("%d GSO packets were given to containers", b.Status().TAPGSOOut)
			}
		})
	}
}

// TestEachRefusal: a kernel that refuses one thing is used without that, and
// with all the rest. The router finds out by trying.
func TestEachRefusal(t *testing.T) {
	allTAP, allUDP := offloads(t).String(), "segment, gro"
	lesserTAP := func(change func(k *tap.Kernel)) func(c *router.Config) {
		return func(c *router.Config) { k := tap.Linux; change(&k); c.TAPKernel = &k }
	}
	// most lets TUNSETOFFLOAD take these flags and no others.
	most := func(flags int) func(c *router.Config) {
		return lesserTAP(func(k *tap.Kernel) {
			k.SetOffload = func(fd, want int) error {
				if want&^flags != 0 {
					return unix.EINVAL
				}
				return tap.Linux.SetOffload(fd, want)
			}
		})
	}
	noSegment := func(errno syscall.Errno) func(c *router.Config) {
		return func(c *router.Config) {
			c.UDPKernel = noUDP(errno)
			c.UDPKernel.SetGRO = udp.Linux.SetGRO
		}
	}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	for _, c := range []struct {
		what     string
		config   func(c *router.Config)
		tap, udp string
	}{
		{"IFF_VNET_HDR", lesserTAP(func(k *tap.Kernel) {
			k.SetIff = func(int, string, uint16) (string, error) { return "", unix.EINVAL }
		}), "none", allUDP},
		{"all of TUNSETOFFLOAD", most(0), "none", allUDP},
		{"TUN_F_TSO", most(unix.TUN_F_CSUM), "checksum", allUDP},
		{"TUN_F_USO", most(tso), "checksum, tso", allUDP},
		{"UDP_GRO", func(c *router.Config) {
			k := udp.Linux
			k.SetGRO = func(int) error { return unix.ENOPROTOOPT }
			c.UDPKernel = &k
		}, allTAP, "segment"},
		{"UDP_SEGMENT, EIO", noSegment(unix.EIO), allTAP, "gro"},
		{"UDP_SEGMENT, EINVAL", noSegment(unix.EINVAL), allTAP, "gro"},
	} {
		t.Run(c.what, func(t *testing.T) {
			hosts := newHosts(t, 2, options{mtu: 1376, underlayMTU: 1500, config: func(i int, k *router.Config) {
				if i == 0 {
					c.config(k)
				}
			}})
			a, b := hosts[0], hosts[1]
			echo(t, a, b, addr(0).Addr(), addr(1).Addr(), 1000)
			check := noDrops(t, hosts)
			bulk(t, a, b, addr(1).Addr(), 1<<20)
			bulk(t, b, a, addr6(0).Addr(), 1<<20)
			for i, h := range hosts {
				o := hosts[1-i]
				h.pin(o, addr(1-i).Addr())
				f := newFlow(t, h, o, addr(i).Addr(), addr(1-i).Addr())
				for range 5 {
					if err := f.whole(); err != nil {
						t.Errorf("from host %d: %v", i, err)
					}
				}
			}
			if s := a.Status(); s.TAPOffloads != c.tap || s.UDPOffloads != c.udp {
				t.Errorf("offloads left are %q and %q, want %q and %q", s.TAPOffloads, s.UDPOffloads, c.tap, c.udp)
			}
			check() // the batch whose sending was refused went out all the same
		})
	}
}

// TestGSOPacketsAndSmallUnderlay: segments that do not fit are complained of,
// not cut again, and the stream finds its way.
func TestGSOPacketsAndSmallUnderlay(t *testing.T) {
	hosts := newHosts(t, 3, options{mtu: 1500, underlayMTU: 1300})
	a, b := hosts[0], hosts[2]
	bulk(t, a, b, addr(2).Addr(), 1<<20)
	bulk(t, a, b, addr6(2).Addr(), 1<<20) // 1280 is more than fits, so in parts
	if s := a.Status(); s.Links[0].Drops["too_big"] == 0 || s.TAPGSOIn == 0 {
		t.Errorf("nothing was too big: %+v", s)
	}
}

// TestOffloadWords: status says something that a person can act on.
func TestOffloadWords(t *testing.T) {
	calls := 0
	hosts := newHosts(t, 2, options{mtu: 1376, underlayMTU: 1500, config: func(i int, c *router.Config) {
		if i == 0 {
			c.TAPKernel = noTAP(&calls)
		}
	}})
	if calls != 3 {
		t.Errorf("the kernel was asked for offloads %d times", calls)
	}
	if s := hosts[0].Status(); s.TAPOffloads != "none" || !strings.Contains(s.UDPOffloads, "gro") {
		t.Errorf("%q, %q", s.TAPOffloads, s.UDPOffloads)
	}
}
