package records

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// Merge implements gossip.Channel. A delta is a sequence of records. Records of unknown
// formats are skipped. A record that an honest neighbour may pass on is refused on its own
// (see Refused). If one is malformed or forged, nothing is merged.
func (m *Map[V]) Merge(from peer.Name, delta []byte) (news []byte, err error) {
	type early struct {
		header
		raw []byte
	}
	var in []*record[V]
	var wait []early
	for b := delta; len(b) > 0; {
		h, err := parseHeader(b)
		if err != nil {
			return nil, fmt.Errorf("merge %s from %s: %w: %w", m.cfg.Use, from, gossip.ErrMalformed, err)
		}
		raw := b[:h.length]
		b = b[h.length:]
		// A flood brings each record from every neighbour.
		if h.format != recordFormat || m.stale(&h, raw) {
			continue
		}
		if _, known := m.known[h.owner]; !known && h.owner != m.cfg.Self {
			wait = append(wait, early{h, raw})
			continue
		}
		r, err := m.check(from, h, raw)
		switch {
		case errors.Is(err, ErrForged):
			// An honest peer checks every record before it passes it on.
			m.refuse(from, h.owner, err)
			return nil, fmt.Errorf("merge %s of %s from %s: %w", m.cfg.Use, h.owner, from, err)
		case err != nil:
			m.refuse(from, h.owner, err)
		default:
			in = append(in, r)
		}
	}
	for _, w := range wait {
		if m.ahead(&w.header) {
			m.refuse(from, w.owner, ErrAhead)
			continue
		}
		m.stats.WaitDropped += uint64(m.waitlist.add(from, w.header, w.raw))
	}
	for _, r := range in {
		if m.accept(from, r) {
			news = append(news, r.raw...)
		}
	}
	return news, nil
}

// stale reports whether a record with the header h is not new.
func (m *Map[V]) stale(h *header, raw []byte) bool {
	o := m.owners[h.owner]
	if o == nil || h.key != o.key {
		return false
	}
	if h.incarnation != o.incarnation {
		return h.incarnation < o.incarnation
	}
	old := o.get(h.bucket)
	return old != nil && (h.version < old.version || h.version == old.version && bytes.Compare(raw, old.raw) <= 0)
}

// check returns the record of an owner that is in the topology, or why it is refused. It
// changes nothing but the budget of the neighbour.
func (m *Map[V]) check(from peer.Name, h header, raw []byte) (*record[V], error) {
	key := m.own.key
	if h.owner != m.cfg.Self {
		key = m.known[h.owner]
	}
	if h.key != key {
		return nil, ErrKey
	}
	if m.ahead(&h) {
		return nil, ErrAhead
	}
	if until, ok := m.banned[h.owner]; ok && m.now.Before(until) {
		return nil, ErrNoPlace
	}
	if !m.mayVerify(from) {
		return nil, ErrTooMany
	}
	if !verify(raw, key, m.domain, m.cfg.Verifier) {
		return nil, ErrForged
	}
	raw = slices.Clone(raw)
	value, err := m.decode(h.bucket, payload(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPayload, err)
	}
	return m.newRecord(h, raw, value), nil
}

// accept stores a record that passed check, unless it is not new or exceeds a limit, and
// reports whether it did.
func (m *Map[V]) accept(from peer.Name, r *record[V]) bool {
	if r.owner == m.cfg.Self {
		// It comes from a former incarnation of this peer whose clock was ahead, or from a
		// clone.
		if r.incarnation > m.own.incarnation || r.incarnation == m.own.incarnation && r.supersedes(m.own.get(r.bucket)) {
			m.rival = max(m.rival, r.incarnation)
		}
		return false
	}
	o := m.owners[r.owner]
	fresh := o == nil
	if fresh {
		o = &owner[V]{name: r.owner, key: r.key, incarnation: r.incarnation, shown: true, via: from}
	}
	if r.incarnation < o.incarnation {
		return false
	}
	restarted := r.incarnation > o.incarnation
	old := o.get(r.bucket)
	if !restarted && !r.supersedes(old) {
		return false
	}
	more := r.cost
	switch {
	case fresh:
		more += ownerCost
	case restarted:
		more -= o.cost - ownerCost
	case old != nil:
		more -= old.cost
	}
	if o.cost+more > m.cfg.Limits.Owner {
		m.refuse(from, r.owner, ErrFlood)
		return false
	}
	if more > 0 && !m.makePlace(o, more) {
		m.refuse(from, r.owner, ErrNoPlace)
		return false
	}
	if fresh {
		m.owners[o.name] = o
		m.charge(o, ownerCost)
	}
	if restarted {
		m.clearRecords(o)
		o.incarnation = r.incarnation
	}
	var before V
	if replaced := m.put(o, r); replaced != nil {
		before = replaced.value
	}
	m.tell(o.name, r.bucket, before, r.value)
	return true
}

// A digest has the sums of the rows, or of groups of neighbouring rows if the copy has few
// records:
//
//	level u8, 4 to 11 | 2^level sums u64
//
// The level is the lowest for which there are at least as many sums as records. A sum is
// that of the hashes of the records of a row, modulo 2^64.
const (
	minLevel = 4
	maxLevel = 11
	rowCount = 1 << maxLevel
	// maxAnswer bounds the bytes of an answer to a digest. It is more than an engine queues
	// for a neighbour, which therefore sends a sum afterwards and so asks for the rest.
	maxAnswer = 80 * gossip.MaxDelta
)

// row is the shown records of one row.
type row[V any] struct {
	sum     uint64
	records []*record[V]
}

func (m *Map[V]) addRow(r *record[V]) {
	w := &m.rows[r.row]
	w.sum += r.sum
	r.place = len(w.records)
	w.records = append(w.records, r)
	m.count++
	m.digest = nil
}

func (m *Map[V]) removeRow(r *record[V]) {
	w := &m.rows[r.row]
	w.sum -= r.sum
	last := len(w.records) - 1
	w.records[r.place] = w.records[last]
	w.records[r.place].place = r.place
	w.records[last] = nil
	w.records = w.records[:last]
	m.count--
	m.digest = nil
}

// Digest implements gossip.Channel.
func (m *Map[V]) Digest() []byte {
	if m.digest != nil {
		return m.digest
	}
	level := minLevel
	for level < maxLevel && 1<<level < m.count {
		level++
	}
	m.digest = append(make([]byte, 0, 1+8<<level), byte(level))
	for i := range 1 << level {
		m.digest = binary.BigEndian.AppendUint64(m.digest, m.sum(level, i))
	}
	return m.digest
}

// sum returns the i-th sum of a digest of a level.
func (m *Map[V]) sum(level, i int) (sum uint64) {
	n := 1 << (maxLevel - level)
	for _, w := range m.rows[i*n : (i+1)*n] {
		sum += w.sum
	}
	return sum
}

// Missing implements gossip.Channel.
func (m *Map[V]) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	if len(digest) == 0 || digest[0] < minLevel || digest[0] > maxLevel || len(digest) != 1+8<<digest[0] {
		return nil, false, fmt.Errorf("digest of %s of %d bytes: %w", m.cfg.Use, len(digest), gossip.ErrMalformed)
	}
	level := int(digest[0])
	differ := make([]bool, 1<<level)
	for i := range differ {
		theirs := binary.BigEndian.Uint64(digest[1+8*i:])
		differ[i] = theirs != m.sum(level, i)
		wants = wants || differ[i] && theirs != 0
	}
	start, sent := m.cursor, 0
	return gossip.Pack(func(yield func([]byte) bool) {
		for k := range rowCount {
			i := (start + k) % rowCount
			if !differ[i>>(maxLevel-level)] {
				continue
			}
			for _, r := range m.rows[i].records {
				sent += len(r.raw)
				if !yield(r.raw) {
					return
				}
			}
			if sent > maxAnswer {
				m.cursor = (i + 1) % rowCount
				return
			}
		}
	}), wants, nil
}

// Join implements gossip.Channel: of two records of one bucket it keeps the newer one.
func (m *Map[V]) Join(older, newer []byte) []byte { return join(older, newer) }

func join(older, newer []byte) []byte {
	type place struct {
		owner  peer.Name
		bucket uint8
	}
	return gossip.JoinRecords(older, newer, func(b []byte) (place, int, error) {
		h, err := parseHeader(b)
		return place{h.owner, h.bucket}, h.length, err
	})
}

var _ gossip.Channel = (*Map[struct{}])(nil)
