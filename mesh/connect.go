package mesh

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/mesh/dial"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
)

// maxTargetAddrs bounds the addresses of targets that are remembered.
const maxTargetAddrs = 256

// dialTimeout is how long a host may take to accept a connection. Two hosts that
// cannot dial each other also wait that long before they try a relayed session.
const dialTimeout = 5 * time.Second

// dial makes one attempt and reports the result to the maker.
func (m *Mesh) dial(ctx context.Context, a dial.Attempt) {
	defer m.wg.Done()
	n, err := m.connect(ctx, a.Addr)
	nb := m.direct(n)
	m.mu.Lock()
	if nb != nil && a.Key.IsTarget() && len(m.targetAddrs) < maxTargetAddrs {
		m.targetAddrs[addrPortOf(nb.RemoteAddr()).Addr()] = true
	}
	m.maker.Done(a.Key, n, err, time.Now())
	m.mu.Unlock()
	m.wakeLoop()
}

// connect dials an address and returns the name of the peer there, if there is one.
// The error is nil if there is a session with that peer now.
func (m *Mesh) connect(ctx context.Context, addr string) (peer.Name, error) {
	d := net.Dialer{Timeout: dialTimeout, KeepAlive: -1, Control: setUserTimeout}
	if from := cmp.Or(m.cfg.Host, m.cfg.dialFrom); from.IsValid() {
		d.LocalAddr = &net.TCPAddr{IP: from.AsSlice()}
	}
	nc, err := d.DialContext(ctx, "tcp", withPort(addr))
	if err != nil {
		return peer.Name{}, err
	}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	hs := m.handshakeConfig()
	c, err := session.Dial(nc, &hs)
	if err != nil {
		nc.Close()
		var r *session.Refusal
		if errors.As(err, &r) {
			switch {
			case r.Code == session.CodeSelf:
				return m.self, err
			case r.Code == session.CodeDuplicate && r.Peer != nil:
				return r.Peer.Name, nil
			}
		}
		from := addrPortOf(nc.RemoteAddr()).Addr()
		m.handshakeFailed(err, addr, from)
		m.reportRefused(err, from, true)
		return peer.Name{}, err
	}
	if err := m.adopt(c); err != nil {
		m.log.Debug("session dropped", "peer", c.Peer.Name, "err", err)
	}
	return c.Peer.Name, nil
}

// setUserTimeout makes the kernel close a connection whose far end acknowledges no
// data for sessionTimeout (TCP_USER_TIMEOUT, tcp(7)). Accepted connections inherit
// the option from the listening socket.
func setUserTimeout(_, _ string, c syscall.RawConn) error {
	var serr error
	err := c.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(sessionTimeout/time.Millisecond))
	})
	return cmp.Or(err, os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", serr))
}

// withPort adds the default port to an address that has none.
func withPort(addr string) string {
	if _, _, err := net.SplitHostPort(addr); err == nil {
		return addr
	}
	if ip, err := netip.ParseAddr(addr); err == nil {
		return netip.AddrPortFrom(ip, DefaultPort).String()
	}
	return net.JoinHostPort(addr, strconv.Itoa(DefaultPort))
}

// handshakeFailed counts and reports why a handshake failed with the host at an address. From is
// the address that addr, which may be a name, stands for.
func (m *Mesh) handshakeFailed(err error, addr string, from netip.Addr) {
	code := session.CodeOther
	var r *session.Refusal
	if errors.As(err, &r) {
		code = min(r.Code, session.CodeOther)
		who := addr
		p := Problem{from: from}
		if r.Peer != nil {
			who, p.peer = r.Peer.Name.With(r.Peer.Nickname)+" at "+addr, r.Peer.Name
		}
		switch code {
		case session.CodeSelf, session.CodeDuplicate, session.CodeLimit:
			m.log.Debug("session refused", "peer", who, "code", code, "err", r)
		default:
			p.Text = fmt.Sprintf("session with %s %s", who, r)
			if m.noteRefusal(p, r) {
				m.log.Warn("session refused", "peer", who, "code", code.String(), "err", r)
			}
		}
	} else {
		m.log.Debug("handshake failed", "addr", addr, "err", err)
	}
	m.counters.handshakeFail[code].Add(1)
}

// noteRefusal notes for users that a session was refused, and reports whether that is new.
func (m *Mesh) noteRefusal(p Problem, r *session.Refusal) bool {
	if r.Code == session.CodeBanned && r.Peer != nil {
		if r.ByPeer {
			return m.noteBannedBy(r.Peer.Name, r.Peer.Nickname)
		}
		p.banned = peer.IDOf(r.Peer.Key)
	}
	return m.recordProblem(p)
}

// reportRefused reports a handshake to the observer if it failed because one of the two
// hosts does not want the other.
func (m *Mesh) reportRefused(err error, addr netip.Addr, dialled bool) {
	var r *session.Refusal
	if !errors.As(err, &r) {
		return
	}
	if r.ByPeer && m.isCloneProof(r) {
		m.noteCollision()
	}
	switch r.Code {
	case session.CodePassword, session.CodeCollision, session.CodeIdentity, session.CodeVersion, session.CodeBanned:
		if dialled || m.handshakes.mayReport(addr, time.Now()) {
			m.event(func(o Observer) { o.HandshakeRefused(Refused{Addr: addr, Code: r.Code, Dialled: dialled}) })
		}
	}
}

// checkHello returns a refusal if this peer does not want a session with a peer whose
// hello is valid.
func (m *Mesh) checkHello(h *session.Hello, dialled bool) *session.Refusal {
	r, clone := m.refusal(h, dialled)
	if clone != nil {
		r.Proof = m.proveClone(clone, h.Binding)
	}
	return r
}

// refusal is checkHello without the proof. It returns the neighbour that has the same identity
// if that is the reason.
func (m *Mesh) refusal(h *session.Hello, dialled bool) (_ *session.Refusal, clone *neighbour) {
	no := func(c session.Code, format string, args ...any) (*session.Refusal, *neighbour) {
		return &session.Refusal{Code: c, Reason: fmt.Sprintf(format, args...)}, nil
	}
	if h.Name == m.self {
		switch {
		case h.Instance == m.instance:
			return no(session.CodeSelf, "a peer has dialled itself")
		case h.Key == m.cfg.Identity.Key():
			m.noteCollision()
			return no(session.CodeIdentity, "name collision: both peers use the identity %s: a state folder was copied; run 'weft reset' on one of the two", m.self)
		default:
			return no(session.CodeCollision, "name collision: both peers have the name %s; give one of them another --name", m.self)
		}
	}
	if m.isBanned(h.Key) {
		m.bannedPlaces.add(h.From, h.Key, time.Now())
		return no(session.CodeBanned, "%v", errBanned)
	}
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		return no(session.CodeOther, "the router is stopping")
	}
	if err := m.book.Check(h.Name, h.Key); err != nil {
		return no(session.CodeCollision, "name collision: %v", err)
	}
	if !m.bans.until(h.Name, now).IsZero() {
		return no(session.CodeOther, "%v", errMisbehaved) // without the time: each text is a Problem of its own
	}
	old := m.direct(h.Name)
	switch {
	case old == nil && dialled:
		if m.maker.Full() {
			return no(session.CodeLimit, "the connection limit of %d is reached", m.cfg.ConnLimit)
		}
	case old == nil:
		if _, why := m.makeRoom(h.From, now); why != "" {
			return no(session.CodeLimit, "%s", why)
		}
	case old.Peer.Instance == h.Instance:
		// The two dialled each other at once. adopt decides, equally on both sides.
	case old.silentFor(now) >= pingEvery+pingEvery/2 && !old.linked.Load():
	case old.Peer.Key != h.Key: // a user gave the name to another key
		return no(session.CodeCollision, "name collision: another live peer at %s has the name %s", old.RemoteAddr(), h.Name)
	default:
		r, _ := no(session.CodeIdentity, "name collision: another live peer at %s uses the identity %s: a state folder was copied; run 'weft reset' on one of the two",
			old.RemoteAddr(), h.Name)
		return r, old
	}
	return nil, nil
}

var errNoRoom = errors.New("the connection limit is reached, and another address has fewer sessions")

var errDuplicate = errors.New("there is already a session with this peer")

// adopt adds a session to the mesh. Of two sessions with one peer, both ends keep the
// one with the lower ID.
func (m *Mesh) adopt(c *session.Conn) error {
	n := newNeighbour(c)
	n.gossip = make(map[uint8]chan []byte)
	for id := range m.channels {
		n.gossip[id] = make(chan []byte, 1)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closing {
		c.Close()
		return errors.New("the router is stopping")
	}
	if m.isBanned(c.Peer.Key) { // since its hello
		c.Close()
		return errBanned
	}
	if err := m.book.Bind(c.Peer.Name, c.Peer.Key, peer.Via{Addr: sourceOf(addrPortOf(c.RemoteAddr()).Addr()), Own: true}); err != nil {
		c.Close()
		return err
	}
	switch old := (*m.neighbours.Load())[n.name]; {
	case old == nil && !c.Dialled:
		victim, why := m.makeRoom(addrPortOf(c.RemoteAddr()).Addr(), n.since)
		if why != "" {
			c.Close()
			return errors.New(why)
		}
		if victim != nil {
			m.counters.evicted.Add(1)
			m.counters.terminations.Add(1)
			m.detach(victim, reject(errNoRoom)) // as the far end, which hears CodeLimit
			m.maker.SessionDown(victim.name, n.since.Sub(victim.since), errNoRoom, n.since)
			m.log.Info("session down", "peer", victim.name, "nickname", victim.Peer.Nickname, "err", errNoRoom)
			m.dismiss(victim, session.CodeLimit, errNoRoom)
		}
	case old == nil:
	case old.relayed:
		m.replace(old, c, errDirect)
	case old.Peer.Instance == c.Peer.Instance && old.ID <= c.ID:
		c.Close()
		return errDuplicate
	default:
		m.replace(old, c, errDuplicate)
	}
	m.setNeighbour(n.name, n)
	m.sendProofs(n)
	m.book.Hold(n.name)
	m.onAllChannels(func(e *gossip.Engine) { e.NeighbourUp(n.name) })
	m.maker.SessionUp(n.name)
	up := n.up(n.addr())
	m.events = append(m.events, func(o Observer) {
		o.NeighbourUp(up)
		m.members.Join(up.Name)
	})
	m.log.Info("session up", "peer", n.name, "nickname", c.Peer.Nickname, "addr", c.RemoteAddr().String(), "dialled", c.Dialled, "cipher", c.Cipher)
	m.wg.Add(2)
	go m.read(n)
	go m.write(n)
	m.updateClock()
	m.linksChanged()
	return nil
}

// direct returns the neighbour of a name if its session is over TCP, else nil.
func (m *Mesh) direct(name peer.Name) *neighbour {
	if n := (*m.neighbours.Load())[name]; n != nil && !n.relayed {
		return n
	}
	return nil
}

// setNeighbour replaces the session with a peer; nil removes it. It is called
// with mu held.
func (m *Mesh) setNeighbour(name peer.Name, n *neighbour) {
	next := maps.Clone(*m.neighbours.Load())
	if n == nil {
		delete(next, name)
	} else {
		next[name] = n
	}
	m.neighbours.Store(&next)
}

// replace ends a session whose place another one takes. It is called with mu held.
func (m *Mesh) replace(old *neighbour, by *session.Conn, cause error) {
	e := away(cause)
	if old.Peer.Key != by.Peer.Key {
		e = reject(errOtherKey)
	}
	m.detach(old, e)
	old.terminate(e)
}

var errOtherKey = errors.New("the name belongs to another key now")

// detach removes a session from the mesh's tables and reports whether it was in
// them. The observer hears of e, unless it was concluded before how the session ended. It
// is called with mu held.
func (m *Mesh) detach(n *neighbour, e ended) bool {
	if (*m.neighbours.Load())[n.name] != n {
		return false
	}
	m.setNeighbour(n.name, nil)
	if !n.relayed {
		m.book.Release(n.name)
		m.onAllChannels(func(e *gossip.Engine) { e.NeighbourDown(n.name) })
	}
	delete(m.data, n.name)
	name, how := n.name, n.conclude(e).how
	m.events = append(m.events, func(o Observer) { o.NeighbourDown(name, how) })
	return true
}

var errEnded = errors.New("the session ended")

// drop detaches a session whose reader has ended.
func (m *Mesh) drop(n *neighbour) {
	now := time.Now()
	m.mu.Lock()
	attached := m.detach(n, away(errEnded))
	if attached && !n.relayed {
		m.maker.SessionDown(n.name, now.Sub(n.since), n.err(), now)
		if n.saidGoodbye.Load() {
			m.maker.MemberLeft(n.name, now)
		}
	}
	m.mu.Unlock()
	switch {
	case attached && n.relayed:
		m.log.Info("relayed session down", "peer", n.name, "nickname", n.Peer.Nickname, "err", n.err())
	case attached:
		m.counters.terminations.Add(1)
		m.log.Info("session down", "peer", n.name, "nickname", n.Peer.Nickname, "err", n.err())
	}
	m.linksChanged()
}

// ownAddrs returns the addresses at which this peer may be dialled: those that it
// uses towards its neighbours and those at which they see it.
func (m *Mesh) ownAddrs() []netip.AddrPort {
	if m.cfg.Advertise != nil {
		return m.cfg.Advertise
	}
	if m.cfg.Host.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(m.cfg.Host, m.hs.Port)}
	}
	seen := make(map[netip.Addr]bool)
	public := false
	for _, n := range *m.neighbours.Load() {
		if n.relayed {
			continue
		}
		for _, a := range []netip.Addr{n.local, n.Peer.Seen.Addr()} {
			if a.IsValid() && !a.IsLinkLocalUnicast() {
				seen[a] = true
				public = public || !a.IsLoopback()
			}
		}
	}
	var addrs []netip.AddrPort
	for a := range seen {
		if !public || !a.IsLoopback() {
			addrs = append(addrs, netip.AddrPortFrom(a, m.hs.Port))
		}
	}
	slices.SortFunc(addrs, netip.AddrPort.Compare)
	return addrs[:min(len(addrs), topology.MaxAddrs)]
}

func addrPortOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
