// Package dial decides which peers to dial, and when.
//
// There are two kinds of candidate: targets, the addresses that the user gave this peer
// to connect to; and members, the peers that the mesh knows. A candidate that fails is
// tried again after a back-off. It starts at FirstDelay and grows by half each time, up
// to MaxDelay. Each delay is spread at random from half of it to one and a half, so that
// the peers of a mesh do not dial a lost peer in step. A session that lasted for
// StableAfter resets the back-off.
//
// A Maker is a step machine: it opens no socket and reads no clock.
package dial

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// The back-off; see the package comment. With shorter delays a peer that comes back is
// found sooner, but dialling peers that are really gone costs more.
const (
	FirstDelay  = 2 * time.Second
	MaxDelay    = 6 * time.Minute
	StableAfter = time.Minute
	// MaxDelayAlive bounds the back-off for a member that is alive, because some path
	// leads to it: only the direct session is missing.
	MaxDelayAlive = 30 * time.Second
	// LostMemberTTL is how long a lost member is still dialled, so that a partition
	// heals by itself.
	LostMemberTTL = time.Hour
	// leftPause is how long a member that said goodbye is not dialled if the mesh still
	// knows it: it may be starting again.
	leftPause = 10 * time.Second
)

const (
	// maxMembers bounds the members that are candidates. If there are more, those that
	// were lost make room, and then the new ones are not dialled.
	maxMembers = 4096
	// maxDials is how many attempts at members are in progress at a time, and how many at
	// targets.
	maxDials = 16
	// blockedDelay is how long a candidate waits that may not be dialled because of a
	// limit.
	blockedDelay = 200 * time.Millisecond
)

// State is the state of a candidate.
type State int

// States of a candidate.
const (
	Waiting   State = iota // until Retry
	Dialling               // an attempt is in progress
	Connected              // there is a session with its peer
	Itself                 // the address is this peer's own: it is never tried again
)

// Candidate is one line of Status.
type Candidate struct {
	Target string    // as the user wrote it; empty for a member
	Peer   peer.Name // zero while the peer of a target is unknown
	Addr   string    // the last or next address to dial
	State  State
	Retry  time.Time // when Waiting
	Err    error     // of the last attempt
}

// Attempt is a request to dial. Done must be called once with its Key.
type Attempt struct {
	Key  Key
	Addr string // a target as written, or an IP and port
}

// Key names a candidate.
type Key struct {
	target string
	peer   peer.Name
}

type candidate struct {
	addrs   []string
	hosts   []netip.Addr // of addrs; of a member
	dialled netip.Addr   // of the attempt in progress; of a member
	next    int          // of addrs
	peer    peer.Name
	state   State
	delay   time.Duration
	retry   time.Time
	err     error
	alive   bool
	suspect bool      // the member list says that it is lost
	expires time.Time // zero: never
	left    time.Time // until when it is not dialled because it said goodbye
}

// Maker holds the candidates. It is not safe for concurrent use.
type Maker struct {
	self     peer.Name
	limit    int
	discover bool
	rng      *rand.Rand
	all      map[Key]*candidate
	members  int // candidates that are members
	sessions map[peer.Name]bool

	destinations map[netip.Addr]*destination
}

// New returns a Maker for a peer that holds at most limit sessions (0: any
// number) and dials members if discover is set.
func New(self peer.Name, limit int, discover bool, rng *rand.Rand) *Maker {
	return &Maker{self: self, limit: limit, discover: discover, rng: rng,
		all: make(map[Key]*candidate), sessions: make(map[peer.Name]bool), destinations: make(map[netip.Addr]*destination)}
}

// AddTarget adds an address to connect to. If it exists already it is tried at once.
func (m *Maker) AddTarget(addr string) {
	k := Key{target: addr}
	if c := m.all[k]; c != nil {
		if c.state == Waiting {
			c.retry, c.delay = time.Time{}, 0
		}
		return
	}
	m.all[k] = &candidate{addrs: []string{addr}}
}

// ForgetTarget drops an address and reports whether it was there. A session with
// its peer stays.
func (m *Maker) ForgetTarget(addr string) bool {
	k := Key{target: addr}
	_, ok := m.all[k]
	delete(m.all, k)
	return ok
}

// Targets returns the addresses of all targets, in order.
func (m *Maker) Targets() []string {
	var t []string
	for k := range m.all {
		if k.target != "" {
			t = append(t, k.target)
		}
	}
	slices.Sort(t)
	return t
}

// TargetPeers returns the peers that answered at targets. The caller owns the map.
func (m *Maker) TargetPeers() map[peer.Name]bool {
	out := make(map[peer.Name]bool)
	for k, c := range m.all {
		if k.target != "" && !c.peer.IsZero() && c.state != Itself {
			out[c.peer] = true
		}
	}
	return out
}

// AwaitsTarget reports whether there are targets, this peer itself not among them, and none
// has answered yet.
func (m *Maker) AwaitsTarget() (awaits bool) {
	for k, c := range m.all {
		switch {
		case k.target == "" || c.state == Itself:
		case !c.peer.IsZero():
			return false
		default:
			awaits = true
		}
	}
	return awaits
}

// Member records that a peer is in the mesh and where it says itself that it may be
// dialled.
func (m *Maker) Member(n peer.Name, addrs []netip.AddrPort, now time.Time) {
	if !m.discover || n == m.self {
		return
	}
	k := Key{peer: n}
	c := m.all[k]
	if len(addrs) == 0 {
		if c != nil {
			m.remove(k)
		}
		return
	}
	if c == nil {
		if m.members >= maxMembers && !m.removeLost() {
			return
		}
		// The peer with the higher name waits a little, so that the two do not dial
		// each other at the same moment.
		c = &candidate{peer: n}
		if m.self.Compare(n) > 0 {
			c.retry = now.Add(FirstDelay/4 + m.jitter(FirstDelay)/2)
		}
		if m.sessions[n] {
			c.state = Connected
		}
		m.all[k] = c
		m.members++
	}
	m.claim(c, -1)
	c.addrs, c.hosts = c.addrs[:0], hostsOf(addrs)
	for _, a := range addrs {
		c.addrs = append(c.addrs, a.String())
	}
	m.claim(c, 1)
	if c.left.IsZero() {
		c.alive, c.expires = true, time.Time{}
	}
}

// Remember records where a peer was with which there was a session in an earlier run. It is
// dialled at once, as a lost member.
func (m *Maker) Remember(n peer.Name, a netip.AddrPort, now time.Time) {
	m.Member(n, []netip.AddrPort{a}, now)
	if c := m.all[Key{peer: n}]; c != nil {
		c.retry = time.Time{}
		m.MemberLost(n, now)
	}
}

// remove drops a candidate.
func (m *Maker) remove(k Key) {
	c := m.all[k]
	if k.target == "" {
		m.members--
		m.end(c, false, time.Time{})
		m.claim(c, -1)
	}
	delete(m.all, k)
}

// end counts the end of an attempt at a member.
func (m *Maker) end(c *candidate, answered bool, now time.Time) {
	if d := m.destinations[c.dialled]; d != nil {
		d.done(answered, now)
		if d.claims <= 0 && d.active == 0 {
			delete(m.destinations, c.dialled)
		}
	}
	c.dialled = netip.Addr{}
}

// removeLost drops the member that was lost first, and reports whether there was one.
func (m *Maker) removeLost() bool {
	var first Key
	for k, c := range m.all {
		if c.expires.IsZero() || m.sessions[k.peer] {
			continue
		}
		if f := m.all[first]; f == nil || c.expires.Before(f.expires) || c.expires.Equal(f.expires) && k.peer.Compare(first.peer) < 0 {
			first = k
		}
	}
	if m.all[first] == nil {
		return false
	}
	m.remove(first)
	return true
}

// Members replaces the members: those that are not in addrs are lost.
func (m *Maker) Members(addrs map[peer.Name][]netip.AddrPort, now time.Time) {
	for k := range m.all {
		if _, known := addrs[k.peer]; !known && k.target == "" {
			m.MemberLost(k.peer, now)
		}
	}
	for _, n := range slices.SortedFunc(maps.Keys(addrs), peer.Name.Compare) {
		m.Member(n, addrs[n], now)
	}
}

// MemberLost records that no path leads to a peer, which crashed or was cut off. It is still
// dialled for LostMemberTTL.
func (m *Maker) MemberLost(n peer.Name, now time.Time) {
	c := m.all[Key{peer: n}]
	if c == nil {
		return
	}
	if !c.left.IsZero() {
		m.remove(Key{peer: n})
		return
	}
	c.alive = false
	if c.expires.IsZero() {
		c.expires = now.Add(LostMemberTTL)
	}
}

// Hint records what the member list says about a member. It speeds attempts up or slows
// them down, and makes nobody a candidate.
func (m *Maker) Hint(n peer.Name, alive bool, now time.Time) {
	c := m.all[Key{peer: n}]
	if c == nil || c.suspect == !alive {
		return
	}
	c.suspect = !alive
	if alive && c.state == Waiting {
		c.delay, c.retry = 0, now.Add(m.jitter(FirstDelay))
	}
}

// MemberLeft records that a peer said goodbye. It is not dialled unless the mesh still knows
// it after a while.
func (m *Maker) MemberLeft(n peer.Name, now time.Time) {
	if c := m.all[Key{peer: n}]; c != nil {
		c.left = now.Add(leftPause)
		c.state, c.retry = Waiting, c.left
	}
}

// SessionUp records that there is a session with n, whichever end dialled.
func (m *Maker) SessionUp(n peer.Name) {
	m.sessions[n] = true
	for k, c := range m.all {
		if c.peer == n && (k.target == "" || c.state == Dialling) {
			c.state, c.err, c.left = Connected, nil, time.Time{}
		}
	}
}

// SessionDown records that the session with n ended after it lasted for lived.
func (m *Maker) SessionDown(n peer.Name, lived time.Duration, err error, now time.Time) {
	delete(m.sessions, n)
	for _, c := range m.all {
		if c.peer != n || c.state != Connected {
			continue
		}
		c.err = err
		if lived >= StableAfter {
			c.delay = 0
		}
		m.wait(c, now)
	}
}

// Done records the result of an attempt: a session with the peer n, which may have
// existed before, or an error. If the peer of a target turns out to be this peer itself,
// the target is never tried again.
func (m *Maker) Done(k Key, n peer.Name, err error, now time.Time) {
	c := m.all[k]
	if c == nil {
		return // forgotten in the meantime
	}
	if k.target == "" {
		m.end(c, !n.IsZero(), now)
	}
	switch {
	case k.target == "" && !n.IsZero() && n != k.peer:
		err = fmt.Errorf("peer %s answers at %s", n, c.addrs[c.next%len(c.addrs)])
	case n == m.self:
		c.state, c.err = Itself, err
		return
	case !n.IsZero():
		c.peer = n
	}
	c.err = err
	if err == nil && m.sessions[c.peer] {
		c.state = Connected
		return
	}
	c.next++
	if len(c.addrs) > 1 && c.next%len(c.addrs) != 0 && err != nil {
		c.state, c.retry = Waiting, now // try the next address at once
		return
	}
	m.wait(c, now)
}

func (m *Maker) wait(c *candidate, now time.Time) {
	most := MaxDelay
	if c.alive && !c.suspect {
		most = MaxDelayAlive
	}
	if c.delay == 0 {
		c.delay = FirstDelay
	} else {
		c.delay = min(c.delay*3/2, most)
	}
	c.state, c.retry = Waiting, now.Add(m.jitter(c.delay))
}

// jitter returns a random duration from half of d to one and a half of it.
func (m *Maker) jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(m.rng.Int64N(int64(d)+1))
}

// Tick returns the attempts to start now.
func (m *Maker) Tick(now time.Time) []Attempt {
	busy, dials := len(m.sessions), [2]int{} // attempts at members and at targets
	for k, c := range m.all {
		if c.state == Dialling {
			busy++
			dials[k.kind()]++
		}
		if !c.expires.IsZero() && now.After(c.expires) && !m.sessions[k.peer] {
			m.remove(k)
		}
	}
	var due []Key
	for k, c := range m.all {
		switch {
		case c.state != Waiting:
		case m.sessions[c.peer]:
			c.state, c.err = Connected, nil
		case !now.Before(c.retry):
			c.left = time.Time{} // the mesh still knows it
			due = append(due, k)
		}
	}
	// Targets first, then in order of name, so that equal seeds give equal runs.
	slices.SortFunc(due, func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.target, a.target), m.all[a].retry.Compare(m.all[b].retry), a.peer.Compare(b.peer))
	})
	var out []Attempt
	reserved := m.reserved()
	for _, k := range due {
		limit := m.limit
		if k.target == "" {
			limit -= reserved
		}
		if m.limit > 0 && busy >= limit {
			break // targets come first
		}
		c := m.all[k]
		if dials[k.kind()] >= maxDials {
			c.retry = now.Add(blockedDelay)
			continue
		}
		if at := m.begin(k, c, now); at.After(now) {
			c.retry = at
			continue
		}
		busy++
		dials[k.kind()]++
		c.state = Dialling
		out = append(out, Attempt{k, c.addrs[c.next%len(c.addrs)]})
	}
	return out
}

// kind returns 0 for a member and 1 for a target.
func (k Key) kind() int {
	if k.target != "" {
		return 1
	}
	return 0
}

// begin counts an attempt at the next address of a candidate, skipping addresses that may
// not be dialled now. If there is no other it returns a later time, when to try again.
func (m *Maker) begin(k Key, c *candidate, now time.Time) (at time.Time) {
	if k.target != "" {
		return now
	}
	for range c.addrs {
		a, _ := netip.ParseAddrPort(c.addrs[c.next%len(c.addrs)])
		d := m.destinations[a.Addr()]
		free := d.free(now)
		if !free.After(now) {
			d.active++
			c.dialled = a.Addr()
			return now
		}
		if at.IsZero() || free.Before(at) {
			at = free
		}
		c.next++
	}
	return at
}

// Next returns the time at which Tick has work to do, if nothing happens before; zero
// if there is none.
func (m *Maker) Next() time.Time {
	var next time.Time
	sooner := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	full, others := m.Full(), m.FullForOthers()
	for k, c := range m.all {
		if !c.expires.IsZero() && !m.sessions[k.peer] {
			sooner(c.expires)
		}
		if c.state == Waiting && (k.target != "" && !full || !others) {
			sooner(c.retry)
		}
	}
	return next
}

// reserved returns how many sessions are kept for targets: one for each target without a
// session, up to an eighth of all.
func (m *Maker) reserved() (n int) {
	for k, c := range m.all {
		if k.target != "" && c.state != Itself && !m.sessions[c.peer] {
			n++
		}
	}
	return min(n, m.limit/8)
}

// FullForOthers reports whether there is no space for a session with a peer that is no
// target.
func (m *Maker) FullForOthers() bool {
	return m.limit > 0 && len(m.sessions) >= m.limit-m.reserved()
}

// IsTarget reports whether n is the peer of a target.
func (m *Maker) IsTarget(n peer.Name) bool {
	for k, c := range m.all {
		if k.target != "" && c.peer == n {
			return true
		}
	}
	return false
}

// IsTarget reports whether the candidate is a target.
func (k Key) IsTarget() bool { return k.target != "" }

// Full reports whether the connection limit is reached.
func (m *Maker) Full() bool { return m.limit > 0 && len(m.sessions) >= m.limit }

// Status returns all candidates, targets first.
func (m *Maker) Status() []Candidate {
	keys := slices.SortedFunc(maps.Keys(m.all), func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.target, a.target), a.peer.Compare(b.peer))
	})
	var s []Candidate
	for _, k := range keys {
		c := m.all[k]
		s = append(s, Candidate{k.target, c.peer, c.addrs[c.next%len(c.addrs)], c.state, c.retry, c.err})
	}
	return s
}
