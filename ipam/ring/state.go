package ring

import (
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

// state is one ring: a genesis, the records accepted since, and the indexes that
// are derived from them.
type state struct {
	genesis  *Genesis
	whole    addr.Range
	grants   map[ID]*Grant
	removals map[ID]*Removal

	grantedTo    map[Holder][]*Grant   // by To: genesis and grants
	leaves       map[Holder]*Removal   // by Gone: the preferred removal
	joins        map[Holder][]*Removal // by Heir: all removals
	incarnations map[peer.Name]uint32  // how many incarnations ended
	books        map[uint32]*peer.Book // by incarnation: the key each name was first seen with
	pieces       []piece               // covers whole
	short        map[uint64]ID         // grants and removals, as a basis names them
	log          []Raw                 // genesis and records, each after those that prove its author's right

	buckets [buckets]uint64 // for the digest
	epoch   uint64          // grows with each change
}

// piece is a run of addresses, up to the next piece, that grant rules.
type piece struct {
	first netip.Addr
	grant *Grant
}

// genesisState returns the state of a ring that has no record but its genesis.
func genesisState(g *Genesis) *state {
	st := &state{
		genesis:      g,
		whole:        addr.Of(g.Range),
		grants:       make(map[ID]*Grant),
		removals:     make(map[ID]*Removal),
		grantedTo:    make(map[Holder][]*Grant),
		leaves:       make(map[Holder]*Removal),
		joins:        make(map[Holder][]*Removal),
		incarnations: make(map[peer.Name]uint32),
		books:        make(map[uint32]*peer.Book),
		short:        make(map[uint64]ID),
	}
	st.log = []Raw{{g.id, g.raw}}
	for _, gr := range g.grants() {
		st.pieces = append(st.pieces, piece{gr.Range.First, gr})
		st.grantedTo[gr.To] = append(st.grantedTo[gr.To], gr)
	}
	return st
}

// last returns the last address of piece i.
func (st *state) last(i int) netip.Addr {
	if i+1 < len(st.pieces) {
		return st.pieces[i+1].first.Prev()
	}
	return st.whole.Last
}

// at returns the index of the piece with a, which must be in the address range.
func (st *state) at(a netip.Addr) int {
	i, found := slices.BinarySearchFunc(st.pieces, a, func(p piece, a netip.Addr) int { return p.first.Compare(a) })
	if !found {
		i--
	}
	return i
}

// overlay makes g rule where it beats the grant that ruled before, and reports
// whether it took an address from a peer other than its giver.
func (st *state) overlay(g *Grant) (conflict bool) {
	i := st.at(g.Range.First)
	j := i
	var repl []piece
	put := func(first netip.Addr, g *Grant) {
		if n := len(repl); n == 0 || repl[n-1].grant != g {
			repl = append(repl, piece{first, g})
		}
	}
	for ; j < len(st.pieces) && !g.Range.Last.Less(st.pieces[j].first); j++ {
		p, last := st.pieces[j], st.last(j)
		if !g.beats(p.grant) {
			put(p.first, p.grant)
			continue
		}
		if st.owner(p.grant.To) != st.owner(g.From) {
			conflict = true
		}
		if p.first.Less(g.Range.First) {
			put(p.first, p.grant)
			put(g.Range.First, g)
		} else {
			put(p.first, g)
		}
		if g.Range.Last.Less(last) {
			put(g.Range.Last.Next(), p.grant)
		}
	}
	st.pieces = slices.Replace(st.pieces, i, j, repl...)
	return conflict
}

// commitGrant adds an accepted grant.
func (st *state) commitGrant(g *Grant) (conflict bool) {
	st.bind(g.From, g.Key)
	st.grants[g.id] = g
	st.grantedTo[g.To] = append(st.grantedTo[g.To], g)
	st.logRecord(g.id, g.raw)
	st.epoch++
	return st.overlay(g)
}

// commitRemoval adds an accepted removal.
func (st *state) commitRemoval(rm *Removal) {
	if rm.ByVotes {
		for _, v := range rm.Votes {
			st.bind(v.Voter, v.Key)
		}
	} else {
		st.bind(rm.Gone, rm.Key)
	}
	st.removals[rm.id] = rm
	st.link(rm)
	st.logRecord(rm.id, rm.raw)
	st.epoch++
}

// supersedes reports whether rm is preferred to o, another removal of the same
// holder: the later ballot wins, then the greater id.
func (rm *Removal) supersedes(o *Removal) bool {
	if c := rm.Ballot.Compare(o.Ballot); c != 0 {
		return c > 0
	}
	return o.id.less(rm.id)
}

// link puts a removal into force. Of several removals of one holder one is
// preferred; the others still say who may give the holder's space.
func (st *state) link(rm *Removal) {
	st.joins[rm.Heir] = append(st.joins[rm.Heir], rm)
	if old := st.leaves[rm.Gone]; old == nil || rm.supersedes(old) {
		st.leaves[rm.Gone] = rm
	}
	st.incarnations[rm.Gone.Name] = max(st.incarnations[rm.Gone.Name], rm.Gone.Incarnation+1)
}

// current returns the present incarnation of name.
func (st *state) current(name peer.Name) Holder { return Holder{name, st.incarnations[name]} }

// known reports whether all earlier incarnations of h's name have ended.
func (st *state) known(h Holder) bool { return h.Incarnation <= st.incarnations[h.Name] }

// owner follows the removals from h to the present owner of its space.
func (st *state) owner(h Holder) Holder {
	if len(st.leaves) == 0 || st.leaves[h] == nil {
		return h
	}
	var path []Holder
	for {
		rm := st.leaves[h]
		if rm == nil {
			return h
		}
		if at := slices.Index(path, h); at >= 0 {
			lowest := slices.MinFunc(path[at:], Holder.Compare)
			return st.current(lowest.Name)
		}
		path = append(path, h)
		h = rm.Heir
	}
}

// leadsTo reports whether the removals from h lead to to.
func (st *state) leadsTo(h, to Holder) bool {
	for range len(st.removals) + 1 {
		if h == to {
			return true
		}
		rm := st.leaves[h]
		if rm == nil {
			return false
		}
		h = rm.Heir
	}
	return false
}

// speaksFor returns all holders whose space may be given by who: itself, and the
// holders from which removals lead to it, preferred or not.
func (st *state) speaksFor(who Holder) []Holder {
	out := []Holder{who}
	add := func(h Holder) {
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	// A circle of removals resolves to the present incarnation of a name in it.
	for incarnation := range who.Incarnation {
		if h := (Holder{who.Name, incarnation}); st.inCircle(h) {
			add(h)
		}
	}
	for i := 0; i < len(out); i++ {
		for _, rm := range st.joins[out[i]] {
			add(rm.Gone)
		}
	}
	return out
}

func (st *state) inCircle(h Holder) bool {
	var seen []Holder
	next := []Holder{h}
	for len(next) > 0 {
		x := next[0]
		next = next[1:]
		for _, rm := range st.joins[x] {
			if rm.Gone == h {
				return true
			}
			if !slices.Contains(seen, rm.Gone) {
				seen = append(seen, rm.Gone)
				next = append(next, rm.Gone)
			}
		}
	}
	return false
}

// wasGiven returns the parts of r that were given to who, or to a holder it
// speaks for, by records of a version below v; of any version if v is zero.
func (st *state) wasGiven(r addr.Range, who Holder, v uint64) []addr.Range {
	var parts []addr.Range
	for _, h := range st.speaksFor(who) {
		for _, g := range st.grantedTo[h] {
			if v != 0 && g.Version >= v {
				continue
			}
			if part, ok := g.Range.Intersect(r); ok {
				parts = append(parts, part)
			}
		}
	}
	return addr.Normal(parts)
}

// checkKey returns an error if key may not sign for h.
func (st *state) checkKey(h Holder, key peer.Key) error {
	b := st.books[h.Incarnation]
	if b == nil {
		b = &peer.Book{}
	}
	return b.Check(h.Name, key)
}

func (st *state) bind(h Holder, key peer.Key) {
	b := st.books[h.Incarnation]
	if b == nil {
		b = &peer.Book{}
		st.books[h.Incarnation] = b
	}
	if err := b.Bind(h.Name, key); err != nil {
		panic("ring: a record was committed unchecked: " + err.Error())
	}
}

// ruling returns the grants that rule some address, without the genesis.
func (st *state) ruling() []*Grant {
	seen := make(map[ID]bool)
	var out []*Grant
	for _, p := range st.pieces {
		if p.grant.Version > 0 && !seen[p.grant.id] {
			seen[p.grant.id] = true
			out = append(out, p.grant)
		}
	}
	return out
}

// owners returns how many addresses each owner has.
func (st *state) owners() map[Holder]addr.Count {
	out := make(map[Holder]addr.Count)
	for i, p := range st.pieces {
		h := st.owner(p.grant.To)
		out[h] = out[h].Add(addr.Range{First: p.first, Last: st.last(i)}.Size())
	}
	return out
}

// basis returns the short ids of all records that rule, ascending.
func (st *state) basis() []uint64 {
	var out []uint64
	for _, g := range st.ruling() {
		out = append(out, g.id.short())
	}
	for id := range st.removals {
		out = append(out, id.short())
	}
	slices.Sort(out)
	return out
}

// ownersOf returns the owners by the records of a basis, and how many of those
// records are unknown here.
func (st *state) ownersOf(basis []uint64) (owners []Holder, lacking int) {
	for _, s := range basis {
		if _, ok := st.short[s]; !ok {
			lacking++
		}
	}
	if lacking > 0 {
		return nil, lacking
	}
	past := genesisState(st.genesis)
	for _, s := range basis {
		if rm := st.removals[st.short[s]]; rm != nil {
			past.link(rm)
		}
	}
	for _, s := range basis {
		if g := st.grants[st.short[s]]; g != nil {
			past.overlay(g)
		}
	}
	for h := range past.owners() {
		owners = append(owners, h)
	}
	slices.SortFunc(owners, Holder.Compare)
	return owners, 0
}
