package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// PutMAC says where a MAC address is. Counters of an entry that is there are kept,
// but for what is counted during the call, and so is the time of last use, which
// for a new entry is now unless e says it.
func (d *Datapath) PutMAC(mac [6]byte, e MACEntry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := MACKey{Addr: mac}
	var old MACEntry
	switch err := d.c.Macs.Lookup(&key, &old); {
	case err == nil:
		if old.Peer == e.Peer && old.Flags == e.Flags && old.Ifindex == e.Ifindex && e.Seen <= old.Seen {
			return nil
		}
		old.Peer, old.Flags, old.Ifindex, old.Seen = e.Peer, e.Flags, e.Ifindex, max(e.Seen, old.Seen)
		e = old
	case errors.Is(err, ebpf.ErrKeyNotExist):
		if e.Seen == 0 {
			e.Seen = BootTime()
		}
	default:
		return fmt.Errorf("read station %x: %w", mac, err)
	}
	if err := d.c.Macs.Put(&key, &e); err != nil {
		return fmt.Errorf("write station %x, peer %d: %w", mac, e.Peer, err)
	}
	return nil
}

// BootTime is the kernel's clock in MACEntry.Seen, nanoseconds since boot with the
// time asleep; 0 if it cannot be read.
func BootTime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// DeleteMAC forgets a MAC address. One that is not there is no error.
func (d *Datapath) DeleteMAC(mac [6]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return deleted(d.c.Macs.Delete(&MACKey{Addr: mac}), "station", fmt.Sprintf("%x", mac))
}

func deleted(err error, what, key string) error {
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return fmt.Errorf("delete %s %s: %w", what, key, err)
}

// PutPeer says how frames for a peer leave. When the address changes, frames go
// to the TAP in between.
func (d *Datapath) PutPeer(id uint16, e PeerEntry) error {
	if id == 0 || id >= MaxPeers {
		return fmt.Errorf("write peer %d: ids are 1 to %d", id, MaxPeers-1)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	wrap := func(err error) error { return fmt.Errorf("write peer %d, next hop %s: %w", id, ToAddr(e.Remote), err) }
	var old PeerEntry
	if err := d.c.Peers.Lookup(uint32(id), &old); err != nil {
		return wrap(err)
	}
	if old == e {
		return nil
	}
	const ways = PeerFast | PeerExpress | PeerDirect
	if old.Flags&ways != 0 && (old.Remote != e.Remote || old.Local != e.Local || old.Gateway != e.Gateway || old.Ifindex != e.Ifindex) {
		old.Flags &^= ways
		if err := d.c.Peers.Put(uint32(id), &old); err != nil {
			return wrap(err)
		}
	}
	if old.Flags&ways == 0 && e.Flags&ways != 0 {
		quiet := e
		quiet.Flags &^= ways
		if err := d.c.Peers.Put(uint32(id), &quiet); err != nil {
			return wrap(err)
		}
	}
	if err := d.c.Peers.Put(uint32(id), &e); err != nil {
		return wrap(err)
	}
	return nil
}

// DeletePeer forgets a peer and its counters, so that the id may become
// another's.
func (d *Datapath) DeletePeer(id uint16) error {
	if id >= MaxPeers {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.c.Peers.Put(uint32(id), &PeerEntry{}); err != nil {
		return fmt.Errorf("delete peer %d: %w", id, err)
	}
	zero := make([]Traffic, ebpf.MustPossibleCPU())
	if err := d.c.Traffic.Put(uint32(id), zero); err != nil {
		return fmt.Errorf("delete counters of peer %d: %w", id, err)
	}
	return nil
}

// PutRemote says which neighbour an outer address is.
func (d *Datapath) PutRemote(a netip.Addr, r Remote) error {
	key := AddrOf(a)
	if err := d.c.Remotes.Put(&key, &r); err != nil {
		return fmt.Errorf("write remote %s, peer %d: %w", a, r.Peer, err)
	}
	return nil
}

// DeleteRemote forgets an outer address. One that is not there is no error.
func (d *Datapath) DeleteRemote(a netip.Addr) error {
	key := AddrOf(a)
	return deleted(d.c.Remotes.Delete(&key), "remote", a.String())
}

// MACs calls yield with each MAC address until it returns false. Stations that come
// or go meanwhile may be missed; yield may change them.
func (d *Datapath) MACs(yield func(mac [6]byte, e MACEntry) bool) error {
	err := each(d.c.Macs, func(k MACKey, e MACEntry) bool { return yield(k.Addr, e) })
	if err != nil {
		return fmt.Errorf("read MAC addresses: %w", err)
	}
	return nil
}

// Peers calls yield with each peer that was put until it returns false.
func (d *Datapath) Peers(yield func(id uint16, e PeerEntry) bool) error {
	err := each(d.c.Peers, func(k uint32, e PeerEntry) bool { return e == (PeerEntry{}) || yield(uint16(k), e) })
	if err != nil {
		return fmt.Errorf("read peers: %w", err)
	}
	return nil
}

// Remotes calls yield with each remote until it returns false.
func (d *Datapath) Remotes(yield func(a netip.Addr, r Remote) bool) error {
	err := each(d.c.Remotes, func(k Addr, r Remote) bool { return yield(ToAddr(k), r) })
	if err != nil {
		return fmt.Errorf("read remotes: %w", err)
	}
	return nil
}

// each reads a map in batches: a plain iteration begins again where the entry it
// stands on is deleted meanwhile.
func each[K, V any](m *ebpf.Map, yield func(K, V) bool) error {
	const batch = 4096 // no bucket has more, and the kernel gives whole buckets
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if !yield(keys[i], values[i]) {
				return nil
			}
		}
		if err != nil {
			return nil
		}
	}
}

// Traffic returns what went by VXLAN to and from a peer since it was put.
func (d *Datapath) Traffic(id uint16) (sum Traffic, err error) {
	var cpus []Traffic
	if err := d.c.Traffic.Lookup(uint32(id), &cpus); err != nil {
		return Traffic{}, fmt.Errorf("read counters of peer %d: %w", id, err)
	}
	for _, t := range cpus {
		sum.TxPackets += t.TxPackets
		sum.TxBytes += t.TxBytes
		sum.RxPackets += t.RxPackets
		sum.RxBytes += t.RxBytes
		sum.RelayedPackets += t.RelayedPackets
		sum.RelayedBytes += t.RelayedBytes
	}
	return sum, nil
}

// Drops returns the number of frames dropped by reason, without zeros. It is
// nil if it cannot be read.
func (d *Datapath) Drops() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range numDrops {
		var cpus []uint64
		if d.c.Drops.Lookup(uint32(r), &cpus) != nil {
			return nil
		}
		for _, n := range cpus {
			if n > 0 {
				m[r.String()] += n
			}
		}
	}
	return m
}
