package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
)

// MaxNeighbours bounds the IP addresses whose MAC addresses the kernel knows. Each takes about 100
// bytes of its memory.
const MaxNeighbours = 65536

// Requests counts what the kernel did with requests for the MAC address of an IP address. Those that the
// router got are not among them.
type Requests struct {
	Answered uint64 // in place of a container of another host
	Local    uint64 // for a container of this host, which answers itself
}

// Indexes of the map requests, as enum request of bpf/weft.h has them.
const (
	requestAnswered uint32 = iota
	requestLocal
	numRequests
)

// PutNeighbour says where an IP address is. An entry that differs in nothing else keeps its Since, and a
// new one is known from now on.
func (d *Datapath) PutNeighbour(a netip.Addr, n Neighbour) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := AddrOf(a)
	wrap := func(err error) error {
		return fmt.Errorf("write neighbour %s, MAC address %x, peer %d: %w", a, n.MAC, n.Peer, err)
	}
	var old Neighbour
	switch err := d.c.bpfMaps.Neighbours.Lookup(&key, &old); {
	case err == nil && old.MAC == n.MAC && old.Peer == n.Peer:
		return nil
	case err != nil && !errors.Is(err, ebpf.ErrKeyNotExist):
		return wrap(err)
	}
	n.Since = BootTime()
	if err := d.c.bpfMaps.Neighbours.Put(&key, &n); err != nil {
		return wrap(err)
	}
	return nil
}

// DeleteNeighbour deletes an IP address. It is not an error if there is no entry.
func (d *Datapath) DeleteNeighbour(a netip.Addr) error {
	key := AddrOf(a)
	return deleted(d.c.bpfMaps.Neighbours.Delete(&key), "neighbour", a.String())
}

// Neighbours calls yield for each IP address until it returns false. Addresses that come or go meanwhile may
// be missed.
func (d *Datapath) Neighbours(yield func(a netip.Addr, n Neighbour) bool) error {
	if err := each(d.c.bpfMaps.Neighbours, func(k Addr, n Neighbour) bool { return yield(ToAddr(k), n) }); err != nil {
		return fmt.Errorf("read neighbours: %w", err)
	}
	return nil
}

// Requests returns the counters since the programs were loaded first; zero if they cannot be read.
func (d *Datapath) Requests() (r Requests) {
	r.Answered, _ = sumOf(d.c.bpfMaps.Requests, requestAnswered)
	r.Local, _ = sumOf(d.c.bpfMaps.Requests, requestLocal)
	return r
}

// sumOf returns the sum of a counter over all CPUs.
func sumOf(m *ebpf.Map, index uint32) (sum uint64, err error) {
	var cpus []uint64
	if err := m.Lookup(index, &cpus); err != nil {
		return 0, err
	}
	for _, n := range cpus {
		sum += n
	}
	return sum, nil
}
