package ipam

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// The removal of dead peers. For each dead peer, the peer that was asked to remove
// it leads an instance of Paxos, whose value is the heir:
//
//	leader                     each of the electorate
//	prepare ballot, proposal -> refuse: "X can be reached from here", or another
//	                            ballot was promised
//	        promise <-----------promise, with what was accepted before
//	accept ballot, proposal --> (its heir: that of the one accepted before, if any)
//	        vote <------------- vote, signed
//	removal with the votes, in the ring, to all
//
// The instance is the incarnation of the peer to remove, so two leaders compete and
// only one of them wins. A later leader finishes the attempt of an earlier one: it
// proposes the same heir again, with fresh evidence of who may vote. The electorate
// is part of the proposal: the owners of the ring except the peers named dead. Two
// commands at the same time that name different peers have electorates that differ
// by those peers. Their majorities share a voter as long as the peers named dead do
// not vote, that is, as long as they are dead.

// RemovedPeer describes the removal of one peer.
type RemovedPeer struct {
	Name peer.Name
	// Heir owns its addresses now: this peer, or another one that was asked to
	// remove it at the same time or before.
	Heir peer.Name
	// Addresses is how many addresses it owned, as far as this peer knew.
	Addresses addr.Count
}

// removal is the state of one call of RemovePeers.
type removal struct {
	id    uint64
	named []peer.Name
	peers []*peerRemoval
}

// peerRemoval is the attempt to remove one peer.
type peerRemoval struct {
	gone   ring.Holder
	result RemovedPeer
	done   bool

	proposal  *ring.Removal
	electors  []ring.Holder // of proposal
	ballot    paxos.Ballot
	accepting bool
	promises  map[peer.Name]paxos.Acceptor[string]
	votes     map[peer.Name]ring.Vote
	refusals  map[peer.Name]error
	highest   paxos.Ballot // in any answer
	started   time.Time    // when the round started; zero before the first
	previous  error        // why the round before this one failed
	restart   time.Time    // when to begin another round
	resend    time.Time
}

// remove begins the removal of peers.
func (c *core) remove(id uint64, names []peer.Name) {
	if err := c.checkRemove(names); err != nil {
		c.fail(id, err)
		return
	}
	r := &removal{id: id, named: names}
	for _, n := range names {
		gone := c.ring.Holder(n)
		rp := &peerRemoval{gone: gone, result: RemovedPeer{Name: n, Addresses: c.ring.Owners()[gone]}}
		// A peer that owns nothing here may have been given a range that this peer
		// has not heard of. One that was never given a range need not be removed.
		if rp.done = !c.ring.Known(gone); rp.done && gone.Incarnation > 0 {
			heir, _ := c.ring.Removed(ring.Holder{Name: n, Incarnation: gone.Incarnation - 1})
			rp.result.Heir = heir.Name
		}
		r.peers = append(r.peers, rp)
	}
	c.removals[id] = r
	c.pushRemovals()
}

func (c *core) checkRemove(names []peer.Name) error {
	switch {
	case c.left:
		return ErrLeft
	case !c.ring.Ready():
		return fmt.Errorf("remove peers: there is no ring: %w", c.noRing())
	case slices.Contains(names, c.cfg.Self):
		return fmt.Errorf("remove peer %s: that is this peer; reset it instead", c.displayName(c.cfg.Self))
	}
	for _, n := range names {
		if c.view.Reachable(n) {
			return fmt.Errorf("remove peer %s: it can be reached; reset it there instead", c.displayName(n))
		}
	}
	return nil
}

// pushRemovals continues all removals.
func (c *core) pushRemovals() {
	for _, id := range slices.Sorted(maps.Keys(c.removals)) {
		r := c.removals[id]
		left := 0
		for _, rp := range r.peers {
			if c.pushRemoval(r, rp); !rp.done {
				left++
			}
		}
		if left > 0 {
			continue
		}
		delete(c.removals, id)
		var results []RemovedPeer
		for _, rp := range r.peers {
			results = append(results, rp.result)
		}
		c.reply(id, answer{removed: results})
	}
}

func (c *core) pushRemoval(r *removal, rp *peerRemoval) {
	if heir, removed := c.ring.Removed(rp.gone); removed {
		rp.done, rp.result.Heir = true, heir.Name
	}
	if rp.done {
		return
	}
	if rp.started.IsZero() || !c.now.Before(rp.restart) {
		c.newRound(r, rp)
	}
	if c.now.Before(rp.resend) {
		return
	}
	rp.resend = c.now.Add(resendEvery)
	c.askElectors(rp)
}

// newRound begins another attempt, with a higher ballot and a fresh proposal.
func (c *core) newRound(r *removal, rp *peerRemoval) {
	if !rp.started.IsZero() && rp.proposal != nil {
		rp.previous = c.roundStatus(rp)
	}
	rp.started = c.now
	rp.restart = c.now.Add(roundTimeout + time.Duration(c.rng.Int64N(int64(roundTimeout))))
	// The round is on disk before it is used: no ballot ever has two proposals.
	c.round = max(c.round, rp.highest.Round) + 1
	c.put(bucketMeta, []byte(metaRound), binary.BigEndian.AppendUint32(nil, c.round))
	rp.ballot = paxos.Ballot{Round: c.round, Proposer: c.cfg.Self}
	rp.accepting = false
	rp.promises = make(map[peer.Name]paxos.Acceptor[string])
	rp.votes = make(map[peer.Name]ring.Vote)
	rp.refusals = make(map[peer.Name]error)
	rp.resend = time.Time{}
	c.propose(r, rp, c.holder)
}

// propose makes the proposal of the round, and reports whether that succeeded.
func (c *core) propose(r *removal, rp *peerRemoval, heir ring.Holder) bool {
	members := append([]peer.Name{c.cfg.Self}, c.view.Peers()...)
	proposal, err := c.ring.Propose(rp.gone.Name, heir, r.named, members)
	var electors []ring.Holder
	if err == nil {
		electors, err = c.ring.Electorate(proposal)
	}
	if err != nil {
		c.warn("cannot propose a removal", "peer", rp.gone, "err", err)
		rp.proposal = nil
		return false
	}
	rp.proposal, rp.electors = proposal, electors
	return true
}

// askElectors sends the message of the phase to the electors that have not answered.
func (c *core) askElectors(rp *peerRemoval) {
	if rp.proposal == nil {
		return
	}
	m := message{kind: msgPrepare, id: c.roundID(rp), ballot: rp.ballot, proposal: rp.proposal.Proposal()}
	if rp.accepting {
		m.kind = msgAccept
	}
	for _, h := range rp.electors {
		_, promised := rp.promises[h.Name]
		_, voted := rp.votes[h.Name]
		if promised && !rp.accepting || voted || !c.view.Reachable(h.Name) && h.Name != c.cfg.Self {
			continue
		}
		c.send(h.Name, m)
	}
}

// roundID is the id of the messages of a round; roundOf finds the round by it.
func (c *core) roundID(rp *peerRemoval) uint64 {
	return uint64(rp.ballot.Round)<<32 | uint64(rp.gone.Name.ID())
}

func (c *core) roundOf(from peer.Name, id uint64) (*removal, *peerRemoval) {
	for _, r := range c.removals {
		for _, rp := range r.peers {
			asked := slices.ContainsFunc(rp.electors, func(h ring.Holder) bool { return h.Name == from })
			if !rp.done && rp.proposal != nil && c.roundID(rp) == id && asked {
				return r, rp
			}
		}
	}
	return nil, nil
}

// onBallot answers a prepare or an accept.
func (c *core) onBallot(from peer.Name, m message) {
	answer := message{kind: msgPromise, id: m.id, status: statusNo}
	if m.kind == msgAccept {
		answer.kind = msgVote
	}
	rm, err := c.checkProposal(from, m.proposal)
	if err != nil {
		answer.reason = err.Error()
		c.send(from, answer)
		return
	}
	a := c.votes[rm.Gone]
	if a == nil {
		a = &paxos.Acceptor[string]{}
		c.votes[rm.Gone] = a
	}
	ok := false
	if m.kind == msgPrepare {
		ok = m.ballot.Proposer == from && a.Prepare(m.ballot)
		answer.accepted, answer.proposal = a.Accepted, []byte(a.Value)
	} else if ok = m.ballot.Proposer == from && a.Accept(m.ballot, string(m.proposal)); ok {
		answer.vote = c.ring.Vote(c.cfg.Signer, c.holder, m.ballot, rm)
	}
	answer.ballot = a.Promised
	if ok {
		answer.status = statusYes
		c.put(bucketVotes, rm.Gone.Append(nil), putVote(a))
	} else {
		answer.reason = fmt.Sprintf("it has promised ballot %s", a.Promised)
	}
	c.send(from, answer)
}

// checkProposal returns an error if this peer does not vote for a proposal.
func (c *core) checkProposal(from peer.Name, raw []byte) (*ring.Removal, error) {
	if c.left {
		return nil, ErrLeft
	}
	rm, err := ring.ParseProposal(raw)
	if err != nil {
		return nil, err
	}
	if !c.ring.Ready() {
		return nil, fmt.Errorf("it has no ring")
	}
	if rm.Gone != c.ring.Holder(rm.Gone.Name) {
		c.sendRemoval(from, rm.Gone)
		return nil, fmt.Errorf("it knows %s as %s", rm.Gone, c.ring.Holder(rm.Gone.Name))
	}
	electors, err := c.ring.Electorate(rm)
	if err != nil {
		return nil, err
	}
	if _, ok := slices.BinarySearchFunc(electors, c.holder, ring.Holder.Compare); !ok {
		return nil, fmt.Errorf("it has no vote")
	}
	for _, n := range rm.Named {
		if n == c.cfg.Self || c.view.Reachable(n) {
			return nil, fmt.Errorf("%s can be reached from it", c.displayName(n))
		}
	}
	if a := c.votes[rm.Heir]; a != nil && !a.Accepted.IsZero() {
		if other, err := ring.ParseProposal([]byte(a.Value)); err == nil && other.Heir == rm.Gone {
			return nil, fmt.Errorf("it has voted to remove %s in favour of %s", c.displayName(rm.Heir.Name), c.displayName(rm.Gone.Name))
		}
	}
	if c.ring.LeadsTo(rm.Heir, rm.Gone) {
		return nil, fmt.Errorf("the heir %s was removed in favour of %s", rm.Heir, rm.Gone)
	}
	// Voters must agree on the electorate, or two majorities may share no voter.
	if len(rm.Members) > 0 {
		for _, p := range c.view.Peers() {
			if !slices.Contains(rm.Members, c.ring.Holder(p)) {
				return nil, fmt.Errorf("it also sees %s", c.displayName(p))
			}
		}
	}
	mine, err := c.ring.Propose(rm.Gone.Name, rm.Heir, rm.Named, names(rm.Members))
	if err != nil {
		return nil, err
	}
	if ours, err := c.ring.Electorate(mine); err != nil || !slices.Equal(ours, electors) {
		return nil, fmt.Errorf("it sees different owners of the ring")
	}
	return rm, nil
}

// forgetVotes drops the votes on removals that are in the ring: they are decided.
func (c *core) forgetVotes() {
	for gone := range c.votes {
		if _, removed := c.ring.Removed(gone); removed {
			delete(c.votes, gone)
			c.put(bucketVotes, gone.Append(nil), nil)
		}
	}
}

func names(hs []ring.Holder) (out []peer.Name) {
	for _, h := range hs {
		out = append(out, h.Name)
	}
	return out
}

// sendRemoval sends a peer the records that prove that gone was removed.
func (c *core) sendRemoval(to peer.Name, gone ring.Holder) {
	if _, removed := c.ring.Removed(gone); removed {
		c.sendProof(to, nil)
	}
}

func (c *core) onPromise(from peer.Name, m message) {
	r, rp := c.roundOf(from, m.id)
	if rp == nil || rp.accepting {
		return
	}
	if m.status != statusYes {
		c.refused(rp, from, m)
		return
	}
	if m.ballot != rp.ballot {
		return
	}
	delete(rp.refusals, from)
	rp.promises[from] = paxos.Acceptor[string]{Promised: m.ballot, Accepted: m.accepted, Value: string(m.proposal)}
	if !rp.majority(func(n peer.Name) bool { _, ok := rp.promises[n]; return ok }) {
		return
	}
	if value, bound := paxos.Pick(slices.Collect(maps.Values(rp.promises))); bound {
		old, err := ring.ParseProposal([]byte(value))
		if err != nil || old.Gone != rp.gone {
			c.warn("a peer accepted a value that is not a proposal", "peer", from, "err", err)
			return
		}
		// If that heir was since removed in favour of the peer to remove, the two
		// removals would form a circle without a living peer.
		if old.Heir != c.holder && !c.ring.LeadsTo(old.Heir, rp.gone) && !c.propose(r, rp, old.Heir) {
			return
		}
	}
	rp.accepting = true
	c.askElectors(rp)
}

func (c *core) onVote(from peer.Name, m message) {
	_, rp := c.roundOf(from, m.id)
	if rp == nil || !rp.accepting {
		return
	}
	if m.status != statusYes {
		c.refused(rp, from, m)
		return
	}
	if m.ballot != rp.ballot || m.vote.Voter.Name != from || c.ring.CheckVote(m.vote, m.ballot, rp.proposal) != nil ||
		!slices.Contains(rp.electors, m.vote.Voter) {
		return
	}
	rp.votes[from] = m.vote
	if !rp.majority(func(n peer.Name) bool { _, ok := rp.votes[n]; return ok }) {
		return
	}
	out, err := c.ring.Remove(rp.proposal, rp.ballot, slices.Collect(maps.Values(rp.votes)))
	if err != nil {
		c.warn("a removal has a majority but the ring refuses it", "peer", rp.gone, "err", err)
		return
	}
	c.publish(out)
	c.pushRemovals()
}

// majority reports whether the electors for which has is true are a majority.
func (rp *peerRemoval) majority(has func(peer.Name) bool) bool {
	n := 0
	for _, h := range rp.electors {
		if has(h.Name) {
			n++
		}
	}
	return n >= paxos.Quorum(len(rp.electors))
}

// refused records why an elector does not agree. If it has promised a higher
// ballot, another round follows soon, after a random pause.
func (c *core) refused(rp *peerRemoval, from peer.Name, m message) {
	rp.refusals[from] = errors.New(cmp.Or(m.reason, "no reason given"))
	if m.ballot.Compare(rp.highest) > 0 {
		rp.highest = m.ballot
	}
	pause := resendEvery/4 + time.Duration(c.rng.Int64N(int64(resendEvery)))
	if at := c.now.Add(pause); at.Before(rp.restart) {
		rp.restart = at
	}
}

// notRemoved returns the reason why a removal waits.
func (c *core) notRemoved(r *removal) error {
	var out []string
	for _, rp := range r.peers {
		switch {
		case rp.done:
		case rp.previous != nil && c.now.Sub(rp.started) < resendEvery: // too early for answers
			out = append(out, rp.previous.Error())
		default:
			out = append(out, c.roundStatus(rp).Error())
		}
	}
	return because(ErrNoMajority, "%s", strings.Join(out, "; "))
}

// roundStatus returns the reason why the round of one peer waits.
func (c *core) roundStatus(rp *peerRemoval) error {
	var silent, no []string
	yes := 0
	for _, h := range rp.electors {
		_, promised := rp.promises[h.Name]
		reason, refused := rp.refusals[h.Name]
		switch {
		case refused:
			no = append(no, fmt.Sprintf("%s: %s", c.displayName(h.Name), reason))
		case promised:
			yes++
		default:
			silent = append(silent, c.displayName(h.Name))
		}
	}
	s := fmt.Sprintf("removal of %s: %d of %d owners agreed, %d needed",
		c.displayName(rp.gone.Name), yes, len(rp.electors), paxos.Quorum(len(rp.electors)))
	if len(no) > 0 {
		s += "; refused by " + joinNames(no)
	}
	if len(silent) > 0 {
		s += "; no answer from " + joinNames(silent)
	}
	return because(ErrNoMajority, "%s", s)
}
