package ring

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// The state of a ring at one slot, cut into parts of partSize bytes:
//
//	format 1 | ring 16 | slot 8 | head 16 | slot that changed the voters 8 |
//	voters: count 4, holder 22 each | banned: count 4, holder 22 each |
//	departed: count 4, holder 22 each, slot 8 each |
//	owners: count 4, holder 22 each | ranges: count 4, each first a | owner 4 | since 8
//
// All lists are ascending. An owner is an index in the list of owners. Equal states have
// equal encodings. The id of a part is the hash of its bytes.
const (
	snapshotFormat = 1
	partSize       = 40 << 10
	domainPart     = "weft ipam part"
)

func (st *state) encode() (parts [][]byte) {
	b := []byte{snapshotFormat}
	b = append(b, st.genesis.id[:]...)
	b = binary.BigEndian.AppendUint64(b, st.slot)
	b = append(b, st.head[:]...)
	b = binary.BigEndian.AppendUint64(b, st.votersSince)
	holders := func(hs []Holder) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(hs)))
		for _, h := range hs {
			b = h.Append(b)
		}
	}
	owners := make(map[Holder]uint32)
	for _, p := range st.pieces {
		owners[p.holder] = 0
	}
	sorted := slices.SortedFunc(maps.Keys(owners), Holder.Compare)
	for i, h := range sorted {
		owners[h] = uint32(i)
	}
	holders(st.voters)
	holders(slices.SortedFunc(maps.Keys(st.banned), Holder.Compare))
	departed := slices.SortedFunc(maps.Keys(st.departed), Holder.Compare)
	holders(departed)
	for _, h := range departed {
		b = binary.BigEndian.AppendUint64(b, st.departed[h])
	}
	holders(sorted)
	b = binary.BigEndian.AppendUint32(b, uint32(len(st.pieces)))
	for _, p := range st.pieces {
		b = append(b, p.first.AsSlice()...)
		b = binary.BigEndian.AppendUint32(b, owners[p.holder])
		b = binary.BigEndian.AppendUint64(b, p.since)
	}
	return slices.Collect(slices.Chunk(b, partSize))
}

func (st *state) partIDs() (ids []ID) {
	for _, p := range st.encode() {
		ids = append(ids, idOf(domainPart, p))
	}
	return ids
}

// decodeState returns the state that encode encoded, without tail and parts.
func decodeState(g *Genesis, parts [][]byte) (*state, error) {
	raw := slices.Concat(parts...)
	st := genesisState(g)
	r := reader{b: raw}
	if r.uint8() != snapshotFormat || r.id() != g.id {
		return nil, malformed("snapshot", raw)
	}
	st.slot, st.head, st.votersSince = r.uint64(), r.id(), r.uint64()
	holders := func() (hs []Holder) {
		n := int(r.uint32())
		if n > len(r.b)/holderLen {
			r.bad = true
			return nil
		}
		for range n {
			hs = append(hs, r.holder())
		}
		r.bad = r.bad || !ascending(hs, Holder.Compare)
		return hs
	}
	st.voters = holders()
	for _, h := range holders() {
		st.banned[h] = true
	}
	for _, h := range holders() {
		st.departed[h] = 0
	}
	for _, h := range slices.SortedFunc(maps.Keys(st.departed), Holder.Compare) {
		st.departed[h] = r.uint64()
	}
	owners := holders()
	n := int(r.uint32())
	if size := len(g.Range.Addr().AsSlice()) + 12; n > len(r.b)/size || n == 0 {
		return nil, malformed("snapshot", raw)
	}
	st.pieces = nil
	for range n {
		first, owner, since := r.address(family(g.Range.Addr())), int(r.uint32()), r.uint64()
		if owner >= len(owners) || since > st.slot {
			r.bad = true
			break
		}
		st.pieces = append(st.pieces, piece{first, owners[owner], since})
	}
	if !r.end() || len(st.voters) == 0 || len(st.voters) > MaxVoters || len(st.banned) > maxBanned || len(st.departed) > maxDeparted ||
		st.pieces[0].first != st.whole.First || !ascending(st.pieces, func(a, b piece) int { return a.first.Compare(b.first) }) ||
		!st.whole.Contains(st.pieces[len(st.pieces)-1].first) || !bytes.Equal(slices.Concat(st.encode()...), raw) {
		return nil, malformed("snapshot", raw)
	}
	return st, nil
}

// A part of a snapshot in a delta: kind 1 | slot of the decision 8 | index 2 | bytes.
const kindPart = 3

func partRecord(slot uint64, i int, part []byte) []byte {
	b := []byte{kindPart}
	b = binary.BigEndian.AppendUint64(b, slot)
	b = binary.BigEndian.AppendUint16(b, uint16(i))
	return append(b, part...)
}

// incoming is a snapshot whose parts are being collected.
type incoming struct {
	decision *Decision
	parts    [][]byte
	missing  int
	lineage  [][]byte
	unproved bool // the voters of the decision are only known from the snapshot itself
}

// snapshotOf returns the ids of the parts if d is a snapshot.
func snapshotOf(d *Decision) []ID {
	if len(d.Actions) == 1 && d.Actions[0].Kind == Snapshot {
		return d.Actions[0].Parts
	}
	return nil
}

// look checks a decision that is too far ahead to be applied, if it can. A change of the
// voters becomes the next step of the walk. The parts of a snapshot are awaited from now
// on.
func (m *merge) look(d *Decision) error {
	r := m.ring
	if len(r.walk) == 0 {
		r.walk = []step{{since: r.st.votersSince, voters: r.st.voters}}
	}
	last := r.walk[len(r.walk)-1]
	parts := snapshotOf(d)
	if parts == nil && d.Slot <= last.since {
		return nil
	}
	err := fmt.Errorf("decision of slot %d, after a change of the voters in slot %d: %w", d.Slot, d.Since, ErrEarly)
	at := slices.IndexFunc(r.walk, func(s step) bool { return s.since == d.Since })
	if at >= 0 {
		err = m.checkVotesOf(d, r.st.genesis, r.walk[at].voters)
	}
	unproved := err != nil && parts != nil && r.st.slot == 0 && m.trust
	if err != nil && !unproved {
		return err
	}
	if parts == nil {
		if after, changed := votersAfter(last.voters, d); changed && at == len(r.walk)-1 && len(r.walk) <= maxLineage {
			r.walk = append(r.walk, step{d.Slot, after, slices.Clone(d.raw)})
		}
		return nil
	}
	// One that is not proved yet gives way: whoever made it up could name any slot.
	if r.in != nil && (r.in.decision.id == d.id || !r.in.unproved && (unproved || r.in.decision.Slot >= d.Slot)) {
		return nil
	}
	d.raw = slices.Clone(d.raw)
	lineage := slices.Concat(r.st.lineage, r.st.changes)
	for _, s := range r.walk[1:] {
		if s.since < d.Slot {
			lineage = append(lineage, s.raw)
		}
	}
	r.in = &incoming{decision: d, parts: make([][]byte, len(parts)), missing: len(parts), lineage: lineage, unproved: unproved}
	return nil
}

// addPart takes a part of the awaited snapshot. With the last one the copy changes to the
// state of the snapshot.
func (m *merge) addPart(raw []byte) error {
	rd := reader{b: raw[1:]}
	slot, i, part := rd.uint64(), rd.uint16(), rd.b
	in := m.ring.in
	if rd.bad || len(part) == 0 || len(part) > partSize {
		return malformed("part of a snapshot", raw)
	}
	if in == nil || in.decision.Slot != slot || i >= len(in.parts) || in.parts[i] != nil {
		return nil
	}
	if idOf(domainPart, part) != snapshotOf(in.decision)[i] {
		if in.unproved { // the decision may be the lie
			return fmt.Errorf("part %d of the snapshot of slot %d: %w", i, slot, ErrState)
		}
		return fmt.Errorf("part %d of the snapshot of slot %d: %w", i, slot, ErrFormat)
	}
	in.parts[i] = slices.Clone(part)
	if in.missing--; in.missing > 0 {
		return nil
	}
	err := m.enterSnapshot(in)
	if err != nil && in.unproved { // whoever sent the last part may be honest
		return fmt.Errorf("%w: %s", ErrState, err.Error())
	}
	return err
}

func (m *merge) enterSnapshot(in *incoming) error {
	r := m.ring
	r.in = nil
	st, err := decodeState(r.st.genesis, in.parts)
	if err != nil {
		return err
	}
	d := in.decision
	if st.slot+1 != d.Slot || st.head != d.Prev {
		return fmt.Errorf("snapshot of slot %d is the state of slot %d: %w", d.Slot, st.slot, ErrFormat)
	}
	if in.unproved {
		if err := m.checkVotesOf(d, st.genesis, st.voters); err != nil {
			return err
		}
	}
	st.parts = in.parts
	st.lineage = in.lineage[max(0, len(in.lineage)-maxLineage):]
	st.slot, st.head = d.Slot, d.id
	st.tail, st.size = [][]byte{d.raw}, len(d.raw)
	st.moves = append(r.st.moves, st.movesSince(r.st.slot)...)
	r.st = st
	r.replaced()
	m.jumped = true
	return nil
}
