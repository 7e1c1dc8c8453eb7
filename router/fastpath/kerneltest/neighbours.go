package kerneltest

import (
	"errors"
	"maps"
	"net/netip"

	"github.com/weft-net/weft/router/fastpath/kernel"
)

var errFull = errors.New("the map is full")

func (d *datapath) PutNeighbour(a netip.Addr, n kernel.Neighbour) error {
	defer d.use()()
	if _, known := d.m.pins.neighbours[a]; !known && len(d.m.pins.neighbours) == kernel.MaxNeighbours {
		return errFull
	}
	if was := d.m.pins.neighbours[a]; was.MAC == n.MAC && was.Peer == n.Peer {
		return nil
	}
	n.Since = uint64(d.m.BootTime())
	d.m.pins.neighbours[a] = n
	return nil
}

func (d *datapath) DeleteNeighbour(a netip.Addr) error {
	defer d.use()()
	delete(d.m.pins.neighbours, a)
	return nil
}

func (d *datapath) Neighbours(yield func(a netip.Addr, n kernel.Neighbour) bool) error {
	defer d.use()()
	for a, n := range d.m.pins.neighbours {
		if !yield(a, n) {
			break
		}
	}
	return nil
}

// SetPlain is as PutPeer says it.
func (d *datapath) SetPlain(on bool) error {
	defer d.use()()
	d.m.pins.plain = on
	return nil
}

// Requests is zero: no frame passes here.
func (d *datapath) Requests() kernel.Requests { return kernel.Requests{} }

// Neighbours returns the places that the kernel knows, by IP address.
func (m *Machine) Neighbours() map[netip.Addr]kernel.Neighbour {
	m.lock()
	defer m.mu.Unlock()
	return maps.Clone(m.pins.neighbours)
}
