package names

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// Merge implements gossip.Channel. A delta is a sequence of records. Each record is accepted or
// refused on its own (see Refused), and records of unknown formats are skipped.
func (s *State) Merge(from peer.Name, delta []byte) (news []byte, err error) {
	type item struct {
		header
		raw []byte
	}
	var in []item
	for b := delta; len(b) > 0; {
		h, err := parseHeader(b)
		if err != nil {
			return nil, fmt.Errorf("merge names from %s: %w", from, err)
		}
		// A flood delivers each record once from every neighbour.
		if h.format == recordFormat && !s.stale(&h) {
			in = append(in, item{h, b[:h.length]})
		}
		b = b[h.length:]
	}
	for _, i := range in {
		if _, reached := s.peers[i.owner]; !reached && i.owner != s.cfg.Self {
			s.addWaiting(i.header, i.raw)
			continue
		}
		r, err := s.mergeRecord(i.header, i.raw)
		if err != nil {
			s.refused.Add(from, i.owner, err)
		} else if r != nil {
			news = append(news, r.raw...)
		}
	}
	return news, nil
}

// stale reports whether a record with the header h cannot be new.
func (s *State) stale(h *header) bool {
	o := s.owners[h.owner]
	if o == nil || h.key != o.key {
		return false
	}
	if h.incarnation != o.incarnation {
		return h.incarnation < o.incarnation
	}
	old := o.records[h.bucket]
	return old != nil && (h.version < old.version || h.version == old.version && h.length == len(old.raw))
}

// addWaiting stores a record whose owner is not reachable, if there is space for it.
func (s *State) addWaiting(h header, raw []byte) {
	if _, exists := s.waiting[h]; exists || s.waitingBytes+len(raw) > maxWaiting {
		return
	}
	s.waiting[h] = waitingRecord{raw: slices.Clone(raw), since: s.now}
	s.waitingBytes += len(raw)
}

// mergeRecord merges a record of this peer or of a reachable one. It returns nil if nothing
// changed.
func (s *State) mergeRecord(h header, raw []byte) (*record, error) {
	if s.stale(&h) {
		return nil, nil
	}
	r, err := parseRecord(raw)
	if err != nil {
		return nil, err
	}
	own := r.owner == s.cfg.Self
	if own && r.key != s.own.key || !own && !s.reaches(r.owner, r.key) || !r.verify(s.cfg.Verifier) {
		return nil, ErrForged
	}
	o := s.owners[r.owner]
	if own {
		// It comes from a former incarnation of this peer whose clock was ahead, or from a clone.
		if r.incarnation > o.incarnation || r.supersedes(o.records[r.bucket]) {
			s.rivalIncarnation = max(s.rivalIncarnation, r.incarnation)
		}
		return nil, nil
	}
	if o == nil {
		o = &owner{name: r.owner, key: r.key, incarnation: r.incarnation, records: make(map[uint8]*record), shown: true}
		s.owners[r.owner] = o
	}
	if r.incarnation > o.incarnation {
		for _, old := range o.records {
			s.table.replace(old.entries, nil)
		}
		o.incarnation, o.records, o.newest, o.sum, o.size = r.incarnation, make(map[uint8]*record), 0, 0, 0
		s.digest = nil
	}
	old := o.records[r.bucket]
	if !r.supersedes(old) {
		return nil, nil
	}
	var before []Entry
	size := o.size + len(r.raw)
	if old != nil {
		before, size = old.entries, size-len(old.raw)
	}
	if size > maxOwner {
		return nil, ErrFlood
	}
	s.table.replace(before, r.entries)
	s.put(o, r)
	return r, nil
}

// pack returns deltas with the records.
func pack(records []*record) [][]byte {
	return gossip.Pack(func(yield func([]byte) bool) {
		for _, r := range records {
			if !yield(r.raw) {
				return
			}
		}
	})
}

// A digest is a list of the owners if that fits into one message. Otherwise it is a table of sums;
// each row is the sum over the owners whose names hash to it:
//
//	list:   0x01, then for each owner, in order: name 6, incarnation u64, newest version u64, sum u64
//	table:  0x02, then 2,048 sums u64
const (
	digestList  = 1
	digestTable = 2
	digestEntry = peer.NameLen + 8 + 8 + 8
	maxList     = 1600
	rows        = 2048
)

func (s *State) rows() gossip.Sums {
	t := make(gossip.Sums, rows)
	for n, o := range s.owners {
		t.Add(n, o.appendDigest(nil))
	}
	return t
}

func (o *owner) appendDigest(b []byte) []byte {
	b = append(b, o.name[:]...)
	b = binary.BigEndian.AppendUint64(b, o.incarnation)
	b = binary.BigEndian.AppendUint64(b, o.newest)
	return binary.BigEndian.AppendUint64(b, o.sum)
}

func (s *State) sorted() []peer.Name {
	return slices.SortedFunc(maps.Keys(s.owners), peer.Name.Compare)
}

// Digest implements gossip.Channel.
func (s *State) Digest() []byte {
	if s.digest == nil {
		s.digest = s.summarise()
	}
	return s.digest
}

func (s *State) summarise() []byte {
	if len(s.owners) > maxList {
		return s.rows().Append([]byte{digestTable})
	}
	b := make([]byte, 1, 1+len(s.owners)*digestEntry)
	b[0] = digestList
	for _, n := range s.sorted() {
		b = s.owners[n].appendDigest(b)
	}
	return b
}

// Missing implements gossip.Channel.
func (s *State) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	// since returns the version above which the sender of the digest lacks records of an owner, or
	// false if it lacks none.
	var since func(o *owner) (version uint64, lacks bool)
	switch {
	case len(digest) > 0 && digest[0] == digestList && (len(digest)-1)%digestEntry == 0:
		theirs := make(map[peer.Name]digestRow, len(digest)/digestEntry)
		for b := digest[1:]; len(b) > 0; b = b[digestEntry:] {
			t := digestRow{
				incarnation: binary.BigEndian.Uint64(b[peer.NameLen:]),
				newest:      binary.BigEndian.Uint64(b[peer.NameLen+8:]),
				sum:         binary.BigEndian.Uint64(b[peer.NameLen+16:]),
			}
			n := peer.NameFromBytes(b)
			theirs[n] = t
			wants = wants || t.hasMore(s.owners[n])
		}
		since = func(o *owner) (uint64, bool) { return theirs[o.name].since(o) }
	case len(digest) == 1+8*rows && digest[0] == digestTable:
		mine := s.rows()
		differ, some := mine.Differ(digest[1:])
		wants = some
		since = func(o *owner) (uint64, bool) { return 0, differ[mine.Row(o.name)] }
	default:
		return nil, false, fmt.Errorf("parse names digest of %d bytes: unknown format", len(digest))
	}
	var records []*record
	for _, n := range s.sorted() {
		o := s.owners[n]
		from, lacks := since(o)
		if !lacks {
			continue
		}
		for _, b := range slices.Sorted(maps.Keys(o.records)) {
			if r := o.records[b]; r.version > from {
				records = append(records, r)
			}
		}
	}
	return pack(records), wants, nil
}

// digestRow is the row of an owner in a digest.
type digestRow struct{ incarnation, newest, sum uint64 }

// hasMore reports whether the sender of the digest may have records that o lacks.
func (t digestRow) hasMore(o *owner) bool {
	return o == nil || t.incarnation > o.incarnation || t.incarnation == o.incarnation && (t.newest > o.newest || t.newest == o.newest && t.sum != o.sum)
}

// since returns the version above which the sender of the digest lacks records of o. If the newest
// versions are equal but the sums differ, a record in between was lost, and all records are sent.
func (t digestRow) since(o *owner) (version uint64, lacks bool) {
	switch {
	case t.incarnation > o.incarnation, t == digestRow{o.incarnation, o.newest, o.sum}:
		return 0, false
	case t.incarnation == o.incarnation && t.newest < o.newest:
		return t.newest, true
	case t.incarnation == o.incarnation && t.newest > o.newest:
		return 0, false // the next comparison finds records in between that only this copy has
	}
	return 0, true
}

// Join implements gossip.Channel: of two records of the same bucket it keeps the newer one.
func (s *State) Join(older, newer []byte) []byte {
	type key struct {
		owner  peer.Name
		bucket uint8
	}
	return gossip.JoinRecords(older, newer, func(b []byte) (key, int, error) {
		h, err := parseHeader(b)
		return key{h.owner, h.bucket}, h.length, err
	})
}
