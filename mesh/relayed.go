package mesh

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/stream"
	"github.com/weft-net/weft/mesh/topology"
)

// Two peers behind address translation cannot dial each other, but their UDP packets
// can pass if both send at the same time (hole punching). For that they need keys,
// and so a session. A relayed session has the same handshake and the same records as
// one over TCP, but is carried as a stream by the peers between the two, which cannot
// read it. It is used only for the link (KindLink); all other messages go over the
// other sessions.
//
// The peer with the lower name starts it after a direct attempt has failed. The session
// ends if no packet arrives.
//
// Frames that relays carry are sealed under the keys of the link, too. So either peer
// starts a relayed session if its router wants keys (WantSession), and keeps it while it
// does, whether hole punching succeeds or not. If both start one, the one with the lower
// ID stays, as with direct sessions.

const (
	// relayedRetryMin is the time from the first attempt at a relayed session with a
	// peer to the second. It doubles with each attempt, up to relayedRetryMax. Many
	// translators let no packet through, and attempts fill their tables.
	relayedRetryMin = time.Minute
	relayedRetryMax = 32 * time.Minute
	// punchTimeout is how long the link may take to come up. Until then the peer's
	// address is asked for every punchInterval.
	punchTimeout  = 30 * time.Second
	punchInterval = 5 * time.Second
	// wantedTimeout is how long a session is kept after its keys were used.
	wantedTimeout = 3 * time.Minute
	// wantedRetryMin is the time from the first attempt at a wanted session to the
	// second. It doubles up to wantedRetryMax.
	wantedRetryMin = time.Second
	wantedRetryMax = 30 * time.Second
	// maxWanted bounds the sessions that are kept for their keys. One more takes the
	// place of the one that was not used for the longest time, if that was wantedSpare.
	// maxHeard bounds those to whose peers this router sends nothing. They make space for
	// the others: a member can send from many names that it made up.
	maxWanted   = 512
	maxHeard    = maxWanted / 2
	wantedSpare = 15 * time.Second
	// maxRelayedDials is how many attempts one round of the loop starts.
	maxRelayedDials = 8
	// maxRelayedOpened bounds the streams of relayed sessions that this peer opens: for
	// maxWanted sessions and for attempts at hole punching. maxRelayedAccepted and
	// maxRelayedFromPeer bound those of others. A peer needs one session, and for a moment
	// one more when it is restarted.
	maxRelayedOpened   = 640
	maxRelayedAccepted = 512
	maxRelayedFromPeer = 4
)

// relayedLimits bound the streams of relayed sessions. Either end may start a session, so
// others who take all that they may open keep no peer from the keys that its own router
// wants.
var relayedLimits = stream.Limits{Opened: maxRelayedOpened, Accepted: maxRelayedAccepted, FromPeer: maxRelayedFromPeer, Waiting: 64 << 10}

// relayedTry records the attempts at a relayed session with one peer.
type relayedTry struct {
	next  time.Time
	delay time.Duration
}

// wanted is a session whose keys the router uses.
type wanted struct {
	last  time.Time // when it used them
	sent  time.Time // when it used them to send
	next  time.Time // when to try again
	delay time.Duration
}

// WantSession says that the router needs the keys of a link with a peer, although frames
// to the peer go over others. sends reports that it sends frames; otherwise the peer does.
// It is called every few seconds while it does.
func (m *Mesh) WantSession(n peer.Name, sends bool) {
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	w := m.wantedSessions[n]
	if w == nil {
		if !m.spaceForWanted(now, sends) {
			m.counters.unwanted.Add(1)
			return
		}
		w = &wanted{delay: wantedRetryMin}
		m.wantedSessions[n] = w
	}
	w.last = now
	if sends {
		w.sent = now
	}
	if (*m.neighbours.Load())[n] == nil {
		m.wakeLoop()
	}
}

// heard reports whether this router sends nothing to the peer.
func (w *wanted) heard(now time.Time) bool { return now.Sub(w.sent) > wantedTimeout }

// spaceForWanted makes space for one more wanted session, and reports whether there is any.
// It is called with mu held.
func (m *Mesh) spaceForWanted(now time.Time, sends bool) bool {
	// The oldest session of all and of those that are only heard.
	var oldest, oldestHeard peer.Name
	heard := 0
	older := func(n, than peer.Name) bool {
		o := m.wantedSessions[than]
		return o == nil || m.wantedSessions[n].last.Before(o.last)
	}
	for n, w := range m.wantedSessions {
		if older(n, oldest) {
			oldest = n
		}
		if w.heard(now) {
			heard++
			if older(n, oldestHeard) {
				oldestHeard = n
			}
		}
	}
	victim := oldest
	switch full := len(m.wantedSessions) >= maxWanted; {
	case !full && (sends || heard < maxHeard):
		return true
	case full && sends && heard > 0:
		delete(m.wantedSessions, oldestHeard)
		return true
	case !sends && heard == 0:
		return false
	case !sends:
		victim = oldestHeard
	}
	if now.Sub(m.wantedSessions[victim].last) < wantedSpare {
		return false
	}
	delete(m.wantedSessions, victim)
	return true
}

// wantedDue returns the peers with which to start a session that the router wants. It is
// called with mu held.
func (m *Mesh) wantedDue(now time.Time) (due []peer.Name) {
	neighbours, v := *m.neighbours.Load(), m.view.Load()
	for n, w := range m.wantedSessions {
		switch {
		case now.Sub(w.last) > wantedTimeout:
			delete(m.wantedSessions, n)
		case neighbours[n] != nil || now.Before(w.next) || !v.Reachable(n) || len(due) >= maxRelayedDials:
		default:
			w.next, w.delay = now.Add(w.delay), min(2*w.delay, wantedRetryMax)
			due = append(due, n)
		}
	}
	return due
}

// relayedDue returns the peers with which to start a relayed session now. It is called
// with mu held.
func (m *Mesh) relayedDue(now time.Time) (due []peer.Name) {
	neighbours, v := *m.neighbours.Load(), m.view.Load()
	for n, d := range neighbours {
		switch l := m.data[n]; {
		case !d.relayed:
		case l.up:
			delete(m.relayedTries, n)
		case now.Sub(d.since) > punchTimeout && now.Sub(l.changed) > punchTimeout && m.wantedSessions[n] == nil:
			d.terminate(away(errNoPackets))
		case d.Dialled && now.Sub(d.addrAskedAt) > punchInterval && (now.Sub(d.since) <= punchTimeout || now.Sub(d.addrAskedAt) > relayedRetryMin):
			// An answer may have been lost, or the address may have changed.
			d.addrAskedAt = now
			m.askToPunch(n)
		}
	}
	if !m.cfg.Discover || m.cfg.UDPAddr == nil || m.maker.Full() {
		return nil
	}
	for _, c := range m.maker.Status() {
		n := c.Peer
		if c.Target != "" || n.IsZero() || m.self.Compare(n) > 0 || c.Err == nil || neighbours[n] != nil ||
			len(due) >= maxRelayedDials || v.graph.Common(n, topology.LinkSession|topology.LinkData) == nil {
			continue
		}
		if m.relayedRetryDue(n, now) {
			due = append(due, n)
		}
	}
	for n, e := range m.pendingAddrs {
		if now.Sub(e.at) > punchInterval {
			delete(m.pendingAddrs, n)
		}
	}
	for n := range m.relayedTries {
		if !v.Reachable(n) {
			delete(m.relayedTries, n)
		}
	}
	return due
}

// relayedRetryDue reports whether it is time for a relayed session with n. If so, it
// doubles the time until the next attempt.
func (m *Mesh) relayedRetryDue(n peer.Name, now time.Time) bool {
	t := m.relayedTries[n]
	if t == nil {
		t = &relayedTry{delay: relayedRetryMin}
		m.relayedTries[n] = t
	}
	if now.Before(t.next) {
		return false
	}
	t.next = now.Add(t.delay)
	t.delay = min(2*t.delay, relayedRetryMax)
	return true
}

func (m *Mesh) dialRelayed(n peer.Name) {
	defer m.wg.Done()
	nc, err := m.relayedStreams.Dial(n)
	if err != nil {
		m.log.Debug("relayed session failed", "peer", n, "err", err)
		return
	}
	m.handshakeRelayed(n, nc, session.Dial)
}

// acceptRelayed is called for each stream that another peer opens.
func (m *Mesh) acceptRelayed(from peer.Name, nc net.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		nc.Close()
		return
	}
	m.wg.Add(1)
	go func() {
		defer m.wg.Done()
		m.handshakeRelayed(from, nc, session.Accept)
	}()
}

func (m *Mesh) handshakeRelayed(n peer.Name, nc net.Conn, shake func(net.Conn, *session.Config) (*session.Conn, error)) {
	hs := m.handshakeConfig()
	hs.Check = func(h *session.Hello, _ bool) *session.Refusal { return m.checkRelayedHello(n, h) }
	c, err := shake(nc, &hs)
	if err == nil {
		err = m.adoptRelayed(c)
	}
	if err != nil {
		nc.Close()
		m.log.Debug("relayed session failed", "peer", n, "err", err)
	}
}

func (m *Mesh) checkRelayedHello(n peer.Name, h *session.Hello) *session.Refusal {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch err := m.book.Check(h.Name, h.Key); {
	case h.Name != n:
		return &session.Refusal{Code: session.CodeCollision, Reason: fmt.Sprintf("peer %s answers in place of %s", h.Name, n)}
	case err != nil:
		return &session.Refusal{Code: session.CodeCollision, Reason: err.Error()}
	case m.isBanned(h.Key):
		return &session.Refusal{Code: session.CodeBanned, Reason: errBanned.Error()}
	case m.closing:
		return &session.Refusal{Code: session.CodeOther, Reason: "the router is stopping"}
	case !m.bans.until(n, time.Now()).IsZero():
		return &session.Refusal{Code: session.CodeOther, Reason: errMisbehaved.Error()}
	case m.direct(n) != nil:
		return &session.Refusal{Code: session.CodeDuplicate, Reason: errDuplicate.Error()}
	}
	return nil
}

func (m *Mesh) adoptRelayed(c *session.Conn) error {
	n := newNeighbour(c)
	n.relayed = true
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.isBanned(c.Peer.Key):
		return errBanned
	case m.closing || m.direct(n.name) != nil:
		return errDuplicate
	}
	if old := (*m.neighbours.Load())[n.name]; old != nil {
		if old.Peer.Instance == c.Peer.Instance && old.ID <= c.ID {
			return errDuplicate
		}
		m.replace(old, c, errDuplicate)
	}
	if w := m.wantedSessions[n.name]; w != nil {
		w.delay = wantedRetryMin
	}
	m.setNeighbour(n.name, n)
	m.sendProofs(n)
	up := n.up(netip.AddrPort{})
	m.events = append(m.events, func(o Observer) { o.NeighbourUp(up) })
	m.wakeLoop()
	m.log.Info("relayed session up", "peer", n.name, "nickname", c.Peer.Nickname)
	m.wg.Add(2)
	go m.read(n)
	go m.write(n)
	if e, ok := m.pendingAddrs[n.name]; ok && n.since.Sub(e.at) < punchInterval {
		m.setPunchedAddr(n, e.addr)
	}
	delete(m.pendingAddrs, n.name)
	if n.Dialled {
		n.addrAskedAt = n.since
		m.askToPunch(n.name)
	}
	return nil
}

var (
	errMisbehaved = errors.New("the peer misbehaved and gets no session for a while")
	errDirect     = errors.New("replaced by a direct session")
	errNoPackets  = errors.New("no UDP packet of the peer arrived")
)
