package rotation

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	// keepMember is how long a peer that can be reached no more stays a member, as it may
	// have missed the new password. It is longer than most restarts. Owners of addresses
	// stay as long as they own some.
	keepMember = 10 * time.Minute
	// passOnAfter is how long a peer waits before it passes an order on that it did not
	// give, as most others get it from where it was given. passOnEvery is how often it does
	// so for a neighbour that does not publish it.
	passOnAfter = 2 * time.Second
	passOnEvery = 5 * time.Second
	// newPasswordEvery is the least time between two new passwords of one peer. To check a
	// password costs a tenth of a second.
	newPasswordEvery = 20 * time.Second
	// maxAhead bounds how much later than now an order may be.
	maxAhead = 10 * time.Minute
	// maxGivers bounds the peers whose last order is remembered, more than have votes.
	// maxOfGiver bounds the passwords of one of them that are held at once.
	maxGivers  = 64
	maxOfGiver = 3
	// maxPeers bounds the peers that are kept, more than a topology has. Beyond it no
	// password is dropped.
	maxPeers = 16384
	// maxReplaced is how many ids of former passwords are kept.
	maxReplaced = 64
)

// DefaultSettle is the default of Config.Settle.
const DefaultSettle = 20 * time.Second

// Password is a password with its id.
type Password struct {
	Text string
	ID   ID
}

// Peer is another peer of the mesh.
type Peer struct {
	Name peer.Name
	Key  peer.KeyID
	// Member reports whether the peer must not be locked out.
	Member bool
	// Owner reports whether it owns addresses or has a vote. Such a peer is in the list of
	// SetPeers until it is removed from the mesh, also while it is away.
	Owner bool
}

// Config configures a Machine. The functions are called by its methods and must not block.
type Config struct {
	Self     peer.KeyID
	Signer   peer.Signer
	Verifier peer.Verifier
	// IDOf returns the id of a password. It costs a tenth of a second.
	IDOf func(text string) ID
	// MayOrder reports whether the peer with a key may give orders. A banned one may not.
	MayOrder func(peer.Key) bool
	// Banned reports whether the peer with a key is banned.
	Banned func(peer.KeyID) bool
	// Clock returns the time for orders, as most peers see it.
	Clock func() time.Time
	// Gradual reports whether a configuration that was changed before the start is followed
	// in steps, as if it had changed while the peer ran. Otherwise it alone counts.
	Gradual bool
	// Settle is how long after its start a peer accepts new passwords, but neither offers one
	// nor drops another. Until then it may not know all members. If it is too short, a member
	// that was slow to appear is locked out. Default 20 s.
	Settle time.Duration
}

// rank says which of two passwords is preferred: the later one. line orders those of one
// configuration. Where two orders are of one moment, all peers must prefer the same, so id
// decides.
type rank struct {
	Time int64 `json:"time"`
	Line int   `json:"line"`
	ID   ID    `json:"id"`
}

// compare orders ranks, the preferred one first.
func (r rank) compare(o rank) int {
	return cmp.Or(cmp.Compare(o.Time, r.Time), cmp.Compare(r.Line, o.Line), slices.Compare(r.ID[:], o.ID[:]))
}

// held is a password that this peer accepts.
type held struct {
	Password
	// time is that of the order with which it came, or at which the configuration changed to
	// it, in microseconds since 1970; 0 if it is of the configuration of the launch.
	time int64
	line int // in the configuration
	// order is the newest one; nil for a password of the configuration.
	order *Order
	since time.Time // the order is here
}

func (h *held) rank() rank { return rank{h.time, h.line, h.ID} }

func (h *held) compare(o *held) int { return h.rank().compare(o.rank()) }

// outdated reports whether o takes the place of h. The lines of one configuration stay together.
func (h *held) outdated(o *held) bool {
	if h.time == o.time && h.order == nil && o.order == nil {
		return false
	}
	return o.compare(h) < 0
}

type peerState struct {
	Peer
	last  time.Time // when it was in the list of SetPeers
	state State
}

// Machine is the state of one peer. Make it with New.
type Machine struct {
	cfg      Config
	began    time.Time
	held     []*held // not empty; the preferred one first
	offered  ID
	floor    rank // passwords that are less preferred were dropped
	replaced []ID // former passwords, the newest last
	// configured is the first password of the configuration when it was last read.
	configured ID

	peers      map[peer.KeyID]*peerState
	tooMany    bool // peers
	neighbours map[peer.KeyID]bool
	sent       map[peer.KeyID]time.Time // when an order was sent last
	givers     map[peer.Key]time.Time   // when a new password of theirs was checked last
	changed    bool                     // since the last Tick
}

// New returns the Machine of a peer whose configuration has some passwords, the preferred one
// first, at least one. saved is what Saved returned in an earlier run, or nil. The Machine goes
// on from there if it knows the first of the passwords, or the configuration is Gradual.
// Otherwise only the configuration counts, and forgot reports whether passwords of the earlier
// run are forgotten. The error says why saved is not used.
func New(cfg Config, configured []Password, saved []byte, now time.Time) (m *Machine, forgot bool, err error) {
	m = &Machine{
		cfg: cfg, began: now, peers: make(map[peer.KeyID]*peerState), sent: make(map[peer.KeyID]time.Time),
		givers: make(map[peer.Key]time.Time), changed: true,
	}
	if saved != nil {
		if err = m.restore(saved); err == nil && (m.knows(configured[0].ID) || configured[0].ID == m.configured || cfg.Gradual) {
			if cfg.Gradual {
				m.Configure(configured)
			}
			m.configured = configured[0].ID
			return m, false, nil
		}
		forgot = err == nil
	}
	m.held, m.floor, m.replaced = nil, rank{}, nil
	for i, p := range configured[:min(len(configured), MaxHeld)] {
		m.held = append(m.held, &held{Password: p, line: i})
	}
	m.offered, m.configured = configured[0].ID, configured[0].ID
	return m, forgot, err
}

// knows reports whether a password is, or was, one of this peer.
func (m *Machine) knows(id ID) bool { return m.find(id) != nil || slices.Contains(m.replaced, id) }

func (m *Machine) find(id ID) *held {
	for _, h := range m.held {
		if h.ID == id {
			return h
		}
	}
	return nil
}

// Replaced reports whether a password was one of this peer and is none any more.
func (m *Machine) Replaced(id ID) bool { return m.find(id) == nil && slices.Contains(m.replaced, id) }

// Passwords returns those that this peer accepts, the one that it offers first.
func (m *Machine) Passwords() (out []Password) {
	for _, h := range m.held {
		if h.ID == m.offered {
			out = append(out, h.Password)
		}
	}
	for _, h := range m.held {
		if h.ID != m.offered {
			out = append(out, h.Password)
		}
	}
	return out
}

// State returns what this peer publishes.
func (m *Machine) State() (s State) {
	for _, p := range m.Passwords() {
		a := Accepted{Password: p.ID}
		if h := m.find(p.ID); h.order != nil {
			a.Order = h.order.Time
		}
		s.Accepts = append(s.Accepts, a)
	}
	return s
}

// SetPeers replaces the peers that can be reached, and the owners. This peer is left out. A
// member that is missing stays one for some time, unless it was an owner.
func (m *Machine) SetPeers(list []Peer, now time.Time) {
	m.tooMany = false
	for _, p := range list {
		if p.Key == m.cfg.Self {
			continue
		}
		e := m.peers[p.Key]
		if e == nil {
			if len(m.peers) >= maxPeers {
				m.tooMany = true
				continue
			}
			e = &peerState{}
			m.peers[p.Key] = e
		}
		e.Peer, e.last = p, now
	}
	maps.DeleteFunc(m.peers, func(_ peer.KeyID, e *peerState) bool {
		return now.Sub(e.last) > keepMember || e.last.Before(now) && (e.Owner || !e.Member)
	})
}

// expel makes banned peers members no more. A password by the order of one of them is dropped,
// unless this peer offers it: then others may accept nothing else. It goes as soon as another
// peer has dropped it, or with the next one.
func (m *Machine) expel() {
	maps.DeleteFunc(m.peers, func(k peer.KeyID, _ *peerState) bool { return m.cfg.Banned(k) })
	of := func(h *held) bool { return h.order != nil && m.cfg.Banned(h.order.giver) }
	if offered := m.find(m.offered); of(offered) && m.someDropped(offered) {
		// Who dropped it did not offer it, so nobody has dropped the passwords before it.
		for _, h := range m.held {
			if !of(h) && m.allAccept(h) {
				m.offered, m.changed = h.ID, true
				break
			}
		}
	}
	m.held = slices.DeleteFunc(m.held, func(h *held) bool {
		gone := of(h) && h.ID != m.offered
		m.changed = m.changed || gone
		return gone
	})
}

// someDropped reports whether a member does not accept a password that all accepted.
func (m *Machine) someDropped(h *held) bool {
	for _, e := range m.peers {
		if _, ok := e.state.accepts(h.ID); e.Member && !ok && len(e.state.Accepts) > 0 {
			return true
		}
	}
	return false
}

// Resumable returns the password of the change that is under way, for a further order, and false
// if there is none, or if a banned peer may know the password. own reports whether this peer gave
// the order.
func (m *Machine) Resumable() (p Password, own, ok bool) {
	h := m.held[0]
	if !m.Running() || h.order == nil || slices.ContainsFunc(h.order.Peers, m.cfg.Banned) || m.cfg.Banned(h.order.giver) {
		return Password{}, false, false
	}
	return h.Password, h.order.By == m.cfg.Signer.Key(), true
}

// SetNeighbours replaces the peers with which there is a session. The Machine keeps the map.
func (m *Machine) SetNeighbours(now map[peer.KeyID]bool) {
	m.neighbours = now
	maps.DeleteFunc(m.sent, func(k peer.KeyID, _ time.Time) bool { return !now[k] })
}

// SetState says what a peer publishes; the zero State is nothing.
func (m *Machine) SetState(k peer.KeyID, s State) {
	if e := m.peers[k]; e != nil {
		e.state = s
	}
}

// Configure says that the configuration has changed while the peer runs, and now has these
// passwords, the preferred one first, at least one. A first one that is new takes the place of
// the present one, unless it is one that was replaced.
func (m *Machine) Configure(list []Password) {
	list = list[:min(len(list), MaxHeld)]
	first, was := list[0].ID, m.configured
	m.configured = first
	if m.Replaced(first) {
		return
	}
	at := m.held[0].time
	switch h := m.find(first); {
	case first == was && h == nil:
		return
	case first == was:
		at = h.time
	case m.held[0].ID != first:
		at = m.after()
	}
	m.held = slices.DeleteFunc(m.held, func(h *held) bool { // the user took lines away
		gone := h.time == at && h.order == nil && h.ID != m.offered && !slices.ContainsFunc(list, func(p Password) bool { return p.ID == h.ID })
		m.changed = m.changed || gone
		return gone
	})
	for i, p := range list {
		h := m.find(p.ID)
		switch {
		case h == nil && (len(m.held) >= MaxHeld || m.Replaced(p.ID)):
			continue
		case h == nil:
			h = &held{Password: p}
			m.held = append(m.held, h)
		case h.order != nil && h.time == at:
			continue // the configuration has what an order said
		}
		if h.time != at || h.line != i {
			h.time, h.line, m.changed = at, i, true
		}
	}
	slices.SortFunc(m.held, (*held).compare)
}

// after returns the present time, but not less than is needed to be the latest one.
func (m *Machine) after() int64 {
	return max(m.cfg.Clock().UnixMicro(), m.held[0].time+1, m.floor.Time+1)
}

// ErrNoVote is the cause if a peer may not start a rotation.
var ErrNoVote = errors.New("this peer has no vote")

// Start gives an order for a password that the named peers may know. This peer is one of them
// in any case. If the rotation to that password is under way, the order names more peers.
func (m *Machine) Start(p Password, peers []peer.KeyID, now time.Time) error {
	switch {
	case !m.cfg.MayOrder(m.cfg.Signer.Key()):
		return ErrNoVote
	case len(p.Text) < MinText || len(p.Text) > MaxText:
		return fmt.Errorf("a password of %d bytes, want %d to %d", len(p.Text), MinText, MaxText)
	case m.Replaced(p.ID):
		return errors.New("the password was used before")
	}
	h := m.find(p.ID)
	if h != nil && (h != m.held[0] || !m.Running()) {
		return errors.New("the password is in use")
	}
	if h != nil && h.order != nil {
		peers = slices.Concat(h.order.Peers, peers)
	}
	o, err := newOrder(m.cfg.Signer, m.after(), p.ID, append(peers, m.cfg.Self))
	if err != nil {
		return err
	}
	return m.take(o, p.Text, now)
}

// Receive handles an order that a neighbour passed on. It keeps nothing of msg. An error says
// why the order is refused.
func (m *Machine) Receive(from peer.KeyID, msg []byte, now time.Time) error {
	o, text, err := parseOrder(msg)
	if err != nil {
		return err
	}
	h := m.find(o.Password)
	switch {
	case h != nil && h.order != nil && h.order.Time >= o.Time:
		return nil // known, or older than that
	case h == nil && m.floor.compare(rank{Time: o.Time, ID: o.Password}) <= 0:
		return nil // this peer dropped it, or would have
	case len(text) < MinText:
		return fmt.Errorf("a password of %d bytes, want at least %d", len(text), MinText)
	case o.Time > m.cfg.Clock().Add(maxAhead).UnixMicro():
		return errors.New("its time is ahead of the clock: the clock of one of the two hosts is wrong")
	case !o.names(m.cfg.Self) || !o.names(from):
		return errors.New("it does not name this peer and the one that passed it on")
	case !m.cfg.MayOrder(o.By):
		return errors.New("the peer that gave it has no vote")
	case h == nil && !m.mayCheck(o.By, now):
		return errors.New("the peer that gave it gives too many")
	case !o.verify(m.cfg.Verifier):
		return errors.New("wrong signature")
	case h == nil && m.Replaced(o.Password):
		return errors.New("the password was used before")
	}
	if h == nil {
		m.givers[o.By] = now
		if m.cfg.IDOf(text) != o.Password {
			return errors.New("the password is another one than the order says")
		}
	}
	return m.take(o, text, now)
}

// mayCheck reports whether a new password of a peer may be checked.
func (m *Machine) mayCheck(by peer.Key, now time.Time) bool {
	maps.DeleteFunc(m.givers, func(_ peer.Key, at time.Time) bool { return now.Sub(at) >= newPasswordEvery })
	_, recent := m.givers[by]
	return !recent && len(m.givers) < maxGivers
}

// take adds a password with its order. One that is held gets the order. Nothing that is held is
// dropped for it: others may offer it already.
func (m *Machine) take(o *Order, text string, now time.Time) error {
	h := m.find(o.Password)
	if h == nil {
		if len(m.held) >= MaxHeld || m.pendingOf(o.By) >= maxOfGiver {
			return fmt.Errorf("%d passwords are accepted already, %d of them by orders of that peer", len(m.held), m.pendingOf(o.By))
		}
		h = &held{Password: Password{text, o.Password}, time: o.Time}
		m.held = append(m.held, h)
	}
	o.giver = peer.IDOf(o.By)
	h.order, h.since = o, now
	// A later order makes the password the later one, or peers that have other orders would
	// prefer other passwords.
	h.time, h.line = max(h.time, o.Time), 0
	clear(m.sent)
	slices.SortFunc(m.held, (*held).compare)
	m.changed = true
	return nil
}

// pendingOf returns how many passwords of a peer this peer accepts and does not offer.
func (m *Machine) pendingOf(by peer.Key) (n int) {
	for _, h := range m.held {
		if h.order != nil && h.order.By == by && h.ID != m.offered {
			n++
		}
	}
	return n
}

// Running reports whether the preferred password has yet to take the place of others.
func (m *Machine) Running() bool { return m.held[len(m.held)-1].outdated(m.held[0]) }

// Message is an order for a neighbour.
type Message struct {
	To    peer.KeyID
	Bytes []byte
}

// Tick takes the steps that are due. changed reports whether Passwords, State or Saved differ
// from those after the last Tick. The caller then writes Saved to disk, accepts Passwords, and
// publishes State, in this order. In each case it sends the messages.
func (m *Machine) Tick(now time.Time) (changed bool, messages []Message) {
	m.expel()
	settled := now.Sub(m.began) >= cmp.Or(m.cfg.Settle, DefaultSettle) && !m.tooMany
	for _, h := range m.held {
		if h.ID == m.offered || !settled {
			break
		}
		if m.allAccept(h) {
			m.offered, m.changed = h.ID, true
			break
		}
	}
	if h := m.find(m.offered); settled && m.all(h, func(s State) bool { return s.offers(h.ID) }) {
		m.dropOutdated(h)
	}
	changed, m.changed = m.changed, false
	return changed, m.passOn(now)
}

// all reports whether a condition is true for what each member publishes, and each peer that the
// order of h names.
func (m *Machine) all(h *held, is func(State) bool) bool {
	for k, e := range m.peers {
		if (e.Member || h.order != nil && h.order.names(k)) && !is(e.state) {
			return false
		}
	}
	return true
}

// allAccept is all for those that accept h.
func (m *Machine) allAccept(h *held) bool {
	return m.all(h, func(s State) bool { _, ok := s.accepts(h.ID); return ok })
}

// dropOutdated drops the passwords whose place another one takes.
func (m *Machine) dropOutdated(by *held) {
	m.held = slices.DeleteFunc(m.held, func(h *held) bool {
		if !h.outdated(by) {
			return false
		}
		m.replaced, m.changed = append(m.replaced, h.ID), true
		return true
	})
	m.replaced = m.replaced[max(0, len(m.replaced)-maxReplaced):]
	if by.rank().compare(m.floor) < 0 {
		m.floor = by.rank()
	}
}

// passOn returns the orders that are due to be sent.
func (m *Machine) passOn(now time.Time) (out []Message) {
	for k := range m.neighbours {
		e := m.peers[k]
		if e == nil || now.Sub(m.sent[k]) < passOnEvery {
			continue
		}
		for _, h := range m.held {
			own := h.order != nil && h.order.By == m.cfg.Signer.Key()
			if h.order == nil || !h.order.names(k) || !own && (now.Sub(h.since) < passOnAfter || !e.Member) {
				continue
			}
			if a, ok := e.state.accepts(h.ID); ok && a.Order >= h.order.Time || !ok && m.dropped(e.state, h) {
				continue
			}
			m.sent[k] = now
			out = append(out, Message{k, h.order.message(h.Text)})
		}
	}
	slices.SortFunc(out, func(a, b Message) int { return a.To.Compare(b.To) })
	return out
}

// dropped reports whether a peer offers a password that is newer than h, so that it may have
// dropped h.
func (m *Machine) dropped(s State, h *held) bool {
	if len(s.Accepts) == 0 {
		return false
	}
	o := m.find(s.Accepts[0].Password)
	return o != nil && o.time > h.time
}
