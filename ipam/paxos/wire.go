package paxos

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// The delta of an election is a list of items, numbers big-endian:
//
//	 0      1        3
//	+------+--------+--------
//	| kind | length | item ...
//	+------+--------+--------
//	  1      2        length
//
//	entry (kind 1), 141 bytes
//	 0      6       7        9          19         29      45    77
//	+------+-------+--------+----------+----------+-------+-----+-----------+
//	| node | voter | expect | promised | accepted | value | key | signature |
//	+------+-------+--------+----------+----------+-------+-----+-----------+
//	  6      1       2        10         10         16      32    64
//
//	value (kind 2): the bytes of a value that entries name
//
//	seal (kind 3), 102 bytes: node 6 | key 32 | signature 64 of the chosen value
//
// The signature covers the instance and the entry up to the signature. Kinds are
// append-only; a reader skips unknown ones.
//
// A digest is a list of all known entries, values and seals, ascending:
//
//	 0      6        per entry          0             per value, seal
//	+------+--------+                  +-------------+
//	| node | check  | ...      then    | zero | id   | ...
//	+------+--------+                  +-------------+
//	  6      4                           6      4
//
// A check is the first 4 bytes of the SHA-256 of the entry; no node is zero. The id of a
// seal is a hash of its bytes.
const (
	itemEntry = 1
	itemValue = 2
	itemSeal  = 3

	entryUnsigned = peer.NameLen + 3 + 2*BallotLen + len(ValueID{}) + len(peer.Key{})
	entryLen      = entryUnsigned + peer.SignatureLen
	sumLen        = peer.NameLen + 4

	sealLen = peer.NameLen + len(peer.Key{}) + peer.SignatureLen
	// maxRound bounds rounds, so that the next one has room.
	maxRound = 1 << 31

	domainEntry = "weft ipam election"
)

// ErrFormat is the cause when bytes are not a delta, entry or digest.
var ErrFormat = gossip.ErrMalformed

func (e *Entry) appendUnsigned(b []byte) []byte {
	b = append(b, e.Node[:]...)
	voter := byte(0)
	if e.Voter {
		voter = 1
	}
	b = append(b, voter)
	b = binary.BigEndian.AppendUint16(b, e.Expect)
	b = e.State.Promised.Append(b)
	b = e.State.Accepted.Append(b)
	b = append(b, e.State.Value[:]...)
	return append(b, e.Key[:]...)
}

// Append appends the encoded entry to b.
func (e *Entry) Append(b []byte) []byte {
	b = e.appendUnsigned(b)
	return append(b, e.Sig[:]...)
}

func parseEntry(b []byte) (e Entry, err error) {
	if len(b) != entryLen || b[6] > 1 {
		return Entry{}, fmt.Errorf("election entry of %d bytes: %w", len(b), ErrFormat)
	}
	e.Node = peer.NameFromBytes(b)
	e.Voter = b[6] == 1
	e.Expect = binary.BigEndian.Uint16(b[7:])
	e.State.Promised = BallotFrom(b[9:])
	e.State.Accepted = BallotFrom(b[19:])
	copy(e.State.Value[:], b[29:])
	copy(e.Key[:], b[45:])
	copy(e.Sig[:], b[entryUnsigned:])
	if e.Node.IsZero() || e.State.Promised.IsZero() || e.State.Promised.Compare(e.State.Accepted) < 0 {
		return Entry{}, fmt.Errorf("election entry of %s that promises %s and accepted %s: %w",
			e.Node, e.State.Promised, e.State.Accepted, ErrFormat)
	}
	return e, nil
}

func appendItem(b []byte, kind byte, item []byte) []byte {
	b = append(b, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(item)))
	return append(b, item...)
}

// Append appends the encoded seal to b.
func (s *Seal) Append(b []byte) []byte {
	b = append(b, s.Node[:]...)
	b = append(b, s.Key[:]...)
	return append(b, s.Sig[:]...)
}

// items are the parts of a delta.
type items struct {
	entries []Entry
	values  [][]byte
	seals   []Seal
}

func parseDelta(b []byte) (in items, err error) {
	for len(b) > 0 {
		if len(b) < 3 || len(b) < 3+int(binary.BigEndian.Uint16(b[1:])) {
			return items{}, fmt.Errorf("election delta ends within an item: %w", ErrFormat)
		}
		kind, item := b[0], b[3:3+int(binary.BigEndian.Uint16(b[1:]))]
		b = b[3+len(item):]
		switch kind {
		case itemEntry:
			e, err := parseEntry(item)
			if err != nil {
				return items{}, err
			}
			in.entries = append(in.entries, e)
		case itemValue:
			if len(item) == 0 || len(item) > maxValue {
				return items{}, fmt.Errorf("value of %d bytes: %w", len(item), ErrFormat)
			}
			in.values = append(in.values, item)
		case itemSeal:
			if len(item) != sealLen {
				return items{}, fmt.Errorf("seal of %d bytes: %w", len(item), ErrFormat)
			}
			s := Seal{Node: peer.NameFromBytes(item)}
			copy(s.Key[:], item[peer.NameLen:])
			copy(s.Sig[:], item[sealLen-peer.SignatureLen:])
			in.seals = append(in.seals, s)
		}
	}
	return in, nil
}

// Delta returns the delta to announce: the own entry and the value that it names.
func (el *Election) Delta() []byte {
	entry, value := el.Own()
	if entry == nil {
		return nil
	}
	var b []byte
	if value != nil {
		b = appendItem(b, itemValue, value)
	}
	b = appendItem(b, itemEntry, entry)
	if s := el.seals[el.cfg.Self]; s != nil {
		b = appendItem(b, itemSeal, s.Append(nil))
	}
	return b
}

// each calls f for each known entry and each value that an entry names, with its line of the digest
// and its item.
func (el *Election) each(f func(sum [sumLen]byte, kind byte, item []byte)) {
	named := el.named()
	for _, id := range slices.SortedFunc(maps.Keys(el.values), ValueID.compare) {
		if _, still := named[id]; !still {
			continue
		}
		var sum [sumLen]byte
		copy(sum[peer.NameLen:], id[:])
		f(sum, itemValue, el.values[id])
	}
	for _, n := range slices.SortedFunc(maps.Keys(el.seals), peer.Name.Compare) {
		s := el.seals[n]
		var sum [sumLen]byte
		raw := s.Append(nil)
		id := IDOf(raw)
		copy(sum[peer.NameLen:], id[:])
		f(sum, itemSeal, raw)
	}
	for e := range el.all {
		if e.State.Promised.IsZero() {
			continue
		}
		var sum [sumLen]byte
		raw := e.Append(nil)
		id := IDOf(raw)
		copy(sum[:], e.Node[:])
		copy(sum[peer.NameLen:], id[:])
		f(sum, itemEntry, raw)
	}
}

// Digest returns a summary of the copy: 10 bytes for each entry or value.
func (el *Election) Digest() []byte {
	var sums [][sumLen]byte
	el.each(func(sum [sumLen]byte, _ byte, _ []byte) { sums = append(sums, sum) })
	slices.SortFunc(sums, func(a, b [sumLen]byte) int { return bytes.Compare(a[:], b[:]) })
	var out []byte
	for _, s := range sums {
		out = append(out, s[:]...)
	}
	return out
}

// Missing returns the items that the copy with that digest lacks, in deltas of at
// most limit bytes. limit must have room for the largest value. wants reports
// whether this copy should send its own digest; of two copies that differ only one
// should.
func (el *Election) Missing(digest []byte, limit int) (deltas [][]byte, wants bool, err error) {
	if len(digest)%sumLen != 0 {
		return nil, false, fmt.Errorf("election digest of %d bytes: %w", len(digest), ErrFormat)
	}
	mine := el.Digest()
	if bytes.Equal(mine, digest) {
		return nil, false, nil
	}
	theirs := make(map[[sumLen]byte]bool)
	for b := digest; len(b) > 0; b = b[sumLen:] {
		theirs[[sumLen]byte(b)] = true
	}
	var d []byte
	el.each(func(sum [sumLen]byte, kind byte, item []byte) {
		if theirs[sum] {
			return
		}
		if len(d)+3+len(item) > limit {
			deltas = append(deltas, d)
			d = nil
		}
		d = appendItem(d, kind, item)
	})
	if len(d) > 0 {
		deltas = append(deltas, d)
	}
	if len(mine) != len(digest) {
		return deltas, len(mine) < len(digest), nil
	}
	return deltas, bytes.Compare(mine, digest) < 0, nil
}
