package topology

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/mesh/peer"
)

// MaxShortID is the highest short id: two of them fit into a VNI of 24 bits.
// The lowest is 1; 0 means none.
const MaxShortID = 1<<12 - 1

// Each peer chooses its short id by itself and says it in its entry. If several
// peers say the same, it is that of the lowest name; a peer that finds itself
// beaten chooses anew among what no entry says. So whoever holds the same
// entries knows the same ids, and a peer without a rival never changes its own.

// maxProbes is how often a peer draws an id before it takes the next free one:
// with few ids left, draws miss.
const maxProbes = 64

var errShortID = fmt.Errorf("want two bytes that say at most %d", MaxShortID)

// parseShortID reads what follows the nickname. Tells is false for the entry
// of a peer that does not know of short ids.
func parseShortID(rest []byte) (id uint16, tells bool, err error) {
	switch len(rest) {
	case 0:
		return 0, false, nil
	case 1:
		return 0, false, fmt.Errorf("one byte: %w", errShortID)
	}
	if id = binary.BigEndian.Uint16(rest); id > MaxShortID {
		return 0, false, fmt.Errorf("%d: %w", id, errShortID)
	}
	return id, true, nil
}

// probe is what name draws at an attempt, out of 1 to ids. Attempt 0 is what a
// peer starts with, at each launch and in each version of this program alike.
func probe(name peer.Name, attempt int, ids uint16) uint16 {
	var b [8]byte
	copy(b[:], name[:])
	x := binary.BigEndian.Uint64(b[:]) + uint64(attempt)*0x9e3779b97f4a7c15
	// SplitMix64: each bit of a name, be it chosen by a person, counts.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return 1 + uint16(x%uint64(ids))
}

// nextShortID is what own should say, given all entries that are known: what
// it says, unless a lower name says the same or it says none. Of those that
// have none only as many move as there are ids, or one peer that leaves a
// full mesh would set all of them off.
func nextShortID(own *Entry, all []*Entry, ids uint16) uint16 {
	taken := newBitset(int(ids) + 1)
	free, before, beaten := int(ids), 0, false
	for _, e := range all {
		if e.Name == own.Name {
			continue
		}
		lower := e.Name.Compare(own.Name) < 0
		if lower && e.hasShortID && e.ShortID == 0 {
			before++
		}
		beaten = beaten || lower && e.ShortID == own.ShortID
		if e.ShortID != 0 && e.ShortID <= ids && !taken.has(int(e.ShortID)) {
			taken.set(int(e.ShortID))
			free--
		}
	}
	switch {
	case own.ShortID != 0 && !beaten:
		return own.ShortID
	case free == 0 || own.ShortID == 0 && before >= free:
		return 0
	}
	var id uint16
	for attempt := range maxProbes {
		if id = probe(own.Name, attempt, ids); !taken.has(int(id)) {
			return id
		}
	}
	for taken.has(int(id)) {
		id = id%ids + 1
	}
	return id
}

// SettleShortID chooses this peer's short id anew if the entries as they are
// ask for that, and returns the delta to announce, nil if they do not. Call it
// after changes, but not after each: entries that come together cost one
// choice, and one version of this peer's own.
func (s *State) SettleShortID() []byte {
	if !s.shortIDStale {
		return nil
	}
	s.shortIDStale = false
	id := nextShortID(s.own, s.sorted, s.cfg.shortIDs)
	if id == s.own.ShortID {
		return nil
	}
	s.shortID = id
	return s.publish(&Entry{Version: s.own.Version + 1, Links: s.own.Links})
}

// shortIDs returns which peers have a short id for themselves, or the best
// claim to it, and who has which. Entries are in order of name.
func shortIDs(entries []*Entry) (map[peer.Name]uint16, map[uint16]peer.Name) {
	ids, names := make(map[peer.Name]uint16, len(entries)), make(map[uint16]peer.Name, len(entries))
	for _, e := range entries {
		if _, taken := names[e.ShortID]; e.ShortID != 0 && !taken {
			ids[e.Name], names[e.ShortID] = e.ShortID, e.Name
		}
	}
	return ids, names
}
