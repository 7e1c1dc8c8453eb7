package consensus

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Times of a round. With shorter ones voters on slow paths end rounds before messages
// arrive; with longer ones a dead or lying proposer costs more time.
const (
	// stepTimeout is how long a voter waits for a proposal, and for votes after a quorum
	// has voted without agreeing. It grows by stepGrowth with each round, up to
	// maxTimeout.
	stepTimeout = 600 * time.Millisecond
	stepGrowth  = 300 * time.Millisecond
	maxTimeout  = 5 * time.Second
	// lonely is how many times as long a voter waits while no quorum has voted at all. It
	// then goes on without: votes may have been lost after their voters went on.
	lonely = 4
	// leading replaces lonely for a voter that waits for voters in earlier rounds. They go through their
	// rounds faster, and catch up. It is finite, so that no liar can stop a voter.
	leading = 24
	// deadProposer replaces stepTimeout if no path leads to the proposer.
	deadProposer = 150 * time.Millisecond
)

const (
	// roundsAhead is how many rounds ahead of its own a voter keeps messages of.
	roundsAhead = 3
	// maxJump is how many rounds a voter follows a single voter that is ahead, where no
	// voter may lie. If some may lie, it follows as many as may lie and one more, and
	// always two. One jump follows another after jumpEvery, so that there is time to decide
	// although a liar causes jumps.
	maxJump   = 8
	jumpEvery = stepTimeout
	// maxRound bounds rounds: later ones are refused.
	maxRound = 1 << 31
)

// Config configures a Machine. All fields are constant.
type Config struct {
	Ring     ring.ID
	Slot     uint64
	Voters   []ring.Holder
	Self     ring.Holder
	Signer   peer.Signer
	Verifier peer.Verifier
	// SignedBy returns an error if key may not sign for a voter.
	SignedBy func(h ring.Holder, key peer.Key) error
	// Propose returns the body that this voter wants, nil if it wants nothing now.
	Propose func() []byte
	// Fits returns an error if a body cannot be decided in this slot by anyone.
	Fits func(body []byte) error
	// Agree returns an error if this voter does not want a body that fits, now.
	Agree func(body []byte) error
	// Reachable reports whether a path leads to a voter.
	Reachable func(ring.Holder) bool
}

// heard is the highest round that a voter has voted in, as far as was heard lately.
type heard struct {
	round uint32
	at    time.Time
}

// heardTTL is how long a voter is believed to be in a round ahead. An honest voter says it
// again each second.
const heardTTL = 3 * time.Second

// told is the last vote that a voter itself sent, with its round.
type told struct {
	heard
	vote stepVote
}

func (h *heard) note(round uint32, now time.Time) {
	if round >= h.round || now.Sub(h.at) > heardTTL {
		*h = heard{round, now}
	}
}

type step uint8

const (
	proposing step = iota
	prevoting
	precommitting
)

// Machine is one voter's part in one slot. It is not safe for concurrent use.
type Machine struct {
	cfg     Config
	self    int // index of Self, -1 if it has no vote
	quorum  int
	started bool

	round    uint32
	step     step
	entered  time.Time // when the round began here
	since    time.Time // when the step began
	deadline time.Time // of the step
	near     bool      // a quorum has voted in this step, so deadline is near
	nextJump time.Time // see maxJump
	rounds   map[uint32]*roundState
	heardOf  [ring.MaxVoters]heard // from any voter
	told     [ring.MaxVoters]told  // from the voter itself

	locked     int64 // the round in which lockedID was locked, -1
	lockedID   ring.ID
	valid      int64 // the round in which validBody had a quorum of prevotes, -1
	validBody  []byte
	validProof []ring.Vote

	changed bool // since the last call of TakeChanged
	decided []byte
}

// roundState is what is known of a round.
type roundState struct {
	prop       *proposal
	prevotes   [ring.MaxVoters]*vote
	precommits [ring.MaxVoters]*vote
}

func (rs *roundState) set(v stepVote) {
	if v.step == stepPrevote {
		rs.prevotes[v.voter] = &v.vote
	} else {
		rs.precommits[v.voter] = &v.vote
	}
}

func (rs *roundState) get(step byte, voter int) *vote {
	if step == stepPrevote {
		return rs.prevotes[voter]
	}
	return rs.precommits[voter]
}

func (rs *roundState) all() (out []stepVote) {
	for i, v := range rs.prevotes {
		if v != nil {
			out = append(out, stepVote{stepPrevote, i, *v})
		}
	}
	for i, v := range rs.precommits {
		if v != nil {
			out = append(out, stepVote{stepPrecommit, i, *v})
		}
	}
	return out
}

// count returns how many voted for id, and how many voted.
func count(votes *[ring.MaxVoters]*vote, id ring.ID) (forID, total int) {
	for _, v := range votes {
		if v != nil {
			total++
			if v.id == id {
				forID++
			}
		}
	}
	return forID, total
}

// most returns how many votes a body has at most, and how many it can still get.
func (m *Machine) most(votes *[ring.MaxVoters]*vote) (most, possible int) {
	total := 0
	for _, v := range votes {
		if v == nil {
			continue
		}
		total++
		if v.id != (ring.ID{}) {
			n, _ := count(votes, v.id)
			most = max(most, n)
		}
	}
	return most, most + len(m.cfg.Voters) - total
}

// split reports whether voters want a body in a round and no body can have a quorum any more.
func (m *Machine) split(rs *roundState) bool {
	most, prevotes := m.most(&rs.prevotes)
	_, precommits := m.most(&rs.precommits)
	return most > 0 && prevotes < m.quorum && (m.step == prevoting || precommits < m.quorum)
}

// votesFor returns the votes for id as a proof.
func votesFor(votes *[ring.MaxVoters]*vote, id ring.ID) (out []ring.Vote) {
	for i, v := range votes {
		if v != nil && v.id == id {
			out = append(out, ring.Vote{Voter: i, Key: v.key, Sig: v.sig})
		}
	}
	return out
}

// New returns the machine of a slot. saved is the last State that this peer wrote, of any
// slot; nil if there is none.
func New(cfg Config, saved []byte) (*Machine, error) {
	if len(cfg.Voters) > ring.MaxVoters {
		return nil, fmt.Errorf("decide slot %d: %d voters, at most %d", cfg.Slot, len(cfg.Voters), ring.MaxVoters)
	}
	m := &Machine{cfg: cfg, self: slices.Index(cfg.Voters, cfg.Self), quorum: ring.Quorum(len(cfg.Voters)),
		rounds: make(map[uint32]*roundState), locked: -1, valid: -1}
	if saved != nil {
		if err := m.restore(saved); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// Slot returns the slot that the machine decides.
func (m *Machine) Slot() uint64 { return m.cfg.Slot }

// Round returns the present round.
func (m *Machine) Round() uint32 { return m.round }

// Pending reports whether a body may have been decided that this voter has signed, so
// that the slot must be brought to its end.
func (m *Machine) Pending() bool { return m.valid >= 0 || m.locked >= 0 }

// Bodies returns the bodies that may be decided, as far as this voter has seen them. They are
// read-only.
func (m *Machine) Bodies() (bodies [][]byte) {
	if m.valid >= 0 {
		bodies = append(bodies, m.validBody)
	}
	for _, r := range slices.Sorted(maps.Keys(m.rounds)) {
		if rs := m.rounds[r]; rs.prop != nil {
			bodies = append(bodies, rs.prop.body)
		}
	}
	return bodies
}

// Decided returns the decision, nil until there is one.
func (m *Machine) Decided() []byte { return m.decided }

// TakeChanged reports whether the machine changed since the last call, so that State
// must be written and Message be sent.
func (m *Machine) TakeChanged() bool {
	c := m.changed
	m.changed = false
	return c
}

func (m *Machine) at(round uint32) *roundState {
	rs := m.rounds[round]
	if rs == nil {
		rs = &roundState{}
		m.rounds[round] = rs
	}
	return rs
}

// proposer returns the index of the proposer of a round.
func (m *Machine) proposer(round uint32) int {
	return int((m.cfg.Slot + uint64(round)) % uint64(len(m.cfg.Voters)))
}

func timeout(round uint32) time.Duration {
	return min(stepTimeout+time.Duration(min(round, 100))*stepGrowth, maxTimeout)
}

// Tick does what is due at now. The caller calls it while there is something to decide,
// or Pending is true.
func (m *Machine) Tick(now time.Time) {
	if m.self < 0 {
		return
	}
	if !m.started {
		m.started = true
		m.enter(m.round, now)
	}
	if m.deadline.IsZero() {
		m.startWaiting(now) // after a restart
	}
	m.advance(now)
}

// enter begins a round.
func (m *Machine) enter(round uint32, now time.Time) {
	m.round, m.step, m.entered = round, proposing, now
	m.startWaiting(now)
	for r := range m.rounds {
		if r < round {
			delete(m.rounds, r)
		}
	}
	m.changed = true
}

func (m *Machine) startWaiting(now time.Time) {
	m.since, m.deadline = now, now.Add(timeout(m.round))
	if p := m.proposer(m.round); p != m.self && !m.cfg.Reachable(m.cfg.Voters[p]) {
		m.deadline = now.Add(deadProposer)
	}
}

// advance applies the rules of the algorithm until none applies.
func (m *Machine) advance(now time.Time) {
	for m.decided == nil && m.rule(now) {
	}
}

// rule applies one rule, and reports whether one applied.
func (m *Machine) rule(now time.Time) bool {
	if m.decide() || m.skip(now) {
		return true
	}
	rs := m.at(m.round)
	if rs.prop != nil && m.step >= prevoting && m.valid < int64(m.round) {
		if n, _ := count(&rs.prevotes, rs.prop.id); n >= m.quorum {
			m.valid, m.validBody, m.validProof = int64(m.round), rs.prop.body, votesFor(&rs.prevotes, rs.prop.id)
			m.changed = true
			if m.step == prevoting {
				m.locked, m.lockedID = int64(m.round), rs.prop.id
				m.cast(stepPrecommit, rs.prop.id, now)
			}
			return true
		}
	}
	late := m.late(now)
	switch m.step {
	case proposing:
		return m.prevote(rs, now, late)
	case prevoting:
		none, total := count(&rs.prevotes, ring.ID{})
		switch {
		case none >= m.quorum, late, m.split(rs):
			m.cast(stepPrecommit, ring.ID{}, now)
			return true
		case total >= m.quorum:
			m.hasten(now)
		}
	case precommitting:
		_, total := count(&rs.precommits, ring.ID{})
		// A round that cannot succeed costs little, as voters that are locked may have to wait for the
		// turn of one of them. But rounds do not follow each other as fast as messages arrive.
		over := late || m.split(rs) && now.Sub(m.entered) >= stepTimeout
		switch {
		case over && m.round < maxRound:
			m.enter(m.round+1, now)
			return true
		case total >= m.quorum:
			m.hasten(now)
		}
	}
	return false
}

// late reports whether the step has taken long enough. Voters that no quorum votes with may be in
// different rounds. Those ahead wait longer, those behind less, until all are in one round.
func (m *Machine) late(now time.Time) bool {
	deadline := m.deadline
	if !m.near && m.step != proposing {
		behind, ahead := 0, false
		for _, t := range m.told {
			if !t.at.IsZero() && now.Sub(t.at) <= heardTTL {
				if ahead = ahead || t.round > m.round; t.round < m.round {
					behind++
				}
			}
		}
		switch {
		case behind > ring.Liars(len(m.cfg.Voters)):
			deadline = m.since.Add(leading * timeout(m.round))
		case ahead:
			deadline = m.since.Add(timeout(m.round))
		}
	}
	return !m.deadline.IsZero() && !now.Before(deadline)
}

// hasten ends a step soon, because a quorum has voted in it without agreeing.
func (m *Machine) hasten(now time.Time) {
	if !m.near {
		m.near, m.deadline = true, now.Add(timeout(m.round))
	}
}

// decide looks for a quorum of precommits in any round that is known.
func (m *Machine) decide() bool {
	for _, round := range slices.Sorted(maps.Keys(m.rounds)) {
		rs := m.rounds[round]
		if rs.prop == nil {
			continue
		}
		if n, _ := count(&rs.precommits, rs.prop.id); n >= m.quorum {
			m.decided = ring.NewDecision(rs.prop.body, round, votesFor(&rs.precommits, rs.prop.id)[:m.quorum])
			m.changed = true
			return true
		}
	}
	return false
}

// skip enters a later round that enough other voters are in.
func (m *Machine) skip(now time.Time) bool {
	ahead := make([]uint32, len(m.cfg.Voters))
	for i := range ahead {
		if h := m.heardOf[i]; now.Sub(h.at) <= heardTTL {
			ahead[i] = h.round
		}
	}
	slices.Sort(ahead)
	liars, to := ring.Liars(len(m.cfg.Voters)), uint32(0)
	if i := len(ahead) - 1 - max(liars, 1); i >= 0 {
		to = ahead[i]
	}
	if t := m.first(now); liars == 0 && t != nil && !now.Before(m.nextJump) {
		to = max(to, min(t.round, m.round+maxJump))
	}
	if to <= m.round {
		return false
	}
	m.nextJump = now.Add(jumpEvery)
	m.enter(to, now)
	return true
}

// first returns the last vote of the voter that says itself that it is in the latest round, nil if none
// is ahead of this one.
func (m *Machine) first(now time.Time) (first *told) {
	for i := range m.told {
		if t := &m.told[i]; now.Sub(t.at) <= heardTTL && t.round > m.round && (first == nil || t.round > first.round) {
			first = t
		}
	}
	return first
}

// prevote is the rule of the step propose.
func (m *Machine) prevote(rs *roundState, now time.Time, late bool) bool {
	if rs.prop == nil && m.proposer(m.round) == m.self {
		if m.propose(rs) {
			return true
		}
	}
	if p := rs.prop; p != nil {
		// It may still agree until the deadline, when it has heard more.
		if m.checkProposed(p) == nil {
			m.cast(stepPrevote, p.id, now)
			return true
		}
		late = late || m.lockedAgainst(p)
	}
	if late {
		m.cast(stepPrevote, ring.ID{}, now)
		return true
	}
	return false
}

// propose makes the proposal of the round.
func (m *Machine) propose(rs *roundState) bool {
	p := &proposal{body: m.validBody, valid: m.valid, proof: m.validProof}
	if m.valid < 0 {
		if p.body = m.cfg.Propose(); p.body == nil {
			return false
		}
	}
	p.id = ring.BodyID(p.body)
	p.key = m.cfg.Signer.Key()
	p.sig = m.cfg.Signer.Sign(domainProposal, proposalMessage(m.cfg.Ring, m.cfg.Slot, m.round, p))
	rs.prop = p
	m.changed = true
	return true
}

// checkProposed returns an error if this voter does not prevote p. The proof of p was checked when
// it arrived.
func (m *Machine) checkProposed(p *proposal) error {
	if err := m.cfg.Fits(p.body); err != nil {
		return err
	}
	switch {
	case m.lockedID == p.id && m.locked >= 0:
		return nil
	case m.lockedAgainst(p):
		return fmt.Errorf("another body was locked in round %d", m.locked)
	case p.valid >= 0:
		return nil // a quorum agreed to it
	}
	return m.cfg.Agree(p.body)
}

// lockedAgainst reports whether this voter cannot agree to p, whatever it hears in this round.
func (m *Machine) lockedAgainst(p *proposal) bool {
	return m.locked >= 0 && m.lockedID != p.id && m.locked > p.valid
}

// cast signs a vote of this voter and goes to the next step.
func (m *Machine) cast(step byte, id ring.ID, now time.Time) {
	domain, next := domainPrevote, prevoting
	if step == stepPrecommit {
		domain, next = ring.VoteDomain, precommitting
	}
	sig := m.cfg.Signer.Sign(domain, ring.VoteMessage(m.cfg.Ring, m.cfg.Slot, m.round, id))
	m.at(m.round).set(stepVote{step, m.self, vote{id, m.cfg.Signer.Key(), sig}})
	m.step, m.near, m.since, m.deadline = next, false, now, now.Add(lonely*timeout(m.round))
	m.changed = true
}

// Messages returns all that this voter knows of its round, for the other voters. Where it follows a
// single voter, another message has the vote of that one: it may have said something else to others, and
// they should follow both.
func (m *Machine) Messages(now time.Time) [][]byte {
	rs := m.at(m.round)
	out := message{slot: m.cfg.Slot, round: m.round, prop: rs.prop, votes: rs.all()}
	msgs := [][]byte{out.encode()}
	if t := m.first(now); t != nil && ring.Liars(len(m.cfg.Voters)) == 0 {
		why := message{slot: m.cfg.Slot, round: t.round, votes: []stepVote{t.vote}}
		msgs = append(msgs, why.encode())
	}
	return msgs
}

// Receive takes a message of another voter. It returns an error for bytes that are not a
// message of this slot, or with a wrong signature.
func (m *Machine) Receive(now time.Time, from peer.Name, raw []byte) error {
	in, err := parse(raw)
	if err != nil {
		return err
	}
	if in.slot != m.cfg.Slot || in.round >= maxRound {
		return fmt.Errorf("message of a voter for slot %d, round %d: %w", in.slot, in.round, errFormat)
	}
	if err := m.hear(now, from, in); err != nil || in.round < m.round {
		return err // a voter that is behind hears of the round of this one
	}
	keep := in.round <= m.round+roundsAhead
	for _, v := range in.votes {
		if v.voter >= len(m.cfg.Voters) {
			return fmt.Errorf("vote of voter %d of %d: %w", v.voter, len(m.cfg.Voters), errFormat)
		}
		h := &m.heardOf[v.voter]
		if known := keep && m.at(in.round).get(v.step, v.voter) != nil; v.voter == m.self || known ||
			!keep && h.round >= in.round && now.Sub(h.at) < heardTTL/3 {
			if known {
				h.note(in.round, now)
			}
			continue
		}
		if err := m.checkVote(in.round, v); err != nil {
			return err
		}
		h.note(in.round, now)
		if keep {
			m.at(in.round).set(v)
		}
	}
	if p := in.prop; keep && p != nil && m.at(in.round).prop == nil {
		if err := m.checkProposal(in.round, p); err != nil {
			return err
		}
		m.at(in.round).prop = p
		m.heardOf[m.proposer(in.round)].note(in.round, now)
	}
	if m.started {
		m.advance(now)
	}
	return nil
}

// hear notes in which round a voter says that it is.
func (m *Machine) hear(now time.Time, from peer.Name, in *message) error {
	for _, v := range in.votes {
		if v.voter >= len(m.cfg.Voters) || v.voter == m.self || m.cfg.Voters[v.voter].Name != from {
			continue
		}
		t := &m.told[v.voter]
		if t.round >= in.round && now.Sub(t.at) < heardTTL/3 {
			continue
		}
		if err := m.checkVote(in.round, v); err != nil {
			return err
		}
		if t.note(in.round, now); t.round == in.round {
			t.vote = v
		}
	}
	return nil
}

func (m *Machine) verify(voter int, key peer.Key, domain string, msg []byte, sig peer.Signature) error {
	h := m.cfg.Voters[voter]
	if err := m.cfg.SignedBy(h, key); err != nil {
		return err
	}
	if !m.cfg.Verifier.Verify(key, domain, msg, sig) {
		return fmt.Errorf("message of voter %s: %w", h, ring.ErrSignature)
	}
	return nil
}

func (m *Machine) checkVote(round uint32, v stepVote) error {
	domain := domainPrevote
	if v.step == stepPrecommit {
		domain = ring.VoteDomain
	}
	return m.verify(v.voter, v.key, domain, ring.VoteMessage(m.cfg.Ring, m.cfg.Slot, round, v.id), v.sig)
}

func (m *Machine) checkProposal(round uint32, p *proposal) error {
	if err := m.verify(m.proposer(round), p.key, domainProposal, proposalMessage(m.cfg.Ring, m.cfg.Slot, round, p), p.sig); err != nil {
		return err
	}
	if p.valid < 0 {
		p.proof = nil
		return nil
	}
	if len(p.proof) < m.quorum {
		return fmt.Errorf("proposal of round %d with %d of %d prevotes of round %d: %w", round, len(p.proof), m.quorum, p.valid, ring.ErrVotes)
	}
	msg := ring.VoteMessage(m.cfg.Ring, m.cfg.Slot, uint32(p.valid), p.id)
	for _, v := range p.proof {
		if v.Voter >= len(m.cfg.Voters) {
			return fmt.Errorf("proof of voter %d of %d: %w", v.Voter, len(m.cfg.Voters), errFormat)
		}
		if err := m.verify(v.Voter, v.Key, domainPrevote, msg, v.Sig); err != nil {
			return err
		}
	}
	return nil
}
