// Package replay refuses packets that were received before, with a sliding window over
// their sequence numbers (RFC 4303, section 3.4.3), kept in a ring of words that need no
// shifting (RFC 6479).
package replay

// Size is the number of sequence numbers behind the newest one that the window covers.
// At a million packets a second these are eight milliseconds of reordering.
const Size = ringBits - wordBits

const (
	wordBits = 64
	ringBits = 8192
	words    = ringBits / wordBits
)

// Window remembers the sequence numbers of one sender. The zero value has seen none. It
// is not safe for concurrent use.
type Window struct {
	next uint64 // the newest sequence number seen, plus one
	ring [words]uint64
}

// Check reports whether seq is new. Call it before authenticating a packet, and Accept
// afterwards.
func (w *Window) Check(seq uint64) bool {
	if seq >= w.next {
		return seq != ^uint64(0) // so that next cannot wrap
	}
	if w.next-seq > Size {
		return false
	}
	return w.ring[seq/wordBits%words]&(1<<(seq%wordBits)) == 0
}

// Accept records seq, which must belong to an authenticated packet. It returns whether
// seq is new, and whether it is newer than all others.
func (w *Window) Accept(seq uint64) (fresh, newest bool) {
	if !w.Check(seq) {
		return false, false
	}
	if newest = seq >= w.next; newest {
		// Clear the words that the window moves into. The word of the old
		// newest number stays: it may hold numbers that are still in the window.
		from, to := uint64(0), seq/wordBits
		if w.next > 0 {
			from = (w.next-1)/wordBits + 1
		}
		if to-from >= words && to >= from {
			from = to - words + 1
		}
		for i := from; i <= to; i++ {
			w.ring[i%words] = 0
		}
		w.next = seq + 1
	}
	w.ring[seq/wordBits%words] |= 1 << (seq % wordBits)
	return true, newest
}
