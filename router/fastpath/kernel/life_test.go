package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/router/tap"
)

// pingPong sends a datagram back and forth until the returned function is
// called, which fails the test if one was lost. None is sent twice, except if the kernel
// dropped packets that may belong to other tests.
func pingPong(a, b *host) (stop func()) {
	src, dst := listen(a.t, a.c, a.addr()), listen(b.t, b.c, b.addr())
	to := dst.LocalAddr().(*net.UDPAddr).AddrPort()
	ctx, cancel := context.WithCancel(context.Background())
	var wg, answers sync.WaitGroup
	answers.Go(func() { nstest.Echo(dst) })
	begun, n := make(chan struct{}), uint64(0)
	wg.Go(func() {
		buf := make([]byte, 100)
		overflows := nstest.Overflows(a.t)
		for ctx.Err() == nil {
			_ = src.SetReadDeadline(deadline())
			_, err := src.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, n), to)
			if err == nil {
				_, _, err = src.ReadFromUDPAddrPort(buf)
			}
			if errors.Is(err, os.ErrDeadlineExceeded) {
				if now := nstest.Overflows(a.t); now != overflows {
					overflows = now
					continue
				}
			}
			if err != nil || binary.BigEndian.Uint64(buf) != n {
				a.t.Errorf("datagram %d did not come back: %v", n, err)
				break
			}
			if n++; n == 100 {
				close(begun)
			}
		}
		if n < 100 {
			close(begun)
		}
	})
	<-begun
	return func() {
		a.t.Helper()
		cancel()
		wg.Wait()
		dst.Close()
		answers.Wait()
		a.t.Logf("%d datagrams went to and fro", n)
	}
}

// TestAdoption closes and opens the datapaths while containers communicate.
func TestAdoption(t *testing.T) {
	for name, l := range map[string]lab{"device": {}, "express": {express: true}, "clsact": {express: true, noTCX: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			devices := func() map[string]int {
				m := make(map[string]int)
				for _, name := range []string{a.opts.Port, a.opts.PortPeer, a.opts.VXLAN} {
					m[name] = index(t, a.ns, name)
				}
				return m
			}
			before := devices()
			stop := pingPong(a, b)
			again := func() {
				for range 3 {
					a.stop()
					b.stop()
					a.start()
					b.start()
				}
			}
			again()
			stop()
			var wg sync.WaitGroup
			wg.Go(func() { transfer(t, a.c, a.addr(), b.c, b.addr(), 8*bulk) })
			again()
			wg.Wait()
			if after := devices(); !maps.Equal(before, after) {
				t.Errorf("devices were %v, are %v", before, after)
			}
			if a.entry(a.mac).TxPackets < 100 {
				t.Error("counters began again")
			}
			if l.express && (len(a.Containers()) != 1 || a.Containers()[0] != a.veth || len(a.Underlays()) != 1) {
				t.Errorf("taken over: containers %v, underlays %v", a.Containers(), a.Underlays())
			}
			a.reaches(b, 1000)
			a.quiet()
			var got []uint16
			if err := a.Peers(func(id uint16, _ PeerEntry) bool { got = append(got, id); return true }); err != nil || len(got) != 1 || got[0] != 2 {
				t.Errorf("peers are %v, %v", got, err)
			}
		})
	}
}

// TestOtherBinding opens the datapath of one host with another password: nothing goes to
// its neighbour or comes from it any more, while the neighbour still has its maps.
func TestOtherBinding(t *testing.T) {
	for name, l := range map[string]lab{"device": {mtu: labMTU}, "express": {mtu: labMTU, express: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			a.reaches(b, 100)
			a.stop()
			a.opts.Binding = Binding{{1}, {2}}
			a.start()
			if a.Adopted() {
				t.Error("Adopted() is true")
			}
			sent := b.traffic(a.id).RxPackets
			before := a.Drops()[DropUnknownRemote.String()]
			for _, way := range []struct{ from, to *host }{{a, b}, {b, a}} {
				if err := echo(t, way.from.c, way.from.addr(), way.to.c, way.to.addr(), 10, timeout/100); err == nil {
					t.Errorf("host %d reaches host %d", way.from.id, way.to.id)
				}
			}
			if got := b.traffic(a.id).RxPackets; got != sent {
				t.Errorf("%d frames arrived from the host with another password", got-sent)
			}
			if got := a.Drops()[DropUnknownRemote.String()]; got == before {
				t.Error("no frame of the neighbour was dropped")
			}
			for _, h := range hosts {
				for _, o := range hosts {
					h.meet(o, l)
				}
			}
			a.reaches(b, 100)
		})
	}
}

// mend looks at all objects, as package keeper does, and makes those again that have
// faults, which it returns.
func (h *host) mend() (faults []string) {
	h.t.Helper()
	h.do(func() error {
		for range 2 { // programs of devices that were made again
			v, err := netdev.ReadView()
			if err != nil {
				return err
			}
			for _, o := range append(h.Objects(), h.Programs(v)...) {
				found, err := o.Look(v)
				if errors.Is(err, owned.ErrWaits) {
					continue
				}
				for _, f := range found {
					faults = append(faults, o.ID.String()+": "+f)
				}
				if err == nil && len(found) > 0 {
					err = o.Make()
				}
				if err != nil {
					return fmt.Errorf("%s: %w", o.ID, err)
				}
			}
		}
		return nil
	})
	return faults
}

// TestMend does to all devices, programs and pins what other programs may.
func TestMend(t *testing.T) {
	for name, l := range map[string]lab{"device": {}, "express": {express: true}, "clsact": {noTCX: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			mended := func(want bool) {
				t.Helper()
				if got := a.mend(); (len(got) > 0) != want {
					t.Errorf("mended %q, want %v", got, want)
				}
				if got := a.mend(); len(got) > 0 {
					t.Errorf("%q after it was mended", got)
				}
				a.reaches(b, 1000)
			}
			device := func(name string, f func(netlink.Link) error) {
				t.Helper()
				a.do(func() error {
					l, err := netlink.LinkByName(name)
					if err != nil {
						return err
					}
					return f(l)
				})
			}
			mended(false)
			device(a.opts.VXLAN, netlink.LinkDel)
			mended(true)
			device(a.opts.VXLAN, netlink.LinkSetDown)
			mended(true)
			device(a.opts.Port, netlink.LinkDel)
			mended(true)
			device(a.opts.PortPeer, netlink.LinkDel)
			mended(true)
			device(a.opts.Port, netlink.LinkSetNoMaster)
			mended(true)
			device(a.opts.Port, netlink.LinkSetDown)
			mended(true)
			device(a.opts.PortPeer, netlink.LinkSetDown)
			mended(true)
			device(a.opts.PortPeer, func(l netlink.Link) error { return netlink.LinkSetMTU(l, 600) })
			mended(true)
			for _, dev := range []string{a.opts.Port, a.opts.VXLAN, a.opts.TAP} {
				device(dev, func(dev netlink.Link) error {
					for h, attached := range a.links {
						if h.ifindex == dev.Attrs().Index {
							if attached == nil { // not by TCX: tc qdisc del dev DEV clsact
								return netlink.QdiscDel(clsact(h.ifindex))
							}
							return attached.(interface{ Detach() error }).Detach() // bpftool link detach
						}
					}
					return fmt.Errorf("there is no program at %s", dev.Attrs().Name)
				})
				mended(true)
			}
			if err := os.RemoveAll(a.Datapath.dir); err != nil {
				t.Fatal(err)
			}
			mended(true)
			if err := unix.Unmount(a.opts.PinDir, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			mended(true)
			mended(false)
			a.stop()
			a.start()
			mended(false)
			if pins, err := filepath.Glob(filepath.Join(a.Datapath.dir, "link-"+string(onVXLAN)+"-*")); err != nil || len(pins) > 1 {
				t.Errorf("pins of devices that are gone are left: %v, %v", pins, err)
			}
		})
	}
}

// TestSelfStays checks that a router that does not know its id yet changes
// nothing.
func TestSelfStays(t *testing.T) {
	hosts := newLab(t, 2, lab{})
	a, b := hosts[0], hosts[1]
	a.stop()
	a.opts.Self = 0
	a.start()
	if id := a.Self(); id != 1 {
		t.Errorf("id is %d", id)
	}
	a.reaches(b, 1000)
}

// TestOtherLayout starts with the pins of another version.
func TestOtherLayout(t *testing.T) {
	hosts := newLab(t, 2, lab{express: true})
	a := hosts[0]
	dir, port := a.dir, index(t, a.ns, a.opts.Port)
	a.stop()
	old := filepath.Join(a.opts.PinDir, "0011223344556677")
	kept := filepath.Join(a.opts.PinDir, "of-others")
	if err := errors.Join(os.Rename(dir, old), os.Mkdir(kept, 0o700)); err != nil {
		t.Fatal(err)
	}
	a.start()
	isGone(t, old)
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
	if i := index(t, a.ns, a.opts.Port); i != port {
		t.Error("the port was made again")
	}
	n := 0
	if err := a.MACs(func([6]byte, MACEntry) bool { n++; return true }); err != nil || n != 0 {
		t.Errorf("there are %d MAC addresses, %v", n, err)
	}
	if err := os.Remove(kept); err != nil {
		t.Fatal(err)
	}
	for _, o := range hosts {
		a.meet(o, lab{express: true, mtu: labMTU})
	}
	a.reaches(hosts[1], 1000)
}

// programs returns how many programs are on an interface.
func programs(t *testing.T, h *host, name string) (n int) {
	t.Helper()
	h.do(func() error {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		for _, k := range []hook{{onPort, l.Attrs().Index}, {onTAP, l.Attrs().Index}} {
			filters, err := netlink.FilterList(l, k.parent())
			if err != nil {
				return err
			}
			n += len(filters)
			q, err := link.QueryPrograms(link.QueryOptions{Target: k.ifindex, Attach: k.attachType()})
			if errors.Is(err, unix.EINVAL) {
				continue // Linux older than 6.6 has no TCX
			}
			if err != nil {
				return err
			}
			n += len(q.Programs)
		}
		return nil
	})
	return n
}

func TestRemove(t *testing.T) {
	for name, l := range map[string]lab{"TCX": {express: true}, "clsact": {express: true, noTCX: true}} {
		t.Run(name, func(t *testing.T) {
			a := newLab(t, 2, l)[0]
			var veth string
			a.do(func() error {
				l, err := netlink.LinkByIndex(a.veth)
				if err == nil {
					veth = l.Attrs().Name
				}
				return err
			})
			for _, name := range []string{veth, "up1"} {
				if n := programs(t, a, name); n != 1 {
					t.Errorf("%d programs on %s", n, name)
				}
			}
			a.stop()
			for range 2 {
				a.do(func() error { return Remove(a.opts) })
				a.nothing()
			}
			for _, name := range []string{veth, "up1"} {
				if n := programs(t, a, name); n != 0 {
					t.Errorf("%d programs left on %s", n, name)
				}
			}
		})
	}
}

// nothing checks that no part of a datapath is left.
func (h *host) nothing() {
	h.t.Helper()
	isGone(h.t, h.opts.PinDir)
	h.do(func() error {
		for _, name := range []string{h.opts.Port, h.opts.PortPeer, h.opts.VXLAN} {
			if l, err := find(name); err != nil || l != nil {
				h.t.Errorf("%s is there: %v", name, err)
			}
		}
		return nil
	})
}

// TestDetach attaches to and detaches from interfaces that exist and that are gone.
func TestDetach(t *testing.T) {
	for name, l := range map[string]lab{"TCX": {}, "clsact": {noTCX: true}} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, 1, l)
			h.do(func() error {
				attrs := netlink.NewLinkAttrs()
				attrs.Name = "x1"
				v := netlink.NewVeth(attrs)
				v.PeerName = "x2"
				return netlink.LinkAdd(v)
			})
			i := index(t, h.ns, "x1")
			for range 2 {
				for _, f := range []func(int) error{h.AttachContainer, h.AttachContainer, h.DetachContainer, h.DetachContainer, h.AttachUnderlay, h.DetachUnderlay, h.AttachUnderlay} {
					if err := f(i); err != nil {
						t.Error(err)
					}
				}
				if n := programs(t, h, "x1"); n != 1 {
					t.Errorf("%d programs, want 1", n)
				}
			}
			h.do(func() error { return remove("x1", "veth") })
			for _, f := range []func(int) error{h.DetachUnderlay, h.AttachUnderlay, h.AttachContainer, h.DetachContainer} {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
			if len(h.Containers())+len(h.Underlays()) != 0 {
				t.Errorf("containers %v, underlays %v", h.Containers(), h.Underlays())
			}
			// The index comes back with another interface.
			if err := h.AttachContainer(h.veth); err != nil {
				t.Error(err)
			}
			h.stop()
			h.do(func() error {
				l, err := netlink.LinkByIndex(h.veth)
				if err != nil {
					return err
				}
				if err := netlink.LinkDel(l); err != nil {
					return err
				}
				attrs := netlink.NewLinkAttrs()
				attrs.Name, attrs.Index = "again", h.veth
				return netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs})
			})
			h.start()
			if n := programs(t, h, "again"); n != 0 {
				t.Errorf("%d programs on an interface that nobody named", n)
			}
			if err := h.AttachContainer(h.veth); err != nil || programs(t, h, "again") != 1 {
				t.Errorf("%d programs, %v", programs(t, h, "again"), err)
			}
		})
	}
}

// TestUnsupported opens on a thread without rights.
func TestUnsupported(t *testing.T) {
	for name, c := range map[string]struct {
		drop  uint64
		mount bool
	}{
		"mount":   {drop: 1 << unix.CAP_SYS_ADMIN},
		"load":    {drop: 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_BPF, mount: true},
		"nothing": {},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, 1, lab{})
			h.stop()
			h.do(func() error { return Remove(h.opts) })
			if c.mount {
				if err := errors.Join(os.Mkdir(h.opts.PinDir, 0o700), mountBPF(h.opts.PinDir)); err != nil {
					t.Fatal(err)
				}
			}
			h.do(func() (err error) {
				h.tap, err = tap.Open(h.opts.TAP, tap.Linux)
				return err
			})
			h.up = make(chan []byte)
			close(h.up)
			done := make(chan error)
			go func() {
				// The thread ends with the goroutine, as it is not unlocked.
				runtime.LockOSThread()
				done <- func() error {
					f, err := os.Open(h.ns)
					if err != nil {
						return err
					}
					defer f.Close()
					if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
						return err
					}
					if err := dropCaps(c.drop); err != nil {
						return err
					}
					d, err := Open(h.opts)
					if err == nil {
						err = d.Close()
					}
					return err
				}()
			}()
			err := <-done
			if c.drop == 0 {
				if err != nil {
					t.Error(err)
				}
				return
			}
			t.Log(err)
			if !errors.Is(err, ErrUnsupported) {
				t.Errorf("the error is %v", err)
			}
			if c.mount { // the thread could not unmount
				if err := unix.Unmount(h.opts.PinDir, 0); err != nil {
					t.Error(err)
				}
				_ = os.Remove(h.opts.PinDir)
			}
			h.nothing()
		})
	}
}

func dropCaps(drop uint64) error {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return err
	}
	for i := range data {
		data[i].Effective &^= uint32(drop >> (32 * i))
		data[i].Permitted &^= uint32(drop >> (32 * i))
		data[i].Inheritable &^= uint32(drop >> (32 * i))
	}
	return unix.Capset(&head, &data[0])
}

// TestPortTaken lets another program use the port of VXLAN. The bridge's port and the TAP
// work nevertheless.
func TestPortTaken(t *testing.T) {
	h := newHost(t, 1, lab{})
	h.stop()
	h.do(func() error { return Remove(h.opts) })
	var c *net.UDPConn
	h.do(func() (err error) {
		c, err = net.ListenUDP("udp", &net.UDPAddr{Port: labPort})
		return err
	})
	defer c.Close()
	h.do(func() (err error) {
		if h.tap, err = tap.Open(h.opts.TAP, tap.Linux); err != nil {
			return err
		}
		h.Datapath, err = Open(h.opts)
		return err
	})
	h.up = make(chan []byte)
	close(h.up)
	if err := h.Fast(); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("Fast: %v", err)
	} else {
		t.Log(err)
	}
	var l netlink.Link
	h.do(func() (err error) { l, err = find(h.opts.VXLAN); return err })
	if l != nil {
		t.Error("the VXLAN device is left")
	}
	// A frame from the TAP reaches the container.
	rx := listen(t, h.c, h.addr())
	_ = rx.SetReadDeadline(deadline())
	port := rx.LocalAddr().(*net.UDPAddr).Port
	h.write(udpFrame(h.mac, there, netip.MustParseAddr("10.32.0.9"), h.addr(), port, []byte("hello")))
	b := make([]byte, 100)
	if n, err := rx.Read(b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

// udpFrame is a frame with a datagram without checksum.
func udpFrame(dst, src [6]byte, from, to netip.Addr, port int, data []byte) []byte {
	b := frame(dst, src, ip4(28))
	b[14+9], b[14+8] = 17, 64
	copy(b[14+12:], from.AsSlice())
	copy(b[14+16:], to.AsSlice())
	n := 28 + len(data)
	binary.BigEndian.PutUint16(b[16:], uint16(n))
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[24:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[36:], uint16(port))
	binary.BigEndian.PutUint16(b[38:], uint16(n-20))
	return append(b, data...)
}

// TestOptions checks what Open refuses before it changes anything.
func TestOptions(t *testing.T) {
	h := newHost(t, 1, lab{})
	for what, change := range map[string]func(*Options){
		"bridge": func(o *Options) { o.Bridge = "nobody" }, "tap": func(o *Options) { o.TAP = "nobody" },
		"self": func(o *Options) { o.Self = MaxPeers }, "port": func(o *Options) { o.VXLANPort = 0 },
	} {
		o := h.opts
		change(&o)
		err := netdev.Do(h.ns, func() error { _, err := Open(o); return err })
		if err == nil || errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := h.Fast(); err != nil {
		t.Error(err)
	}
	index(t, h.ns, h.opts.VXLAN)
}

// TestMaps checks the tables' writers and readers.
func TestMaps(t *testing.T) {
	h := newHost(t, 1, lab{})
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Error(err)
		}
	}
	const many = 20000
	for i := range many {
		check(h.PutMAC([6]byte{2, 5, 0, byte(i >> 16), byte(i >> 8), byte(i)}, MACEntry{Peer: 7}))
	}
	seen := make(map[[6]byte]bool)
	check(h.MACs(func(m [6]byte, e MACEntry) bool {
		if seen[m] || e.Seen == 0 {
			t.Fatalf("%x, %+v: twice or never seen", m, e)
		}
		if seen[m] = true; e.Peer == 7 {
			check(h.DeleteMAC(m))
		}
		return true
	}))
	if len(seen) != many {
		t.Errorf("there were %d MAC addresses, want %d", len(seen), many)
	}
	check(h.DeleteMAC(other))
	n := 0
	check(h.MACs(func([6]byte, MACEntry) bool { n++; return true }))
	if n != 0 {
		t.Errorf("%d MAC addresses left", n)
	}

	e := MACEntry{Peer: 3, TxPackets: 5, RxBytes: 6, Seen: 100}
	check(h.PutMAC(there, e))
	check(h.PutMAC(there, MACEntry{Peer: 4, Flags: MACExpress, Ifindex: 9}))
	if got := h.entry(there); got != (MACEntry{Peer: 4, Flags: MACExpress, Ifindex: 9, TxPackets: 5, RxBytes: 6, Seen: 100}) {
		t.Errorf("the MAC address is %+v", got)
	}

	p := PeerEntry{Flags: PeerKnown | PeerFast, Next: 2, MTU: 1400, Remote: AddrOf(outerThere)}
	check(h.PutPeer(4095, p))
	p.Remote = AddrOf(outerHere)
	check(h.PutPeer(4095, p))
	check(h.PutPeer(17, p))
	got := make(map[uint16]PeerEntry)
	check(h.Peers(func(id uint16, e PeerEntry) bool { got[id] = e; return true }))
	if len(got) != 2 || got[17] != p || got[4095] != p {
		t.Errorf("peers are %+v", got)
	}
	check(h.DeletePeer(17))
	check(h.DeletePeer(17))
	n = 0
	check(h.Peers(func(uint16, PeerEntry) bool { n++; return true }))
	if n != 1 {
		t.Errorf("%d peers", n)
	}
	for _, id := range []uint16{0, MaxPeers} {
		if h.PutPeer(id, p) == nil {
			t.Errorf("peer %d was taken", id)
		}
	}

	for i := range 300 {
		check(h.PutRemote(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Remote{Peer: uint16(i)}))
	}
	six := netip.MustParseAddr("2001:db8::1")
	check(h.PutRemote(six, Remote{Peer: 300, Local: AddrOf(six)}))
	remotes := make(map[netip.Addr]Remote)
	check(h.Remotes(func(a netip.Addr, r Remote) bool { remotes[a] = r; return true }))
	if len(remotes) != 301 || remotes[netip.MustParseAddr("10.0.1.1")].Peer != 257 || ToAddr(remotes[six].Local) != six {
		t.Errorf("%d remotes", len(remotes))
	}
	check(h.DeleteRemote(six))
	check(h.DeleteRemote(six))
}

// TestUnknownComesUp checks that the router gets frames without an entry in the kernel,
// unchanged.
func TestUnknownComesUp(t *testing.T) {
	hosts := newLab(t, 2, lab{})
	a, b := hosts[0], hosts[1]
	if err := a.DeleteMAC(b.mac); err != nil {
		t.Fatal(err)
	}
	src := listen(t, a.c, a.addr())
	text := []byte("where are you")
	if _, err := src.WriteToUDPAddrPort(text, netip.AddrPortFrom(b.addr(), 9)); err != nil {
		t.Fatal(err)
	}
	a.comesUp(func(f []byte) bool { return [6]byte(f) == b.mac && [6]byte(f[6:]) == a.mac && bytes.Contains(f, text) })
	// And what does not fit.
	a.meet(b, lab{mtu: 500})
	src2 := listen(t, a.c, a.addr())
	if _, err := src2.WriteToUDPAddrPort(make([]byte, 600), netip.AddrPortFrom(b.addr(), 9)); err != nil {
		t.Fatal(err)
	}
	a.comesUp(func(f []byte) bool { return [6]byte(f) == b.mac && len(f) == 14+28+600 })
	if err := echo(t, a.c, a.addr(), b.c, b.addr(), 400, timeout); err != nil {
		t.Error(err)
	}
}

// TestSegmentsTooBig checks that the size of the segments of a GSO packet counts.
func TestSegmentsTooBig(t *testing.T) {
	for name, l := range map[string]lab{"device": {mtu: labMTU - 1}, "express": {mtu: labMTU - 1, express: true}} {
		t.Run(name, func(t *testing.T) {
			hosts := newLab(t, 2, l)
			a, b := hosts[0], hosts[1]
			var ln net.Listener
			in(t, b.c, func() (err error) {
				ln, err = net.Listen("tcp", netip.AddrPortFrom(b.addr(), 0).String())
				return err
			})
			defer ln.Close()
			var c net.Conn
			in(t, a.c, func() (err error) {
				c, err = net.Dial("tcp", ln.Addr().String())
				return err
			})
			defer c.Close()
			// It is not received, so that writing ends with the connection.
			go func() { _, _ = c.Write(make([]byte, 1<<20)) }()
			gsoFrame := a.comesUp(func(f []byte) bool { return len(f) > labMTU+14 })
			if [6]byte(gsoFrame) != b.mac || gsoFrame[14+9] != 6 {
				t.Errorf("came up: % x", gsoFrame[:60])
			}
		})
	}
}
