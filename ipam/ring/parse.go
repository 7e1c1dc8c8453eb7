package ring

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// A delta holds records of the ring that genesis names. If genesis is zero all
// records are adoptions.
//
//	 0        1         17       19
//	+--------+---------+--------+--------+---
//	| format | genesis | length | record | length, record, ...
//	+--------+---------+--------+--------+---
//	  1 byte   16        2        length
const (
	deltaFormat = 1
	deltaHeader = 1 + len(ID{})
)

// maxDelta leaves space for the header that a channel puts in front of a delta.
const maxDelta = gossip.MaxDelta - 256

func newDelta(genesis ID) []byte {
	return append([]byte{deltaFormat}, genesis[:]...)
}

func appendRecord(delta, raw []byte) []byte {
	delta = binary.BigEndian.AppendUint16(delta, uint16(len(raw)))
	return append(delta, raw...)
}

// splitDelta returns the genesis and the raw records of a delta. They share its
// memory.
func splitDelta(b []byte) (genesis ID, raws [][]byte, err error) {
	if len(b) < deltaHeader || b[0] != deltaFormat {
		return ID{}, nil, fmt.Errorf("ring delta of %d bytes: %w", len(b), ErrFormat)
	}
	copy(genesis[:], b[1:])
	for rest := b[deltaHeader:]; len(rest) > 0; {
		if len(rest) < 2 {
			return ID{}, nil, fmt.Errorf("ring delta ends in a length: %w", ErrFormat)
		}
		n := int(binary.BigEndian.Uint16(rest))
		if n == 0 || n > maxRecord || len(rest) < 2+n {
			return ID{}, nil, fmt.Errorf("record of %d bytes in the last %d of a ring delta: %w", n, len(rest), ErrFormat)
		}
		raws = append(raws, rest[2:2+n])
		rest = rest[2+n:]
	}
	return genesis, raws, nil
}

// reader takes fields off the front of a slice. After the first missing field it
// returns zeros and sets bad.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if r.bad || len(r.b) < n {
		r.bad = true
		return make([]byte, n)
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) uint16() int { return int(binary.BigEndian.Uint16(r.take(2))) }

func (r *reader) name() (n peer.Name) {
	n = peer.NameFromBytes(r.take(peer.NameLen))
	if n.IsZero() || n == peer.Broadcast {
		r.bad = true
	}
	return n
}

func (r *reader) holder() Holder {
	return Holder{r.name(), binary.BigEndian.Uint32(r.take(4))}
}

func (r *reader) id() (id ID) {
	copy(id[:], r.take(len(id)))
	return id
}

func (r *reader) key() (k peer.Key) {
	copy(k[:], r.take(len(k)))
	return k
}

func (r *reader) sig() (s peer.Signature) {
	copy(s[:], r.take(len(s)))
	return s
}

// counted returns a count of items of size bytes, 0 if some of them are missing.
func (r *reader) counted(size int) int {
	n := r.uint16()
	if len(r.b) < n*size {
		r.bad = true
		return 0
	}
	return n
}

func (r *reader) address(family byte) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte(r.take(4)))
	}
	return netip.AddrFrom16([16]byte(r.take(16)))
}

func (r *reader) family() byte {
	f := r.take(1)[0]
	if f != 4 && f != 6 {
		r.bad = true
	}
	return f
}

// end reports whether all bytes were read and well-formed.
func (r *reader) end() bool { return !r.bad && len(r.b) == 0 }

func malformed(what string, raw []byte) error {
	return fmt.Errorf("%s of %d bytes: %w", what, len(raw), ErrFormat)
}

func parseGrant(raw []byte) (*Grant, error) {
	r := reader{b: raw[1:]}
	f := r.family()
	g := &Grant{Version: binary.BigEndian.Uint64(r.take(8)), From: r.holder(), To: r.holder()}
	g.Range = addr.Range{First: r.address(f), Last: r.address(f)}
	g.Key, g.Sig = r.key(), r.sig()
	if !r.end() || !g.Range.IsValid() || g.Version == 0 || g.Version > maxVersion {
		return nil, malformed("grant", raw)
	}
	g.raw, g.id = raw, idOf(raw)
	return g, nil
}

func parseRemovalHead(r *reader) *Removal {
	rm := &Removal{}
	switch r.take(1)[0] {
	case proofSelf:
	case proofVotes:
		rm.ByVotes = true
	default:
		r.bad = true
	}
	rm.Gone, rm.Heir = r.holder(), r.holder()
	if rm.Gone == rm.Heir {
		r.bad = true
	}
	if !rm.ByVotes {
		return rm
	}
	for range r.counted(peer.NameLen) {
		rm.Named = append(rm.Named, r.name())
	}
	for range r.counted(holderLen) {
		rm.Members = append(rm.Members, r.holder())
	}
	for range r.counted(8) {
		rm.Basis = append(rm.Basis, binary.BigEndian.Uint64(r.take(8)))
	}
	if !ascending(rm.Named, peer.Name.Compare) || !ascending(rm.Members, Holder.Compare) || !slices.IsSorted(rm.Basis) {
		r.bad = true
	}
	return rm
}

func ascending[T any](s []T, compare func(a, b T) int) bool {
	for i := 1; i < len(s); i++ {
		if compare(s[i-1], s[i]) >= 0 {
			return false
		}
	}
	return true
}

// ParseProposal parses the bytes that Removal.Proposal returned.
func ParseProposal(raw []byte) (*Removal, error) {
	if len(raw) == 0 || raw[0] != kindRemoval {
		return nil, malformed("proposal of a removal", raw)
	}
	r := reader{b: raw[1:]}
	rm := parseRemovalHead(&r)
	if !r.end() || !rm.ByVotes {
		return nil, malformed("proposal of a removal", raw)
	}
	return rm, nil
}

func parseRemoval(raw []byte) (*Removal, error) {
	r := reader{b: raw[1:]}
	rm := parseRemovalHead(&r)
	if rm.ByVotes {
		rm.Ballot = paxos.BallotFrom(r.take(paxos.BallotLen))
		for range r.counted(voteLen) {
			rm.Votes = append(rm.Votes, Vote{r.holder(), r.key(), r.sig()})
		}
	} else {
		rm.Key, rm.Sig = r.key(), r.sig()
	}
	if !r.end() || !ascending(rm.Votes, func(a, b Vote) int { return a.Voter.Compare(b.Voter) }) {
		return nil, malformed("removal", raw)
	}
	rm.raw, rm.id = raw, idOf(raw)
	return rm, nil
}

func parseGenesis(raw []byte) (*Genesis, error) {
	r := reader{b: raw[1:]}
	f := r.family()
	addrRange := netip.PrefixFrom(r.address(f), int(r.take(1)[0]))
	var names []peer.Name
	for range r.counted(peer.NameLen) {
		names = append(names, r.name())
	}
	if !r.end() || !addrRange.IsValid() || addrRange.Masked() != addrRange || addrRange.Addr().Is4In6() ||
		!ascending(names, peer.Name.Compare) || len(names) == 0 {
		return nil, malformed("genesis", raw)
	}
	return NewGenesis(addrRange, names)
}

func parseAdoption(raw []byte) (*Adoption, error) {
	r := reader{b: raw[1:]}
	a := &Adoption{Old: r.id(), New: r.id(), By: r.holder(), Key: r.key(), Sig: r.sig()}
	if !r.end() || a.Old == a.New || a.Old.IsZero() || a.New.IsZero() {
		return nil, malformed("adoption", raw)
	}
	a.raw, a.id = raw, idOf(raw)
	return a, nil
}
