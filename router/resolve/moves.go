package resolve

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
)

const (
	// maxDue bounds how many announcements Due returns at once, and pause is until the next ones: each
	// goes to every container of this host.
	maxDue = 64
	pause  = 100 * time.Millisecond
	// maxMoves bounds the addresses that wait for their announcement, and those that are remembered in
	// one period.
	maxMoves = 16384
	// remember is how long the last MAC address of an address without a binding is remembered, up to
	// twice that. A kernel that sends to an old MAC address for the first time in so long finds out by
	// itself within ten seconds.
	remember = 10 * time.Minute
)

// Moves knows which addresses have another MAC address than before, so that the containers of this host
// must hear of it. A container that sends to an address asks for its MAC address only once, and then
// believes what it knows, for minutes if nothing comes back.
//
// The host to which an address came announces it too. But its frames may be lost, and other hosts drop
// them while the old binding is believed.
//
// The zero value is ready for use. Moves is not safe for concurrent use.
type Moves struct {
	waiting map[netip.Addr]ethernet.MAC
	// last are the MAC addresses of bindings that ended, in this period and in the one before, which
	// ends at turn.
	last, before map[netip.Addr]ethernet.MAC
	turn         time.Time
	notBefore    time.Time
	dropped      uint64
}

// Announcement says that an address is at a MAC address now.
type Announcement struct {
	Addr netip.Addr
	MAC  ethernet.MAC
}

// Changed takes changes of the places of addresses, in order, at the host self.
func (m *Moves) Changed(now time.Time, self peer.Name, list []Change) {
	m.expire(now)
	for _, c := range list {
		m.changed(self, c)
	}
}

func (m *Moves) changed(self peer.Name, c Change) {
	_, waits := m.waiting[c.Addr]
	delete(m.waiting, c.Addr)
	if c.New.IsZero() {
		if !c.Old.IsZero() && len(m.last) < maxMoves {
			m.last = put(m.last, c.Addr, c.Old.MAC)
		}
		return
	}
	was := c.Old.MAC
	if c.Old.IsZero() {
		was = m.forget(c.Addr)
	}
	// Who connects a container of this host announces it on the bridge. An announcement from here
	// would come in at the router's port, and the bridge would look for the container there.
	if c.New.At == self || !waits && (was == c.New.MAC || was == ethernet.MAC{}) {
		return
	}
	if len(m.waiting) == maxMoves {
		m.dropped++
		return
	}
	m.waiting = put(m.waiting, c.Addr, c.New.MAC)
}

func put(to map[netip.Addr]ethernet.MAC, a netip.Addr, mac ethernet.MAC) map[netip.Addr]ethernet.MAC {
	if to == nil {
		to = make(map[netip.Addr]ethernet.MAC)
	}
	to[a] = mac
	return to
}

// forget returns the last MAC address of an address, zero if it is not known, and forgets it.
func (m *Moves) forget(a netip.Addr) ethernet.MAC {
	mac, ok := m.last[a]
	if !ok {
		mac = m.before[a]
	}
	delete(m.last, a)
	delete(m.before, a)
	return mac
}

func (m *Moves) expire(now time.Time) {
	if now.Before(m.turn) {
		return
	}
	if m.before = m.last; now.Sub(m.turn) >= remember {
		m.before = nil
	}
	m.last, m.turn = nil, now.Add(remember)
}

// Due returns what must be announced now, in no order. The caller does that.
func (m *Moves) Due(now time.Time) (due []Announcement) {
	if len(m.waiting) == 0 || now.Before(m.notBefore) {
		return nil
	}
	m.notBefore = now.Add(pause)
	for a, mac := range m.waiting {
		if len(due) == maxDue {
			break
		}
		due = append(due, Announcement{a, mac})
		delete(m.waiting, a)
	}
	return due
}

// Next returns when Due has something to return; ok is false if nothing waits.
func (m *Moves) Next() (at time.Time, ok bool) { return m.notBefore, len(m.waiting) > 0 }

// Dropped returns how many announcements there was no space for.
func (m *Moves) Dropped() uint64 { return m.dropped }
