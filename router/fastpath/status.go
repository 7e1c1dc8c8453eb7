package fastpath

import (
	"maps"
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// LinkStatus is the status of the fast path to one neighbour at one moment.
type LinkStatus struct {
	Up, Encrypted bool  // Up: VXLAN is
	Mode          Mode  // Disabled if nothing goes by the fast path
	Reason        error // why not up, or why not express; nil if express
	RTT           time.Duration
	MTU           int // of containers' packets that pass, in bytes, if any do
	// Encaps are those of packets of each family between known addresses. EncapReason says why they are
	// not the best that the settings allow; nil if they are.
	Encaps      [2]plan.Encap
	EncapReason error
}

// Plain reports whether any packets go to the neighbour without VXLAN.
func (s *LinkStatus) Plain() bool { return s.Encaps != [2]plan.Encap{} }

// KeptPath is the fast path to a neighbour that has no session, as its router is away.
type KeptPath struct {
	Addr  netip.Addr // of the neighbour on the underlay
	Until time.Time  // when it ends at the latest
}

// Status is the status of the kernel's part at one moment.
type Status struct {
	Mode   Mode  // the best one that a link can have
	Reason error // why not a better one; nil with Express
	// MACs is the number of MAC addresses of other hosts to which it forwards frames.
	MACs int
	// Peers counts VXLAN traffic by the peer at the other end, without zeros.
	Peers map[peer.Name]kernel.Traffic
	// Drops by reason, without zeros.
	Drops map[string]uint64
	// Overflows counts MAC addresses that the queue of learned addresses had no
	// space for. The next comparison of the tables copied them.
	Overflows uint64
}

// hostMode is the mode of the host.
type hostMode struct {
	mode   Mode
	reason error
}

// publishMode works out the mode of the host and publishes it for Status.
func (c *Controller) publishMode() Mode {
	mode, reason := c.mode()
	c.mu.Lock()
	c.state = hostMode{mode, reason}
	c.mu.Unlock()
	return mode
}

// Link returns the status of the fast path to a neighbour; false if there is none.
func (c *Controller) Link(n peer.Name) (LinkStatus, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	s, ok := c.shown[n]
	return s, ok
}

// Kept returns the paths to neighbours that have no session.
func (c *Controller) Kept() map[peer.Name]KeptPath {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return maps.Clone(c.keptPaths)
}

// FDB returns the entries of the kernel's table of MAC addresses.
func (c *Controller) FDB() map[ethernet.MAC]kernel.MACEntry {
	c.closing.RLock()
	defer c.closing.RUnlock()
	if !c.attached || c.closed {
		return nil
	}
	all := make(map[ethernet.MAC]kernel.MACEntry)
	if err := c.kernel.MACs(func(m [6]byte, e kernel.MACEntry) bool { all[m] = e; return true }); err != nil {
		c.log.Debug("cannot read the MAC addresses of the kernel", "err", err)
	}
	return all
}

// Status reads the kernel's counters. Peers are those with short ids; next has the
// neighbour on the way to each peer.
func (c *Controller) Status(ids map[peer.Name]uint16, next map[peer.Name]peer.Name) (s Status) {
	if c.off != nil {
		return Status{Mode: Disabled, Reason: c.off}
	}
	c.mu.RLock()
	s.Mode, s.Reason = c.state.mode, c.state.reason
	c.mu.RUnlock()
	if !c.attached {
		return s
	}
	s.Overflows = c.overflows.Load()
	s.Drops, s.Peers = c.counters(ids)
	carried := make(map[uint16]bool)
	for n, via := range next {
		if id, known := ids[n]; known && (n == via || !c.cfg.Encrypt) {
			l, ok := c.Link(via)
			carried[id] = ok && l.Up
		}
	}
	for _, e := range c.FDB() {
		if carried[e.Peer] {
			s.MACs++
		}
	}
	return s
}

// counters reads the kernel's counters of dropped and forwarded frames.
func (c *Controller) counters(ids map[peer.Name]uint16) (drops map[string]uint64, peers map[peer.Name]kernel.Traffic) {
	c.closing.RLock()
	defer c.closing.RUnlock()
	if c.closed {
		return nil, nil
	}
	for name, id := range ids {
		t, err := c.kernel.Traffic(id)
		if err != nil {
			c.log.Debug("cannot read the traffic counters of the kernel", "peer", name, "err", err)
			continue
		}
		if t != (kernel.Traffic{}) && name != c.self {
			if peers == nil {
				peers = make(map[peer.Name]kernel.Traffic)
			}
			peers[name] = t
		}
	}
	return c.kernel.Drops(), peers
}
