// Package paxos lets peers agree on one value: the founders, among which the first ring is
// divided. At that time there are no voters yet whose quorum could decide.
//
// Acceptor implements the rules of one voter:
//
//	prepare b    promised < b: promise b and return what was accepted, else refuse
//	accept b,v   promised <= b: promise and accept it, else refuse
//
// A value is chosen once a quorum of the electorate has accepted it under one
// ballot. A proposer first asks a quorum for promises. If any of those voters
// has accepted a value, the proposer must propose the one that was accepted under
// the highest ballot. Two quorums share a voter, so no second value can be
// chosen.
//
// An acceptor must have its state on disk before anyone hears of it: a voter
// that forgets a promise votes twice.
//
// Election does this by gossip. Each peer publishes one signed Entry, the state of
// its acceptor, which only grows. The state of the election is the greatest entry
// of each peer, so merging is a join, as in any other channel. A proposal is an
// entry that promises a ballot of its own author:
//
//	A           B           C
//	promise A1  .           .           A proposes
//	promise A1  promise A1  .           B has seen it: 2 of 3
//	accept A1,v promise A1  .           A has seen that, and picks v
//	accept A1,v accept A1,v .           chosen
//
// A peer that lies can outbid every proposal before it succeeds. So hosts have turns. A peer takes part
// in the proposal of a host for some seconds. Then it takes part in that of the host whose last turn it
// knows as the earliest, even if others have higher ballots. A promise that is refused for that reason
// is safe, as Paxos never needs one.
//
//	at a voter       0 s          1 s            3 s            4 s
//	L lies           proposes 1   proposes 2, 3  proposes 5     ...
//	A has proposed                proposes 4     .              picks a value
//	the voter        promises 1/L .              promises 4/A   accepts it
//
// Nothing here is safe for concurrent use, opens a socket or reads a clock.
package paxos

import (
	"cmp"
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/mesh/peer"
)

// Ballot numbers an attempt. Ballots of different proposers differ. The zero Ballot
// is before all others.
type Ballot struct {
	Round    uint32
	Proposer peer.Name
}

// BallotLen is the length of an encoded Ballot: round 4, big-endian, name 6.
const BallotLen = 4 + peer.NameLen

// Compare orders ballots: -1, 0 or 1.
func (b Ballot) Compare(c Ballot) int {
	return cmp.Or(cmp.Compare(b.Round, c.Round), b.Proposer.Compare(c.Proposer))
}

// IsZero reports whether b is the zero Ballot.
func (b Ballot) IsZero() bool { return b == Ballot{} }

// String returns the round and the proposer.
func (b Ballot) String() string { return fmt.Sprintf("%d/%s", b.Round, b.Proposer) }

// Append appends the encoded ballot to buf.
func (b Ballot) Append(buf []byte) []byte {
	buf = binary.BigEndian.AppendUint32(buf, b.Round)
	return append(buf, b.Proposer[:]...)
}

// BallotFrom decodes the first BallotLen bytes of buf, which must be that long.
func BallotFrom(buf []byte) Ballot {
	return Ballot{binary.BigEndian.Uint32(buf), peer.NameFromBytes(buf[4:])}
}

// Acceptor is the state of one voter. V is the value or a name for it. The zero
// Acceptor has promised and accepted nothing.
type Acceptor[V any] struct {
	// Promised is the ballot below which nothing will be accepted.
	Promised Ballot
	// Accepted is the ballot under which Value was accepted; zero if none was.
	Accepted Ballot
	Value    V
}

// Prepare promises b, and reports whether it could. It may be repeated.
func (a *Acceptor[V]) Prepare(b Ballot) bool {
	if b.Compare(a.Promised) < 0 {
		return false
	}
	a.Promised = b
	return true
}

// Accept accepts v under b, and reports whether it could.
func (a *Acceptor[V]) Accept(b Ballot, v V) bool {
	if b.Compare(a.Promised) < 0 {
		return false
	}
	a.Promised, a.Accepted, a.Value = b, b, v
	return true
}

// Pick returns the value that a proposer must propose, given the promises of a
// quorum: the one accepted under the highest ballot. It returns false if no
// value was accepted; the proposer may then propose any.
func Pick[V any](promises []Acceptor[V]) (v V, bound bool) {
	var best Ballot
	for _, p := range promises {
		if p.Accepted.Compare(best) > 0 {
			best, v, bound = p.Accepted, p.Value, true
		}
	}
	return v, bound
}
