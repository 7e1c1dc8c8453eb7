package kernel

import (
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

// PutNeighbour says at which MAC address an IP address is, on whatever host.
func (d *Datapath) PutNeighbour(a netip.Addr, mac [6]byte) error {
	key := AddrOf(a)
	if err := d.c.Neighbours.Put(&key, &MACKey{Addr: mac}); err != nil {
		return fmt.Errorf("write neighbour %s, MAC address %x: %w", a, mac, err)
	}
	return nil
}

// DeleteNeighbour deletes an IP address. It is not an error if there is no entry.
func (d *Datapath) DeleteNeighbour(a netip.Addr) error {
	key := AddrOf(a)
	return deleted(d.c.Neighbours.Delete(&key), "neighbour", a.String())
}

// clearNeighbours deletes all IP addresses. Those of an earlier process may have moved since it ended, and
// this one hears of all soon.
func (d *Datapath) clearNeighbours() error {
	var keys []Addr
	if err := each(d.c.Neighbours, func(k Addr, _ MACKey) bool { keys = append(keys, k); return true }); err != nil {
		return fmt.Errorf("read neighbours: %w", err)
	}
	for _, k := range keys {
		if err := deleted(d.c.Neighbours.Delete(&k), "neighbour", ToAddr(k).String()); err != nil {
			return err
		}
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
