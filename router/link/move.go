package link

import (
	"encoding/binary"
	"io"
	"net/netip"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// A packet that the peer sealed shows that the peer sent it, but not from where: the peer
// can write any source address. If the link followed, the peer could lead all traffic of
// this host to a third one. So a new address is only a candidate until a challenge is
// answered that was sent there (RFC 9000, sections 8.2 and 9). Until then frames go to the
// old address.
//
//	packet from another address          answer to the challenge
//	----------------------------> challenge --------------------> the link moves
//	                                 |
//	                                 +-- no answer to three: the link stays
//
// A challenge is a heartbeat with a random id of 64 bits. Each is as large as the packet
// that caused it at most, or nearly, and there are few, so the third host gets next to
// nothing.

const (
	// challenges is how often a candidate is asked.
	challenges = 3
	// challengePause is the least time between two candidates.
	challengePause = 250 * time.Millisecond
)

// candidate is an address that the peer may have now.
type candidate struct {
	addr  netip.AddrPort
	ids   [challenges]uint64 // of the challenges that were sent; zero for the others
	asked int
	begun time.Time
	again time.Time // when to ask again or give up
}

// MayMove reports whether the peer's end of a link may be at an address. Addresses that are
// no other host's, and those that are valid on one network segment only, may be used by a
// link that began with an address of the same kind. begun is that address; it may be
// invalid.
func MayMove(to netip.AddrPort, begun netip.Addr) bool {
	a := to.Addr().Unmap()
	begun = begun.Unmap()
	switch {
	case !a.IsValid(), to.Port() == 0, a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case a.IsLoopback():
		return begun.IsLoopback()
	case a.IsLinkLocalUnicast():
		return begun.IsLinkLocalUnicast()
	}
	return true
}

// Moved reports that an authenticated packet, newer than all before, came from
// another address.
func (m *Machine) Moved(now time.Time, from netip.AddrPort) []Effect {
	c := m.candidate
	switch {
	case from == m.addr || m.keys.tx == nil || !MayMove(from, m.cfg.Addr.Addr()):
	case c != nil && (c.addr == from || now.Sub(c.begun) < challengePause):
	default:
		m.candidate = &candidate{addr: from, begun: now, again: now}
	}
	return m.Tick(now)
}

// SetAddr sets where the peer probably is, as another peer sees it. An established link
// keeps its address. As everywhere, frames go there only after an answer.
func (m *Machine) SetAddr(now time.Time, a netip.AddrPort) []Effect {
	if m.state != Established && a != m.addr && a.IsValid() {
		m.addr, m.beat.next, m.beat.unanswered, m.beat.lastAnswer = a, now, 0, time.Time{}
		m.live.Reset()
	}
	return m.Tick(now)
}

func (m *Machine) tickMove(now time.Time) {
	c := m.candidate
	if c == nil || now.Before(c.again) {
		return
	}
	if c.asked == challenges || m.keys.tx == nil {
		m.candidate = nil
		return
	}
	if id, ok := m.probeTo(now, c.addr, 0); ok {
		c.ids[c.asked] = id
	}
	c.asked++
	c.again = now.Add(m.timeout())
}

// arrived handles the answer to a probe: if it was a challenge the link moves.
func (m *Machine) arrived(now time.Time, id uint64) {
	c := m.candidate
	if c == nil {
		return
	}
	for _, sent := range c.ids[:c.asked] {
		if sent == id {
			m.addr, m.candidate = c.addr, nil
			m.live.Check(now) // the peer learns our new path, and the path is measured
			return
		}
	}
}

// nextMove returns when tickMove must be called; zero for never.
func (m *Machine) nextMove() time.Time {
	if m.candidate == nil {
		return time.Time{}
	}
	return m.candidate.again
}

// probeTo sends a request of size bytes to an address. Nobody but who receives it can guess
// its id.
func (m *Machine) probeTo(now time.Time, to netip.AddrPort, size int) (id uint64, ok bool) {
	var b [8]byte
	if _, err := io.ReadFull(m.cfg.Entropy, b[:]); err != nil {
		return 0, false // the next one may be sent; rand.Reader never fails
	}
	id = binary.BigEndian.Uint64(b[:])
	m.beat.sent[id] = sentProbe{now, size}
	m.do(SendProbe{to, wire.ProbeBody{ID: id, Size: uint16(size)}})
	return id, true
}
