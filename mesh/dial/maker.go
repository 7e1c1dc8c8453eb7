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
	next    int // of addrs
	peer    peer.Name
	state   State
	delay   time.Duration
	retry   time.Time
	err     error
	alive   bool
	expires time.Time // zero: never
}

// Maker holds the candidates. It is not safe for concurrent use.
type Maker struct {
	self     peer.Name
	limit    int
	discover bool
	rng      *rand.Rand
	all      map[Key]*candidate
	sessions map[peer.Name]bool
}

// New returns a Maker for a peer that holds at most limit sessions (0: any
// number) and dials members if discover is set.
func New(self peer.Name, limit int, discover bool, rng *rand.Rand) *Maker {
	return &Maker{self: self, limit: limit, discover: discover, rng: rng,
		all: make(map[Key]*candidate), sessions: make(map[peer.Name]bool)}
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

// Member records that a peer is in the mesh and where it may be dialled.
func (m *Maker) Member(n peer.Name, addrs []netip.AddrPort, now time.Time) {
	if !m.discover || n == m.self || len(addrs) == 0 {
		return
	}
	k := Key{peer: n}
	c := m.all[k]
	if c == nil {
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
	}
	c.addrs = c.addrs[:0]
	for _, a := range addrs {
		c.addrs = append(c.addrs, a.String())
	}
	c.alive, c.expires = true, time.Time{}
}

// MemberLost records that the mesh lost a peer, which crashed or was cut off. It
// is still dialled for KeepLost.
func (m *Maker) MemberLost(n peer.Name, now time.Time) {
	c := m.all[Key{peer: n}]
	if c == nil {
		return
	}
	c.alive = false
	if c.expires.IsZero() {
		c.expires = now.Add(LostMemberTTL)
	}
}

// MemberLeft records that a peer said goodbye. It is not dialled any more.
func (m *Maker) MemberLeft(n peer.Name) { delete(m.all, Key{peer: n}) }

// SessionUp records that there is a session with n, whichever end dialled.
func (m *Maker) SessionUp(n peer.Name) {
	m.sessions[n] = true
	for k, c := range m.all {
		if c.peer == n && (k.target == "" || c.state == Dialling) {
			c.state, c.err = Connected, nil
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
	if c.alive {
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
	busy := len(m.sessions)
	for k, c := range m.all {
		if c.state == Dialling {
			busy++
		}
		if !c.expires.IsZero() && now.After(c.expires) && !m.sessions[k.peer] {
			delete(m.all, k)
		}
	}
	var due []Key
	for k, c := range m.all {
		switch {
		case c.state != Waiting:
		case m.sessions[c.peer]:
			c.state, c.err = Connected, nil
		case !now.Before(c.retry):
			due = append(due, k)
		}
	}
	// Targets first, then in order of name, so that equal seeds give equal runs.
	slices.SortFunc(due, func(a, b Key) int {
		return cmp.Or(cmp.Compare(b.target, a.target), a.peer.Compare(b.peer))
	})
	var out []Attempt
	for _, k := range due {
		if m.limit > 0 && busy >= m.limit {
			break
		}
		busy++
		c := m.all[k]
		c.state = Dialling
		out = append(out, Attempt{k, c.addrs[c.next%len(c.addrs)]})
	}
	return out
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
	full := m.Full()
	for k, c := range m.all {
		if !c.expires.IsZero() && !m.sessions[k.peer] {
			sooner(c.expires)
		}
		if c.state == Waiting && !full {
			sooner(c.retry)
		}
	}
	return next
}

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
