package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// PutMAC writes the place of a MAC address. An existing entry keeps its counters,
// except what is counted during the call, and the later time of last use. For a new
// entry that time is now unless e has one.
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
		return fmt.Errorf("read MAC address %x: %w", mac, err)
	}
	if err := d.c.Macs.Put(&key, &e); err != nil {
		return fmt.Errorf("write MAC address %x, peer %d: %w", mac, e.Peer, err)
	}
	return nil
}

// BootTime returns the clock of MACEntry.Seen, nanoseconds since boot including
// suspend; 0 if it cannot be read.
func BootTime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// DeleteMAC deletes a MAC address. It is not an error if there is no entry.
func (d *Datapath) DeleteMAC(mac [6]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return deleted(d.c.Macs.Delete(&MACKey{Addr: mac}), "MAC address", fmt.Sprintf("%x", mac))
}

func deleted(err error, what, key string) error {
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return fmt.Errorf("delete %s %s: %w", what, key, err)
}

// PutPeer writes how frames for a peer leave this host. While the address changes,
// frames go to the TAP.
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
	leaves := func(e PeerEntry) bool { return e.Flags&ways != 0 || e.Encap4|e.Encap6 != EncapVXLAN }
	if leaves(old) && (old.Remote != e.Remote || old.Local != e.Local || old.Gateway != e.Gateway || old.Ifindex != e.Ifindex) {
		old.Flags, old.Encap4, old.Encap6 = old.Flags&^ways, EncapVXLAN, EncapVXLAN
		if err := d.c.Peers.Put(uint32(id), &old); err != nil {
			return wrap(err)
		}
	}
	if !leaves(old) && leaves(e) {
		quiet := e
		quiet.Flags, quiet.Encap4, quiet.Encap6 = quiet.Flags&^ways, EncapVXLAN, EncapVXLAN
		if err := d.c.Peers.Put(uint32(id), &quiet); err != nil {
			return wrap(err)
		}
	}
	if err := d.c.Peers.Put(uint32(id), &e); err != nil {
		return wrap(err)
	}
	return nil
}

// DeletePeer deletes a peer and its counters, so that another peer may get the id.
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

// PutRemote writes which neighbour has an outer address.
func (d *Datapath) PutRemote(a netip.Addr, r Remote) error {
	key := AddrOf(a)
	if err := d.c.Remotes.Put(&key, &r); err != nil {
		return fmt.Errorf("write remote %s, peer %d: %w", a, r.Peer, err)
	}
	return nil
}

// DeleteRemote deletes an outer address. It is not an error if there is no entry.
func (d *Datapath) DeleteRemote(a netip.Addr) error {
	key := AddrOf(a)
	return deleted(d.c.Remotes.Delete(&key), "remote", a.String())
}

// MACs calls yield for each MAC address until it returns false. Addresses that come
// or go meanwhile may be missed. yield may change the entries.
func (d *Datapath) MACs(yield func(mac [6]byte, e MACEntry) bool) error {
	err := each(d.c.Macs, func(k MACKey, e MACEntry) bool { return yield(k.Addr, e) })
	if err != nil {
		return fmt.Errorf("read MAC addresses: %w", err)
	}
	return nil
}

// Peers calls yield for each peer with an entry until it returns false.
func (d *Datapath) Peers(yield func(id uint16, e PeerEntry) bool) error {
	err := each(d.c.Peers, func(k uint32, e PeerEntry) bool { return e == (PeerEntry{}) || yield(uint16(k), e) })
	if err != nil {
		return fmt.Errorf("read peers: %w", err)
	}
	return nil
}

// Remotes calls yield for each remote until it returns false.
func (d *Datapath) Remotes(yield func(a netip.Addr, r Remote) bool) error {
	err := each(d.c.Remotes, func(k Addr, r Remote) bool { return yield(ToAddr(k), r) })
	if err != nil {
		return fmt.Errorf("read remotes: %w", err)
	}
	return nil
}

// each reads a map in batches. A plain iteration starts again if the entry at its
// position is deleted meanwhile.
func each[K, V any](m *ebpf.Map, yield func(K, V) bool) error {
	const batch = 4096 // no bucket has more, and the kernel returns whole buckets
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

// Traffic returns the VXLAN traffic to and from a peer since its entry was made.
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

// Drops returns the number of dropped frames by reason, without zeros; nil if it
// cannot be read.
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
