package kerneltest

import (
	"errors"
	"net/netip"

	"github.com/weft-net/weft/router/fastpath/kernel"
)

var errFull = errors.New("the map is full")

func (d *datapath) PutNeighbour(a netip.Addr, mac [6]byte) error {
	defer d.use()()
	if _, known := d.m.pins.neighbours[a]; !known && len(d.m.pins.neighbours) == kernel.MaxNeighbours {
		return errFull
	}
	d.m.pins.neighbours[a] = mac
	return nil
}

func (d *datapath) DeleteNeighbour(a netip.Addr) error {
	defer d.use()()
	delete(d.m.pins.neighbours, a)
	return nil
}

// Requests is zero: no frame passes here.
func (d *datapath) Requests() kernel.Requests { return kernel.Requests{} }

// Neighbours returns the MAC addresses that the kernel knows, by IP address.
func (m *Machine) Neighbours() map[netip.Addr][6]byte {
	m.lock()
	defer m.mu.Unlock()
	list := make(map[netip.Addr][6]byte)
	for a, mac := range m.pins.neighbours {
		list[a] = mac
	}
	return list
}
