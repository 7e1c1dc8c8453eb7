package ring

import (
	"maps"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
)

const (
	// maxBanned bounds the banned peers.
	maxBanned = 1 << 10
	// maxDeparted bounds the departed peers.
	maxDeparted = 256
	// MaxRanges bounds the ranges, so that a snapshot of them fits maxParts.
	MaxRanges = 80_000
	// maxLineage bounds the changes of the voters that are kept after a snapshot. A peer
	// that missed more of them cannot check the snapshot, and its operator decides.
	maxLineage = 256
)

// state is a ring at one slot.
type state struct {
	genesis *Genesis
	whole   addr.Range
	slot    uint64
	head    ID // the decision of slot, or the genesis
	pieces  []piece
	voters  []Holder // ascending
	// votersSince is the slot that changed the voters last.
	votersSince uint64
	banned      map[Holder]bool
	next        *Genesis // set once the ring was left for another one
	// departed has the slots in which peers left or were removed, the latest ones. A
	// transfer to such a peer that was signed before is void.
	departed map[Holder]uint64

	parts   [][]byte // of the latest snapshot, nil if there is none
	lineage [][]byte // the latest changes of the voters before tail
	tail    [][]byte // the decisions since the snapshot, or since the genesis
	changes [][]byte // those of tail that changed the voters
	size    int      // of tail, in bytes

	moves []Move // since TakeMoves was called
}

// Move is a change of owner.
type Move struct {
	// Kind is that of the action: Transfer, Leave, Remove or Ban. Snapshot stands for all actions
	// that this copy skipped with one. Adopt says that this copy has changed to another ring: first
	// a move without ranges, and then the ranges that have another owner in this ring.
	Kind     Kind
	Slot     uint64 // of the decision
	From, To Holder // From is zero after a snapshot
	Ranges   []addr.Range
	// Departed is set after a snapshot if a peer left, was removed or was banned in the slot that
	// gave the ranges to To.
	Departed bool
}

// piece is a run of addresses, up to the next piece, that holder owns.
type piece struct {
	first  netip.Addr
	holder Holder
	since  uint64 // the slot of the decision that made it so
}

func genesisState(g *Genesis) *state {
	return &state{genesis: g, whole: addr.Of(g.Range), head: g.id, pieces: g.pieces(),
		voters: g.Voters(), banned: make(map[Holder]bool), departed: make(map[Holder]uint64)}
}

// trial returns a copy on which actions can be tried. It shares what actions replace.
func (st *state) trial() *state {
	t := *st
	t.moves = nil
	t.pieces = slices.Clone(st.pieces)
	t.banned, t.departed = maps.Clone(st.banned), maps.Clone(st.departed)
	return &t
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

// ownsAny reports whether h owns a piece.
func (st *state) ownsAny(h Holder) bool { return st.ownsAsOf(h, maxSlot) }

// ownsAsOf reports whether h owns a piece that did not change after asOf.
func (st *state) ownsAsOf(h Holder, asOf uint64) bool {
	return slices.ContainsFunc(st.pieces, func(p piece) bool { return p.holder == h && p.since <= asOf })
}

// cuts returns how many ranges more there are if rng goes to h; it is negative if ranges
// become one.
func (st *state) cuts(rng addr.Range, h Holder) int {
	i, j := st.at(rng.First), st.at(rng.Last)
	n := i - j // the bounds within rng go
	// A bound is before rng if another peer owns the address before it, and after rng alike.
	bound := func(now, was bool) {
		if now && !was {
			n++
		} else if was && !now {
			n--
		}
	}
	if starts := st.pieces[i].first == rng.First; !starts {
		bound(st.pieces[i].holder != h, false)
	} else if i > 0 {
		bound(st.pieces[i-1].holder != h, true)
	}
	if ends := st.last(j) == rng.Last; !ends {
		bound(st.pieces[j].holder != h, false)
	} else if j+1 < len(st.pieces) {
		bound(st.pieces[j+1].holder != h, true)
	}
	return n
}

// assign gives rng to h. Adjacent pieces of one holder become one piece.
func (st *state) assign(rng addr.Range, h Holder) {
	slot := st.slot + 1
	i := st.at(rng.First)
	j := i
	for j < len(st.pieces) && !rng.Last.Less(st.pieces[j].first) {
		j++
	}
	var repl []piece
	if st.pieces[i].first.Less(rng.First) {
		repl = append(repl, st.pieces[i])
	}
	repl = append(repl, piece{rng.First, h, slot})
	if end := st.last(j - 1); rng.Last.Less(end) {
		repl = append(repl, piece{rng.Last.Next(), st.pieces[j-1].holder, st.pieces[j-1].since})
	}
	st.pieces = slices.Replace(st.pieces, i, j, repl...)
	st.join(max(i-1, 0), i+len(repl)+1)
}

// join makes one piece of adjacent pieces from i to j that one holder owns.
func (st *state) join(i, j int) {
	j = min(j, len(st.pieces))
	out := st.pieces[:i]
	for _, p := range st.pieces[i:j] {
		if n := len(out); n > i && out[n-1].holder == p.holder {
			out[n-1].since = max(out[n-1].since, p.since)
			continue
		}
		out = append(out, p)
	}
	st.pieces = append(out, st.pieces[j:]...)
}

// giveAll gives the pieces of a.From that did not change after asOf to a.To.
func (st *state) giveAll(a *Action, asOf uint64) {
	var ranges []addr.Range
	for i, p := range st.pieces {
		if p.holder == a.From && p.since <= asOf {
			st.pieces[i].holder, st.pieces[i].since = a.To, st.slot+1
			ranges = append(ranges, addr.Range{First: p.first, Last: st.last(i)})
		}
	}
	if len(ranges) > 0 {
		st.moves = append(st.moves, Move{Kind: a.Kind, Slot: st.slot + 1, From: a.From, To: a.To, Ranges: ranges})
	}
	st.join(0, len(st.pieces))
}

// movesSince returns what changed after a slot, if the decisions since are not known.
func (st *state) movesSince(slot uint64) []Move {
	departed := make(map[uint64]bool)
	for _, at := range st.departed {
		departed[at] = true
	}
	var g grouped
	for i, p := range st.pieces {
		if p.since > slot {
			g.add(moveGroup{to: p.holder, departed: departed[p.since]}, addr.Range{First: p.first, Last: st.last(i)})
		}
	}
	return g.moves(Snapshot, st.slot)
}

// movesFrom returns what has another owner than in the state before, of another ring.
func (st *state) movesFrom(before *state) []Move {
	var g grouped
	for i, p := range st.pieces {
		before.each(addr.Range{First: p.first, Last: st.last(i)}, func(part addr.Range, was piece) {
			if was.holder != p.holder {
				g.add(moveGroup{from: was.holder, to: p.holder}, part)
			}
		})
	}
	return append([]Move{{Kind: Adopt, Slot: st.slot}}, g.moves(Adopt, st.slot)...)
}

// grouped collects ranges that are one Move.
type grouped struct {
	order  []moveGroup
	ranges map[moveGroup][]addr.Range
}

type moveGroup struct {
	from, to Holder
	departed bool
}

func (g *grouped) add(k moveGroup, r addr.Range) {
	if g.ranges == nil {
		g.ranges = make(map[moveGroup][]addr.Range)
	}
	if g.ranges[k] == nil {
		g.order = append(g.order, k)
	}
	g.ranges[k] = append(g.ranges[k], r)
}

func (g *grouped) moves(kind Kind, slot uint64) (out []Move) {
	for _, k := range g.order {
		out = append(out, Move{kind, slot, k.from, k.to, g.ranges[k], k.departed})
	}
	return out
}

// withoutVote removes a voter whose space went to heir. The last voter hands its vote to
// the heir, as a ring without voters would never change again.
func (st *state) withoutVote(h, heir Holder) {
	i := slices.Index(st.voters, h)
	switch {
	case i < 0:
	case len(st.voters) == 1:
		st.voters = []Holder{heir}
	default:
		st.voters = slices.Delete(slices.Clone(st.voters), i, i+1)
	}
}

// depart takes the vote of a peer whose space went to heir, and remembers it.
func (st *state) depart(h, heir Holder) {
	st.withoutVote(h, heir)
	if _, known := st.departed[h]; !known && len(st.departed) >= maxDeparted {
		var first Holder
		for o, slot := range st.departed {
			if first.IsZero() || slot < st.departed[first] || slot == st.departed[first] && o.Compare(first) < 0 {
				first = o
			}
		}
		delete(st.departed, first)
	}
	st.departed[h] = st.slot + 1
}

// apply carries out an action that check accepts.
func (st *state) apply(a *Action) {
	switch a.Kind {
	case Transfer:
		if a.From != a.To {
			st.moves = append(st.moves, Move{Kind: a.Kind, Slot: st.slot + 1, From: a.From, To: a.To, Ranges: []addr.Range{a.Range}})
		}
		st.assign(a.Range, a.To)
		delete(st.departed, a.To)
	case Leave:
		st.giveAll(a, a.AsOf)
		st.depart(a.From, a.To)
	case Remove:
		st.giveAll(a, maxSlot)
		st.depart(a.From, a.To)
	case Voters:
		st.voters = a.Voters
	case Ban:
		st.giveAll(a, maxSlot)
		st.depart(a.From, a.To)
		st.banned[a.From] = true
	case Unban:
		delete(st.banned, a.From)
	case Adopt:
		st.next = a.Genesis
	case Snapshot:
		st.parts = st.encode()
		st.lineage = append(slices.Clone(st.lineage), st.changes...)
		st.lineage = st.lineage[max(0, len(st.lineage)-maxLineage):]
		st.tail, st.changes, st.size = nil, nil, 0
	}
}

// commit applies the decision of the next slot.
func (st *state) commit(d *Decision) {
	before := st.voters
	for _, a := range d.Actions {
		if st.check(a, st.ownsAny) == nil {
			st.apply(a)
		}
	}
	st.slot, st.head = d.Slot, d.id
	st.tail = append(st.tail, d.raw)
	if !slices.Equal(before, st.voters) {
		st.changes = append(st.changes, d.raw)
		st.votersSince = d.Slot
	}
	st.size += len(d.raw)
}

// mayChangeVoters reports whether d is of a kind that can change the voters.
func (d *Decision) mayChangeVoters() bool {
	switch d.Actions[0].Kind {
	case Voters, Leave, Remove, Ban:
		return len(d.Actions) == 1
	}
	return false
}

// votersAfter returns the voters after a decision, given those before it, and whether it
// changes them.
func votersAfter(voters []Holder, d *Decision) (after []Holder, changed bool) {
	t := state{voters: voters}
	for _, a := range d.Actions {
		switch a.Kind {
		case Voters:
			t.voters = a.Voters
		case Leave, Remove, Ban:
			t.withoutVote(a.From, a.To)
		}
	}
	return t.voters, !slices.Equal(t.voters, voters)
}
