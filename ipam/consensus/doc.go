// Package consensus makes the voters of a ring agree on the next decision.
//
// A Machine is one voter's part in one slot. It follows the Tendermint algorithm
// (Buchman, Kwon, Milosevic: The latest gossip on BFT consensus, arXiv:1807.04938,
// algorithm 1). A slot has rounds, and each round has a proposer:
//
//	propose     the proposer of the round sends a body
//	prevote     each voter signs the body if it agrees, else nothing ("nil")
//	precommit   a voter that sees a quorum of prevotes for a body locks it and signs it again
//	            a quorum of precommits is the decision
//
// A voter that is locked prevotes another body only if it sees a quorum of prevotes for
// that body from a later round. Two quorums share an honest voter (see package ring), so
// no second body is decided, however messages are lost, delayed or forged. If a round ends
// without a decision the next proposer tries; the timeouts grow, so that a round succeeds
// once messages arrive in time. A voter does not wait for votes that cannot change the outcome of
// the round.
//
// All voters must meet in one round. A voter goes on without a quorum, as votes may be lost, so voters
// that are cut off from each other come to be in different rounds. A voter enters a later round as soon
// as more voters are there than may lie, and always if two are. Else those that are behind go through
// their rounds faster than those ahead. Where no voter may lie (up to three voters), a single one that
// is ahead is followed too, some rounds at a time, and its vote is shown to the others: it may tell each
// of them another round.
//
// Unlike Tendermint a slot starts only when there is something to decide, and one kind of
// message carries all that a voter knows of its round, so that a lost message is repaired
// by the next one and voters need no direct path to each other.
//
// A voter must have its State on disk before anyone sees its Message: a voter that forgets
// its votes can vote twice.
//
// Nothing here opens a socket, reads a clock or uses global randomness.
package consensus
