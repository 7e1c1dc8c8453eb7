package link

import (
	"slices"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// sentProbe is a probe whose answer has not come.
type sentProbe struct {
	at   time.Time
	size int // 0 for a heartbeat
}

// beat is the heartbeat, and the probes under way.
type beat struct {
	next       time.Time // when to send the next heartbeat, unless the detector says
	last       time.Time // when the last one was sent
	unanswered int       // heartbeats since the last answer
	lastAnswer time.Time // zero before the first
	traffic    uint64    // frames sent until the last look

	sent map[uint64]sentProbe // by id
}

// firstBeat is how long after an unanswered heartbeat the next one is sent, if no answer came
// so far and a heartbeat of the peer comes, by which it shows that it has keys.
const firstBeat = 20 * time.Millisecond

// forgetProbe is the age at which an unanswered probe is forgotten.
const forgetProbe = 10 * time.Second

func (m *Machine) tickBeat(now time.Time) {
	b := &m.beat
	for id, p := range b.sent {
		if now.Sub(p.at) > forgetProbe {
			delete(b.sent, id)
		}
	}
	if m.cfg.Traffic != nil {
		if n := m.cfg.Traffic(); n != b.traffic {
			b.traffic = n
			m.live.Used(now)
		}
	}
	if m.keys.tx == nil || !m.addr.IsValid() {
		m.live.Reset()
		return
	}
	if m.live.Tick(now) {
		b.unanswered, b.next = 0, now
		if m.fast && m.state == Established {
			m.do(Silent{})
		}
	}
	if m.state == Failed && m.live.Alive() {
		m.live.Used(now) // to see soon whether answers come without a gap
	}
	if due := m.live.Due(now); !due && (m.live.Alive() || now.Before(b.next)) {
		return
	}
	b.unanswered++
	b.last, b.next = now, now.Add(m.pause())
	m.live.Sent(now)
	m.probe(now, m.verify(now))
}

// pause returns how long to wait for an answer before the next heartbeat.
func (m *Machine) pause() time.Duration {
	d := FastBeat
	if late := m.beat.unanswered - Timeout; late > 0 {
		d = Beat
		if m.beat.lastAnswer.IsZero() {
			d = min(Beat<<min(late-1, 8), SlowBeat)
		}
	}
	return d - time.Duration(m.cfg.Jitter.Int64N(int64(d/8)))
}

// probe sends a request of size bytes.
func (m *Machine) probe(now time.Time, size int) {
	_, _ = m.probeTo(now, m.addr, size)
}

// Asked reports an authenticated request of the peer, which the driver has answered.
func (m *Machine) Asked(now time.Time) []Effect {
	if m.state != Established {
		// The peer is there.
		wait := FastBeat
		if m.beat.lastAnswer.IsZero() {
			wait = firstBeat // the first heartbeat came before the peer could answer
		}
		if soon := m.beat.last.Add(wait); m.beat.next.After(soon) {
			m.beat.next = soon
		}
	}
	return m.Tick(now)
}

// Answered reports an authenticated answer to a probe.
func (m *Machine) Answered(now time.Time, p wire.ProbeBody) []Effect {
	s, ok := m.beat.sent[p.ID]
	if !ok || s.size != int(p.Size) {
		return m.Tick(now)
	}
	delete(m.beat.sent, p.ID)
	if !m.live.Alive() {
		m.since = now
		m.path.begin(now) // the path may have changed
	}
	m.live.Answered(now, s.at)
	m.arrived(now, p.ID)
	m.beat.lastAnswer, m.beat.unanswered = now, 0
	if s.size > 0 {
		m.path.reached(now, s.size)
	}
	return m.Tick(now)
}

// MinMTU is the packet size that every path is assumed to carry, in bytes of IP packet.
// No network in use carries less.
const MinMTU = 552

// common are usual MTUs of paths: loopback, jumbo frames, Ethernet and
// Ethernet less the headers of usual tunnels, the least of IPv6 and IPv4.
var common = []int{65535, 9001, 9000, 8951, 1500, 1492, 1480, 1476, 1460, 1450, 1420, 1400, 1376, 1280, 1006, 576}

// Times of the search.
const (
	tries       = 3 // of a size before it counts as lost
	minTimeout  = 250 * time.Millisecond
	loneTimeout = 100 * time.Millisecond // of the first probe of a search
	verifyTries = 5                      // of the size in use before a search begins
	verifyIdle  = 10 * time.Second       // between two checks of the size in use, without traffic
	verifyBusy  = time.Second            // with traffic
	raiseFirst  = time.Minute            // from a search to the next attempt at a larger size;
	raiseLater  = 10 * time.Minute       // it doubles up to this, PMTU_RAISE_TIMER of RFC 8899, section 5.1.1
)

// path is the search for the path MTU. It probes the largest size first, which mostly passes:
// a router that joins a large mesh searches many paths at once. If it does not pass, or no
// longer, the search probes all common sizes at once, and then bisects between the largest that passed and the smallest that did not. It
// ignores ICMP, which anybody may send.
type path struct {
	max   int  // never probe more
	mtu   int  // in use
	known bool // whether mtu was measured

	phase phase
	begun time.Time // when this round of probes began
	lo    int       // largest that passed in this search
	hi    int       // smallest that counts as lost, at most max+1
	want  []int     // sizes probed and not answered
	left  int       // tries left; one more than tries before the largest size was probed
	until time.Time // when to retry or give up

	verifying int       // consecutive unanswered probes of the size in use
	verified  time.Time // when the first of them was sent
	raiseAt   time.Time
	raiseIn   time.Duration // from one raiseAt to the next
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

// begin starts a search from the smallest size. The size in use stays until it ends.
func (p *path) begin(now time.Time) {
	p.raiseIn = raiseFirst
	p.search(now, MinMTU)
}

// narrowed begins a search on a path that carries less than before, with all sizes.
func (p *path) narrowed(now time.Time) {
	p.begin(now)
	p.left = tries
}

func (p *path) search(now time.Time, from int) {
	p.phase, p.lo, p.hi, p.left, p.until, p.begun = burst, from, p.max+1, tries+1, now, now
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

func (p *path) next() time.Time {
	if p.phase != idle || p.verifying > 0 && p.until.Before(p.raiseAt) {
		return p.until
	}
	return p.raiseAt
}

func (m *Machine) timeout() time.Duration { return max(minTimeout, 3*m.live.RTT()) }

func (m *Machine) tickPath(now time.Time) {
	p := &m.path
	if m.keys.tx == nil || !m.addr.IsValid() || !m.live.Alive() {
		// A peer that is away says nothing about sizes; its first answer begins a
		// search.
		p.raiseAt, p.until, p.verifying = time.Time{}, time.Time{}, 0
		return
	}
	switch p.phase {
	case burst:
		if now.Before(p.until) && len(p.want) > 0 {
			return
		}
		if len(p.want) > 0 && p.left > 0 {
			if p.left--; p.left == tries {
				p.until = now.Add(max(loneTimeout, 3*m.live.RTT()))
				m.probe(now, p.want[0]) // the largest
				return
			}
			p.until = now.Add(m.timeout())
			m.probe(now, 0) // passes if any packet does
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
		m.verifyAgain(now)
		m.raise(now)
	}
}

// settle uses the size that the burst of probes found.
func (p *path) settle() {
	p.mtu, p.known = p.lo, true
	for _, s := range p.want {
		if s > p.lo {
			p.hi = min(p.hi, s)
		}
	}
}

// bisect probes the size in the middle, or ends the search.
func (m *Machine) bisect(now time.Time) {
	p := &m.path
	p.mtu = max(p.mtu, p.lo)
	if p.hi-p.lo <= 1 {
		p.phase = idle
		p.raiseAt = now.Add(p.raiseIn)
		return
	}
	p.want = append(p.want[:0], p.lo+(p.hi-p.lo)/2)
	p.left, p.until = tries-1, now.Add(m.timeout())
	m.probe(now, p.want[0])
}

// verify returns the size of the heartbeat that is sent now: that in use, to check that it
// still passes, or 0 if there is nothing to check. So a check costs no packet. If it is not
// answered, the detector sends small heartbeats, which distinguish a path with a smaller
// MTU from a path that is gone.
func (m *Machine) verify(now time.Time) int {
	p := &m.path
	every := verifyIdle
	if m.live.Busy(now) {
		every = verifyBusy
	}
	if p.phase != idle || !p.known || p.verifying > 0 || m.live.Suspect() || now.Sub(p.verified) < every {
		return 0
	}
	p.verifying, p.verified, p.until = 1, now, now.Add(m.timeout())
	return p.mtu
}

// verifyAgain repeats a check that was not answered. After some it begins a search, if
// small packets pass meanwhile.
func (m *Machine) verifyAgain(now time.Time) {
	p := &m.path
	switch {
	case p.verifying == 0, now.Before(p.until):
	case p.verifying < verifyTries:
		p.verifying++
		p.until = now.Add(m.timeout())
		m.probe(now, p.mtu)
	case m.beat.lastAnswer.After(p.verified):
		p.narrowed(now)
		m.tickPath(now)
	default:
		p.verifying = 0 // nothing passes: that says nothing about sizes
	}
}

// raise periodically probes for a size larger than the one in use.
func (m *Machine) raise(now time.Time) {
	p := &m.path
	if p.raiseAt.IsZero() {
		p.raiseAt = now.Add(p.raiseIn)
	}
	if now.Before(p.raiseAt) {
		return
	}
	p.raiseIn = min(2*p.raiseIn, raiseLater)
	p.raiseAt = now.Add(p.raiseIn)
	if p.mtu < p.max {
		p.search(now, p.mtu)
		m.tickPath(now)
	}
}

// reached handles the answer to a probe of size bytes.
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
				p.want[0] = p.hi // nothing to lower
			}
		}
	case idle:
		if size >= p.mtu {
			p.verifying = 0
		}
	}
}

// TooBig reports that the kernel refused an IP packet of size bytes because the
// interface carries less.
func (m *Machine) TooBig(now time.Time, size int) []Effect {
	p := &m.path
	switch {
	case p.phase == burst:
		if i := slices.IndexFunc(p.want, func(s int) bool { return s >= size }); i >= 0 {
			p.want = slices.DeleteFunc(p.want, func(s int) bool { return s >= size })
			p.hi = min(p.hi, size)
			if p.left == tries {
				p.left, p.until = tries+1, now // the next one is the largest
			}
		}
	case p.phase == narrow && p.want[0] >= size && size > p.lo:
		p.hi = min(p.hi, size)
		p.left, p.until = 0, now
		p.want[0] = p.hi
	case size <= p.mtu:
		p.narrowed(now)
	}
	return m.Tick(now)
}
