package link

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// sentProbe is a probe whose answer has not come.
type sentProbe struct {
	at   time.Time
	size int // 0 for a heartbeat
}

// beat is the heartbeat, and the book of all probes.
type beat struct {
	next       time.Time // when to send the next heartbeat
	unanswered int       // heartbeats since the last answer
	lastAnswer time.Time // zero before the first
	rtt        time.Duration

	nextID uint32
	sent   map[uint32]sentProbe
}

// forgetProbe is when a probe without an answer leaves the book.
const forgetProbe = 10 * time.Second

func (m *Machine) tickBeat(now time.Time) {
	b := &m.beat
	for id, p := range b.sent {
		if now.Sub(p.at) > forgetProbe {
			delete(b.sent, id)
		}
	}
	if m.keys.tx == nil || !m.addr.IsValid() || now.Before(b.next) {
		return
	}
	m.probe(now, 0)
	interval := Beat
	if b.unanswered > 0 && b.unanswered < Patience || b.lastAnswer.IsZero() && b.unanswered == 0 {
		interval = FastBeat
	}
	b.unanswered++
	b.next = now.Add(interval - time.Duration(m.cfg.Jitter.Int64N(int64(interval/8))))
}

// probe sends a request of size bytes of IP packet.
func (m *Machine) probe(now time.Time, size int) {
	id := m.beat.nextID
	m.beat.nextID++
	m.beat.sent[id] = sentProbe{now, size}
	m.do(SendProbe{m.addr, wire.ProbeBody{ID: id, Size: uint16(size)}})
}

// Probe takes an authenticated Probe packet in, which came from an address.
func (m *Machine) Probe(now time.Time, from netip.AddrPort, p wire.ProbeBody) []Effect {
	if !p.Answer {
		p.Answer = true
		m.do(SendProbe{from, p})
		return m.Tick(now)
	}
	s, ok := m.beat.sent[p.ID]
	if !ok || s.size != int(p.Size) {
		return m.Tick(now)
	}
	delete(m.beat.sent, p.ID)
	b := &m.beat
	if b.lastAnswer.IsZero() || now.Sub(b.lastAnswer) >= Silence {
		m.path.begin(now) // the path may be another than before
	}
	b.lastAnswer, b.unanswered = now, 0
	if d := now.Sub(s.at); b.rtt == 0 {
		b.rtt = d
	} else {
		b.rtt += (d - b.rtt) / 8 // as RFC 6298 smoothes
	}
	if s.size > 0 {
		m.path.reached(now, s.size)
	}
	// Back to the slow pace.
	if slow := now.Add(Beat - time.Duration(m.cfg.Jitter.Int64N(int64(Beat/8)))); b.next.Before(slow) && s.size == 0 {
		b.next = slow
	}
	return m.Tick(now)
}

// MinMTU is what every path is taken to carry, in bytes of IP packet, as no
// network in use has less.
const MinMTU = 552

// common are sizes that paths often have: loopback, jumbo frames, Ethernet and
// Ethernet less the headers of usual tunnels, the least of IPv6 and IPv4.
var common = []int{65535, 9001, 9000, 8951, 1500, 1492, 1480, 1476, 1460, 1450, 1420, 1400, 1376, 1280, 1006, 576}

// Times of the search.
const (
	tries       = 3 // of a size before it is given up
	minTimeout  = 250 * time.Millisecond
	verifyEvery = 2 * time.Second  // that the current size still passes
	raiseEvery  = 60 * time.Second // that no larger one does
)

// path is the search for the path MTU. It asks for all common sizes at once,
// then narrows down between the largest that passed and the smallest that did
// not. ICMP is not listened to: anybody may send it.
type path struct {
	max   int  // never try more
	mtu   int  // in force
	known bool // whether mtu was measured

	phase phase
	begun time.Time // when this round of probes began
	lo    int       // largest that passed in this search
	hi    int       // smallest that is taken not to pass, at most max+1
	want  []int     // sizes asked for and not answered
	left  int       // tries left
	until time.Time // when to try again or give up

	verifyAt  time.Time // when to ask whether mtu still passes
	verifying int       // times asked in a row without an answer
	raiseAt   time.Time
}

type phase int

const (
	idle phase = iota
	burst
	narrow
)

func (p *path) init(limit int) {
	p.max = min(max(limit, MinMTU), 65535)
	p.mtu = MinMTU
}

// begin starts a search from the bottom. What is in force stays until it ends.
func (p *path) begin(now time.Time) { p.search(now, MinMTU) }

func (p *path) search(now time.Time, from int) {
	p.phase, p.lo, p.hi, p.left, p.until, p.begun = burst, from, p.max+1, tries, now, now
	p.want = p.want[:0]
	if p.max > from && !slices.Contains(common, p.max) {
		p.want = append(p.want, p.max)
	}
	for _, s := range common {
		if s > from && s <= p.max {
			p.want = append(p.want, s)
		}
	}
	p.verifying = 0
}

// verifySoon is for when the path may have changed.
func (p *path) verifySoon(now time.Time) { p.verifyAt = now }

func (p *path) next() time.Time {
	if p.phase != idle {
		return p.until
	}
	if p.verifyAt.IsZero() || !p.raiseAt.IsZero() && p.raiseAt.Before(p.verifyAt) {
		return p.raiseAt
	}
	return p.verifyAt
}

func (m *Machine) timeout() time.Duration { return max(minTimeout, 3*m.beat.rtt) }

func (m *Machine) tickPath(now time.Time) {
	p := &m.path
	if m.keys.tx == nil || !m.addr.IsValid() {
		p.verifyAt, p.raiseAt = time.Time{}, time.Time{}
		if p.phase != idle {
			p.until = now.Add(minTimeout)
		}
		return
	}
	if m.state == Failed && p.phase != idle {
		p.until = now.Add(Beat) // a peer that is away says nothing about sizes
		return
	}
	switch p.phase {
	case burst:
		if now.Before(p.until) && len(p.want) > 0 {
			return
		}
		if len(p.want) > 0 && p.left > 0 {
			p.left--
			p.until = now.Add(m.timeout())
			m.probe(now, 0) // passes if anything does
			for _, s := range p.want {
				m.probe(now, s)
			}
			return
		}
		if len(p.want) > 0 && !m.beat.lastAnswer.After(p.begun) {
			// Not even the smallest came back: that says nothing about sizes.
			p.left, p.begun, p.until = tries, now, now.Add(Beat)
			return
		}
		p.settle()
		p.phase = narrow
		m.bisect(now)
	case narrow:
		if now.Before(p.until) {
			return
		}
		if p.left > 0 {
			p.left--
			p.until = now.Add(m.timeout())
			m.probe(now, p.want[0])
			return
		}
		p.hi = p.want[0]
		m.bisect(now)
	case idle:
		m.watch(now)
	}
}

// settle puts what the burst found in force.
func (p *path) settle() {
	p.mtu, p.known = p.lo, true
	for _, s := range p.want {
		if s > p.lo {
			p.hi = min(p.hi, s)
		}
	}
}

// bisect asks for the size in the middle, or ends the search.
func (m *Machine) bisect(now time.Time) {
	p := &m.path
	p.mtu = max(p.mtu, p.lo)
	if p.hi-p.lo <= 1 {
		p.phase = idle
		p.verifyAt, p.raiseAt = now.Add(verifyEvery), now.Add(raiseEvery)
		return
	}
	p.want = append(p.want[:0], p.lo+(p.hi-p.lo)/2)
	p.left, p.until = tries-1, now.Add(m.timeout())
	m.probe(now, p.want[0])
}

// watch verifies the size in force, and now and then looks for a larger one.
func (m *Machine) watch(now time.Time) {
	p := &m.path
	if !now.Before(p.verifyAt) {
		if p.verifying >= tries && m.beat.unanswered <= 1 {
			// Small packets pass and large ones do not.
			p.begin(now)
			m.tickPath(now)
			return
		}
		p.verifyAt = now.Add(verifyEvery)
		if p.verifying < tries {
			p.verifyAt = now.Add(m.timeout())
		}
		p.verifying++
		m.probe(now, p.mtu)
		return
	}
	if !now.Before(p.raiseAt) {
		p.raiseAt = now.Add(raiseEvery)
		if p.mtu < p.max {
			p.search(now, p.mtu)
			m.tickPath(now)
		}
	}
}

// reached takes the answer to a probe of size bytes in.
func (p *path) reached(now time.Time, size int) {
	switch p.phase {
	case burst:
		p.lo = max(p.lo, size)
		p.want = slices.DeleteFunc(p.want, func(s int) bool { return s <= p.lo })
	case narrow:
		if size > p.lo && size < p.hi {
			p.lo = size
			p.hi = max(p.hi, p.lo+1)
			if len(p.want) > 0 && p.want[0] <= size {
				p.left, p.until = 0, now
				p.want[0] = p.hi // nothing to give up
			}
		}
	case idle:
		if size >= p.mtu {
			p.verifying = 0
			p.verifyAt = now.Add(verifyEvery)
		}
	}
}

// TooBig tells that the kernel refused to send a packet of size bytes of IP,
// as the interface carries less.
func (m *Machine) TooBig(now time.Time, size int) []Effect {
	p := &m.path
	switch {
	case p.phase == burst:
		if i := slices.IndexFunc(p.want, func(s int) bool { return s >= size }); i >= 0 {
			p.want = slices.DeleteFunc(p.want, func(s int) bool { return s >= size })
			p.hi = min(p.hi, size)
		}
	case p.phase == narrow && p.want[0] >= size && size > p.lo:
		p.hi = min(p.hi, size)
		p.left, p.until = 0, now
		p.want[0] = p.hi
	case size <= p.mtu:
		p.begin(now)
	}
	return m.Tick(now)
}
