package mesh

import (
	"context"
	"errors"
	"maps"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/mesh/session"
)

// Anybody can connect, so handshakes are bounded, and strangers who say nothing, or little,
// must not keep a newcomer out. A connection that is one too many is not refused: another
// one makes room. That is the oldest one of the source that has the most, among those that
// have not proved the password if there are some. So whoever knows the password gets in if
// it proves that before the strangers fill the table with newer connections. Addresses of
// targets and of entries have a part of the table that strangers cannot use.

const (
	// maxHandshakes is the largest number of concurrent handshakes with diallers, and
	// knownHandshakes the part of it that is kept for known addresses.
	maxHandshakes   = 256
	knownHandshakes = 64
	// A source may start handshakesPerSecond with a burst of handshakesBurst. With lower
	// limits a hundred hosts behind one address take long to join; with higher ones a
	// single host costs more CPU.
	handshakesPerSecond = 20
	handshakesBurst     = 40
	// maxSources bounds the sources whose rate is limited.
	maxSources = 4096
	// firstTimeout is how long a dialler may take to send its preamble, and proofTimeout how
	// long to prove after that that it knows the password, which takes one round trip.
	firstTimeout = time.Second
	proofTimeout = 2 * time.Second
)

// accept handles incoming connections until the listener is closed. It never waits for one
// of them.
func (m *Mesh) accept(ctx context.Context) {
	defer m.wg.Done()
	for {
		nc, err := m.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			m.log.Warn("accept a connection", "err", err)
			// Probably there is no file descriptor left, and the next error would come at
			// once.
			select {
			case <-time.After(50 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		from := addrPortOf(nc.RemoteAddr()).Addr()
		if m.cfg.Refuse != nil {
			if err := m.cfg.Refuse(from); err != nil {
				m.counters.refusedAddrs.Add(1)
				m.log.Debug("connection refused", "addr", from.String(), "err", err)
				nc.Close()
				continue
			}
		}
		h, evicted := m.handshakes.begin(nc, from, m.isKnownAddr(from), time.Now())
		if evicted != nil {
			m.counters.handshakeFail[session.CodeBusy].Add(1)
			evicted.Close()
		}
		if h == nil {
			m.counters.handshakeFail[session.CodeBusy].Add(1)
			nc.Close()
			continue
		}
		m.wg.Add(1)
		go m.shake(ctx, h)
	}
}

// shake carries out the handshake with a dialler.
func (m *Mesh) shake(ctx context.Context, h *handshake) {
	defer m.wg.Done()
	stop := context.AfterFunc(ctx, func() { h.Close() })
	hs := m.handshakeConfig()
	hs.FirstTimeout, hs.ProofTimeout, hs.Proved = firstTimeout, proofTimeout, func() { m.handshakes.proved(h) }
	c, err := session.Accept(h.Conn, &hs)
	evicted := m.handshakes.end(h)
	if !stop() || err != nil {
		h.Close()
		if err != nil && ctx.Err() == nil && !evicted {
			m.handshakeFailed(err, h.from.String(), h.from) // without the port, which differs each time
			m.reportRefused(err, h.from, false)
		}
		return
	}
	if err := m.adopt(c); err != nil {
		m.log.Debug("session dropped", "peer", c.Peer.Name, "err", err)
	}
}

// isKnownAddr reports whether a target, a session or an entry has this address.
func (m *Mesh) isKnownAddr(a netip.Addr) bool {
	known := m.knownAddrs.Load()
	return known != nil && (*known)[a]
}

// updateKnownAddrs collects the known addresses. Addresses of target names are those at
// which a session with the target was.
func (m *Mesh) updateKnownAddrs(v *View) {
	known := make(map[netip.Addr]bool)
	m.mu.Lock()
	targets := m.maker.Targets()
	maps.Copy(known, m.targetAddrs)
	m.mu.Unlock()
	for _, t := range targets {
		if host, _, err := net.SplitHostPort(withPort(t)); err == nil {
			if ip, err := netip.ParseAddr(host); err == nil {
				known[ip.Unmap()] = true
			}
		}
	}
	for _, e := range v.entries {
		if v.Reachable(e.Name) {
			for _, a := range e.Addrs {
				known[a.Addr()] = true
			}
		}
	}
	m.knownAddrs.Store(&known)
}

// handshakes are those in progress with diallers.
type handshakes struct {
	mu     sync.Mutex   // no other lock is taken while it is held
	all    []*handshake // in order of arrival
	active map[netip.Addr]int
	limits map[netip.Addr]*sourceLimit
}

// sourceLimit bounds what one source can make this peer do.
type sourceLimit struct {
	*rate.Limiter
	reported time.Time // when the observer heard last of a handshake that was refused
}

// handshake is one of them.
type handshake struct {
	net.Conn
	from  netip.Addr
	known bool // its address is known

	// Guarded by handshakes.mu.

	hasProved bool
	evicted   bool
}

// sourceOf returns the source of an address: an IPv4 address itself, or the /64 of an
// IPv6 address.
func sourceOf(a netip.Addr) netip.Addr {
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// begin adds a handshake. It returns nil if its source starts too many, and the handshake
// that has to end for it, nil if none has.
func (t *handshakes) begin(nc net.Conn, from netip.Addr, known bool, now time.Time) (h, evicted *handshake) {
	src := sourceOf(from)
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.limits[src]
	if l == nil {
		if t.limits == nil {
			t.limits, t.active = make(map[netip.Addr]*sourceLimit), make(map[netip.Addr]int)
		}
		if len(t.limits) >= maxSources {
			maps.DeleteFunc(t.limits, func(a netip.Addr, l *sourceLimit) bool {
				return t.active[a] == 0 && l.TokensAt(now) >= handshakesBurst/2
			})
			if len(t.limits) >= maxSources {
				clear(t.limits)
			}
		}
		l = &sourceLimit{Limiter: rate.NewLimiter(handshakesPerSecond, handshakesBurst)}
		t.limits[src] = l
	}
	if !l.AllowN(now, 1) {
		return nil, nil
	}
	h = &handshake{Conn: nc, from: from, known: known}
	t.all = append(t.all, h)
	t.active[src]++
	if evicted = t.surplus(known); evicted != nil {
		evicted.evicted = true
		t.remove(evicted)
	}
	if evicted == h {
		return nil, nil
	}
	return h, evicted
}

// surplus returns the handshake that has to end, nil if there is space for all. A handshake
// from a known address only makes room for one of its kind.
func (t *handshakes) surplus(known bool) *handshake {
	strangers := 0
	for _, h := range t.all {
		if !h.known {
			strangers++
		}
	}
	among := func(*handshake) bool { return true }
	switch {
	case strangers > maxHandshakes-knownHandshakes:
		among = func(h *handshake) bool { return !h.known }
	case len(t.all) <= maxHandshakes:
		return nil
	case known:
		among = func(h *handshake) bool { return h.known }
	}
	var worst *handshake
	for _, h := range t.all {
		if !among(h) {
			continue
		}
		a, b := 0, t.active[sourceOf(h.from)]
		if worst != nil {
			a = t.active[sourceOf(worst.from)]
		}
		if worst == nil || worst.hasProved && !h.hasProved || worst.hasProved == h.hasProved && b > a {
			worst = h
		}
	}
	return worst
}

// mayReport reports whether the observer may hear of a refused handshake with an address
// now: once a second for each source, as each event costs a round of the loop.
func (t *handshakes) mayReport(from netip.Addr, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.limits[sourceOf(from)]
	if l == nil || now.Sub(l.reported) < time.Second {
		return false
	}
	l.reported = now
	return true
}

// proved records that the dialler knows the password.
func (t *handshakes) proved(h *handshake) {
	t.mu.Lock()
	h.hasProved = true
	t.mu.Unlock()
}

// end removes a handshake and reports whether another one took its place before.
func (t *handshakes) end(h *handshake) (evicted bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h.evicted {
		return true
	}
	t.remove(h)
	return false
}

func (t *handshakes) remove(h *handshake) {
	for i, o := range t.all {
		if o == h {
			t.all = append(t.all[:i], t.all[i+1:]...)
			break
		}
	}
	src := sourceOf(h.from)
	if t.active[src]--; t.active[src] == 0 {
		delete(t.active, src)
	}
}

// sessionsPerSource is how many sessions one source may have. A site behind one address has
// a fourth of all; its other hosts are reached over hops.
func (m *Mesh) sessionsPerSource() int {
	if m.cfg.ConnLimit == 0 {
		return 256
	}
	return max(16, m.cfg.ConnLimit/4)
}

// A session is settled after settleTime: by then its peer has an entry that states the
// session, if it is honest.
const settleTime = 10 * time.Second

// makeRoom decides about a session with a peer at an address that would be one too many. It
// returns why there is no room; or the neighbour whose session has to end, nil if none has.
// It is called with mu held.
//
// Sessions end whose peer does not state them in its entry, then those of the source that
// has the most, if the newcomer's source has fewer by two. Sessions with targets stay.
func (m *Mesh) makeRoom(from netip.Addr, now time.Time) (victim *neighbour, why string) {
	src := sourceOf(from)
	counts := make(map[netip.Addr]int)
	var direct []*neighbour
	for _, n := range *m.neighbours.Load() {
		if !n.relayed {
			direct = append(direct, n)
			counts[n.source()]++
		}
	}
	if counts[src] >= m.sessionsPerSource() {
		return nil, "too many sessions with hosts at this address"
	}
	if !m.maker.FullForOthers() {
		return nil, ""
	}
	v := m.view.Load()
	rank := func(n *neighbour) int {
		switch e := v.byName[n.name]; {
		case m.maker.IsTarget(n.name) || now.Sub(n.since) < m.settleTime:
			return 0
		case e == nil || !v.graph.Linked(n.name):
			return 1 << 20
		case counts[n.source()] < counts[src]+2:
			return 0
		case n.linked.Load():
			return 2 * counts[n.source()]
		default:
			return 2*counts[n.source()] + 1
		}
	}
	best := 0
	for _, n := range direct {
		if r := rank(n); r > best || r == best && r > 0 && n.name.Compare(victim.name) < 0 {
			victim, best = n, r
		}
	}
	if victim == nil {
		return nil, "the connection limit is reached"
	}
	return victim, ""
}

// source returns the source of a neighbour's session.
func (n *neighbour) source() netip.Addr { return sourceOf(addrPortOf(n.RemoteAddr()).Addr()) }
