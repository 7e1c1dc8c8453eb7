package kernel

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// guardLab is a bridge with a container that sends frames, and one that counts them:
//
//	a 10.32.0.5, fd00::5 -- veth [guard] -- weft -- veth -- b 10.32.0.6
type guardLab struct {
	*Guard
	t        testing.TB
	noTCX    bool
	pins     string
	ns, a, b string
	tx, rx   int // packet sockets
	port     netdev.GivenPort
	mac      [6]byte // of a
	n        byte    // of the last frame
}

func newGuardLab(t testing.TB, noTCX bool) *guardLab {
	t.Helper()
	l := &guardLab{t: t, noTCX: noTCX, ns: nstest.New(t, "h"), a: nstest.New(t, "a"), b: nstest.New(t, "b"), pins: filepath.Join(t.TempDir(), "bpf")}
	l.do(func() error {
		return netdev.EnsureBridge("weft", net.HardwareAddr{2, 0, 0, 0, 1, 1}, labMTU, netdev.ProcSys)
	})
	l.open()
	t.Cleanup(func() {
		_ = l.Close()
		l.do(func() error { return errors.Join(RemoveGuard(l.pins), Remove(Options{PinDir: l.pins})) })
	})
	l.attach(netdev.Attachment{NS: l.a, Addrs: []netip.Prefix{netip.MustParsePrefix("10.32.0.5/12"), netip.MustParsePrefix("fd00::5/64")}})
	l.attach(netdev.Attachment{NS: l.b, Addrs: []netip.Prefix{netip.MustParsePrefix("10.32.0.6/12")}, AllowSpoof: true})
	l.mac = [6]byte(l.port.MAC)
	l.tx, l.rx = packetSocket(t, l.a, 0), packetSocket(t, l.b, unix.ETH_P_ALL)
	return l
}

func (l *guardLab) do(f func() error) { l.t.Helper(); in(l.t, l.ns, f) }

// open opens the guard, as a router that starts.
func (l *guardLab) open() {
	l.t.Helper()
	l.do(func() (err error) { l.Guard, err = OpenGuard(l.pins); return err })
	l.Guard.noTCX = l.noTCX
}

// protect is the guard of an attachment, as that of a router.
func (l *guardLab) protect(p netdev.GivenPort) error {
	if p.AllowSpoof {
		return l.Release(p.Index)
	}
	l.port = p
	return l.Protect(GuardPortOf(p))
}

func (l *guardLab) attach(a netdev.Attachment) {
	l.t.Helper()
	a.Iface, a.Bridge, a.MTU, a.Guard = "ethwe", "weft", labMTU, l.protect
	l.do(func() error { _, err := netdev.Attach(a); return err })
}

// packetSocket opens a socket at the interface of a container.
func packetSocket(t testing.TB, ns string, proto int) (fd int) {
	t.Helper()
	in(t, ns, func() error {
		i, err := net.InterfaceByName("ethwe")
		if err != nil {
			return err
		}
		be := uint16(proto)>>8 | uint16(proto)<<8
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(be)); err != nil {
			return err
		}
		wait := unix.NsecToTimeval(int64(timeout))
		return errors.Join(unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be, Ifindex: i.Index}), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait))
	})
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// passes sends a frame, and one behind it that any guard lets pass, and reports whether the
// first one arrives.
func (l *guardLab) passes(f []byte) (arrived bool) {
	l.t.Helper()
	l.n++
	mark := frame(all, l.mac, append([]byte{0x88, 0xb5, l.n}, make([]byte, 60)...))
	for _, b := range [][]byte{f, mark} {
		if _, err := unix.Write(l.tx, b); err != nil {
			l.t.Fatalf("send % x: %v", b, err)
		}
	}
	b := make([]byte, 2000)
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline); {
		n, err := unix.Read(l.rx, b)
		if err != nil {
			l.t.Fatalf("the frame behind does not arrive: %v", err)
		}
		// A tag is no part of what a packet socket shows.
		got, want := b[:n], f
		if len(f) > 18 && bytes.Equal(f[12:14], []byte{0x81, 0}) {
			want = slices.Concat(f[:12], f[16:])
		}
		switch {
		case bytes.Equal(got, want):
			arrived = true
		case bytes.Equal(got, mark):
			return arrived
		}
	}
	l.t.Fatal("the frame behind does not arrive")
	return false
}

// dropsSpoofed checks that the guard works, and drops nothing else.
func (l *guardLab) dropsSpoofed(what string) {
	l.t.Helper()
	if !l.passes(frame(all, l.mac, v4(ownV4, 0))) {
		l.t.Errorf("%s: an honest frame is lost", what)
	}
	if l.passes(frame(all, l.mac, v4(otherV4, 0))) {
		l.t.Errorf("%s: a spoofed frame passes", what)
	}
}

// eachGuard runs a test with a filter of clsact, with one on a kernel without TCX, and with a
// program of TCX, as next to express.
func eachGuard(t *testing.T, f func(t *testing.T, l *guardLab)) {
	for _, way := range []string{"clsact", "old kernel", "tcx"} {
		t.Run(way, func(t *testing.T) {
			l := newGuardLab(t, way == "old kernel")
			if way == "tcx" {
				if err := l.PutFirst(l.port.Index); err != nil {
					t.Fatal(err)
				}
				if l.ports[l.port.Index].link == nil {
					nstest.Lacks(t, "TCX")
				}
			}
			f(t, l)
		})
	}
}

// Frames on a real veth, with headers that BPF_PROG_TEST_RUN refuses, and with a tag that the
// kernel takes out of the frame.
func TestGuardOnTheWire(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		for _, c := range []struct {
			what   string
			frame  []byte
			reason string
		}{
			{"own", frame(all, l.mac, v4(ownV4, 0)), ""},
			{"another's IPv4", frame(all, l.mac, v4(otherV4, 0)), "ipv4"},
			{"another's MAC", frame(all, here2, v4(ownV4, 0)), "mac"},
			{"short IPv4", frame(all, l.mac, v4(ownV4, 0)[:16]), "malformed"},
			{"short IPv6", frame(all, l.mac, v6(ownV6, 17, nil)[:30]), "malformed"},
			{"short ARP", frame(all, l.mac, arpOf(1, l.mac, ownV4)[:20]), "malformed"},
			{"ARP", frame(all, l.mac, arpOf(2, l.mac, ownV4)), ""},
			{"ARP for another", frame(all, l.mac, arpOf(2, l.mac, otherV4)), "arp"},
			{"IPv6", frame(all, l.mac, v6(ownV6, 58, nd(136, ownV6, macOption(2, l.mac)))), ""},
			{"another's IPv6", frame(all, l.mac, v6(otherV6, 58, nd(136, otherV6, macOption(2, l.mac)))), "ipv6"},
			{"router advertisement", frame(all, l.mac, v6(eui64(l.mac), 58, nd(134, zeroV6))), "router"},
			{"VLAN", frame(all, l.mac, vlan(v4(ownV4, 0))), "tagged"},
			{"priority tag", frame(all, l.mac, with(vlan(v4(otherV4, 0)), 3, 0)), "tagged"},
		} {
			before, err := l.Drops()
			if err != nil {
				t.Fatal(err)
			}
			passed := l.passes(c.frame)
			after, err := l.Drops()
			if err != nil {
				t.Fatal(err)
			}
			old, now := before[l.port.Index].ByReason(), after[l.port.Index].ByReason()
			if passed != (c.reason == "") || c.reason != "" && now[c.reason] != old[c.reason]+1 {
				t.Errorf("%s: passed %v, drops were %v, are %v", c.what, passed, old, now)
			}
		}
		// b may send what it wants.
		ethertype := frame(all, here2, append([]byte{0x88, 0xb6}, make([]byte, 60)...))
		rx := packetSocket(t, l.a, 0x88b6)
		if _, err := unix.Write(packetSocket(t, l.b, 0), ethertype); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Read(rx, make([]byte, 100)); err != nil || n != len(ethertype) {
			t.Errorf("a frame of a container that may spoof does not arrive: %v", err)
		}
	})
}

// A container that is attached again has other addresses at once.
func TestGuardFollowsAddresses(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		more := netip.MustParsePrefix("10.32.0.7/12")
		l.attach(netdev.Attachment{NS: l.a, Addrs: []netip.Prefix{more}})
		for _, a := range []netip.Addr{more.Addr(), ownV4} {
			if !l.passes(frame(all, l.mac, v4(a, 0))) {
				t.Errorf("a frame from %s is lost", a)
			}
		}
		l.attach(netdev.Attachment{NS: l.a, AllowSpoof: true})
		if !l.passes(frame(all, l.mac, v4(otherV4, 0))) {
			t.Error("a container that may spoof does not")
		}
		l.attach(netdev.Attachment{NS: l.a})
		l.dropsSpoofed("attached without")
	})
}

// The guard works while no router runs, and the next one takes it over.
func TestGuardOutlivesTheRouter(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		old := l.port
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l.dropsSpoofed("without a router")
		// The fast path is given up, which shares the folder of pins.
		l.do(func() error { return Remove(Options{PinDir: l.pins}) })
		l.dropsSpoofed("without the fast path")
		l.open()
		l.dropsSpoofed("before it is taken over")
		if err := l.Protect(GuardPortOf(old)); err != nil {
			t.Fatal(err)
		}
		l.dropsSpoofed("taken over")
		if d, err := l.Drops(); err != nil || d[old.Index].Total() != 1 {
			t.Errorf("the new router counts %+v, %v", d, err)
		}
		if faults, err := l.Faults(GuardPortOf(old)); err != nil || faults != nil {
			t.Errorf("faults %q, %v", faults, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		// The container may spoof now, as the router learns when it starts.
		l.open()
		if !l.Has(old.Index) {
			t.Error("the guard of an earlier router is not known")
		}
		if err := l.Release(old.Index); err != nil {
			t.Fatal(err)
		}
		if !l.passes(frame(all, l.mac, v4(otherV4, 0))) || l.Has(old.Index) {
			t.Error("the guard of an earlier router is there still")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l.open()
		if err := l.Protect(GuardPortOf(old)); err != nil {
			t.Fatal(err)
		}
		l.do(func() error { return RemoveGuard(l.pins) })
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if !l.passes(frame(all, l.mac, v4(otherV4, 0))) {
			t.Error("the guard was removed and is there still")
		}
		l.open() // for the end of the test
	})
}

// What other software removes is noticed, and Protect repairs it.
func TestGuardIsRepaired(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		p := GuardPortOf(l.port)
		repaired := func(what, fault string) {
			t.Helper()
			faults, err := l.Faults(p)
			if err != nil || !strings.Contains(fmt.Sprint(faults), fault) {
				t.Errorf("%s: faults %q, %v, want %q", what, faults, err, fault)
			}
			if err := l.Protect(p); err != nil {
				t.Fatal(err)
			}
			if faults, err := l.Faults(p); err != nil || faults != nil {
				t.Errorf("%s: after the repair: %q, %v", what, faults, err)
			}
			l.dropsSpoofed(what)
		}
		if faults, err := l.Faults(p); err != nil || faults != nil {
			t.Errorf("faults %q, %v", faults, err)
		}
		l.ports[p.Ifindex].checked = time.Time{}
		tcx := l.ports[p.Ifindex].link
		if tcx == nil {
			l.do(func() error { return detachClsact(guardHook(p.Ifindex)) })
		} else {
			l.do(tcx.Detach)
		}
		repaired("detached", "not attached")
		if tcx != nil {
			l.do(func() error { return os.Remove(l.pin(p.Ifindex)) })
			repaired("without a pin", "not pinned")
			l.do(func() error { return unix.Unmount(l.pins, unix.MNT_DETACH) })
			repaired("without the file system of pins", "not pinned")
		}
		if err := l.objs.Ports.Delete(uint32(p.Ifindex)); err != nil {
			t.Fatal(err)
		}
		repaired("with another entry", "other addresses")
	})
}

// Programs of express see no spoofed frame, whether they come before the guard or after it.
func TestGuardIsFirst(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		for _, late := range []bool{false, true} {
			h := hook{onContainer, l.port.Index}
			// Another guard, to which no port is known, stands for express: it drops
			// everything, and counts nothing.
			blind, err := OpenGuardIn(t, l.ns)
			if err != nil {
				t.Fatal(err)
			}
			if late {
				if err := l.Release(h.ifindex); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.PutFirst(h.ifindex); err != nil {
				t.Fatal(err)
			}
			var express link.Link
			l.do(func() (err error) {
				express, err = link.AttachTCX(link.TCXOptions{Interface: h.ifindex, Program: blind.objs.Guard, Attach: h.attachType()})
				if !l.noTCX && !errors.Is(err, ebpf.ErrNotSupported) {
					return err
				}
				if express != nil {
					if err := express.Close(); err != nil {
						return err
					}
					express = nil
				}
				return attachClsact(h, blind.objs.Guard)
			})
			if late {
				if err := l.Protect(GuardPortOf(l.port)); err != nil {
					t.Fatal(err)
				}
			}
			before, err := l.Drops()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(l.tx, frame(all, l.mac, v4(otherV4, 0))); err != nil {
				t.Fatal(err)
			}
			eventually(t, fmt.Sprintf("the guard drops the frame first, late %v", late), func() bool {
				d, err := l.Drops()
				return err == nil && d[h.ifindex].Total() == before[h.ifindex].Total()+1
			})
			if express != nil {
				_ = express.Close()
			} else {
				l.do(func() error { return detachClsact(h) })
			}
			_ = blind.Close()
		}
	})
}

// A guard that was attached by clsact before express came, without a Protect in between, is moved.
func TestGuardMovesForExpress(t *testing.T) {
	l := newGuardLab(t, false)
	if err := l.PutFirst(l.port.Index); err != nil {
		t.Fatal(err)
	}
	if l.ports[l.port.Index].link == nil {
		nstest.Lacks(t, "TCX")
	}
	l.do(func() error {
		if hasFilter(guardHook(l.port.Index)) {
			t.Error("its filter is left")
		}
		return nil
	})
	l.dropsSpoofed("moved")
	// A container that may spoof, and then may not, next to express.
	l.attach(netdev.Attachment{NS: l.a, AllowSpoof: true})
	l.attach(netdev.Attachment{NS: l.a})
	if l.ports[l.port.Index].link == nil {
		t.Error("it is behind express")
	}
	l.dropsSpoofed("attached again")
}

// OpenGuardIn opens a guard in a namespace, with pins of its own.
func OpenGuardIn(t *testing.T, ns string) (g *Guard, err error) {
	pins := filepath.Join(t.TempDir(), "bpf")
	t.Cleanup(func() {
		in(t, ns, func() error { return errors.Join(os.RemoveAll(filepath.Join(pins, guardDir)), removePins(pins)) })
	})
	in(t, ns, func() (err error) { g, err = OpenGuard(pins); return err })
	return g, err
}

// Without TCX the kernel allows one ingress qdisc. If other software is going to install it, the
// guard waits for that, and is attached there.
func TestGuardOfLimitedPort(t *testing.T) {
	l := newGuardLab(t, true)
	p := GuardPortOf(l.port)
	p.RateLimited = true
	if err := l.Release(p.Ifindex); err != nil {
		t.Fatal(err)
	}
	if err := l.Protect(p); err != nil {
		t.Fatal(err)
	}
	if faults, err := l.Faults(p); err != nil || faults != nil {
		t.Errorf("faults %q, %v", faults, err)
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: p.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	l.do(func() error { return netlink.QdiscAdd(ingress) })
	l.ports[p.Ifindex].checked = time.Time{}
	if faults, err := l.Faults(p); err != nil || len(faults) == 0 {
		t.Errorf("faults %q, %v, want one", faults, err)
	}
	if err := l.Protect(p); err != nil {
		t.Fatal(err)
	}
	l.dropsSpoofed("at an ingress qdisc of others")
	if err := l.Release(p.Ifindex); err != nil {
		t.Fatal(err)
	}
	if err := l.Protect(p); err != nil {
		t.Fatal(err)
	}
	l.dropsSpoofed("again")
}

// With TCX nothing is in the way of an ingress qdisc of other software.
func TestGuardOfLimitedPortByTCX(t *testing.T) {
	l := newGuardLab(t, false)
	p := GuardPortOf(l.port)
	p.RateLimited = true
	if err := l.Release(p.Ifindex); err != nil {
		t.Fatal(err)
	}
	if err := l.Protect(p); err != nil {
		t.Fatal(err)
	}
	if l.ports[p.Ifindex].link == nil {
		nstest.Lacks(t, "TCX")
	}
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: p.Ifindex, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	l.do(func() error { return netlink.QdiscAdd(ingress) })
	l.dropsSpoofed("next to an ingress qdisc of others")
}

// Ports that are gone leave nothing behind.
func TestGuardForgetsPorts(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		gone := l.port.Index
		l.do(func() error { return netdev.DeletePort(l.port.Name) })
		if err := l.Protect(GuardPortOf(l.port)); err != nil {
			t.Errorf("protect a port that is gone: %v", err)
		}
		if err := l.Sweep(func(int) bool { return false }); err != nil {
			t.Fatal(err)
		}
		if l.Has(gone) {
			t.Error("it is known still")
		}
		if entries, err := os.ReadDir(l.dir); err != nil || len(entries) > 0 {
			t.Errorf("pins are left: %v, %v", entries, err)
		}
		var e guardPort
		if err := l.objs.Ports.Lookup(uint32(gone), &e); err == nil {
			t.Errorf("entry %+v is left", e)
		}
	})
}

// When the guard of a port is put before express, no frame to its container is lost.
func TestGuardMovesWithoutLoss(t *testing.T) {
	eachGuard(t, func(t *testing.T, l *guardLab) {
		in, out := packetSocket(t, l.a, 0x88b5), packetSocket(t, l.b, 0)
		var got atomic.Int64
		stop, sent := make(chan struct{}), make(chan int)
		go func() {
			f := frame(all, [6]byte{2, 0, 0, 0, 0, 9}, append([]byte{0x88, 0xb5}, make([]byte, 46)...))
			for n := 0; ; {
				select {
				case <-stop:
					sent <- n
					return
				default:
					// The kernel queues some hundred frames for the other end of a veth.
					if n-int(got.Load()) < 100 {
						if _, err := unix.Write(out, f); err == nil {
							n++
						}
					}
				}
			}
		}()
		b := make([]byte, 2000)
		read := func(n int) {
			for ; int(got.Load()) < n; got.Add(1) {
				if _, err := unix.Read(in, b); err != nil {
					return
				}
			}
		}
		read(1000) // they flow
		if err := l.PutFirst(l.port.Index); err != nil {
			t.Fatal(err)
		}
		read(int(got.Load()) + 1000)
		close(stop)
		n := <-sent
		read(n)
		if got := int(got.Load()); got < n {
			t.Errorf("%d of %d frames are lost", n-got, n)
		}
	})
}
