package paxos

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

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

// Election is one peer's copy of an election by gossip. Make one with
// NewElection.
type Election struct {
	cfg     Config
	own     Entry
	entries map[peer.Name]*Entry // of the other peers
	values  map[ValueID][]byte
	books   peer.Book
	chosen  []byte
}

// Config configures an Election. All fields are constant.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	// Instance separates the signatures of this election from those of others.
	Instance []byte
	// Expect is the largest number of voters, at least 1. The majority is that of
	// the largest Expect of all known voters, so that a peer with a value that is
	// too small does not decide alone.
	Expect int
	// Observer never votes, but may propose.
	Observer bool
	// Value returns the value to propose if the proposer is free to choose. voters
	// are those that promised, ascending.
	Value func(voters []peer.Name) []byte
}

// NewElection returns an empty copy. If own is not nil it continues with own and
// value, which Own returned before a restart.
func NewElection(cfg Config, own, value []byte) (*Election, error) {
	el := &Election{cfg: cfg, entries: make(map[peer.Name]*Entry), values: make(map[ValueID][]byte)}
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
	if len(value) > 0 {
		el.values[IDOf(value)] = bytes.Clone(value)
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

// Needed returns how many votes choose a value.
func (el *Election) Needed() int {
	n := el.own.Expect
	for _, e := range el.entries {
		if e.Voter {
			n = max(n, e.Expect)
		}
	}
	return Quorum(int(n))
}

// Voters returns the peers that take part and have a vote, ascending.
func (el *Election) Voters() []peer.Name {
	var out []peer.Name
	for e := range el.all {
		if e.Voter && !e.State.Promised.IsZero() {
			out = append(out, e.Node)
		}
	}
	slices.SortFunc(out, peer.Name.Compare)
	return out
}

// Chosen returns the value once a majority has accepted it.
func (el *Election) Chosen() ([]byte, bool) { return el.chosen, el.chosen != nil }

// Running reports whether any peer has proposed.
func (el *Election) Running() bool { return !el.highest().IsZero() }

// all yields each entry, the own entry first.
func (el *Election) all(yield func(*Entry) bool) {
	if !yield(&el.own) {
		return
	}
	for _, e := range el.entries {
		if !yield(e) {
			return
		}
	}
}

// highest returns the highest ballot that anyone proposed.
func (el *Election) highest() (b Ballot) {
	for e := range el.all {
		if e.State.Promised.Compare(b) > 0 {
			b = e.State.Promised
		}
	}
	return b
}

// Propose starts a new attempt with a ballot higher than all known ones, and
// reports whether Own changed. Call it at random intervals while a value is needed:
// two peers that propose in step would overtake each other forever.
func (el *Election) Propose() bool {
	b := el.highest()
	if el.chosen != nil || b.Round == 1<<32-1 {
		return false
	}
	el.own.State.Prepare(Ballot{b.Round + 1, el.cfg.Self})
	el.react()
	el.sign()
	return true
}

// Merge merges a delta. news is the part of the delta that was new. If all new
// entries were refused, Merge returns an error and changes nothing. changed reports
// whether Own changed; the caller then writes it to disk and announces it. delta is
// borrowed until Merge returns.
func (el *Election) Merge(delta []byte) (news []byte, changed bool, err error) {
	entries, values, err := parseDelta(delta)
	if err != nil {
		return nil, false, err
	}
	var refused error
	for _, v := range values {
		if id := IDOf(v); el.values[id] == nil && len(el.values) < maxValues {
			el.values[id] = bytes.Clone(v)
			news = appendItem(news, itemValue, v)
		}
	}
	for _, e := range entries {
		if e.Node == el.cfg.Self {
			// This peer's own entry from before it lost its disk: never fall behind it.
			if e.Key == el.own.Key && el.check(&e) == nil && e.newer(&el.own) {
				el.own.State = e.State
				changed = true
			}
			continue
		}
		if old := el.entries[e.Node]; old != nil && !e.newer(old) {
			continue
		}
		if err := el.check(&e); err != nil {
			refused = errors.Join(refused, err)
			continue
		}
		_ = el.books.Bind(e.Node, e.Key) // check has checked it
		el.entries[e.Node] = &e
		news = appendItem(news, itemEntry, e.Append(nil))
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

func (el *Election) check(e *Entry) error {
	if err := el.books.Check(e.Node, e.Key); err != nil {
		return err
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
// seen the majority before some of its voters moved to a later ballot.
func (el *Election) react() (changed bool) {
	st := &el.own.State
	if b := el.highest(); !el.cfg.Observer && b != st.Promised {
		changed = st.Prepare(b)
	}
	if el.lead() {
		changed = true
	}
	if !el.cfg.Observer {
		for _, e := range el.entries {
			if a := e.State; a.Accepted.Compare(st.Accepted) > 0 && el.values[a.Value] != nil {
				changed = st.Accept(a.Accepted, a.Value) || changed
			}
		}
	}
	el.learn()
	return changed
}

// lead picks the value of this peer's own ballot once a majority promised it.
func (el *Election) lead() bool {
	st := &el.own.State
	b := st.Promised
	if b.Proposer != el.cfg.Self || st.Accepted == b {
		return false
	}
	var promises []Acceptor[ValueID]
	var voters []peer.Name
	for e := range el.all {
		if e.Voter && e.State.Promised == b {
			promises = append(promises, e.State)
			voters = append(voters, e.Node)
		}
	}
	if len(promises) < el.Needed() {
		return false
	}
	id, bound := Pick(promises)
	if !bound {
		slices.SortFunc(voters, peer.Name.Compare)
		value := el.cfg.Value(voters)
		id = IDOf(value)
		el.values[id] = value
	}
	// The value itself must be known, or no other peer could accept it.
	return el.values[id] != nil && st.Accept(b, id)
}

// learn records the value that a majority accepted.
func (el *Election) learn() {
	if el.chosen != nil {
		return
	}
	votes := make(map[Ballot]int)
	for e := range el.all {
		if a := e.State; e.Voter && !a.Accepted.IsZero() {
			votes[a.Accepted]++
			if votes[a.Accepted] >= el.Needed() && el.values[a.Value] != nil {
				el.chosen = el.values[a.Value]
				return
			}
		}
	}
}
