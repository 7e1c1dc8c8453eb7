package ring

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// A digest says how far a copy is:
//
//	 0        1         17     25
//	+--------+---------+------+------+
//	| format | genesis | slot | head |
//	+--------+---------+------+------+
//	  1        16        8      16
//
// If the copy has no ring, all but the format is zero.
const (
	digestFormat = 1
	// DigestLen is the length of a digest in bytes.
	DigestLen = 1 + len(ID{}) + 8 + len(ID{})
)

// Digest returns a summary of the copy. Equal copies give equal digests.
func (r *Ring) Digest() []byte {
	b := make([]byte, DigestLen)
	b[0] = digestFormat
	if st := r.st; st != nil {
		copy(b[1:], st.genesis.id[:])
		binary.BigEndian.PutUint64(b[17:], st.slot)
		copy(b[25:], st.head[:])
	}
	return b
}

// IsEmptyDigest reports whether a digest is that of a copy without a ring.
func IsEmptyDigest(d []byte) bool {
	return len(d) == DigestLen && bytes.Equal(d[1:], make([]byte, DigestLen-1))
}

// Missing returns what the copy with that digest lacks, in deltas of at most
// gossip.MaxDelta bytes. wants reports whether that copy has what this one lacks.
//
// For a copy of another ring it returns the genesis, so that the other copy learns who
// made this ring, together with the *DivergentError. If this copy left that ring by a
// decision, it returns that decision instead.
func (r *Ring) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	if len(digest) != DigestLen || digest[0] != digestFormat {
		return nil, false, malformed("ring digest", digest)
	}
	if bytes.Equal(r.Digest(), digest) {
		return nil, false, nil
	}
	var theirs ID
	copy(theirs[:], digest[1:])
	slot := binary.BigEndian.Uint64(digest[17:])
	switch {
	case r.st == nil:
		want, waits := r.Awaits()
		return r.afterLeft(theirs, slot), !theirs.IsZero() && (!waits || want == theirs), nil
	case theirs.IsZero():
		return r.st.since(0, true), false, nil
	case theirs == r.st.genesis.id:
		return r.st.since(slot, false), slot > r.st.slot, nil
	}
	if deltas := r.afterLeft(theirs, slot); deltas != nil {
		return deltas, false, nil
	}
	g := r.st.genesis
	deltas = append(deltas, appendRecord(newDelta(g.id), g.raw))
	return deltas, false, &DivergentError{Ours: g.id, Theirs: theirs, OurPeers: g.Founders}
}

// afterLeft returns what a copy lacks of a ring that this copy left by a decision.
func (r *Ring) afterLeft(ring ID, slot uint64) [][]byte {
	for _, st := range r.left {
		if st.genesis.id == ring && st.next != nil {
			return st.since(slot, false)
		}
	}
	return nil
}

// since returns the decisions after slot; the snapshot first if some of them are gone.
func (st *state) since(slot uint64, genesis bool) (deltas [][]byte) {
	d := newDelta(st.genesis.id)
	add := func(raw []byte) {
		if len(d)+2+len(raw) > maxDelta && len(d) > deltaHeader {
			deltas = append(deltas, d)
			d = newDelta(st.genesis.id)
		}
		d = appendRecord(d, raw)
	}
	if genesis {
		add(st.genesis.raw)
	}
	if base := st.base(); slot+1 < base {
		for _, raw := range st.lineage {
			if slotOf(raw) > slot {
				add(raw)
			}
		}
		add(st.tail[0])
		for i, p := range st.parts {
			add(partRecord(base, i, p))
		}
		slot = base
	}
	for _, raw := range st.tail {
		if slotOf(raw) > slot {
			add(raw)
		}
	}
	if len(d) > deltaHeader {
		deltas = append(deltas, d)
	}
	return deltas
}

// base returns the slot of the first decision of the tail.
func (st *state) base() uint64 { return st.slot + 1 - uint64(len(st.tail)) }

// Join puts two deltas of one ring into one. It returns nil if they are of two rings, or
// too long together.
func Join(older, newer []byte) []byte {
	if len(older) < deltaHeader || len(newer) < deltaHeader || !bytes.Equal(older[:deltaHeader], newer[:deltaHeader]) ||
		len(older)+len(newer)-deltaHeader > maxDelta {
		return nil
	}
	return append(bytes.Clone(older), newer[deltaHeader:]...)
}

// Stored is a copy as it is written to disk: records by key. The key of a decision and
// of a part begins with its slot, so that a record under a key never changes.
type Stored map[string][]byte

// Dump returns the records of the copy and of the rings that it left, to be written to
// disk. The values are read-only.
func (r *Ring) Dump() Stored {
	out := make(Stored)
	add := func(st *state, prefix string) {
		out[prefix+"g"] = st.genesis.raw
		for _, raw := range slices.Concat(st.lineage, st.tail) {
			out[prefix+"d"+string(raw[1:9])] = raw
		}
		if len(st.parts) > 0 {
			for i, p := range st.parts {
				raw := partRecord(st.base(), i, p)
				out[prefix+"p"+string(raw[1:11])] = raw
			}
		}
	}
	for i, st := range r.left {
		add(st, string(rune('0'+i)))
	}
	if r.st != nil {
		add(r.st, "r")
	} else if !r.awaits.IsZero() {
		out["w"] = r.awaits[:]
	}
	if !r.follows.IsZero() {
		out["f"] = r.follows[:]
	}
	return out
}

// Restore rebuilds the copy from what Dump returned. Everything is checked again. It
// returns an error for each part that cannot be used; the rest comes from other peers.
func (r *Ring) Restore(s Stored) (errs []error) {
	if f := s["f"]; len(f) == len(ID{}) {
		copy(r.follows[:], f)
	}
	for i := range maxLeft {
		st, err := r.restore(s, string(rune('0'+i)))
		if st != nil {
			r.left = append(r.left, st)
		}
		errs = append(errs, err...)
	}
	st, err := r.restore(s, "r")
	errs = append(errs, err...)
	r.st = st
	r.followDecision()
	if w := s["w"]; len(w) == len(ID{}) && r.st == nil {
		copy(r.awaits[:], w)
	}
	r.epoch++
	return errs
}

func (r *Ring) restore(s Stored, prefix string) (*state, []error) {
	raw := s[prefix+"g"]
	if raw == nil {
		return nil, nil
	}
	g, err := ParseGenesis(raw)
	if err != nil {
		return nil, []error{fmt.Errorf("restore a ring: %w", err)}
	}
	if g.Range != r.addrRange {
		return nil, []error{fmt.Errorf("restore ring %s of %s: %w", g.id, g.Range, ErrRange)}
	}
	var decisions, parts [][]byte
	for k, v := range s {
		switch {
		case len(k) == 10 && k[:2] == prefix+"d" && slotOf(v) > 0:
			decisions = append(decisions, v)
		case len(k) == 12 && k[:2] == prefix+"p" && len(v) > 11:
			parts = append(parts, v)
		}
	}
	slices.SortFunc(decisions, func(a, b []byte) int { return bytes.Compare(a[1:9], b[1:9]) })
	slices.SortFunc(parts, func(a, b []byte) int { return bytes.Compare(a[1:11], b[1:11]) })
	c := New(r.addrRange, r.verifier, r.keys)
	delta := appendRecord(newDelta(g.id), raw)
	if _, err := c.Merge(delta); err != nil {
		return nil, []error{fmt.Errorf("restore a ring: %w", err)}
	}
	var errs []error
	for _, raw := range slices.Concat(decisions, parts, decisions) {
		if len(raw) > maxRecord || c.st == nil || c.st.genesis.id != g.id {
			break
		}
		m := &merge{ring: c, news: newDelta(g.id), trust: true, disk: true}
		var err error
		if raw[0] == kindDecision {
			err = m.decision(raw)
		} else {
			err = m.addPart(raw)
		}
		if err == nil {
			m.drain()
		}
		if err != nil && !isEarly(err) {
			errs = append(errs, fmt.Errorf("restore ring %s: %w", g.id, err))
		}
	}
	if c.st != nil {
		c.st.moves = nil
	}
	maps.Copy(r.bound, c.bound)
	return c.st, errs
}
