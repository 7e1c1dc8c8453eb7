package ipam

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// An allocator replicates one channel with two states: the election until there is
// a ring, then the ring.
//
//	delta                          digest
//	 0      1                       0               18              59
//	+------+-------------------    +---------------+---------------+--------------------
//	| kind | delta of ring or ...  | address range | ring's digest | election's digest
//	+------+-------------------    +---------------+---------------+--------------------
//	  1                              18              41              10 each; with no ring
//
// Kinds are append-only. A delta of an unknown kind is ignored. The address range, an
// address of 16 bytes and the length of the prefix in two, is there so that both of two
// peers with different ranges can say so: they have nothing else to tell each other.
const (
	deltaRing     = 1
	deltaElection = 2
)

// maxElectionDelta leaves room for the kind.
const maxElectionDelta = gossip.MaxDelta - 256

// rangeLen is the length of the address range in a digest.
const rangeLen = 18

// parseRange returns the address range at the beginning of a digest.
func parseRange(b []byte) (netip.Prefix, error) {
	a := netip.AddrFrom16([16]byte(b)).Unmap()
	p := netip.PrefixFrom(a, int(binary.BigEndian.Uint16(b[16:]))-128+a.BitLen())
	if !p.IsValid() || p != p.Masked() {
		return p, fmt.Errorf("ipam digest of the address range %x: %w", b[:rangeLen], errMessage)
	}
	return p, nil
}

func (c *core) digest() []byte {
	d := append(ring.EncodeRange(c.cfg.Range), c.ring.Digest()...)
	if !c.ring.Ready() && c.election != nil {
		d = append(d, c.election.Digest()...)
	}
	return d
}

func (c *core) missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	const n = ring.DigestLen
	if len(digest) < rangeLen+n {
		return nil, false, fmt.Errorf("ipam digest of %d bytes: %w", len(digest), errMessage)
	}
	switch r, err := parseRange(digest); {
	case err != nil:
		return nil, false, err
	case r != c.cfg.Range:
		c.noteOtherRange(r)
		return nil, false, nil
	}
	digest = digest[rangeLen:]
	records, wants, err := c.ring.Missing(digest[:n])
	for _, d := range records {
		deltas = append(deltas, append([]byte{deltaRing}, d...))
	}
	// The other copy learns of the divergence from the delta, this one from the
	// error. The engine must not see the error, because the delta has to be sent.
	if div := (*ring.DivergentError)(nil); errors.As(err, &div) {
		c.noteDivergence(peer.Name{}, div)
		d, known := c.diverged[div.Theirs]
		return deltas, known && d.genesis == nil, nil // its genesis comes in answer to a digest
	}
	if err != nil || c.ring.Ready() || c.election == nil || !ring.IsEmptyDigest(digest[:n]) {
		return deltas, wants, err
	}
	items, more, err := c.election.Missing(digest[n:], maxElectionDelta)
	for _, d := range items {
		deltas = append(deltas, append([]byte{deltaElection}, d...))
	}
	return deltas, wants || more, err
}

func (c *core) merge(from peer.Name, delta []byte) (news []byte, err error) {
	if len(delta) == 0 {
		return nil, fmt.Errorf("empty ipam delta: %w", errMessage)
	}
	switch delta[0] {
	case deltaRing:
		news, err = c.mergeRing(from, delta[1:])
	case deltaElection:
		news, err = c.mergeElection(from, delta[1:])
	}
	if news == nil {
		return nil, err
	}
	return append([]byte{delta[0]}, news...), err
}

// joinDeltas implements gossip.Channel's Join.
func joinDeltas(older, newer []byte) []byte {
	if len(older) == 0 || len(newer) == 0 || older[0] != newer[0] {
		return nil
	}
	switch older[0] {
	case deltaRing:
		if j := ring.Join(older[1:], newer[1:]); j != nil {
			return append([]byte{deltaRing}, j...)
		}
	case deltaElection:
		if len(older)+len(newer)-1 <= maxElectionDelta {
			return append(bytes.Clone(older), newer[1:]...)
		}
	}
	return nil
}
