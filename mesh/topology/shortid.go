package topology

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/mesh/peer"
)

// MaxShortID is the highest short id: two of them fit into a 24-bit VNI.
// The lowest is 1; 0 means none.
const MaxShortID = 1<<12 - 1

// Each peer chooses its own short id and claims it in its entry. If several peers claim
// the same id, the lowest name has it; the others choose another id that no entry claims.
// So peers with equal entries know equal ids, and a peer without a rival never changes
// its own.

// maxProbes is how often a peer draws an id before it takes the next free one. If few ids
// are left, most draws hit an id that is taken.
const maxProbes = 64

var errShortID = fmt.Errorf("want two bytes with a value of at most %d", MaxShortID)

// parseShortID parses the bytes after the nickname. hasShortID is false for the entry of a
// peer whose version has no short ids.
func parseShortID(rest []byte) (id uint16, hasShortID bool, err error) {
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

// probe returns the id from 1 to ids that name draws at an attempt. A peer starts with
// attempt 0, so the result must be the same at each launch and in each version of this
// program.
func probe(name peer.Name, attempt int, ids uint16) uint16 {
	var b [8]byte
	copy(b[:], name[:])
	x := binary.BigEndian.Uint64(b[:]) + uint64(attempt)*0x9e3779b97f4a7c15
	// SplitMix64: each bit of the name counts, even if a person chose the name.
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	return 1 + uint16(x%uint64(ids))
}

// nextShortID returns the id that own should claim, given all known entries: its present
// one, unless it has none or a lower name claims the same. Only as many of the peers
// without an id choose one as there are free ids. Otherwise all of them would choose when
// one peer leaves a full mesh.
func nextShortID(own *Entry, all []*Entry, ids uint16) uint16 {
	taken := newBitset(int(ids) + 1)
	free, waitingAhead, contested := int(ids), 0, false
	for _, e := range all {
		if e.Name == own.Name {
			continue
		}
		lower := e.Name.Compare(own.Name) < 0
		if lower && e.hasShortID && e.ShortID == 0 {
			waitingAhead++
		}
		contested = contested || lower && e.ShortID == own.ShortID
		if e.ShortID != 0 && e.ShortID <= ids && !taken.has(int(e.ShortID)) {
			taken.set(int(e.ShortID))
			free--
		}
	}
	switch {
	case own.ShortID != 0 && !contested:
		return own.ShortID
	case free == 0 || own.ShortID == 0 && waitingAhead >= free:
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

// SettleShortID chooses another short id for this peer if the present entries require it.
// It returns the delta to announce, nil if there is none. Call it after changes, but not
// after each one: entries that arrive together then cost one choice and one version of
// this peer's entry.
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

// shortIDs returns the short ids of the peers, and the inverse map. Of several claims to
// one id the lowest name wins. entries are in order of name.
func shortIDs(entries []*Entry) (map[peer.Name]uint16, map[uint16]peer.Name) {
	ids, names := make(map[peer.Name]uint16, len(entries)), make(map[uint16]peer.Name, len(entries))
	for _, e := range entries {
		if _, taken := names[e.ShortID]; e.ShortID != 0 && !taken {
			ids[e.Name], names[e.ShortID] = e.ShortID, e.Name
		}
	}
	return ids, names
}
