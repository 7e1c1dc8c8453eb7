package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
)

// datapath is a Machine as one process has it open.
type datapath struct {
	m       *Machine
	adopted bool
	closed  bool // guarded by m.mu
}

var _ fastpath.Kernel = (*datapath)(nil)

// use locks the machine for a call.
func (d *datapath) use() func() {
	d.m.lock()
	if d.closed {
		d.m.t.Error("the kernel is used after Close")
	}
	return d.m.mu.Unlock
}

func (d *datapath) Adopted() bool { return d.adopted }

func (d *datapath) Fast() error {
	defer d.use()()
	return d.m.device
}

func (d *datapath) Express() error {
	defer d.use()()
	return d.m.express
}

func (d *datapath) Self() uint16 {
	defer d.use()()
	return d.m.pins.self
}

func (d *datapath) SetSelf(id uint16) error {
	defer d.use()()
	if id >= kernel.MaxPeers {
		return fmt.Errorf("set own short id %d: %w", id, errID)
	}
	d.m.pins.self = id
	return nil
}

func (d *datapath) Lease(forward time.Duration) error {
	defer d.use()()
	d.m.pins.until = d.m.BootTime() + forward
	return nil
}

func (d *datapath) SetExpress(on bool) error {
	defer d.use()()
	d.m.pins.express = on
	d.m.note("express %v", on)
	return nil
}

// Objects has the devices as one object.
func (d *datapath) Objects() []keeper.Object {
	return []keeper.Object{{
		ID: owned.ID{Kind: owned.VXLAN, Name: netdev.VXLANName},
		Look: func(*netdev.View) ([]string, error) {
			defer d.use()()
			if d.m.pins.devices {
				return nil, nil
			}
			return []string{"it does not exist"}, nil
		},
		Make: func() error {
			defer d.use()()
			d.m.pins.devices = true
			d.m.note("devices")
			return nil
		},
	}}
}

func (d *datapath) Programs(*netdev.View) []keeper.Object { return nil }

func (d *datapath) SumInSoftware() error {
	defer d.use()()
	d.m.pins.software = true
	return nil
}

func (d *datapath) Events(ctx context.Context, f func(kernel.Event)) error {
	events := func() chan kernel.Event { defer d.use()(); return d.m.pins.events }()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-events:
			f(e)
		}
	}
}

func (d *datapath) Close() error {
	d.m.lock()
	defer d.m.mu.Unlock()
	if !d.closed {
		d.closed = true
		d.m.users--
	}
	return nil
}

// attach attaches a program. An interface that is gone is no error.
func (d *datapath) attach(ifindex int) error {
	defer d.use()()
	if d.m.express != nil {
		return d.m.express
	}
	if i := d.m.interfaces[ifindex]; i != nil {
		i.program = true
	}
	return nil
}

func (d *datapath) detach(ifindex int) error {
	defer d.use()()
	if i := d.m.interfaces[ifindex]; i != nil {
		i.program = false
	}
	return nil
}

func (d *datapath) AttachContainer(ifindex int) error { return d.attach(ifindex) }
func (d *datapath) DetachContainer(ifindex int) error { return d.detach(ifindex) }
func (d *datapath) AttachUnderlay(ifindex int) error  { return d.attach(ifindex) }
func (d *datapath) DetachUnderlay(ifindex int) error  { return d.detach(ifindex) }

func (d *datapath) attached(container bool) (list []int) {
	defer d.use()()
	for n, i := range d.m.interfaces {
		if i.program && (i.port.Ifindex != 0) == container {
			list = append(list, n)
		}
	}
	return list
}

func (d *datapath) Containers() []int { return d.attached(true) }
func (d *datapath) Underlays() []int  { return d.attached(false) }

// PutMAC keeps counters and the later time of last use.
func (d *datapath) PutMAC(mac [6]byte, e kernel.MACEntry) error {
	defer d.use()()
	old, known := d.m.pins.macs[mac]
	if known {
		old.Peer, old.Flags, old.Ifindex, old.Seen = e.Peer, e.Flags, e.Ifindex, max(e.Seen, old.Seen)
		e = old
	}
	if e.Seen == 0 {
		e.Seen = uint64(time.Since(d.m.boot))
	}
	d.m.pins.macs[mac] = e
	return nil
}

func (d *datapath) DeleteMAC(mac [6]byte) error {
	defer d.use()()
	delete(d.m.pins.macs, mac)
	return nil
}

func (d *datapath) MACs(yield func(mac [6]byte, e kernel.MACEntry) bool) error {
	return each(d, func() map[[6]byte]kernel.MACEntry { return d.m.pins.macs }, func(a, b [6]byte) int { return slices.Compare(a[:], b[:]) }, yield)
}

// PutPeer writes the line "peer ID: FLAGS to ADDRESS" to the log if it changes anything.
func (d *datapath) PutPeer(id uint16, e kernel.PeerEntry) error {
	defer d.use()()
	if id == 0 || id >= kernel.MaxPeers {
		return fmt.Errorf("write peer %d: %w", id, errID)
	}
	if d.m.pins.peers[id] != e {
		d.m.note("peer %d: %s", id, describe(e))
		d.m.pins.peers[id] = e
	}
	return nil
}

// describe is a peer's entry in words.
func describe(e kernel.PeerEntry) string {
	s := "router"
	if e.Flags&kernel.PeerFast != 0 {
		s = "fast to " + kernel.ToAddr(e.Remote).String()
	}
	if e.Flags&kernel.PeerExpress != 0 {
		s += ", express"
	}
	return s
}

func (d *datapath) DeletePeer(id uint16) error {
	defer d.use()()
	if e := d.m.pins.peers[id]; e != (kernel.PeerEntry{}) {
		d.m.note("peer %d: deleted", id)
	}
	delete(d.m.pins.peers, id)
	delete(d.m.pins.traffic, id)
	return nil
}

// Peers leaves out entries that are zero, as the real map is an array.
func (d *datapath) Peers(yield func(id uint16, e kernel.PeerEntry) bool) error {
	return each(d, func() map[uint16]kernel.PeerEntry { return d.m.pins.peers }, cmp.Compare[uint16],
		func(id uint16, e kernel.PeerEntry) bool { return e == (kernel.PeerEntry{}) || yield(id, e) })
}

func (d *datapath) PutRemote(a netip.Addr, r kernel.Remote) error {
	defer d.use()()
	d.m.pins.remotes[a] = r
	return nil
}

func (d *datapath) DeleteRemote(a netip.Addr) error {
	defer d.use()()
	delete(d.m.pins.remotes, a)
	return nil
}

func (d *datapath) Remotes(yield func(a netip.Addr, r kernel.Remote) bool) error {
	return each(d, func() map[netip.Addr]kernel.Remote { return d.m.pins.remotes }, netip.Addr.Compare, yield)
}

// each calls yield with the entries of a map, which it may change.
func each[K comparable, V any](d *datapath, of func() map[K]V, compare func(a, b K) int, yield func(K, V) bool) error {
	all := func() map[K]V { defer d.use()(); return maps.Clone(of()) }()
	for _, k := range slices.SortedFunc(maps.Keys(all), compare) {
		if !yield(k, all[k]) {
			break
		}
	}
	return nil
}

func (d *datapath) Traffic(id uint16) (kernel.Traffic, error) {
	defer d.use()()
	if id >= kernel.MaxPeers {
		return kernel.Traffic{}, fmt.Errorf("read counters of peer %d: %w", id, errID)
	}
	return d.m.pins.traffic[id], nil
}

func (d *datapath) Drops() map[string]uint64 {
	defer d.use()()
	return map[string]uint64{}
}
