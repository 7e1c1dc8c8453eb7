package ring

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

// Ring is one peer's copy. Make one with New. It is not safe for concurrent
// use.
type Ring struct {
	addrRange netip.Prefix
	verifier  peer.Verifier

	st        *state           // nil: no ring yet
	adoptions map[ID]*Adoption // all that were accepted
	abandoned map[ID]*state    // rings that were left for another
	origin    ID               // the ring first taken or restored; adoptions lead from it to others
	conflicts uint64           // times a merge took an address from a peer that did not give it
	refused   uint64           // records refused
	epoch     uint64           // grows when st is replaced
	owners    map[Holder]addr.Count
	ownersAt  uint64
}

// New returns an empty copy of the ring over addrRange.
func New(addrRange netip.Prefix, v peer.Verifier) *Ring {
	return &Ring{addrRange: addrRange.Masked(), verifier: v,
		adoptions: make(map[ID]*Adoption), abandoned: make(map[ID]*state)}
}

// RefusedError is returned for a record that was not accepted.
type RefusedError struct {
	What  string // grant, removal, adoption
	By    Holder // its author, or the holder that it removes
	Range addr.Range
	Cause error
}

func (e *RefusedError) Error() string {
	if e.Range.IsValid() {
		return fmt.Sprintf("%s of %s by %s refused: %v", e.What, e.Range, e.By, e.Cause)
	}
	return fmt.Sprintf("%s of %s refused: %v", e.What, e.By, e.Cause)
}

func (e *RefusedError) Unwrap() error { return e.Cause }

// DivergentError is returned if there is another ring over the same address range.
type DivergentError struct {
	Ours, Theirs ID
	// OurPeers and TheirPeers made the rings; TheirPeers is nil if unknown.
	OurPeers, TheirPeers []peer.Name
}

func (e *DivergentError) Error() string {
	theirs := e.Theirs.String()
	if len(e.TheirPeers) > 0 {
		theirs += fmt.Sprintf(" (made by %v)", e.TheirPeers)
	}
	return fmt.Sprintf("two rings: ours is %s (made by %v), theirs is %s", e.Ours, e.OurPeers, theirs)
}

// Causes of a RefusedError.
var (
	ErrAuthority = errors.New("no known record gave all of it to its giver")
	ErrSignature = errors.New("wrong signature")
	ErrRange     = errors.New("outside the address range")
	ErrVotes     = errors.New("not enough votes")
	ErrBasis     = errors.New("records in its basis are unknown")
)

// Outcome is what a merge changed.
type Outcome struct {
	// News is a delta of the records that were accepted, nil if none was.
	News []byte
	// Records are the same records, for the disk. They are parts of News.
	Records []Raw
	// Refused has an error for each record refused: *RefusedError or an
	// ErrFormat.
	Refused []error
}

// Raw is one encoded record.
type Raw struct {
	ID    ID
	Bytes []byte
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

// Awaits returns the ring that this copy must take because of an adoption, and
// whether it still waits for that ring.
func (r *Ring) Awaits() (ID, bool) {
	if r.st != nil || r.origin.IsZero() {
		return ID{}, false
	}
	return r.resolve(r.origin), true
}

// Range returns the range that the ring divides.
func (r *Ring) Range() netip.Prefix { return r.addrRange }

// Conflicts counts the times that a merge took an address from a peer that did
// not give it.
func (r *Ring) Conflicts() uint64 { return r.conflicts }

// Refused counts the records that were refused.
func (r *Ring) Refused() uint64 { return r.refused }

// Epoch grows whenever a result of the other methods may have changed.
func (r *Ring) Epoch() uint64 {
	if r.st == nil {
		return r.epoch
	}
	return r.epoch + r.st.epoch
}

// Start makes g the ring of this copy, which must have none.
func (r *Ring) Start(g *Genesis) (Outcome, error) {
	delta := appendRecord(newDelta(g.id), g.raw)
	return r.Merge(delta)
}

// Merge adds the records of a delta. It accepts those that it can check and
// reports the others in the outcome. It returns an error and changes nothing if
// the delta is malformed or belongs to another ring (*DivergentError), or if all
// new records were refused. delta is borrowed until Merge returns.
func (r *Ring) Merge(delta []byte) (Outcome, error) {
	genesis, raws, err := splitDelta(delta)
	if err != nil {
		return Outcome{}, err
	}
	m := merge{ring: r}
	for _, raw := range raws {
		if err := m.classify(genesis, raw); err != nil {
			return Outcome{}, err
		}
	}
	m.adopt()
	if err := m.enter(genesis); err != nil && len(m.accepted) == 0 {
		return Outcome{}, err
	} else if err == nil && r.st != nil && r.st.genesis.id == genesis {
		m.acceptRecords()
	}
	r.refused += uint64(len(m.refused))
	if len(m.accepted) == 0 && len(m.refused) > 0 {
		return Outcome{Refused: m.refused}, m.refused[0]
	}
	return m.outcome(genesis), nil
}

// merge is the state of one call of Merge.
type merge struct {
	ring      *Ring
	genesis   *Genesis
	records   []record // grants and removals
	adoptions []*Adoption
	accepted  []Raw
	refused   []error
}

// record is a Grant or a Removal.
type record struct {
	grant   *Grant
	removal *Removal
}

// classify parses a raw record, unless it is known or of an unknown kind.
func (m *merge) classify(genesis ID, raw []byte) (err error) {
	st := m.ring.st
	id := idOf(raw)
	switch raw[0] {
	case kindGrant:
		if st != nil && st.grants[id] != nil {
			return nil
		}
		var g *Grant
		if g, err = parseGrant(raw); err == nil {
			m.records = append(m.records, record{grant: g})
		}
	case kindRemoval:
		if st != nil && st.removals[id] != nil {
			return nil
		}
		var rm *Removal
		if rm, err = parseRemoval(raw); err == nil {
			m.records = append(m.records, record{removal: rm})
		}
	case kindGenesis:
		var g *Genesis
		if g, err = parseGenesis(raw); err != nil {
			return err
		}
		if g.id != genesis {
			return fmt.Errorf("ring delta of %s has the genesis of %s: %w", genesis, g.id, ErrFormat)
		}
		m.genesis = g
	case kindAdoption:
		var a *Adoption
		if a, err = parseAdoption(raw); err == nil && m.ring.adoptions[id] == nil {
			m.adoptions = append(m.adoptions, a)
		}
	}
	return err
}

// enter starts the ring of the genesis if the copy has no ring, and returns an
// error if the copy has another one.
func (m *merge) enter(genesis ID) error {
	r := m.ring
	if genesis.IsZero() {
		return nil
	}
	if want, ok := r.Awaits(); ok && want != genesis {
		return &DivergentError{Ours: want, Theirs: genesis}
	}
	if r.st != nil {
		if ours := r.st.genesis; ours.id != genesis {
			e := &DivergentError{Ours: ours.id, Theirs: genesis, OurPeers: ours.Peers}
			if m.genesis != nil {
				e.TheirPeers = m.genesis.Peers
			}
			return e
		}
		return nil
	}
	if m.genesis == nil {
		return nil
	}
	if m.genesis.Range != r.addrRange {
		return fmt.Errorf("ring %s divides %s, this peer has the address range %s: %w",
			genesis, m.genesis.Range, r.addrRange, ErrRange)
	}
	m.genesis.raw = bytes.Clone(m.genesis.raw)
	r.st = genesisState(m.genesis)
	r.origin = genesis
	r.epoch++
	m.accept(genesis, m.genesis.raw)
	return nil
}

// acceptRecords accepts what it can, in the order of the delta. It repeats that,
// because one record may prove what another one needs, and refuses the rest.
func (m *merge) acceptRecords() {
	for progress := true; progress; {
		progress = false
		m.records = slices.DeleteFunc(m.records, func(rec record) bool {
			done, news := m.take(rec)
			progress = progress || news
			return done
		})
	}
	for _, rec := range m.records {
		if rec.grant != nil {
			m.refuse(&RefusedError{"grant", rec.grant.From, rec.grant.Range, m.ring.checkGrant(rec.grant)})
		} else {
			m.refuse(&RefusedError{"removal", rec.removal.Gone, addr.Range{}, m.ring.checkRemoval(rec.removal)})
		}
	}
}

// take accepts a record if it can. done reports whether the record is accepted,
// news whether it was not accepted before.
func (m *merge) take(rec record) (done, news bool) {
	r := m.ring
	if rm := rec.removal; rm != nil {
		if r.st.removals[rm.id] != nil {
			return true, false
		}
		if r.checkRemoval(rm) != nil {
			return false, false
		}
		rm.raw = bytes.Clone(rm.raw)
		r.st.commitRemoval(rm)
		m.accept(rm.id, rm.raw)
		return true, true
	}
	g := rec.grant
	if r.st.grants[g.id] != nil {
		return true, false
	}
	if r.checkGrant(g) != nil {
		return false, false
	}
	g.raw = bytes.Clone(g.raw)
	if r.st.commitGrant(g) {
		r.conflicts++
	}
	m.accept(g.id, g.raw)
	return true, true
}

func (m *merge) accept(id ID, raw []byte) { m.accepted = append(m.accepted, Raw{id, raw}) }
func (m *merge) refuse(e error)           { m.refused = append(m.refused, e) }

func (m *merge) outcome(genesis ID) Outcome {
	out := Outcome{Records: m.accepted, Refused: m.refused}
	if len(m.accepted) > 0 {
		out.News = newDelta(genesis)
		for _, a := range m.accepted {
			out.News = appendRecord(out.News, a.Bytes)
		}
	}
	return out
}

// checkGrant returns an error if g cannot be accepted, or not yet.
func (r *Ring) checkGrant(g *Grant) error {
	st := r.st
	if !st.whole.Covers(g.Range) {
		return fmt.Errorf("%w %s", ErrRange, r.addrRange)
	}
	if !st.known(g.To) || !st.known(g.From) {
		return fmt.Errorf("%w: no removal of an earlier incarnation of %s is known", ErrAuthority, g.To.Name)
	}
	if given := st.wasGiven(g.Range, g.From, g.Version); len(given) != 1 || given[0] != g.Range {
		return ErrAuthority
	}
	if err := st.checkKey(g.From, g.Key); err != nil {
		return err
	}
	n := len(g.raw) - peer.SignatureLen
	if !r.verify(g.Key, domainGrant, g.raw[:n], g.Sig) {
		return ErrSignature
	}
	return nil
}

// verify checks a signature over the genesis and msg.
func (r *Ring) verify(key peer.Key, domain string, msg []byte, sig peer.Signature) bool {
	full := make([]byte, 0, len(ID{})+len(msg))
	full = append(full, r.st.genesis.id[:]...)
	return r.verifier.Verify(key, domain, append(full, msg...), sig)
}

// checkRemoval returns an error if rm cannot be accepted, or not yet.
func (r *Ring) checkRemoval(rm *Removal) error {
	st := r.st
	if !st.known(rm.Gone) || !st.known(rm.Heir) {
		return fmt.Errorf("%w: no removal of an earlier incarnation is known", ErrAuthority)
	}
	if !rm.ByVotes {
		if err := st.checkKey(rm.Gone, rm.Key); err != nil {
			return err
		}
		n := len(rm.raw) - peer.SignatureLen
		if !r.verify(rm.Key, domainRemoval, rm.raw[:n], rm.Sig) {
			return ErrSignature
		}
		return nil
	}
	electorate, err := r.Electorate(rm)
	if err != nil {
		return err
	}
	msg := voteMessage(st.genesis.id, rm.Ballot, rm.Proposal())
	for _, v := range rm.Votes {
		if _, ok := slices.BinarySearchFunc(electorate, v.Voter, Holder.Compare); !ok {
			return fmt.Errorf("%w: %s has no vote", ErrVotes, v.Voter)
		}
		if err := st.checkKey(v.Voter, v.Key); err != nil {
			return err
		}
		if !r.verifier.Verify(v.Key, domainVote, msg, v.Sig) {
			return fmt.Errorf("vote of %s: %w", v.Voter, ErrSignature)
		}
	}
	if need := quorum(len(electorate)); len(rm.Votes) < need {
		return fmt.Errorf("%w: %d of %d, %d needed", ErrVotes, len(rm.Votes), len(electorate), need)
	}
	return nil
}
