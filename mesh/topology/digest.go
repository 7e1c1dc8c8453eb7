package topology

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// A digest is a list of names and versions. If that does not fit into one message, it is
// a table of sums over buckets of names:
//
//	list:   0x01, then for each entry name 6, version u64, the low 16 bits of the instance
//	table:  0x02, then 1,024 sums u64 over the entries whose names hash to that bucket
const (
	digestList  = 1
	digestTable = 2
	digestEntry = peer.NameLen + 8 + 2
	buckets     = 1024
	maxList     = 2500
)

func (s *State) table() gossip.Sums {
	t := make(gossip.Sums, buckets)
	for n, e := range s.entries {
		t.Add(n, e.raw[5:entryFixed-2])
	}
	return t
}

// Digest implements gossip.Channel.
func (s *State) Digest() []byte {
	if s.digest == nil {
		s.digest = s.summarise()
	}
	return s.digest
}

func (s *State) summarise() []byte {
	if len(s.entries) > maxList {
		return s.table().Append([]byte{digestTable})
	}
	b := make([]byte, 1, 1+len(s.entries)*digestEntry)
	b[0] = digestList
	for _, e := range s.Entries() {
		b = append(b, e.Name[:]...)
		b = binary.BigEndian.AppendUint64(b, e.Version)
		b = binary.BigEndian.AppendUint16(b, uint16(e.Instance))
	}
	return b
}

// Missing implements gossip.Channel.
func (s *State) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	var lacks func(e *Entry) bool // whether the sender lacks e
	switch {
	case len(digest) > 0 && digest[0] == digestList && (len(digest)-1)%digestEntry == 0:
		theirs := make(map[peer.Name][]byte, len(digest)/digestEntry)
		for b := digest[1:]; len(b) > 0; b = b[digestEntry:] {
			n := peer.NameFromBytes(b)
			theirs[n] = b[peer.NameLen:digestEntry]
			v := binary.BigEndian.Uint64(b[peer.NameLen:])
			mine := s.entries[n]
			if t, ok := s.tombstones[n]; ok && v <= t.version {
				continue
			}
			if w := s.waitlist.Get(n); w != nil && v <= w.Value.Version {
				continue
			}
			if mine == nil || v > mine.Version ||
				v == mine.Version && binary.BigEndian.Uint16(b[peer.NameLen+8:]) != uint16(mine.Instance) {
				wants = true
			}
		}
		lacks = func(e *Entry) bool {
			t, ok := theirs[e.Name]
			if !ok {
				return true
			}
			v := binary.BigEndian.Uint64(t)
			return e.Version > v || e.Version == v && binary.BigEndian.Uint16(t[8:]) != uint16(e.Instance)
		}
	case len(digest) == 1+8*buckets && digest[0] == digestTable:
		mine := s.table()
		differ, some := mine.Differ(digest[1:])
		wants = some
		lacks = func(e *Entry) bool { return differ[mine.Row(e.Name)] }
	default:
		return nil, false, fmt.Errorf("topology digest of %d bytes: %w", len(digest), gossip.ErrMalformed)
	}
	return gossip.Pack(func(yield func([]byte) bool) {
		for _, e := range s.Entries() {
			if lacks(e) && !yield(e.raw) {
				return
			}
		}
	}), wants, nil
}

// Join implements gossip.Channel: it keeps the newer of two entries of one peer.
func (s *State) Join(older, newer []byte) []byte {
	return gossip.JoinRecords(older, newer, func(b []byte) (peer.Name, int, error) {
		h, err := peek(b)
		return h.name, h.length, err
	})
}
