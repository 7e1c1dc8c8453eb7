package ring

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

func isEarly(err error) bool { return errors.Is(err, ErrEarly) }

// Give returns the transfer of rng from from, which must own all of it, to to, signed by
// s. It has no effect until it is decided.
func (r *Ring) Give(s peer.Signer, from, to Holder, rng addr.Range) (*Action, error) {
	a := &Action{Kind: Transfer, Range: rng, From: from, To: to, AsOf: r.Slot()}
	if r.st != nil {
		a.sign(r.st.genesis.id, s)
	}
	return a, r.Check(a)
}

// Leaving returns the action with which from leaves everything to heir, signed by from.
// It lacks the signature of the heir; see SignAsHeir.
func (r *Ring) Leaving(s peer.Signer, from, heir Holder) *Action {
	a := &Action{Kind: Leave, From: from, To: heir, AsOf: r.Slot()}
	if r.st != nil {
		a.sign(r.st.genesis.id, s)
	}
	return a
}

// SignAsHeir adds the signature of the heir.
func (r *Ring) SignAsHeir(s peer.Signer, a *Action) {
	if r.st != nil {
		a.signAsHeir(r.st.genesis.id, s)
	}
}

// NextSnapshot returns the snapshot of the present state.
func (r *Ring) NextSnapshot() *Action { return &Action{Kind: Snapshot, Parts: r.st.partIDs()} }

// SignedBy returns an error if key may not sign for h.
func (r *Ring) SignedBy(h Holder, key peer.Key) error { return h.signedBy(key, r.keys) }

// Since returns what a copy of this ring lacks that knows the decisions up to slot, in
// deltas.
func (r *Ring) Since(slot uint64) [][]byte {
	if r.st == nil {
		return nil
	}
	return r.st.since(slot, false)
}

// TailSize returns how many bytes of decisions the copy keeps since the last snapshot,
// and the size of that snapshot.
func (r *Ring) TailSize() (tail, snapshot int) {
	if r.st == nil {
		return 0, 0
	}
	for _, p := range r.st.parts {
		snapshot += len(p)
	}
	return r.st.size, snapshot
}

// Voters returns the voters, ascending. The slice is read-only.
func (r *Ring) Voters() []Holder {
	if r.st == nil {
		return nil
	}
	return r.st.voters
}

// Banned returns the banned peers, ascending.
func (r *Ring) Banned() (out []Holder) {
	if r.st == nil {
		return nil
	}
	for h := range r.st.banned {
		out = append(out, h)
	}
	slices.SortFunc(out, Holder.Compare)
	return out
}

// IsBanned reports whether a peer is banned.
func (r *Ring) IsBanned(h Holder) bool { return r.st != nil && r.st.banned[h] }

// Founder returns the holder of a founder that is known by its name only.
func (r *Ring) Founder(n peer.Name) (Holder, bool) {
	h := Holder{Name: n}
	if r.st == nil || !r.st.genesis.seeded() {
		return Holder{}, false
	}
	_, ok := slices.BinarySearchFunc(r.st.genesis.Founders, h, Holder.Compare)
	return h, ok
}

// Named returns the owners and voters with a name, of all keys, ascending.
func (r *Ring) Named(n peer.Name) (out []Holder) {
	for h := range r.Owners() {
		if h.Name == n {
			out = append(out, h)
		}
	}
	for _, h := range r.Voters() {
		if h.Name == n {
			out = append(out, h)
		}
	}
	slices.SortFunc(out, Holder.Compare)
	return slices.Compact(out)
}

// Left reports whether this copy left ring id, by a decision or by its operator.
func (r *Ring) Left(id ID) bool {
	return slices.ContainsFunc(r.left, func(st *state) bool { return st.genesis.id == id })
}

// LeftRings returns the rings that this copy left and can go back to, the last one last.
func (r *Ring) LeftRings() (ids []ID) {
	for _, st := range r.left {
		ids = append(ids, st.genesis.id)
	}
	return ids
}

// Owner returns the owner of a, and false if a is outside the address range or there is
// no ring.
func (r *Ring) Owner(a netip.Addr) (Holder, bool) {
	if r.st == nil || !r.st.whole.Contains(a) {
		return Holder{}, false
	}
	return r.st.pieces[r.st.at(a)].holder, true
}

// RunOf returns the run of addresses around a that have one owner and one slot.
func (r *Ring) RunOf(a netip.Addr) addr.Range {
	if r.st == nil || !r.st.whole.Contains(a) {
		return addr.Range{}
	}
	i := r.st.at(a)
	return addr.Range{First: r.st.pieces[i].first, Last: r.st.last(i)}
}

// Owners returns how many addresses each owner has. The map is read-only, and valid
// until the ring changes.
func (r *Ring) Owners() map[Holder]addr.Count {
	if r.st == nil {
		return nil
	}
	if r.owners == nil || r.ownersAt != r.epoch {
		r.owners, r.ownersAt = r.OwnersIn(r.st.whole), r.epoch
	}
	return r.owners
}

// Ranges returns how many ranges each owner has, and how many there are. The map is
// read-only, and valid until the ring changes.
func (r *Ring) Ranges() (by map[Holder]int, total int) {
	if r.st == nil {
		return nil, 0
	}
	if r.ranges == nil || r.rangesAt != r.epoch {
		r.ranges, r.rangesAt = make(map[Holder]int), r.epoch
		for _, p := range r.st.pieces {
			r.ranges[p.holder]++
		}
	}
	return r.ranges, len(r.st.pieces)
}

// Cuts returns how many ranges more the ring has after a transfer that Check accepts. It is
// negative if ranges become one.
func (r *Ring) Cuts(a *Action) int { return r.st.cuts(a.Range, a.To) }

// OwnersIn returns how many addresses of rng each owner has.
func (r *Ring) OwnersIn(rng addr.Range) map[Holder]addr.Count {
	out := make(map[Holder]addr.Count)
	r.each(rng, func(part addr.Range, p piece) { out[p.holder] = out[p.holder].Add(part.Size()) })
	return out
}

// Owned returns the ranges that any of hs owns, normalized by addr.Normal.
func (r *Ring) Owned(hs ...Holder) (out []addr.Range) {
	if r.st == nil {
		return nil
	}
	r.each(r.st.whole, func(part addr.Range, p piece) {
		if slices.Contains(hs, p.holder) {
			out = append(out, part)
		}
	})
	return addr.Normal(out)
}

// TakeMoves returns what changed its owner since the last call, the first one first. It leaves out
// the first ring, and what Restore read.
func (r *Ring) TakeMoves() (out []Move) {
	if r.st != nil {
		out, r.st.moves = r.st.moves, nil
	}
	return out
}

// Departed reports whether a peer of that name left or was removed, as far as the ring remembers.
func (r *Ring) Departed(n peer.Name) bool {
	if r.st != nil {
		for h := range r.st.departed {
			if h.Name == n {
				return true
			}
		}
	}
	return false
}

// Entry is a run of addresses with one owner.
type Entry struct {
	Range addr.Range
	Owner Holder
	Since uint64 // the slot that made it so
}

// Entries returns the whole ring in order.
func (r *Ring) Entries() (out []Entry) {
	if r.st == nil {
		return nil
	}
	r.each(r.st.whole, func(part addr.Range, p piece) { out = append(out, Entry{part, p.holder, p.since}) })
	return out
}

// each calls f for the pieces of rng.
func (r *Ring) each(rng addr.Range, f func(addr.Range, piece)) {
	if r.st != nil {
		r.st.each(rng, f)
	}
}

func (st *state) each(rng addr.Range, f func(addr.Range, piece)) {
	rng, ok := rng.Intersect(st.whole)
	if !ok {
		return
	}
	for i := st.at(rng.First); i < len(st.pieces) && !rng.Last.Less(st.pieces[i].first); i++ {
		part, _ := rng.Intersect(addr.Range{First: st.pieces[i].first, Last: st.last(i)})
		f(part, st.pieces[i])
	}
}
