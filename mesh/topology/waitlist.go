package topology

import (
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	// roomTTL is how long an entry waits for the entry that confirms one of its links.
	// Neighbours announce both within a second. Digests bring an entry that is dropped
	// too early again.
	roomTTL = 30 * time.Second
	// maxWaitlist and maxWaitlistBytes bound what waits: two islands of 1,000 peers each that
	// meet.
	maxWaitlist      = 2048
	maxWaitlistBytes = 8 << 20
)

// waitlist holds verified entries that no stored entry confirms yet. If it is full, the
// neighbour that fills most of it loses its oldest entry.
type waitlist struct {
	byName map[peer.Name]*waiting
	from   map[peer.Name]*roomShare
	bytes  int
}

type waiting struct {
	*Entry
	from  peer.Name
	until time.Time
}

// roomShare is what came from one neighbour.
type roomShare struct {
	bytes int
	queue []*waiting // in order of arrival; some may have left the waitlist
}

// add puts e, which came from a neighbour, in the waitlist and returns how many entries were
// dropped for it.
func (r *waitlist) add(e *Entry, from peer.Name, now time.Time) (dropped int) {
	if r.byName == nil {
		r.byName, r.from = make(map[peer.Name]*waiting), make(map[peer.Name]*roomShare)
	}
	r.remove(e.Name)
	w := &waiting{e, from, now.Add(roomTTL)}
	s := r.from[from]
	if s == nil {
		s = &roomShare{}
		r.from[from] = s
	}
	r.byName[e.Name] = w
	s.queue = append(s.queue, w)
	s.bytes += len(e.raw)
	r.bytes += len(e.raw)
	for len(r.byName) > maxWaitlist || r.bytes > maxWaitlistBytes {
		r.removeOldest()
		dropped++
	}
	return dropped
}

// removeOldest drops the oldest entry of the neighbour that fills most of the waitlist.
func (r *waitlist) removeOldest() {
	var most peer.Name
	var share *roomShare
	for n, s := range r.from {
		if share == nil || s.bytes > share.bytes || s.bytes == share.bytes && n.Compare(most) < 0 {
			most, share = n, s
		}
	}
	for share != nil && len(share.queue) > 0 {
		w := share.queue[0]
		share.queue = share.queue[1:]
		if r.byName[w.Name] == w {
			r.remove(w.Name)
			return
		}
	}
}

func (r *waitlist) remove(n peer.Name) {
	w := r.byName[n]
	if w == nil {
		return
	}
	delete(r.byName, n)
	r.bytes -= len(w.raw)
	if s := r.from[w.from]; s != nil {
		if s.bytes -= len(w.raw); s.bytes == 0 {
			delete(r.from, w.from)
		}
	}
}

// expire drops the entries that have waited too long.
func (r *waitlist) expire(now time.Time) {
	for n, w := range r.byName {
		if !now.Before(w.until) {
			r.remove(n)
		}
	}
	for _, s := range r.from {
		live := s.queue[:0]
		for _, w := range s.queue {
			if r.byName[w.Name] == w {
				live = append(live, w)
			}
		}
		clear(s.queue[len(live):])
		s.queue = live
	}
}
