package gossip

import "github.com/weft-net/weft/mesh/peer"

// MaxDelta is the most bytes a digest or one delta of a channel may have: it
// travels as one record of a session.
const MaxDelta = 48 << 10

// Channel is a state that every peer holds a copy of and that changes by
// merging. Merge must be commutative, associative and idempotent: deltas
// arrive in any order, several times, or never (then the digests find out).
//
// The engine calls a channel from one goroutine at a time.
type Channel interface {
	// Digest summarises the state in at most MaxDelta bytes, so that another
	// peer can work out what this one lacks. Equal states give equal digests.
	Digest() []byte
	// Missing returns what the sender of digest lacks of this state, in deltas
	// of at most MaxDelta bytes each; and whether the digest speaks of
	// something that this state lacks, so that a digest should be sent back.
	// It returns an error for bytes that are no digest.
	Missing(digest []byte) (deltas [][]byte, wants bool, err error)
	// Merge takes a delta in and returns the part of it that was news here,
	// nil if nothing was. On error the state is unchanged. From is the
	// neighbour that handed the delta over, not its author.
	Merge(from peer.Name, delta []byte) (news []byte, err error)
	// Join puts two deltas that wait for the same neighbour into one, the newer
	// part winning, or returns nil if the result would pass MaxDelta bytes.
	// Both came from this state. It may append to older, as append does, and
	// keeps neither. A digest is the channel's own and must not be changed.
	Join(older, newer []byte) []byte
}
