package ring

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
)

// A digest sums the ids of the records by their first byte, so two copies that
// differ in a few records find out which of 256 parts to send.
//
//	 0        1         17        21      25         29
//	+--------+---------+---------+-------+----------+---------------
//	| format | genesis | records | adopt | adoptsum | 256 sums
//	+--------+---------+---------+-------+----------+---------------
//	  1        16        4         4       4          8 each
//
// If the copy has no ring, genesis is zero and there are no sums. records and adopt
// are numbers of records and of adoptions. A sum is taken modulo 2^64, over the
// first 8 bytes of each id.
const (
	digestFormat = 1
	digestHeader = 29
	buckets      = 256
	digestLen    = digestHeader + 8*buckets
)

// logRecord appends a record to the log and adds it to the digest.
func (st *state) logRecord(id ID, raw []byte) {
	st.log = append(st.log, Raw{id, raw})
	st.short[id.short()] = id
	st.buckets[id[0]] += id.short()
}

// Digest returns a summary of the copy. Equal copies give equal digests.
func (r *Ring) Digest() []byte {
	b := make([]byte, digestHeader, digestLen)
	b[0] = digestFormat
	binary.BigEndian.PutUint32(b[21:], uint32(len(r.adoptions)))
	binary.BigEndian.PutUint32(b[25:], r.adoptionSum())
	if r.st == nil {
		return b
	}
	copy(b[1:], r.st.genesis.id[:])
	binary.BigEndian.PutUint32(b[17:], uint32(len(r.st.log)))
	for _, sum := range r.st.buckets {
		b = binary.BigEndian.AppendUint64(b, sum)
	}
	return b
}

func (r *Ring) adoptionSum() (sum uint32) {
	for id := range r.adoptions {
		sum += binary.BigEndian.Uint32(id[:])
	}
	return sum
}

// DigestLen returns how many bytes at the start of b are a digest, or an error.
func DigestLen(b []byte) (int, error) {
	if len(b) < digestHeader || b[0] != digestFormat {
		return 0, fmt.Errorf("ring digest of %d bytes: %w", len(b), ErrFormat)
	}
	if bytes.Equal(b[1:17], make([]byte, 16)) {
		return digestHeader, nil
	}
	if len(b) < digestLen {
		return 0, fmt.Errorf("ring digest of %d bytes: %w", len(b), ErrFormat)
	}
	return digestLen, nil
}

// Missing returns the records that the copy with that digest lacks, in deltas of
// at most gossip.MaxDelta bytes. wants reports whether this copy should ask for
// more by sending its own digest. Of two copies that differ only one asks, so that
// a record that one of them refuses does not make them ask each other forever.
//
// For a copy of another ring it returns the genesis, so that the other copy learns
// who made this ring, and the adoptions, together with the *DivergentError.
func (r *Ring) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	n, err := DigestLen(digest)
	if err != nil {
		return nil, false, err
	}
	if n != len(digest) {
		return nil, false, fmt.Errorf("ring digest with %d bytes after it: %w", len(digest)-n, ErrFormat)
	}
	mine := r.Digest()
	if bytes.Equal(mine, digest) {
		return nil, false, nil
	}
	if !bytes.Equal(mine[21:digestHeader], digest[21:digestHeader]) && len(r.adoptions) > 0 {
		deltas = append(deltas, r.adoptionDelta())
	}
	var theirs ID
	copy(theirs[:], digest[1:])
	switch {
	case r.st == nil:
		want, waits := r.Awaits()
		return deltas, !theirs.IsZero() && (!waits || want == theirs) || less(mine, digest), nil
	case theirs.IsZero():
		return append(deltas, r.deltas(func(Raw) bool { return true })...), false, nil
	case theirs != r.st.genesis.id:
		deltas = append(deltas, appendRecord(newDelta(r.st.genesis.id), r.st.genesis.raw))
		return deltas, false, &DivergentError{Ours: r.st.genesis.id, Theirs: theirs, OurPeers: r.st.genesis.Peers}
	}
	var differs [buckets]bool
	for i := range differs {
		differs[i] = binary.BigEndian.Uint64(digest[digestHeader+8*i:]) != r.st.buckets[i]
	}
	first := r.st.genesis.id
	deltas = append(deltas, r.deltas(func(rec Raw) bool { return rec.ID != first && differs[rec.ID[0]] })...)
	return deltas, less(mine, digest), nil
}

// less orders digests by how many records they stand for.
func less(a, b []byte) bool {
	return cmp.Or(bytes.Compare(a[17:digestHeader], b[17:digestHeader]), bytes.Compare(a, b)) < 0
}

// deltas returns the records for which keep is true, in the order of the log.
func (r *Ring) deltas(keep func(Raw) bool) [][]byte {
	var out [][]byte
	d := newDelta(r.st.genesis.id)
	for _, rec := range r.st.log {
		if !keep(rec) {
			continue
		}
		if len(d)+2+len(rec.Bytes) > maxDelta {
			out = append(out, d)
			d = newDelta(r.st.genesis.id)
		}
		d = appendRecord(d, rec.Bytes)
	}
	if len(d) > deltaHeader {
		out = append(out, d)
	}
	return out
}

// Proof returns all records that an empty copy needs to accept records: the
// genesis, the removals, and the grants of the same addresses.
func (r *Ring) Proof(records []Raw) [][]byte {
	if r.st == nil {
		return nil
	}
	var about []*Grant
	for _, rec := range records {
		if g := r.st.grants[rec.ID]; g != nil {
			about = append(about, g)
		}
	}
	return r.deltas(func(rec Raw) bool {
		g := r.st.grants[rec.ID]
		if g == nil {
			return true
		}
		for _, a := range about {
			if g.Range.Overlaps(a.Range) {
				return true
			}
		}
		return false
	})
}

// Join puts two deltas of one ring into one. It returns nil if they are of two
// rings, or too long together.
func Join(older, newer []byte) []byte {
	if len(older) < deltaHeader || len(newer) < deltaHeader || !bytes.Equal(older[:deltaHeader], newer[:deltaHeader]) ||
		len(older)+len(newer)-deltaHeader > maxDelta {
		return nil
	}
	return append(bytes.Clone(older), newer[deltaHeader:]...)
}

// Dump returns all records of the ring and all adoptions, to be written to disk,
// and the other arguments of Restore.
func (r *Ring) Dump() (origin, genesis ID, records []Raw) {
	for _, a := range r.adoptions {
		records = append(records, Raw{a.id, a.raw})
	}
	if r.st != nil {
		genesis = r.st.genesis.id
		records = append(records, r.st.log...)
	}
	return r.origin, genesis, records
}

// Restore merges the records that Dump returned, in any order. It returns an error
// for each record that cannot be accepted.
func (r *Ring) Restore(origin, genesis ID, records [][]byte) []error {
	// The adoptions are merged after the ring: they led to it, and must not lead
	// away from it before it is complete.
	delta, adoptions := newDelta(genesis), newDelta(ID{})
	for _, raw := range records {
		switch {
		case len(raw) == 0 || len(raw) > maxRecord:
			return []error{malformed("record", raw)}
		case raw[0] == kindAdoption:
			adoptions = appendRecord(adoptions, raw)
		default:
			delta = appendRecord(delta, raw)
		}
	}
	out, err := r.Merge(delta)
	errs := out.Refused
	if err != nil && len(errs) == 0 {
		errs = append(errs, err)
	}
	if !origin.IsZero() {
		r.origin = origin
	}
	out, err = r.Merge(adoptions)
	errs = append(errs, out.Refused...)
	if err != nil && len(out.Refused) == 0 {
		errs = append(errs, err)
	}
	return errs
}
