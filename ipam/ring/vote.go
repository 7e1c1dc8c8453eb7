package ring

import (
	"encoding/binary"
	"fmt"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/mesh/peer"
)

// MaxVoters is the largest number of voters. With more, decisions take more messages
// than they save failures: 21 voters go on with 7 dead or 6 lying ones.
const MaxVoters = 21

// Quorum returns how many of n voters decide; see the package comment.
func Quorum(n int) int {
	if n == 0 {
		return 1 // nobody can decide
	}
	return (n+Liars(n))/2 + 1
}

// Liars returns how many of n voters may lie without harm.
func Liars(n int) int { return max(0, (n-1)/3) }

// Vote is the signature of one voter.
type Vote struct {
	Voter int // its index among the voters
	Key   peer.Key
	Sig   peer.Signature
}

// voteLen is the length of an encoded vote: index 1, key 32, signature 64.
const voteLen = 1 + len(peer.Key{}) + peer.SignatureLen

const domainVote = "weft ipam vote"

// VoteMessage returns the bytes that voters sign to decide on the decision id of a slot
// in a round of the ring. The domain of the signature is VoteDomain.
func VoteMessage(ring ID, slot uint64, round uint32, id ID) []byte {
	b := make([]byte, 0, 2*len(ID{})+12)
	b = append(b, ring[:]...)
	b = binary.BigEndian.AppendUint64(b, slot)
	b = binary.BigEndian.AppendUint32(b, round)
	return append(b, id[:]...)
}

// VoteDomain is the domain of the signature of a vote.
const VoteDomain = domainVote

func appendVotes(b []byte, votes []Vote) []byte {
	b = append(b, byte(len(votes)))
	for _, v := range votes {
		b = append(b, byte(v.Voter))
		b = append(b, v.Key[:]...)
		b = append(b, v.Sig[:]...)
	}
	return b
}

func (r *reader) votes() (votes []Vote) {
	n := r.uint8()
	if n > MaxVoters || len(r.b) < n*voteLen {
		r.bad = true
		return nil
	}
	for range n {
		votes = append(votes, Vote{r.uint8(), r.key(), r.sig()})
	}
	if !ascending(votes, func(a, b Vote) int { return a.Voter - b.Voter }) {
		r.bad = true
	}
	return votes
}

// checkVotes returns an error unless a quorum of voters signed msg.
func checkVotes(voters []Holder, votes []Vote, msg []byte, v peer.Verifier, keys Keys) error {
	if need := Quorum(len(voters)); len(votes) < need || len(voters) == 0 {
		return fmt.Errorf("%w: %d of %s, %d needed", ErrVotes, len(votes), count.Of(len(voters), "voter", "voters"), need)
	}
	for _, vote := range votes {
		if vote.Voter >= len(voters) {
			return fmt.Errorf("%w: voter %d of %d", ErrVotes, vote.Voter, len(voters))
		}
		if err := voters[vote.Voter].signedBy(vote.Key, keys); err != nil {
			return fmt.Errorf("vote: %w", err)
		}
		if !v.Verify(vote.Key, domainVote, msg, vote.Sig) {
			return fmt.Errorf("vote of %s: %w", voters[vote.Voter], ErrSignature)
		}
	}
	return nil
}
