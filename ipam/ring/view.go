package ring

import (
	"net/netip"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

// Holder returns the present incarnation of name.
func (r *Ring) Holder(name peer.Name) Holder {
	if r.st == nil {
		return Holder{Name: name}
	}
	return r.st.current(name)
}

// Removed returns the present owner of the space of h, and whether h was removed.
func (r *Ring) Removed(h Holder) (heir Holder, removed bool) {
	if r.st == nil || r.st.leaves[h] == nil {
		return h, false
	}
	return r.st.owner(h), true
}

// Known reports whether h owns anything or was ever given anything.
func (r *Ring) Known(h Holder) bool {
	return r.st != nil && (len(r.st.grantedTo[h]) > 0 || !r.Owners()[h].IsZero())
}

// LeadsTo reports whether the removals lead from h to to, directly or over other
// holders.
func (r *Ring) LeadsTo(h, to Holder) bool { return r.st != nil && r.st.leadsTo(h, to) }

// Superseded reports whether the adoptions lead from ring id to the ring of this
// copy.
func (r *Ring) Superseded(id ID) bool {
	return r.st != nil && r.resolve(id) == r.st.genesis.id
}

// Owner returns the owner of a, and false if a is outside the address range or
// there is no ring.
func (r *Ring) Owner(a netip.Addr) (Holder, bool) {
	if r.st == nil || !r.st.whole.Contains(a) {
		return Holder{}, false
	}
	return r.st.owner(r.st.pieces[r.st.at(a)].grant.To), true
}

// Owners returns how many addresses each owner has. The map is read-only, and
// valid until the ring changes.
func (r *Ring) Owners() map[Holder]addr.Count {
	if r.st == nil {
		return nil
	}
	if e := r.Epoch(); r.owners == nil || r.ownersAt != e {
		r.owners, r.ownersAt = r.st.owners(), e
	}
	return r.owners
}

// OwnersIn returns how many addresses of rng each owner has.
func (r *Ring) OwnersIn(rng addr.Range) map[Holder]addr.Count {
	out := make(map[Holder]addr.Count)
	r.each(rng, func(part addr.Range, g *Grant) {
		h := r.st.owner(g.To)
		out[h] = out[h].Add(part.Size())
	})
	return out
}

// Owned returns the ranges that the present incarnation of name owns, normalized
// by addr.Normal.
func (r *Ring) Owned(name peer.Name) []addr.Range {
	if r.st == nil {
		return nil
	}
	me := r.st.current(name)
	var out []addr.Range
	// It can own only ranges that were given to it or to holders it inherited from.
	for _, given := range r.st.wasGiven(r.st.whole, me, 0) {
		r.each(given, func(part addr.Range, g *Grant) {
			if r.st.owner(g.To) == me {
				out = append(out, part)
			}
		})
	}
	return addr.Normal(out)
}

// Entry is a run of addresses with one ruling record.
type Entry struct {
	Range   addr.Range
	Owner   Holder
	Given   Holder // the holder that the record gave it to; Owner may have inherited it
	Version uint64
}

// Entries returns the whole ring in order.
func (r *Ring) Entries() []Entry {
	if r.st == nil {
		return nil
	}
	var out []Entry
	r.each(r.st.whole, func(part addr.Range, g *Grant) {
		out = append(out, Entry{part, r.st.owner(g.To), g.To, g.Version})
	})
	return out
}

// each calls f for the pieces of rng.
func (r *Ring) each(rng addr.Range, f func(addr.Range, *Grant)) {
	if r.st == nil {
		return
	}
	st := r.st
	rng, ok := rng.Intersect(st.whole)
	if !ok {
		return
	}
	for i := st.at(rng.First); i < len(st.pieces) && !rng.Last.Less(st.pieces[i].first); i++ {
		part, _ := rng.Intersect(addr.Range{First: st.pieces[i].first, Last: st.last(i)})
		f(part, st.pieces[i].grant)
	}
}
