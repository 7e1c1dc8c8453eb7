package records

import (
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	// roomTTL is how long a record waits for the topology entry of its owner. Both are
	// flooded at about the same time. Digests bring a record again that is dropped too
	// early.
	roomTTL = time.Minute
	// maxWaitlist bounds the bytes of the records that wait: 100 hosts with 80 records each that
	// join at the same time.
	maxWaitlist = 2 << 20
)

// waitlist holds records whose owners are not in the topology yet. They are not verified, so a
// record from one neighbour never takes the place of that from another. If the waitlist is full,
// the neighbour that fills most of it loses its oldest record. The zero waitlist is empty.
type waitlist struct {
	all    map[roomKey]*waiting
	shares map[peer.Name]*roomShare
	bytes  int
	now    time.Time
}

type roomKey struct {
	from, owner peer.Name
	bucket      uint8
}

type waiting struct {
	header
	from  peer.Name
	raw   []byte
	since time.Time
}

func (w *waiting) key() roomKey { return roomKey{w.from, w.owner, w.bucket} }

// size is the memory of a waiting record in bytes.
func (w *waiting) size() int { return len(w.raw) + recordCost }

// roomShare is what came from one neighbour.
type roomShare struct {
	bytes int
	queue []*waiting // in order of arrival; some may have left the waitlist
}

// add puts a copy of a record in the waitlist and returns how many were dropped for it.
func (r *waitlist) add(from peer.Name, h header, raw []byte) (dropped int) {
	if r.all == nil {
		r.all, r.shares = make(map[roomKey]*waiting), make(map[peer.Name]*roomShare)
	}
	w := &waiting{header: h, from: from, since: r.now}
	if old := r.all[w.key()]; old != nil {
		if old.incarnation > h.incarnation || old.incarnation == h.incarnation && old.version >= h.version {
			return 0
		}
		r.remove(old)
	}
	w.raw = slices.Clone(raw)
	s := r.shares[from]
	if s == nil {
		s = &roomShare{}
		r.shares[from] = s
	}
	if len(s.queue) > 2*len(r.all)+64 { // most of it has left
		s.queue = slices.DeleteFunc(s.queue, func(w *waiting) bool { return r.all[w.key()] != w })
	}
	r.all[w.key()] = w
	s.queue = append(s.queue, w)
	s.bytes += w.size()
	r.bytes += w.size()
	for r.bytes > maxWaitlist {
		r.removeOldest()
		dropped++
	}
	return dropped
}

// removeOldest drops the oldest record of the neighbour that fills most of the waitlist.
func (r *waitlist) removeOldest() {
	var most peer.Name
	var share *roomShare
	for n, s := range r.shares {
		if share == nil || s.bytes > share.bytes || s.bytes == share.bytes && n.Compare(most) < 0 {
			most, share = n, s
		}
	}
	for len(share.queue) > 0 {
		w := share.queue[0]
		share.queue = share.queue[1:]
		if r.all[w.key()] == w {
			r.remove(w)
			return
		}
	}
}

func (r *waitlist) remove(w *waiting) {
	delete(r.all, w.key())
	r.bytes -= w.size()
	s := r.shares[w.from]
	if s.bytes -= w.size(); s.bytes == 0 {
		delete(r.shares, w.from)
	}
}

// take removes the records of the owners for which ok is true, and returns them in order of
// owner and bucket.
func (r *waitlist) take(ok func(owner peer.Name) bool) (list []*waiting) {
	for _, w := range r.all {
		if ok(w.owner) {
			list = append(list, w)
		}
	}
	for _, w := range list {
		r.remove(w)
	}
	slices.SortFunc(list, func(a, b *waiting) int {
		if c := a.owner.Compare(b.owner); c != 0 {
			return c
		}
		if c := int(a.bucket) - int(b.bucket); c != 0 {
			return c
		}
		return a.from.Compare(b.from)
	})
	return list
}

// expire drops the records that have waited too long.
func (r *waitlist) expire(now time.Time) {
	r.now = now
	for _, w := range r.all {
		switch {
		case w.since.IsZero():
			w.since = now
		case now.Sub(w.since) >= roomTTL:
			r.remove(w)
		}
	}
	for _, s := range r.shares {
		s.queue = slices.DeleteFunc(s.queue, func(w *waiting) bool { return r.all[w.key()] != w })
	}
}
