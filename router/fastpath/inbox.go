package fastpath

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/wire"
)

// inbox holds what the router reported and the controller's goroutine has not handled
// yet. There is one record for each neighbour, in which a newer value replaces an older
// one that was not handled, as only the newest counts. So the inbox is bounded by the
// number of neighbours, nothing is dropped, and the router never waits.
type inbox struct {
	wake    chan struct{} // of capacity 1: there is something to handle
	pending map[peer.Name]*news
	routes  *topology.Routes // the newest, also after they were handled
	changed bool             // routes were not handled
}

// news is what happened to one neighbour, in the order of the fields.
type news struct {
	down bool // the session ended that the controller knows
	up   *session
	path *path
	said *wire.Control // what the neighbour says about its fast path
}

// session is a session that began.
type session struct {
	secret [32]byte
	addr   netip.Addr
}

// path is the path to a neighbour.
type path struct {
	addr netip.Addr
	mtu  int // in bytes of IP packet; 0 if not known
}

// Up reports a session with a neighbour whose end of the underlay is addr, invalid if
// not known. If only the neighbour's router was away, the fast path continues. The
// secret is known to both ends of the session and to nobody else.
func (c *Controller) Up(n peer.Name, secret [32]byte, addr netip.Addr) {
	c.report(n, func(w *news) {
		w.up, w.path, w.said = &session{secret, addr}, nil, nil
		delete(c.kept, n)
	})
}

// Down reports that the session with a neighbour ended. The fast path continues as
// long as the neighbour's kernel answers.
func (c *Controller) Down(n peer.Name) {
	c.report(n, func(w *news) {
		*w = news{down: true}
		if c.shown[n].Up {
			c.kept[n] = true
		}
	})
}

// Path reports the address of a neighbour's end of the underlay, and the MTU of the
// path to it in bytes of IP packet, 0 if not known.
func (c *Controller) Path(n peer.Name, addr netip.Addr, mtu int) {
	c.report(n, func(w *news) { w.path = &path{addr, mtu} })
}

// Control reports what a neighbour says about its fast path.
func (c *Controller) Control(from peer.Name, m wire.Control) {
	c.report(from, func(w *news) { w.said = &m })
}

// Routes reports new routes. They must not be changed any more.
func (c *Controller) Routes(r *topology.Routes) {
	c.mu.Lock()
	c.in.routes, c.in.changed = r, true
	c.mu.Unlock()
	c.in.signal()
}

// Keeps reports whether the MAC addresses behind a peer must be kept although no route
// leads to it: its router is away, and its kernel is not. When that ends the controller
// removes them from the table.
func (c *Controller) Keeps(n peer.Name) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept[n]
}

// Learned reports that the table has a new place for a MAC address. If the queue is
// full, the next comparison with the kernel's map finds it.
func (c *Controller) Learned(m ethernet.MAC) {
	if !c.attached {
		return
	}
	select {
	case c.learned <- m:
	default:
		c.overflows.Add(1)
		c.overflow.Store(true)
	}
}

// Echoed reports a probe that came back. It is false if the queue is full and the echo
// is dropped, which the caller counts.
func (c *Controller) Echoed(e Echo) bool {
	select {
	case c.echoes <- e:
		return true
	default:
		return false
	}
}

// report changes what is pending for a neighbour.
func (c *Controller) report(n peer.Name, change func(*news)) {
	if c.off != nil {
		return
	}
	c.mu.Lock()
	w := c.in.pending[n]
	if w == nil {
		w = new(news)
		c.in.pending[n] = w
	}
	change(w)
	c.mu.Unlock()
	c.in.signal()
}

func (b *inbox) signal() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// receive handles the inbox.
func (c *Controller) receive(now time.Time) {
	c.mu.Lock()
	pending := c.in.pending
	c.in.pending = make(map[peer.Name]*news)
	if c.in.changed {
		c.in.changed = false
		c.routes, c.stale = c.in.routes, true
	}
	c.mu.Unlock()
	for n, w := range pending {
		if w.down {
			c.endSession(n, now)
		}
		if w.up != nil {
			c.beginSession(n, *w.up, now)
		}
		if w.path != nil {
			c.follow(n, *w.path, now)
		}
		if w.said != nil {
			c.control(n, *w.said, now)
		}
	}
}

// release ends Keeps for a peer and removes what was kept only because of it.
func (c *Controller) release(n peer.Name) {
	c.mu.Lock()
	kept := c.kept[n]
	delete(c.kept, n)
	_, reached := c.in.routes.Unicast[n]
	c.mu.Unlock()
	if kept && !reached {
		c.macs.Forget(n)
	}
}
