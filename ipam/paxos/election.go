package paxos

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// ValueID names a value: the first 16 bytes of its SHA-256.
type ValueID [16]byte

// IDOf returns the name of a value.
func IDOf(value []byte) (id ValueID) {
	sum := sha256.Sum256(value)
	copy(id[:], sum[:])
	return id
}

func (id ValueID) compare(o ValueID) int { return bytes.Compare(id[:], o[:]) }

// Entry is the part of an election that one peer publishes.
type Entry struct {
	Node peer.Name
	// Voter is false if the entry is only a proposal, not a vote.
	Voter bool
	// Expect is how many voters Node was told to expect.
	Expect uint16
	// State is the acceptor's.
	State Acceptor[ValueID]
	Key   peer.Key
	Sig   peer.Signature
}

// newer reports whether e replaces o, an entry of the same node. Both ballots of an
// honest node only grow. The last comparison orders even entries that an honest
// node cannot have made.
func (e *Entry) newer(o *Entry) bool {
	if c := e.State.Promised.Compare(o.State.Promised); c != 0 {
		return c > 0
	}
	if c := e.State.Accepted.Compare(o.State.Accepted); c != 0 {
		return c > 0
	}
	return bytes.Compare(e.Append(nil), o.Append(nil)) > 0
}

// Holder returns the peer of the entry as the ring knows it.
func (e *Entry) Holder() ring.Holder { return ring.HolderOf(e.Node, e.Key) }

// Election is one peer's copy of an election by gossip. Make one with
// NewElection.
type Election struct {
	cfg     Config
	own     Entry
	entries map[peer.Name]*Entry // of the other peers
	order   []peer.Name          // of entries, ascending, so that equal seeds give equal runs
	values  map[ValueID][]byte   // that entries name
	seals   map[peer.Name]*Seal
	books   peer.Book
	chosen  []byte
	hurry   bool // see Hurry

	// turns has the hosts in whose attempts this peer took part, and when their last turn began. The
	// present turn has its time until busy.
	turns map[netip.Addr]time.Time
	began int // how many turns began
	busy  time.Time
}

// Seal is a voter's signature of the chosen value.
type Seal struct {
	Node peer.Name
	Key  peer.Key
	Sig  peer.Signature
}

// Config configures an Election. All fields are constant.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	// Instance separates the signatures of this election from those of others.
	Instance []byte
	// Expect is the largest number of voters, at least 1. A quorum is that of the
	// largest Expect of the eligible voters, so that a peer with a value that is too
	// small does not decide alone; but no peer can raise it beyond the number of
	// eligible voters and this peer's own Expect.
	Expect int
	// Observer never votes, but may propose.
	Observer bool
	// Now returns the present time.
	Now func() time.Time
	// Eligible reports whether this peer counts the votes of another one.
	Eligible func(ring.Holder) bool
	// Host returns the underlay address of a peer; zero if it is unknown. All peers at one address
	// have their turns to propose together, as one host can make up any number of them.
	Host func(ring.Holder) netip.Addr
	// Value returns the value to propose if the proposer is free to choose. voters
	// are the holders that promised, ascending.
	Value func(voters []ring.Holder) []byte
	// Acceptable returns an error if no honest proposer would propose a value.
	Acceptable func(value []byte) error
	// SealMessage returns what voters sign once a value is chosen.
	SealMessage func(value []byte) (domain string, msg []byte)
}

// Bounds of what other peers can make grow.
const (
	maxEntries = 256
	maxValue   = 32 << 10
	maxValues  = 64
	// maxRoundJump is how far ahead of the others a peer may be. Rounds grow by one with each attempt,
	// so an honest peer is never far ahead. If it were larger, peers that lie could use up the rounds.
	maxRoundJump = 1 << 16
)

// attemptTime is how long a peer takes part in an attempt before it takes part in another one. A proposer
// waits up to a second for the promises of those that it expects. If it is too short, proposals overtake
// each other. If it is too long, proposers that lie, or end, cost more time. Voters begin to take part in
// an attempt at different times, as late as their last turns end. So each turn is longer than the one
// before it by attemptGrowth, up to attemptMost, and in the end all take part at one time.
const (
	attemptTime   = 3 * time.Second
	attemptGrowth = 1500 * time.Millisecond
	attemptMost   = time.Minute
)

// waitForVoters is how long this peer waits with its next proposal while one stands and too few voters
// are there.
const waitForVoters = time.Minute

// NewElection returns an empty copy. If own is not nil it continues with own and
// value, which Own returned before a restart.
func NewElection(cfg Config, own, val []byte) (*Election, error) {
	el := &Election{cfg: cfg, entries: make(map[peer.Name]*Entry), values: make(map[ValueID][]byte), seals: make(map[peer.Name]*Seal),
		turns: make(map[netip.Addr]time.Time)}
	el.own = Entry{Node: cfg.Self, Voter: !cfg.Observer, Expect: uint16(min(cfg.Expect, 1<<16-1)), Key: cfg.Signer.Key()}
	if own == nil {
		return el, nil
	}
	e, err := parseEntry(own)
	if err != nil {
		return nil, fmt.Errorf("restore an election: %w", err)
	}
	if e.Node != cfg.Self {
		return nil, fmt.Errorf("restore an election: the entry is of peer %s, this peer is %s", e.Node, cfg.Self)
	}
	if len(val) > 0 {
		el.values[IDOf(val)] = bytes.Clone(val)
	}
	el.own.State = e.State
	el.sign()
	return el, nil
}

// Own returns the encoded entry of this peer, nil if it has taken no part. The entry
// must be on disk before a delta or digest that contains it is sent. value is the
// value that the peer accepted, if any.
func (el *Election) Own() (entry, value []byte) {
	if el.own.State.Promised.IsZero() {
		return nil, nil
	}
	return el.own.Append(nil), el.values[el.own.State.Value]
}

// eligible reports whether the vote of e counts.
func (el *Election) eligible(e *Entry) bool {
	return e == &el.own || el.cfg.Eligible(e.Holder())
}

// Needed returns how many votes choose a value.
func (el *Election) Needed() int {
	most, known := int(el.own.Expect), 0
	for e := range el.all {
		if e.Voter && el.eligible(e) {
			most = max(most, int(e.Expect))
			known++
		}
	}
	return ring.Quorum(min(most, max(known, int(el.own.Expect))))
}

// Voters returns the peers that take part and whose vote counts, ascending.
func (el *Election) Voters() []peer.Name {
	var out []peer.Name
	for e := range el.all {
		if e.Voter && !e.State.Promised.IsZero() && el.eligible(e) {
			out = append(out, e.Node)
		}
	}
	slices.SortFunc(out, peer.Name.Compare)
	return out
}

// Knows reports whether a holder takes part as a voter.
func (el *Election) Knows(h ring.Holder) bool {
	for e := range el.all {
		if e.Node == h.Name {
			return e.Voter && e.Holder() == h && el.eligible(e)
		}
	}
	return false
}

// Chosen returns the value once a quorum has accepted it.
func (el *Election) Chosen() ([]byte, bool) { return el.chosen, el.chosen != nil }

// Running reports whether any peer has proposed.
func (el *Election) Running() bool { return !el.highest().IsZero() }

// all yields each entry, the own entry first.
func (el *Election) all(yield func(*Entry) bool) {
	if !yield(&el.own) {
		return
	}
	for _, n := range el.order {
		if !yield(el.entries[n]) {
			return
		}
	}
}

func (el *Election) put(e *Entry) {
	if i, known := slices.BinarySearchFunc(el.order, e.Node, peer.Name.Compare); !known {
		el.order = slices.Insert(el.order, i, e.Node)
	}
	el.entries[e.Node] = e
}

// highest returns the highest ballot that anyone promised whose vote counts.
func (el *Election) highest() (b Ballot) {
	last := el.lastRound()
	for e := range el.all {
		if p := e.State.Promised; p.Round <= last && p.Compare(b) > 0 && el.eligible(e) {
			b = p
		}
	}
	return b
}

// lastRound returns the last round that can be true. A peer that comes late finds the others far ahead,
// but some that lie cannot put the rounds far ahead of all others.
func (el *Election) lastRound() uint32 {
	var rounds []uint32
	for e := range el.all {
		if el.eligible(e) {
			rounds = append(rounds, e.State.Promised.Round)
		}
	}
	slices.Sort(rounds)
	liars := max(1, ring.Liars(max(len(rounds), el.cfg.Expect)))
	known := el.own.State.Promised.Round
	if i := len(rounds) - 1 - liars; i >= 0 {
		known = max(known, rounds[i])
	}
	return min(known+maxRoundJump, maxRound)
}

// host returns what counts as the host of an entry.
func (el *Election) host(e *Entry) netip.Addr {
	if e == &el.own {
		return netip.IPv6Unspecified() // of no peer
	}
	return el.cfg.Host(e.Holder())
}

// attempts yields the proposals beyond the own ballot in which this peer could take part. What others
// have promised shows no proposal: its proposer must show it.
func (el *Election) attempts(yield func(*Entry) bool) {
	last := el.lastRound()
	for e := range el.all {
		b := e.State.Promised
		if b.Proposer == e.Node && b.Compare(el.own.State.Promised) > 0 && b.Round <= last && el.eligible(e) && !yield(e) {
			return
		}
	}
}

// next returns the proposal in which this peer takes part now, nil for none. A proposer that lies can
// outbid all others at any time. So the turn of a host has its time, and then it is that of the host
// whose last turn was first. A host that had none need not wait, as often some propose at once.
func (el *Election) next() (next *Entry) {
	busy := el.cfg.Now().Before(el.busy)
	for e := range el.attempts {
		turn := el.turns[el.host(e)]
		if busy && !turn.IsZero() {
			continue
		}
		if next == nil || cmp.Or(turn.Compare(el.turns[el.host(next)]), next.State.Promised.Compare(e.State.Promised)) < 0 {
			next = e
		}
	}
	return next
}

// takePart begins to take part in the attempt of a peer.
func (el *Election) takePart(e *Entry) {
	host, now := el.host(e), el.cfg.Now()
	if el.turns[host].IsZero() && len(el.turns) >= maxEntries {
		var first netip.Addr
		for h, at := range el.turns {
			if was, some := el.turns[first]; !some || cmp.Or(at.Compare(was), h.Compare(first)) < 0 {
				first = h
			}
		}
		delete(el.turns, first)
	}
	el.turns[host], el.busy = now, now.Add(min(attemptTime+time.Duration(el.began)*attemptGrowth, attemptMost))
	el.began++
}

// Progress is what the attempt in which a peer takes part has come to.
type Progress struct {
	until    time.Time // the end of its turn
	accepted Ballot
}

// Progress returns the progress of the present attempt, to be compared with later ones. Whoever promises
// higher ballots of one proposer makes none.
func (el *Election) Progress() Progress { return Progress{el.busy, el.own.State.Accepted} }

// Until returns the end of the turn.
func (p Progress) Until() time.Time { return p.until }

// Proposed reports whether this peer has proposed. Others may wait for the end of a turn before they take
// part in its next proposal.
func (el *Election) Proposed() bool { return !el.turns[el.host(&el.own)].IsZero() }

// Waiting reports whether this peer will take part in another attempt once the present one has had its
// time. The caller then calls React from time to time.
func (el *Election) Waiting() bool {
	for range el.attempts {
		return !el.cfg.Observer
	}
	return false
}

// stands reports whether the proposer of the ballot that this peer has promised still proposes it.
func (el *Election) stands() bool {
	b := el.own.State.Promised
	for e := range el.all {
		if e.Node == b.Proposer {
			return e.State.Promised == b && el.eligible(e)
		}
	}
	return false
}

// yields reports whether this peer leaves the turn to another host, which proposes and had its last turn
// before this one had.
func (el *Election) yields() bool {
	for e := range el.attempts {
		if el.turns[el.host(e)].Before(el.turns[el.host(&el.own)]) {
			return true
		}
	}
	return false
}

// Propose starts a new attempt with a ballot higher than all known ones, and
// reports whether Own changed. Call it at random intervals while a value is needed:
// two peers that propose in step would overtake each other forever.
func (el *Election) Propose() bool {
	b, own, since := el.highest(), el.own.State, el.cfg.Now().Sub(el.turns[el.host(&el.own)])
	switch {
	case el.chosen != nil, b.Round >= maxRound, !el.cfg.Observer && el.yields():
		return false
	case own.Promised.Proposer == el.cfg.Self && own.Accepted != own.Promised && (b == own.Promised || el.cfg.Now().Before(el.busy)):
		return false // others may still take part in the last one
	case len(el.Voters()) < el.Needed() && el.stands() && since < waitForVoters:
		return false // else rounds grow without end
	}
	el.own.State.Prepare(Ballot{b.Round + 1, el.cfg.Self})
	el.takePart(&el.own)
	el.hurry = false
	el.react()
	el.sign()
	return true
}

// Hurry makes this peer pick the value of its ballot with the promises of a quorum, and
// reports whether Own changed. Before that it waits for all voters that it expects: those
// that promise become founders, and a ring with more founders survives more failures.
func (el *Election) Hurry() bool {
	if el.hurry {
		return false
	}
	el.hurry = true
	return el.React()
}

// React applies the rules again, after peers became eligible, and reports whether Own
// changed; the caller then writes it to disk and announces it.
func (el *Election) React() (changed bool) {
	if el.own.State.Promised.IsZero() && !el.Running() {
		return false
	}
	if changed = el.react(); changed {
		el.sign()
	}
	return changed
}

// Merge merges a delta that a neighbour passed on. news is the part of the delta that was
// new. If all new entries were refused, Merge returns an error and changes nothing.
// changed reports whether Own changed; the caller then writes it to disk and announces
// it. delta is borrowed until Merge returns.
func (el *Election) Merge(from peer.Name, delta []byte) (news []byte, changed bool, err error) {
	in, err := parseDelta(delta)
	if err != nil {
		return nil, false, err
	}
	var refused error
	for _, e := range in.entries {
		if e.Node == el.cfg.Self {
			// This peer's own entry from before it lost its disk: never fall behind it.
			if e.Key == el.own.Key && el.check(&e) == nil && e.newer(&el.own) {
				el.own.State = e.State
				changed = true
			}
			continue
		}
		old := el.entries[e.Node]
		if old != nil && !e.newer(old) {
			continue
		}
		if err := el.check(&e); err != nil {
			refused = errors.Join(refused, err)
			continue
		}
		if old == nil && len(el.entries) >= maxEntries && !el.dropIneligible() {
			refused = errors.Join(refused, fmt.Errorf("election entry of %s: %d entries are known already", e.Node, maxEntries))
			continue
		}
		if err := el.books.Bind(e.Node, e.Key, peer.Via{Neighbour: from}); err != nil {
			refused = errors.Join(refused, err)
			continue
		}
		el.put(&e)
		news = appendItem(news, itemEntry, e.Append(nil))
	}
	for _, v := range in.values {
		if id := IDOf(v); el.values[id] == nil && el.mayKeep(id) {
			el.values[id] = bytes.Clone(v)
			news = appendItem(news, itemValue, v)
		}
	}
	for _, s := range in.seals {
		if el.addSeal(&s) {
			news = appendItem(news, itemSeal, s.Append(nil))
		}
	}
	if news == nil && !changed {
		return nil, false, refused
	}
	if el.react() || changed {
		el.sign()
		changed = true
	}
	return news, changed, nil
}

// mayKeep reports whether a value is kept: an entry names it, and so each peer can have one. Values that
// only peers name whose votes do not count are dropped for others.
func (el *Election) mayKeep(id ValueID) bool {
	counts := el.named()
	counting, named := counts[id]
	maps.DeleteFunc(el.values, func(v ValueID, _ []byte) bool { _, still := counts[v]; return !still })
	for _, v := range slices.SortedFunc(maps.Keys(el.values), ValueID.compare) {
		if len(el.values) >= maxValues && counting && !counts[v] {
			delete(el.values, v)
		}
	}
	return named && len(el.values) < maxValues
}

// named returns the values that entries name, and whether the votes of some of them count.
func (el *Election) named() map[ValueID]bool {
	out := make(map[ValueID]bool)
	for e := range el.all {
		if !e.State.Accepted.IsZero() {
			out[e.State.Value] = out[e.State.Value] || el.eligible(e)
		}
	}
	return out
}

// dropIneligible drops an entry that does not count, with its seal, and reports whether there was one.
func (el *Election) dropIneligible() bool {
	for i, n := range el.order {
		if !el.eligible(el.entries[n]) {
			delete(el.entries, n)
			delete(el.seals, n)
			el.order = slices.Delete(el.order, i, i+1)
			return true
		}
	}
	return false
}

func (el *Election) check(e *Entry) error {
	if err := el.books.Check(e.Node, e.Key); err != nil {
		return err
	}
	if e.State.Promised.Round > maxRound {
		return fmt.Errorf("election entry of %s: round %d, at most %d is possible", e.Node, e.State.Promised.Round, maxRound)
	}
	if !el.cfg.Verifier.Verify(e.Key, domainEntry, el.signed(e), e.Sig) {
		return fmt.Errorf("election entry of %s: wrong signature", e.Node)
	}
	return nil
}

func (el *Election) sign() {
	el.own.Sig = el.cfg.Signer.Sign(domainEntry, el.signed(&el.own))
}

func (el *Election) signed(e *Entry) []byte {
	return e.appendUnsigned(bytes.Clone(el.cfg.Instance))
}

// react applies the rules of Paxos to the known entries, and reports whether the own
// entry changed. It continues after a value was chosen: other peers may not have
// seen the quorum before some of its voters moved to a later ballot.
func (el *Election) react() (changed bool) {
	st := &el.own.State
	if e := el.next(); e != nil && !el.cfg.Observer {
		changed = st.Prepare(e.State.Promised)
		el.takePart(e)
	}
	if el.lead() {
		changed = true
	}
	if !el.cfg.Observer {
		for _, n := range el.order {
			a := el.entries[n].State
			if v := el.values[a.Value]; v != nil && a.Accepted.Compare(st.Accepted) > 0 && el.backed(a) && el.cfg.Acceptable(v) == nil {
				changed = st.Accept(a.Accepted, a.Value) || changed
			}
		}
	}
	return el.learn() || changed
}

// backed reports whether a value was really proposed under its ballot: its proposer says
// so itself, and a quorum has promised the ballot.
func (el *Election) backed(a Acceptor[ValueID]) bool {
	byProposer, promised := false, 0
	for e := range el.all {
		if !e.Voter && e.Node != a.Accepted.Proposer || !el.eligible(e) {
			continue
		}
		if e.Node == a.Accepted.Proposer && e.State.Accepted == a.Accepted && e.State.Value == a.Value {
			byProposer = true
		}
		if e.Voter && e.State.Promised.Compare(a.Accepted) >= 0 {
			promised++
		}
	}
	return byProposer && promised >= el.Needed()
}

// lead picks the value of this peer's own ballot once a quorum promised it.
func (el *Election) lead() bool {
	st := &el.own.State
	b := st.Promised
	if b.Proposer != el.cfg.Self || st.Accepted == b {
		return false
	}
	var promises []Acceptor[ValueID]
	var voters []ring.Holder
	for e := range el.all {
		if e.Voter && e.State.Promised == b && el.eligible(e) {
			p := e.State
			if e != &el.own && !p.Accepted.IsZero() && !el.claimable(p) {
				// Do not count it. It may be a lie that would stop every proposer, or
				// true, and then the promises without it are no quorum.
				continue
			}
			promises = append(promises, p)
			voters = append(voters, e.Holder())
		}
	}
	if n := len(promises); n < el.Needed() || !el.hurry && n < int(el.own.Expect) {
		return false
	}
	id, bound := Pick(promises)
	if !bound {
		slices.SortFunc(voters, ring.Holder.Compare)
		v := el.cfg.Value(voters)
		id = IDOf(v)
		el.values[id] = v
	}
	// The value itself must be known, or no other peer could accept it.
	return el.values[id] != nil && st.Accept(b, id)
}

// claimable reports whether an earlier value that a voter says it accepted can be
// proposed again: it is known and an honest proposer could have proposed it.
func (el *Election) claimable(a Acceptor[ValueID]) bool {
	v := el.values[a.Value]
	return v != nil && el.cfg.Acceptable(v) == nil
}

// learn records the value that a quorum accepted, and seals it. It reports whether this
// peer sealed it now.
func (el *Election) learn() (sealed bool) {
	type choice struct {
		ballot Ballot
		value  ValueID
	}
	votes := make(map[choice]int)
	for e := range el.all {
		if el.chosen != nil {
			break
		}
		if a := e.State; e.Voter && !a.Accepted.IsZero() && el.eligible(e) {
			c := choice{a.Accepted, a.Value}
			v := el.values[a.Value]
			if votes[c]++; votes[c] >= el.Needed() && v != nil && el.cfg.Acceptable(v) == nil {
				el.chosen = v
			}
		}
	}
	if el.chosen == nil {
		return false
	}
	for n, s := range el.seals {
		if !el.validSeal(s) { // it came before the value was chosen
			delete(el.seals, n)
		}
	}
	if el.cfg.Observer || el.seals[el.cfg.Self] != nil {
		return false
	}
	domain, msg := el.cfg.SealMessage(el.chosen)
	el.seals[el.cfg.Self] = &Seal{el.cfg.Self, el.cfg.Signer.Key(), el.cfg.Signer.Sign(domain, msg)}
	return true
}

// addSeal takes a seal of another peer, and reports whether it was new.
func (el *Election) addSeal(s *Seal) bool {
	e := el.entries[s.Node]
	if e == nil || e.Key != s.Key || el.seals[s.Node] != nil || el.chosen != nil && !el.validSeal(s) {
		return false
	}
	el.seals[s.Node] = s
	return true
}

func (el *Election) validSeal(s *Seal) bool {
	domain, msg := el.cfg.SealMessage(el.chosen)
	return el.cfg.Verifier.Verify(s.Key, domain, msg, s.Sig)
}

// Seals returns the signatures of the chosen value, none before it is chosen.
func (el *Election) Seals() (out []Seal) {
	if el.chosen == nil {
		return nil
	}
	for _, s := range el.seals {
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b Seal) int { return a.Node.Compare(b.Node) })
	return out
}
