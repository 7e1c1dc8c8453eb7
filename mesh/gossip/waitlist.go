package gossip

import (
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// Waitlist holds what neighbours brought and a channel cannot use yet, for a short time and
// in limited space. If it is full, the neighbour that fills most of it loses its oldest
// item. Digests bring again what is dropped too early. Make one with NewWaitlist.
type Waitlist[K comparable, V any] struct {
	limits WaitLimits
	all    map[K]*Waiting[K, V]
	shares map[peer.Name]*waitShare[K, V]
	bytes  int
}

// WaitLimits bound a Waitlist. All fields are constant.
type WaitLimits struct {
	// Items and Bytes bound what waits; 0 for no bound.
	Items, Bytes int
	// TTL is how long an item waits.
	TTL time.Duration
}

// Waiting is one item of a Waitlist. It is read-only.
type Waiting[K comparable, V any] struct {
	Key   K
	Value V
	From  peer.Name // the neighbour that brought it

	bytes int
	until time.Time // zero until the first Expire
}

// waitShare is what one neighbour brought.
type waitShare[K comparable, V any] struct {
	items, bytes int
	queue        []*Waiting[K, V] // in order of arrival; some may have left
}

// NewWaitlist returns an empty Waitlist.
func NewWaitlist[K comparable, V any](l WaitLimits) *Waitlist[K, V] {
	return &Waitlist[K, V]{limits: l, all: make(map[K]*Waiting[K, V]), shares: make(map[peer.Name]*waitShare[K, V])}
}

// Len returns how many items wait.
func (l *Waitlist[K, V]) Len() int { return len(l.all) }

// Bytes returns how many bytes wait.
func (l *Waitlist[K, V]) Bytes() int { return l.bytes }

// Get returns an item, nil if it does not wait.
func (l *Waitlist[K, V]) Get(k K) *Waiting[K, V] { return l.all[k] }

// All yields the items in no order. Items may be removed meanwhile.
func (l *Waitlist[K, V]) All() iter.Seq[*Waiting[K, V]] { return maps.Values(l.all) }

// Add puts an item of some bytes that a neighbour brought into the list, in place of the
// one with its key, and returns how many items were dropped for it.
func (l *Waitlist[K, V]) Add(k K, v V, bytes int, from peer.Name) (dropped int) {
	l.Remove(k)
	s := l.shares[from]
	if s == nil {
		s = &waitShare[K, V]{}
		l.shares[from] = s
	}
	if len(s.queue) > 2*len(l.all)+64 { // most of it has left
		l.tidy(s)
	}
	w := &Waiting[K, V]{Key: k, Value: v, From: from, bytes: bytes}
	l.all[k] = w
	s.queue = append(s.queue, w)
	s.items++
	s.bytes += bytes
	l.bytes += bytes
	for l.limits.Items > 0 && len(l.all) > l.limits.Items || l.limits.Bytes > 0 && l.bytes > l.limits.Bytes {
		l.removeOldest()
		dropped++
	}
	return dropped
}

// removeOldest drops the oldest item of the neighbour that fills most of the list.
func (l *Waitlist[K, V]) removeOldest() {
	var most peer.Name
	var share *waitShare[K, V]
	for n, s := range l.shares {
		if share == nil || s.bytes > share.bytes || s.bytes == share.bytes && n.Compare(most) < 0 {
			most, share = n, s
		}
	}
	for len(share.queue) > 0 {
		w := share.queue[0]
		share.queue = share.queue[1:]
		if l.all[w.Key] == w {
			l.Remove(w.Key)
			return
		}
	}
}

// Remove takes an item off the list, if it is there.
func (l *Waitlist[K, V]) Remove(k K) {
	w := l.all[k]
	if w == nil {
		return
	}
	delete(l.all, k)
	l.bytes -= w.bytes
	s := l.shares[w.From]
	s.bytes -= w.bytes
	if s.items--; s.items == 0 {
		delete(l.shares, w.From)
	}
}

// Expire drops the items that have waited too long. The time of an item begins with the
// first call after it was added.
func (l *Waitlist[K, V]) Expire(now time.Time) {
	for k, w := range l.all {
		switch {
		case w.until.IsZero():
			w.until = now.Add(l.limits.TTL)
		case !now.Before(w.until):
			l.Remove(k)
		}
	}
	for _, s := range l.shares {
		l.tidy(s)
	}
}

// tidy removes from the queue of a neighbour what has left the list.
func (l *Waitlist[K, V]) tidy(s *waitShare[K, V]) {
	s.queue = slices.DeleteFunc(s.queue, func(w *Waiting[K, V]) bool { return l.all[w.Key] != w })
}
