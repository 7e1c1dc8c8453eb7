// Package mac is the MAC table of the switch: the peer that each MAC address was last
// seen behind.
//
// An address may be bound to a peer: that peer has announced, signed, that it gave the address
// to a container of its host. Then only frames of that peer teach the table where the address
// is, and a container elsewhere that sends with it moves nothing. An address that is bound and
// was not seen yet enters the table with the first frame for it.
//
// Time is an argument: a duration since an origin that the caller chooses, which never
// goes back. A Table is safe for concurrent use.
package mac

import (
	"cmp"
	"encoding/binary"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
)

// MaxAge is how long an address stays after it was last seen.
const MaxAge = 10 * time.Minute

// Limits bound a Table, and so the cost of containers and peers that invent source
// addresses. Frames to an address for which there was no space are flooded, like those to
// unknown addresses. A field that is 0 has the value of DefaultLimits.
type Limits struct {
	// PerPeer is how many addresses one peer may have; this host is one of the peers.
	PerPeer int
	// Reserved is how many addresses each peer may have whatever the others have.
	Reserved int
	// Shared is how many addresses beyond Reserved all peers together may have.
	Shared int
}

// DefaultLimits leave half of the kernel's map of MAC addresses to what is reserved.
var DefaultLimits = Limits{PerPeer: 16384, Reserved: 128, Shared: 32768}

// shardCount is a power of two, large enough that lanes seldom contend.
const shardCount = 64

// Change is what Learn did.
type Change int

// Changes.
const (
	Same  Change = iota // seen there before
	Added               // seen for the first time, or again after MaxAge
	Moved               // seen behind another peer before
	Full                // not remembered: the peer, or all together, have too many
	Bound               // not remembered: the address is bound to another peer
)

// Table maps addresses to peers. Make one with New.
type Table struct {
	limits Limits
	shards [shardCount]shard

	// moves, refused and elsewhere count Moved, Full and Bound.
	moves, refused, elsewhere atomic.Uint64

	mu     sync.Mutex // taken inside a shard's lock
	byPeer map[peer.Name]int
	shared int // addresses beyond what is reserved
	total  int
}

type shard struct {
	mu      sync.RWMutex
	entries map[ethernet.MAC]*entry
	// bound has the peers to which addresses are bound. No entry is at another peer.
	bound map[ethernet.MAC]peer.Name
}

type entry struct {
	at   peer.Name    // under the shard's lock
	seen atomic.Int64 // time.Duration
}

// New returns an empty table.
func New(l Limits) *Table {
	l.PerPeer = cmp.Or(l.PerPeer, DefaultLimits.PerPeer)
	l.Reserved = cmp.Or(l.Reserved, DefaultLimits.Reserved)
	l.Shared = cmp.Or(l.Shared, DefaultLimits.Shared)
	t := &Table{limits: l, byPeer: make(map[peer.Name]int)}
	for i := range t.shards {
		t.shards[i].entries, t.shards[i].bound = make(map[ethernet.MAC]*entry), make(map[ethernet.MAC]peer.Name)
	}
	return t
}

func (t *Table) shard(m ethernet.MAC) *shard {
	h := uint64(binary.BigEndian.Uint32(m[2:])) * 0x9e3779b97f4a7c15
	return &t.shards[h>>58]
}

// Learn records that a frame from m came from behind the peer at. It allocates nothing
// if m was there before.
func (t *Table) Learn(m ethernet.MAC, at peer.Name, now time.Duration) Change {
	s := t.shard(m)
	s.mu.RLock()
	if e, ok := s.entries[m]; ok && e.at == at {
		// Written at most once a second, so that lanes do not contend for the cache line.
		if old := time.Duration(e.seen.Load()); now-old > time.Second {
			e.seen.Store(int64(now))
			s.mu.RUnlock()
			if now-old > MaxAge {
				return Added
			}
			return Same
		}
		s.mu.RUnlock()
		return Same
	}
	elsewhere := s.isElsewhere(m, at)
	s.mu.RUnlock()
	if elsewhere {
		t.elsewhere.Add(1)
		return Bound
	}
	return t.change(s, m, at, now)
}

// isElsewhere reports whether an address is bound to another peer than at. The lock is held.
func (s *shard) isElsewhere(m ethernet.MAC, at peer.Name) bool {
	to, bound := s.bound[m]
	return bound && to != at
}

// Bind binds m to the peer at, and reports whether that moved it from another peer, so that
// others who know its place must hear of it. A zero at ends the binding: m stays where it is
// until it is seen elsewhere.
func (t *Table) Bind(m ethernet.MAC, at peer.Name) (moved bool) {
	s := t.shard(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	if at.IsZero() {
		delete(s.bound, m)
		return false
	}
	s.bound[m] = at
	e := s.entries[m]
	if e == nil || e.at == at {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.moves.Add(1)
	if t.full(at) {
		t.forget(s, m, e)
		return true
	}
	t.count(e.at, -1)
	e.at = at
	t.count(at, 1)
	return true
}

// BoundTo returns the peer to which m is bound.
func (t *Table) BoundTo(m ethernet.MAC) (at peer.Name, ok bool) {
	s := t.shard(m)
	s.mu.RLock()
	defer s.mu.RUnlock()
	at, ok = s.bound[m]
	return at, ok
}

func (t *Table) change(s *shard, m ethernet.MAC, at peer.Name, now time.Duration) Change {
	s.mu.Lock()
	defer s.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	e, known := s.entries[m]
	switch {
	case known && e.at == at:
		return Same // another lane was faster
	case s.isElsewhere(m, at): // since a moment ago
		t.elsewhere.Add(1)
		return Bound
	case t.full(at):
		// A known address stays where it was: a peer that is full of addresses that it
		// invented must not make others forget theirs.
		t.refused.Add(1)
		return Full
	case known:
		t.moves.Add(1)
		t.count(e.at, -1)
		e.at = at
	default:
		e = &entry{at: at}
		s.entries[m] = e
	}
	t.count(at, 1)
	e.seen.Store(int64(now))
	if known {
		return Moved
	}
	return Added
}

// full reports whether there is no space for one more address of a peer. mu is held.
func (t *Table) full(at peer.Name) bool {
	n := t.byPeer[at]
	return n >= t.limits.PerPeer || n >= t.limits.Reserved && t.shared >= t.limits.Shared
}

// forget needs both locks.
func (t *Table) forget(s *shard, m ethernet.MAC, e *entry) {
	delete(s.entries, m)
	t.count(e.at, -1)
}

// count adds d addresses of a peer. mu is held.
func (t *Table) count(at peer.Name, d int) {
	beyond := func() int { return max(0, t.byPeer[at]-t.limits.Reserved) }
	t.total += d
	t.shared -= beyond()
	t.byPeer[at] += d
	t.shared += beyond()
	if t.byPeer[at] == 0 {
		delete(t.byPeer, at)
	}
}

// Touch records when m was last seen behind the peer at, a time that may be past, by
// others than the callers of Learn. It is false and does nothing if the table does not
// have m there.
func (t *Table) Touch(m ethernet.MAC, at peer.Name, seen time.Duration) bool {
	s := t.shard(m)
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.entries[m]
	if !ok || e.at != at {
		return false
	}
	for old := e.seen.Load(); int64(seen) > old; old = e.seen.Load() {
		if e.seen.CompareAndSwap(old, int64(seen)) {
			break
		}
	}
	return true
}

// Remove forgets m.
func (t *Table) Remove(m ethernet.MAC) {
	s := t.shard(m)
	s.mu.Lock()
	defer s.mu.Unlock()
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := s.entries[m]; ok {
		t.forget(s, m, e)
	}
}

// Lookup returns the peer that m was last seen behind, unless that was longer ago than
// MaxAge.
func (t *Table) Lookup(m ethernet.MAC, now time.Duration) (at peer.Name, ok bool) {
	s := t.shard(m)
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.entries[m]
	if !ok || now-time.Duration(e.seen.Load()) > MaxAge {
		return peer.Name{}, false
	}
	return e.at, true
}

// Find is Lookup for an address that a frame is for. If it was not seen lately and is bound, it is where
// its binding says, and change is Added if the table has it from now on.
func (t *Table) Find(m ethernet.MAC, now time.Duration) (at peer.Name, change Change, ok bool) {
	if at, ok = t.Lookup(m, now); ok {
		return at, Same, true
	}
	if at, ok = t.BoundTo(m); !ok {
		return peer.Name{}, Same, false
	}
	return at, t.Learn(m, at, now), true
}

// Expire removes addresses that were not seen for MaxAge, and returns their number. Call
// it periodically; Lookup does not depend on it.
func (t *Table) Expire(now time.Duration) int {
	return t.remove(func(e *entry) bool { return now-time.Duration(e.seen.Load()) > MaxAge })
}

// Forget removes all addresses of a peer and returns their number.
func (t *Table) Forget(at peer.Name) int {
	return t.remove(func(e *entry) bool { return e.at == at })
}

func (t *Table) remove(match func(*entry) bool) (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		t.mu.Lock()
		for m, e := range s.entries {
			if match(e) {
				t.forget(s, m, e)
				n++
			}
		}
		t.mu.Unlock()
		s.mu.Unlock()
	}
	return n
}

// Stats are the counters of a Table.
type Stats struct {
	Entries int    // also those that are too old and not removed yet
	Moves   uint64 // of addresses from one peer to another
	Refused uint64 // addresses for which there was no space, each time they were seen
	// Elsewhere counts frames whose source address is bound to another peer.
	Elsewhere uint64
}

// Stats returns the counters.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{Entries: t.total, Moves: t.moves.Load(), Refused: t.refused.Load(), Elsewhere: t.elsewhere.Load()}
}

// Entry is an entry of the table.
type Entry struct {
	MAC  ethernet.MAC
	Peer peer.Name
	Age  time.Duration // since it was last seen, to the second
}

// Entries returns the table, ordered by address.
func (t *Table) Entries(now time.Duration) []Entry {
	all, _ := t.Some(now, math.MaxInt)
	return all
}

// Some returns about limit entries at most, ordered by address, and the number of the
// others. If there are more, each peer has the same share, at least one.
func (t *Table) Some(now time.Duration, limit int) (some []Entry, omitted int) {
	t.mu.Lock()
	share := math.MaxInt
	if t.total > limit {
		share = max(1, limit/max(1, len(t.byPeer)))
	}
	t.mu.Unlock()
	had := make(map[peer.Name]int)
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for m, e := range s.entries {
			age := now - time.Duration(e.seen.Load())
			if age > MaxAge {
				continue
			}
			if had[e.at]++; had[e.at] > share {
				omitted++
				continue
			}
			some = append(some, Entry{m, e.at, max(age, 0)})
		}
		s.mu.RUnlock()
	}
	slices.SortFunc(some, func(a, b Entry) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
	return some, omitted
}
