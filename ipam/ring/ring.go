package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// Ring is one peer's copy. Make one with New. It is not safe for concurrent use.
type Ring struct {
	addrRange netip.Prefix
	verifier  peer.Verifier
	keys      Keys // those of the caller, and then bound
	// bound has the keys with which founders voted that are known by their names only.
	bound map[peer.Name]peer.Key

	st       *state   // nil: no ring yet
	awaits   ID       // the ring to take, if st is nil because it was left for another one
	follows  ID       // the ring that the operator chose, against decisions to leave it
	left     []*state // rings that were left, the last one last
	early    map[uint64][]byte
	in       *incoming
	refused  uint64 // records refused
	epoch    uint64 // grows with each change
	owners   map[Holder]addr.Count
	ownersAt uint64
	ranges   map[Holder]int
	rangesAt uint64
	trust    bool

	walk []step // the changes of the voters ahead of st, as far as they are proved
}

// step is a change of the voters that this copy can check but not apply yet.
type step struct {
	since  uint64 // its slot
	voters []Holder
	raw    []byte // the decision; nil for the first step, the present voters
}

const (
	// maxEarly bounds the decisions that wait for the ones before them.
	maxEarly = 32
	// maxLeft bounds the rings that are kept after they were left.
	maxLeft = 2
)

// New returns an empty copy of the ring over addrRange. keys may be nil.
func New(addrRange netip.Prefix, v peer.Verifier, keys Keys) *Ring {
	r := &Ring{addrRange: addrRange.Masked(), verifier: v, bound: make(map[peer.Name]peer.Key), early: make(map[uint64][]byte)}
	r.keys = func(n peer.Name) (k peer.Key, ok bool) {
		if keys != nil {
			k, ok = keys(n)
		}
		if !ok {
			k, ok = r.bound[n]
		}
		return k, ok
	}
	return r
}

// DivergentError is returned if there is another ring over the same address range.
type DivergentError struct {
	Ours, Theirs ID
	// OurPeers and TheirPeers made the rings; TheirPeers is nil if unknown.
	OurPeers, TheirPeers []Holder
	// Genesis is that of the other ring, nil if unknown.
	Genesis *Genesis
	// Follows is set if the delta says that the peers of the other ring decided to follow
	// this one. This copy cannot check that.
	Follows bool
}

func (e *DivergentError) Error() string {
	theirs := e.Theirs.String()
	if len(e.TheirPeers) > 0 {
		theirs += fmt.Sprintf(" (made by %v)", e.TheirPeers)
	}
	return fmt.Sprintf("two rings: ours is %s (made by %v), theirs is %s", e.Ours, e.OurPeers, theirs)
}

// Outcome is what a merge changed.
type Outcome struct {
	// News is the delta of what was new, for the neighbours; nil if nothing was.
	News []byte
	// Refused has an error for each record refused.
	Refused []error
	// Changed reports whether the copy changed.
	Changed bool
}

// Ready reports whether the copy has a ring.
func (r *Ring) Ready() bool { return r.st != nil }

// Genesis returns the genesis of the ring, nil if there is no ring yet.
func (r *Ring) Genesis() *Genesis {
	if r.st == nil {
		return nil
	}
	return r.st.genesis
}

// Slot returns the slot of the last decision, 0 after the genesis.
func (r *Ring) Slot() uint64 {
	if r.st == nil {
		return 0
	}
	return r.st.slot
}

// Awaits returns the ring that this copy must take because the last one was left for it,
// and whether it still waits for that ring.
func (r *Ring) Awaits() (ID, bool) {
	return r.awaits, r.st == nil && !r.awaits.IsZero()
}

// Range returns the range that the ring divides.
func (r *Ring) Range() netip.Prefix { return r.addrRange }

// Refused counts the records that were refused.
func (r *Ring) Refused() uint64 { return r.refused }

// Epoch grows whenever a result of the other methods may have changed.
func (r *Ring) Epoch() uint64 { return r.epoch }

// Start makes g the ring of this copy, which must have none.
func (r *Ring) Start(g *Genesis) (Outcome, error) {
	return r.Merge(appendRecord(newDelta(g.id), g.raw))
}

// Decide merges a decision that this peer has the votes for.
func (r *Ring) Decide(raw []byte) (Outcome, error) {
	if r.st == nil {
		return Outcome{}, fmt.Errorf("decision: there is no ring: %w", ErrState)
	}
	return r.Merge(appendRecord(newDelta(r.st.genesis.id), raw))
}

// Follow makes this copy leave its ring for the ring other, by the decision of the
// operator of this host alone. If the copy left that ring before, it goes back to it;
// otherwise it waits until a neighbour shows it.
func (r *Ring) Follow(other ID) error {
	switch {
	case other.IsZero():
		return fmt.Errorf("follow ring %s: not a ring", other)
	case r.st != nil && r.st.genesis.id == other:
		return fmt.Errorf("follow ring %s: it is the ring of this peer", other)
	}
	r.follows = other
	r.leave(other, nil)
	return nil
}

// leave changes to the ring other: to the state that was left before if there is one,
// else to its genesis, else it waits for it.
func (r *Ring) leave(other ID, g *Genesis) {
	i := slices.IndexFunc(r.left, func(st *state) bool { return st.genesis.id == other })
	var next *state
	switch {
	case i >= 0:
		next = r.left[i]
		next.next = nil
		r.left = slices.Delete(r.left, i, i+1)
	case g != nil:
		next = genesisState(g)
	}
	if r.st != nil {
		r.left = append(r.left, r.st)
		r.left = r.left[max(0, len(r.left)-maxLeft):]
	}
	if r.st, r.awaits = next, (ID{}); next == nil {
		r.awaits = other
	}
	r.compareWithLeft()
	r.replaced()
}

// compareWithLeft notes what changed with the change from the ring that was left last.
func (r *Ring) compareWithLeft() {
	if r.st == nil || len(r.left) == 0 {
		return
	}
	before := r.left[len(r.left)-1]
	r.st.moves = append(before.moves, r.st.movesFrom(before)...)
	before.moves = nil
}

// followDecision leaves the ring if its voters decided so. If the voters of both rings
// decided to adopt the other one, the one with the lower id stays. The operator's choice
// comes first.
func (r *Ring) followDecision() {
	if r.st == nil || r.st.next == nil {
		return
	}
	ours, other := r.st.genesis.id, r.st.next
	crossed := slices.ContainsFunc(r.left, func(st *state) bool {
		return st.genesis.id == other.id && st.next != nil && st.next.id == ours
	})
	if r.follows == ours || crossed && ours.less(other.id) {
		r.st.next = nil
		return
	}
	r.leave(other.id, other)
}

// replaced resets what belongs to the state before.
func (r *Ring) replaced() {
	r.epoch++
	r.in, r.walk = nil, nil
	clear(r.early)
}

// A delta holds records of the ring that genesis names.
//
//	 0        1         17       19
//	+--------+---------+--------+--------+---
//	| format | genesis | length | record | length, record, ...
//	+--------+---------+--------+--------+---
//	  1 byte   16        2        length
const (
	deltaFormat = 1
	deltaHeader = 1 + len(ID{})
)

// maxDelta leaves space for the header that a channel puts in front of a delta.
const maxDelta = gossip.MaxDelta - 256

func newDelta(genesis ID) []byte { return append([]byte{deltaFormat}, genesis[:]...) }

func appendRecord(delta, raw []byte) []byte {
	delta = binary.BigEndian.AppendUint16(delta, uint16(len(raw)))
	return append(delta, raw...)
}

// splitDelta returns the genesis and the raw records of a delta. They share its memory.
func splitDelta(b []byte) (genesis ID, raws [][]byte, err error) {
	if len(b) < deltaHeader || b[0] != deltaFormat {
		return ID{}, nil, malformed("ring delta", b)
	}
	copy(genesis[:], b[1:])
	for rest := b[deltaHeader:]; len(rest) > 0; {
		if len(rest) < 2 {
			return ID{}, nil, fmt.Errorf("ring delta ends in a length: %w", ErrFormat)
		}
		n := int(binary.BigEndian.Uint16(rest))
		if n == 0 || n > maxRecord || len(rest) < 2+n {
			return ID{}, nil, fmt.Errorf("record of %d bytes in the last %d of a ring delta: %w", n, len(rest), ErrFormat)
		}
		raws = append(raws, rest[2:2+n])
		rest = rest[2+n:]
	}
	return genesis, raws, nil
}

// merge is the state of one call of Merge.
type merge struct {
	ring   *Ring
	news   []byte
	slots  uint64 // decisions applied
	jumped bool   // to a snapshot
	start  bool   // entered the ring
	trust  bool   // see Ring.Trust
	disk   bool   // what this peer checked before it wrote it to disk
	out    Outcome
}

// Trust makes the next Merge believe what this copy cannot check: a snapshot whose voters
// are unknown, because the copy has only the genesis and missed too many changes of the
// voters; and the key of a founder that the copy knows by its name only and that is away.
// Call it for deltas of a peer that the user named.
func (r *Ring) Trust() { r.trust = true }

// Merge adds the records of a delta. It accepts those that it can check and reports the
// others in the outcome. It returns an error and changes nothing if the delta is
// malformed or belongs to another ring (*DivergentError), or if all new records were
// refused. delta is borrowed until Merge returns.
func (r *Ring) Merge(delta []byte) (Outcome, error) {
	genesis, raws, err := splitDelta(delta)
	if err != nil {
		return Outcome{}, err
	}
	m := &merge{ring: r, news: newDelta(genesis), trust: r.trust}
	r.trust = false
	var g *Genesis
	for _, raw := range raws {
		if raw[0] != kindGenesis {
			continue
		}
		if g, err = ParseGenesis(raw); err != nil {
			return Outcome{}, err
		}
		if g.id != genesis {
			return Outcome{}, fmt.Errorf("ring delta of %s has the genesis of %s: %w", genesis, g.id, ErrFormat)
		}
	}
	if err := m.enter(genesis, g); err != nil {
		var div *DivergentError
		if errors.As(err, &div) {
			div.Follows = slices.ContainsFunc(raws, func(raw []byte) bool {
				d, err := ParseDecision(raw)
				return err == nil && d.Actions[0].Kind == Adopt && d.Actions[0].Genesis.id == div.Ours
			})
		}
		return Outcome{}, err
	}
	if r.st == nil || r.st.genesis.id != genesis {
		return Outcome{}, nil // it has no genesis, and this copy no ring
	}
	for _, raw := range raws {
		var err error
		switch raw[0] {
		case kindDecision:
			err = m.decision(raw)
		case kindPart:
			err = m.addPart(raw)
		}
		if errors.Is(err, ErrFormat) {
			return m.done(), err
		}
		if err != nil {
			m.out.Refused = append(m.out.Refused, err)
		}
	}
	m.drain()
	out := m.done()
	if !out.Changed && len(out.Refused) > 0 {
		return out, out.Refused[0]
	}
	return out, nil
}

// done returns the outcome and follows an adoption.
func (m *merge) done() Outcome {
	r := m.ring
	for _, err := range m.out.Refused {
		if !errors.Is(err, ErrEarly) {
			r.refused++
		}
	}
	if m.slots > 0 || m.jumped || m.start {
		m.out.Changed = true
		r.epoch++
		if len(m.news) > deltaHeader && len(m.news) <= maxDelta {
			m.out.News = m.news
		}
	}
	r.followDecision()
	return m.out
}

// enter starts the ring of the genesis if the copy has no ring, and returns an error if
// the copy has another one.
func (m *merge) enter(genesis ID, g *Genesis) error {
	r := m.ring
	if want, ok := r.Awaits(); ok && want != genesis {
		return &DivergentError{Ours: want, Theirs: genesis}
	}
	if r.st != nil {
		ours := r.st.genesis
		if ours.id == genesis {
			return nil
		}
		if slices.ContainsFunc(r.left, func(st *state) bool { return st.genesis.id == genesis && st.next != nil && st.next.id == ours.id }) {
			return nil // a neighbour has not heard of the adoption yet
		}
		e := &DivergentError{Ours: ours.id, Theirs: genesis, OurPeers: ours.Founders}
		if g != nil {
			e.TheirPeers, e.Genesis = g.Founders, g
		}
		return e
	}
	if g == nil {
		return nil
	}
	if g.Range != r.addrRange {
		return fmt.Errorf("ring %s divides %s, this peer has the address range %s: %w", genesis, g.Range, r.addrRange, ErrRange)
	}
	if err := g.check(r.verifier, r.keys); err != nil {
		r.refused++
		return fmt.Errorf("ring %s: %w", genesis, err)
	}
	r.st, r.awaits = genesisState(g), ID{}
	r.compareWithLeft()
	r.replaced()
	m.start = true
	m.news = appendRecord(m.news, g.raw)
	return nil
}

// decision applies the decision of the next slot, and keeps those ahead of it.
func (m *merge) decision(raw []byte) error {
	r := m.ring
	slot := slotOf(raw)
	switch {
	case slot <= r.st.slot || r.st.next != nil:
		return nil
	case slot > r.st.slot+1:
		d, err := ParseDecision(raw)
		if err != nil {
			return err
		}
		if slot <= r.st.slot+maxEarly && r.early[slot] == nil {
			r.early[slot] = slices.Clone(raw)
		}
		if d.mayChangeVoters() || snapshotOf(d) != nil {
			if err := m.look(d); err != nil {
				return err
			}
		}
		return fmt.Errorf("decision of slot %d, this copy has %d: %w", slot, r.st.slot, ErrEarly)
	}
	d, err := ParseDecision(raw)
	if err != nil {
		return err
	}
	if d.Prev != r.st.head || d.Since != r.st.votersSince {
		return fmt.Errorf("decision of slot %d follows %s, not %s: %w", slot, d.Prev, r.st.head, ErrState)
	}
	if err := m.checkVotesOf(d, r.st.genesis, r.st.voters); err != nil {
		return err
	}
	d.raw = slices.Clone(raw)
	r.st.commit(d)
	m.slots++
	m.news = appendRecord(m.news, raw)
	return nil
}

// drain applies decisions that arrived before those that they follow.
func (m *merge) drain() {
	r := m.ring
	m.trust = m.disk // anybody may have sent them
	for r.st.next == nil {
		raw := r.early[r.st.slot+1]
		if raw == nil {
			break
		}
		delete(r.early, r.st.slot+1)
		if err := m.decision(raw); err != nil {
			m.out.Refused = append(m.out.Refused, err)
			break
		}
	}
	for slot := range r.early {
		if slot <= r.st.slot {
			delete(r.early, slot)
		}
	}
	if len(r.walk) > 0 && r.walk[len(r.walk)-1].since <= r.st.votersSince {
		r.walk = nil
	}
	if r.in != nil && r.in.decision.Slot <= r.st.slot {
		r.in = nil
	}
}
