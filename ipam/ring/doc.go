// Package ring says which peer owns which address. Every peer holds a copy.
//
// # Decisions
//
// A ring begins with a genesis, which divides the address range among the founders.
// After that it changes only by decisions. Decisions are numbered by slots, and each
// names the one before it:
//
//	genesis <- decision 1 <- decision 2 <- decision 3 ...
//	           transfer      remove        voters
//
// A decision is a list of actions with the signatures of a quorum of the voters. The
// voters are a small set of peers, which is itself a part of the ring. Every receiver
// checks a decision alone: it knows the voters from the decisions before. So a copy is a
// prefix of one list, merging two copies yields the longer one, and merging is
// commutative, associative and idempotent.
//
// An action that does not fit the present state has no effect. A peer that signed a
// transfer twice can therefore move a range only once, and a range has one owner at every
// slot.
//
// # Actions
//
//	transfer   the owner of a range gives it to another peer; signed by the owner
//	leave      a peer gives everything to an heir; signed by both
//	remove     everything that a dead peer owns goes to an heir
//	voters     another set of voters
//	ban, unban a peer owns nothing, has no vote and may not come back; or may again
//	adopt      all peers leave this ring for another one, whose genesis is included
//	snapshot   the whole state, as hashes of its parts; earlier decisions can be dropped
//
// Transfer and leave take only from those who signed them. The others take something
// from a peer that did not ask for it: the signatures of the voters are the authority.
// Package consensus makes the voters agree; package ipam says when a voter agrees.
//
// # Quorum
//
// Of n voters, f = (n-1)/3 may lie. A quorum is (n+f)/2+1, rounded down: two quorums then
// share f+1 voters, so at least one honest voter, who signs one decision for a slot.
//
//	voters  1  2  3  4  5  6  7  8  9 10 21
//	quorum  1  2  2  3  4  4  5  6  6  7 14
//	may lie 0  0  0  1  1  1  2  2  2  3  6
//
// # Snapshots
//
// A copy keeps the parts of the latest snapshot, the decisions since, and the latest
// changes of the voters before it, so that a peer that was away can check the snapshot.
// The size of a copy follows the number of ranges, not the number of decisions.
//
// # Two rings
//
// A ring is named by its genesis. A copy refuses the decisions of another ring: two
// islands that each made a ring have given the same addresses to different peers, and no
// order of decisions can resolve that. The voters can decide to adopt the other ring, and
// the operator of a host can make this copy follow any ring (Follow).
//
// Nothing here is safe for concurrent use, opens a socket or reads a clock.
package ring
