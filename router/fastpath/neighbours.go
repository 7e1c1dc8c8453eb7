package fastpath

import (
	"net/netip"

	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/resolve"
)

// maxNeighbours is how many IP addresses one round of the loop writes to the kernel. When a router
// starts it hears of all addresses of the mesh at once, and echoes must not wait for them.
const maxNeighbours = 256

// Moved reports changes of where IP addresses are, in order. The kernel answers requests for the MAC
// addresses of those to which it forwards frames.
func (c *Controller) Moved(list []resolve.Change) {
	if !c.attached || len(list) == 0 {
		return
	}
	c.mu.Lock()
	for _, ch := range list {
		c.in.neighbours[ch.Addr] = ch.New.MAC
	}
	c.mu.Unlock()
	c.in.signal()
}

// takeNeighbours returns some of the changed addresses with their MAC addresses, zero for those that are
// nowhere. mu is held.
func (in *inbox) takeNeighbours() map[netip.Addr]ethernet.MAC {
	if len(in.neighbours) <= maxNeighbours {
		all := in.neighbours
		in.neighbours = make(map[netip.Addr]ethernet.MAC)
		return all
	}
	some := make(map[netip.Addr]ethernet.MAC, maxNeighbours)
	for a, m := range in.neighbours {
		if len(some) == maxNeighbours {
			break
		}
		some[a] = m
		delete(in.neighbours, a)
	}
	in.signal()
	return some
}

// writeNeighbours writes changed addresses to the kernel. One that cannot be written is not there: then
// the router answers.
func (c *Controller) writeNeighbours(list map[netip.Addr]ethernet.MAC) {
	for a, m := range list {
		var err error
		if m != (ethernet.MAC{}) {
			err = c.kernel.PutNeighbour(a, m)
		}
		if m == (ethernet.MAC{}) || err != nil {
			if e := c.kernel.DeleteNeighbour(a); e != nil {
				err = e
			}
		}
		if err != nil {
			c.log.Debug("cannot copy the MAC address of an IP address to the kernel", "addr", a, "err", err)
		}
	}
}

// Requests returns what the kernel did with requests for MAC addresses.
func (c *Controller) Requests() (r kernel.Requests) {
	if !c.attached {
		return r
	}
	c.closing.RLock()
	defer c.closing.RUnlock()
	if c.closed {
		return r
	}
	return c.kernel.Requests()
}
