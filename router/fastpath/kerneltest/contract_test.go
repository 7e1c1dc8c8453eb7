package kerneltest_test

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/kerneltest"
	"github.com/weft-net/weft/router/tap"
)

// world is a kernel, real or not, with one container and a program that removes the
// VXLAN device.
type world struct {
	open   func(kernel.Binding) fastpath.Kernel
	veth   int
	remove func()
	// inside runs f in the namespace of the kernel.
	inside func(f func() error) error
}

// mend makes all objects again that have faults, and returns which had.
func (w world) mend(k fastpath.Kernel) (mended []owned.Kind, err error) {
	err = w.inside(func() error {
		v, err := netdev.ReadView()
		if err != nil {
			return err
		}
		for _, o := range k.Objects() {
			faults, err := o.Look(v)
			if err != nil {
				return err
			}
			if len(faults) == 0 {
				continue
			}
			mended = append(mended, o.Kind)
			if err := o.Make(); err != nil {
				return err
			}
		}
		return nil
	})
	return mended, err
}

// contract makes calls of which the controller relies on the results, and returns what
// they return as text.
func contract(w world) string {
	var b strings.Builder
	password := kernel.Fingerprint{1}
	k := w.open(kernel.Binding{{9}, password})
	say := func(what string, result any) {
		if err, ok := result.(error); ok && err != nil {
			result = "refused"
		}
		fmt.Fprintf(&b, "%s: %v\n", what, result)
	}
	dump := func(when string) {
		var macs, peers, remotes []string
		_ = k.MACs(func(m [6]byte, e kernel.MACEntry) bool {
			macs = append(macs, fmt.Sprintf("%x at %d, veth %v, flags %d, seen %v, tx %d", m, e.Peer, int(e.Ifindex) == w.veth, e.Flags, e.Seen != 0, e.TxPackets))
			return true
		})
		_ = k.Peers(func(id uint16, e kernel.PeerEntry) bool {
			peers = append(peers, fmt.Sprintf("%d by %d flags %d to %s", id, e.Next, e.Flags, kernel.ToAddr(e.Remote)))
			return true
		})
		_ = k.Remotes(func(a netip.Addr, r kernel.Remote) bool {
			remotes = append(remotes, fmt.Sprintf("%s is %d", a, r.Peer))
			return true
		})
		for _, list := range [][]string{macs, peers, remotes} {
			slices.Sort(list)
			say(when, list)
		}
		say(when, fmt.Sprintf("%d containers, %d underlays", len(k.Containers()), len(k.Underlays())))
	}
	say("fast", k.Fast())
	say("express", k.Express())
	dump("at first")
	a, m := netip.MustParseAddr("192.0.2.2"), [6]byte{2, 0, 0, 0, 0, 1}
	entry := kernel.PeerEntry{Flags: kernel.PeerKnown | kernel.PeerFast, Next: 5, Remote: kernel.AddrOf(a)}
	say("own id", k.SetSelf(7))
	say("own id too large", k.SetSelf(kernel.MaxPeers))
	say("lease", k.Lease(time.Hour))
	say("peer 0", k.PutPeer(0, entry))
	say("peer too large", k.PutPeer(kernel.MaxPeers, entry))
	say("peer", k.PutPeer(5, entry))
	say("delete peer that is not there", k.DeletePeer(6))
	say("remote", k.PutRemote(a, kernel.Remote{Peer: 5}))
	say("delete remote that is not there", k.DeleteRemote(netip.MustParseAddr("192.0.2.3")))
	say("MAC", k.PutMAC(m, kernel.MACEntry{Peer: 7, Ifindex: uint32(w.veth), Flags: kernel.MACExpress}))
	say("delete MAC that is not there", k.DeleteMAC([6]byte{2, 0, 0, 0, 0, 9}))
	say("attach", k.AttachContainer(w.veth))
	say("attach again", k.AttachContainer(w.veth))
	say("attach to what is gone", k.AttachContainer(99999))
	say("detach from what is gone", k.DetachContainer(99999))
	dump("written")
	say("MAC moves", k.PutMAC(m, kernel.MACEntry{Peer: 5}))
	traffic, err := k.Traffic(5)
	say("traffic", fmt.Sprint(traffic, err))
	_, err = k.Traffic(kernel.MaxPeers)
	say("traffic of an id too large", err)
	for _, what := range []string{"mend", "after removal", "again"} {
		if what == "after removal" {
			w.remove()
		}
		mended, err := w.mend(k)
		say(what, fmt.Sprint(mended, err))
	}
	say("software checksums", k.SumInSoftware())
	say("close", k.Close())
	say("close again", k.Close())
	k = w.open(kernel.Binding{{9}, {2}, password})
	say("one more password", k.Adopted())
	dump("adopted")
	say("detach", k.DetachContainer(w.veth))
	say("delete peer", k.DeletePeer(5))
	say("delete remote", k.DeleteRemote(a))
	say("delete MAC", k.DeleteMAC(m))
	dump("deleted")
	say("peer", k.PutPeer(5, entry))
	say("remote", k.PutRemote(a, kernel.Remote{Peer: 5}))
	say("MAC", k.PutMAC(m, kernel.MACEntry{Peer: 5}))
	say("close", k.Close())
	k = w.open(kernel.Binding{{9}, {2}})
	say("one password less", k.Adopted())
	dump("of another configuration")
	say("close", k.Close())
	k = w.open(kernel.Binding{{8}, {2}})
	say("other settings", k.Adopted())
	say("another password at run time", k.SetBinding(kernel.Binding{{8}, {3}}))
	say("close", k.Close())
	k = w.open(kernel.Binding{{8}, {3}})
	say("the password since then", k.Adopted())
	say("close", k.Close())
	return b.String()
}

// TestContract holds the kernel in memory against the real one.
func TestContract(t *testing.T) {
	m := kerneltest.New(t)
	m.AddContainer(20)
	fake := contract(world{veth: 20, remove: m.RemoveDevices, inside: func(f func() error) error { return f() }, open: func(b kernel.Binding) fastpath.Kernel {
		k, err := m.OpenKernel(kernel.Options{Express: true, Binding: b})
		if err != nil {
			t.Fatal(err)
		}
		return k
	}})
	if real := contract(realWorld(t)); fake != real {
		t.Errorf("in memory:\n%s\nreal:\n%s", fake, real)
	}
}

// realWorld is a host with the real kernel, in a namespace.
func realWorld(t *testing.T) world {
	host, container := nstest.New(t, "host"), nstest.New(t, "c")
	do := func(f func() error) {
		t.Helper()
		if err := netdev.Do(host, f); err != nil {
			t.Fatal(err)
		}
	}
	o := kernel.Options{
		PinDir: filepath.Join(t.TempDir(), "bpf"), Bridge: "weft", Port: netdev.PortName, PortPeer: netdev.PortPeerName,
		TAP: netdev.TAPName, VXLAN: netdev.VXLANName, VXLANPort: 6784, MTU: 1376, Express: true,
	}
	do(func() error {
		return netdev.EnsureBridge("weft", net.HardwareAddr{2, 0, 0, 0, 1, 1}, 1376, netdev.ProcSys)
	})
	t.Cleanup(func() { do(func() error { return kernel.Remove(o) }) })
	do(func() error {
		_, err := netdev.Attach(netdev.Attachment{NS: container, Iface: "ethwe", Bridge: "weft", MTU: 1376})
		return err
	})
	w := world{inside: func(f func() error) error { return netdev.Do(host, f) }}
	if err := netdev.Do(container, func() error {
		l, err := netlink.LinkByName("ethwe")
		if err == nil {
			w.veth = l.Attrs().ParentIndex
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var q *tap.Device
	w.open = func(b kernel.Binding) (k fastpath.Kernel) {
		o.Binding = b
		if q != nil {
			q.Close() // as an earlier process
		}
		do(func() (err error) {
			if q, err = tap.Open(o.TAP, tap.Linux); err != nil {
				return err
			}
			d, err := kernel.Open(o)
			k = d
			return err
		})
		if k.Express() != nil {
			nstest.Lacks(t, "express")
		}
		return k
	}
	t.Cleanup(func() { q.Close() })
	w.remove = func() {
		do(func() error {
			l, err := netlink.LinkByName(o.VXLAN)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		})
	}
	return w
}
