package ring

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/mesh/peer"
)

// maxElectorate bounds how many owners have a vote on a removal, so that the
// record with their votes fits a delta. If there are more, those whose names hash
// lowest vote, which is a fair sample.
const maxElectorate = 201

func quorum(n int) int { return paxos.Quorum(n) }

// Give signs a grant of rng to another peer and merges it. self must own all of
// rng. If to is self, one grant replaces several. The outcome has the grant.
func (r *Ring) Give(s peer.Signer, self, to peer.Name, rng addr.Range) (Outcome, error) {
	if r.st == nil {
		return Outcome{}, fmt.Errorf("give %s to %s: there is no ring", rng, to)
	}
	st := r.st
	if !rng.IsValid() || !st.whole.Covers(rng) {
		return Outcome{}, fmt.Errorf("give %s to %s: %w %s", rng, to, ErrRange, r.addrRange)
	}
	from := st.current(self)
	version := uint64(0)
	for i := st.at(rng.First); i < len(st.pieces) && !rng.Last.Less(st.pieces[i].first); i++ {
		g := st.pieces[i].grant
		if owner := st.owner(g.To); owner != from {
			return Outcome{}, fmt.Errorf("give %s to %s: %s is owned by %s", rng, to, st.pieces[i].first, owner)
		}
		version = max(version, g.Version)
	}
	g := &Grant{Range: rng, Version: version + 1, From: from, To: st.current(to)}
	g.sign(st.genesis.id, s)
	return r.Merge(appendRecord(newDelta(st.genesis.id), g.raw))
}

// Compact replaces the longest run of adjacent pieces of self by one grant to
// itself. The outcome is empty if no run has at least least pieces.
func (r *Ring) Compact(s peer.Signer, self peer.Name, least int) (Outcome, error) {
	if r.st == nil {
		return Outcome{}, nil
	}
	st := r.st
	me := st.current(self)
	best, bestLen := addr.Range{}, 0
	for i := 0; i < len(st.pieces); i++ {
		j := i
		for j < len(st.pieces) && st.owner(st.pieces[j].grant.To) == me {
			j++
		}
		if j-i > bestLen {
			best, bestLen = addr.Range{First: st.pieces[i].first, Last: st.last(j - 1)}, j-i
		}
		i = max(i, j-1)
	}
	if bestLen < max(least, 2) {
		return Outcome{}, nil
	}
	return r.Give(s, self, self, best)
}

// Leave signs the removal of self in favour of heir and merges it. Afterwards self
// must sign nothing for its present incarnation.
func (r *Ring) Leave(s peer.Signer, self, heir peer.Name) (Outcome, error) {
	if r.st == nil {
		return Outcome{}, fmt.Errorf("leave the ring to %s: there is no ring", heir)
	}
	rm := &Removal{Gone: r.st.current(self), Heir: r.st.current(heir), Key: s.Key()}
	if rm.Gone == rm.Heir {
		return Outcome{}, fmt.Errorf("leave the ring to %s: that is this peer", heir)
	}
	msg := append(r.st.genesis.id[:], rm.proposal()...)
	rm.Sig = s.Sign(domainRemoval, append(msg, rm.Key[:]...))
	rm.seal()
	return r.Merge(appendRecord(newDelta(r.st.genesis.id), rm.raw))
}

// Propose returns the removal of gone in favour of heir, to be voted on. members
// may vote if nobody but those named dead owns anything. If heir has left or was
// removed itself, its own heir gets all.
func (r *Ring) Propose(gone peer.Name, heir Holder, named, members []peer.Name) (*Removal, error) {
	if r.st == nil {
		return nil, fmt.Errorf("remove %s: there is no ring", gone)
	}
	st := r.st
	rm := &Removal{Gone: st.current(gone), Heir: heir, ByVotes: true, Named: slices.Clone(named), Basis: st.basis()}
	slices.SortFunc(rm.Named, peer.Name.Compare)
	rm.Named = slices.Compact(rm.Named)
	owners := 0
	for h := range r.Owners() {
		if !slices.Contains(rm.Named, h.Name) {
			owners++
		}
	}
	if owners == 0 {
		for _, m := range members {
			rm.Members = append(rm.Members, st.current(m))
		}
		slices.SortFunc(rm.Members, Holder.Compare)
		rm.Members = slices.Compact(rm.Members)
	}
	electors, err := r.Electorate(rm)
	if err != nil {
		return nil, err
	}
	if size := len(rm.Proposal()) + quorum(len(electors))*voteLen; size > maxRecord {
		return nil, fmt.Errorf("remove %s: the proposal of %d bytes exceeds %d: it lists %d records", gone, size, maxRecord, len(rm.Basis))
	}
	return rm, nil
}

// Electorate returns the holders that may vote on rm, ascending: the owners by
// its basis that it does not name, or its members if there are none.
func (r *Ring) Electorate(rm *Removal) ([]Holder, error) {
	if !slices.Contains(rm.Named, rm.Gone.Name) {
		return nil, fmt.Errorf("removal of %s in favour of %s: %w", rm.Gone, rm.Heir, ErrFormat)
	}
	owners, lacking := r.st.ownersOf(rm.Basis)
	if lacking > 0 {
		return nil, fmt.Errorf("%w: %d of %d", ErrBasis, lacking, len(rm.Basis))
	}
	owners = slices.DeleteFunc(owners, func(h Holder) bool { return slices.Contains(rm.Named, h.Name) })
	if len(owners) == 0 {
		owners = slices.DeleteFunc(slices.Clone(rm.Members), func(h Holder) bool {
			return slices.Contains(rm.Named, h.Name)
		})
	} else if len(rm.Members) > 0 {
		return nil, fmt.Errorf("%w: lists members though %d owners are left", ErrVotes, len(owners))
	}
	if len(owners) > maxElectorate {
		rank := func(h Holder) [32]byte { return sha256.Sum256(rm.Gone.Append(h.Append(nil))) }
		slices.SortFunc(owners, func(a, b Holder) int {
			ra, rb := rank(a), rank(b)
			return slices.Compare(ra[:], rb[:])
		})
		owners = owners[:maxElectorate]
		slices.SortFunc(owners, Holder.Compare)
	}
	return owners, nil
}

// Vote signs rm, under ballot b, for voter.
func (r *Ring) Vote(s peer.Signer, voter Holder, b paxos.Ballot, rm *Removal) Vote {
	return Vote{voter, s.Key(), s.Sign(domainVote, voteMessage(r.st.genesis.id, b, rm.Proposal()))}
}

// CheckVote returns an error if v is not a valid vote for rm under b.
func (r *Ring) CheckVote(v Vote, b paxos.Ballot, rm *Removal) error {
	if err := r.st.checkKey(v.Voter, v.Key); err != nil {
		return err
	}
	if !r.verifier.Verify(v.Key, domainVote, voteMessage(r.st.genesis.id, b, rm.Proposal()), v.Sig) {
		return fmt.Errorf("vote of %s: %w", v.Voter, ErrSignature)
	}
	return nil
}

// Remove merges rm, for which a majority voted under ballot b.
func (r *Ring) Remove(rm *Removal, b paxos.Ballot, votes []Vote) (Outcome, error) {
	done := *rm
	done.Ballot = b
	done.Votes = slices.Clone(votes)
	slices.SortFunc(done.Votes, func(a, b Vote) int { return a.Voter.Compare(b.Voter) })
	electors, err := r.Electorate(rm)
	if err != nil {
		return Outcome{}, err
	}
	// Votes beyond a majority prove nothing more.
	done.Votes = done.Votes[:min(len(done.Votes), quorum(len(electors)))]
	done.seal()
	return r.Merge(appendRecord(newDelta(r.st.genesis.id), done.raw))
}
