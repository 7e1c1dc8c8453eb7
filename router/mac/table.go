// Package mac is the MAC table of the switch: the peer that each MAC address was last
// seen behind.
//
// Time is an argument: a duration since an origin that the caller chooses, which never
// goes back. A Table is safe for concurrent use.
package mac

import (
	"encoding/binary"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
)

// MaxAge is how long an address stays after it was last seen.
const MaxAge = 10 * time.Minute

// DefaultLimit bounds the addresses of one peer in a Table made by New(0), and so the
// cost of a container that invents source addresses. Frames to addresses beyond the
// bound are flooded, like those to unknown addresses.
const DefaultLimit = 16384

// shardCount is a power of two, large enough that lanes seldom contend.
const shardCount = 64

// Change is what Learn did.
type Change int

// Changes.
const (
	Same  Change = iota // seen there before
	Added               // seen for the first time, or again after MaxAge
	Moved               // seen behind another peer before
	Full                // not remembered: the peer has too many
)

// Table maps addresses to peers. Make one with New.
type Table struct {
	limit  int
	shards [shardCount]shard

	mu     sync.Mutex // taken inside a shard's lock
	byPeer map[peer.Name]int
}

type shard struct {
	mu      sync.RWMutex
	entries map[ethernet.MAC]*entry
}

type entry struct {
	at   peer.Name    // under the shard's lock
	seen atomic.Int64 // time.Duration
}

// New returns an empty table that has up to limit addresses for each peer, DefaultLimit if
// limit is 0.
func New(limit int) *Table {
	if limit == 0 {
		limit = DefaultLimit
	}
	t := &Table{limit: limit, byPeer: make(map[peer.Name]int)}
	for i := range t.shards {
		t.shards[i].entries = make(map[ethernet.MAC]*entry)
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
	s.mu.RUnlock()
	return t.change(s, m, at, now)
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
	case t.byPeer[at] >= t.limit:
		if known {
			// It is no longer where it was.
			t.forget(s, m, e)
		}
		return Full
	case known:
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

// forget needs both locks.
func (t *Table) forget(s *shard, m ethernet.MAC, e *entry) {
	delete(s.entries, m)
	t.count(e.at, -1)
}

func (t *Table) count(at peer.Name, d int) {
	if t.byPeer[at] += d; t.byPeer[at] == 0 {
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

// Entry is an entry of the table.
type Entry struct {
	MAC  ethernet.MAC
	Peer peer.Name
	Age  time.Duration // since it was last seen, to the second
}

// Entries returns the table, ordered by address.
func (t *Table) Entries(now time.Duration) []Entry {
	var all []Entry
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.RLock()
		for m, e := range s.entries {
			if age := now - time.Duration(e.seen.Load()); age <= MaxAge {
				all = append(all, Entry{m, e.at, max(age, 0)})
			}
		}
		s.mu.RUnlock()
	}
	slices.SortFunc(all, func(a, b Entry) int { return slices.Compare(a.MAC[:], b.MAC[:]) })
	return all
}
