package gossip

import (
	"errors"

	"github.com/weft-net/weft/mesh/peer"
)

// ErrMalformed is the cause if bytes are not a message, a digest or a delta, or hold what
// every peer checks before it passes it on. A channel wraps it only around bytes that no
// honest neighbour sends, whatever it knows: the mesh ends the session with the neighbour.
// This is the one rule for all channels, and for what they report as a Refusal.
var ErrMalformed = errors.New("malformed")

// MaxDelta is the size limit of a digest or a delta, in bytes: each travels as one
// record of a session.
const MaxDelta = 48 << 10

// Channel is a state of which every peer holds a copy and that changes by merging.
// Merge must be commutative, associative and idempotent: deltas arrive in any order,
// several times, or never (digests repair that).
//
// The engine calls a channel from one goroutine at a time.
type Channel interface {
	// Digest summarises the state in at most MaxDelta bytes, so that another peer can
	// compute what this one lacks. Equal states give equal digests. The digest
	// belongs to the channel and must not be changed.
	Digest() []byte
	// Missing returns the parts of this state that the sender of digest lacks, in
	// deltas of at most MaxDelta bytes each. wants reports whether the digest
	// mentions something that this state lacks, so that a digest should be sent
	// back. Missing returns an error for bytes that are not a digest.
	Missing(digest []byte) (deltas [][]byte, wants bool, err error)
	// Merge merges a delta and returns the part of it that was new here, nil if
	// nothing was. On error the state is unchanged. from is the neighbour that
	// passed the delta on, not its author.
	Merge(from peer.Name, delta []byte) (news []byte, err error)
	// Join joins two deltas that wait for the same neighbour. The newer part wins.
	// It returns nil if the result would exceed MaxDelta bytes. Both deltas came
	// from this state. Join may append to older, as append does, and keeps neither.
	Join(older, newer []byte) []byte
}

// Spreader is a Channel whose deltas show who has them already, so that few copies are enough: a
// peer sends its own change to all its neighbours, and the others pass it on to the rest.
type Spreader interface {
	Channel
	// Sent returns whether a neighbour is one to which the authors of all parts of a delta send
	// their changes. Merge has just returned the delta. The function is valid until the next call
	// of the channel.
	Sent(delta []byte) func(n peer.Name) bool
}
