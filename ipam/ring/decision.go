package ring

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// Decision is one step of a ring.
//
//	 0      1      9      25       33      35
//	+------+------+------+--------+-------+---------------------+-------+-------+-------
//	| kind | slot | prev | voters | count | length, action, ... | round | count | votes
//	+------+------+------+--------+-------+---------------------+-------+-------+-------
//	  1      8      16     8        2       2 + length each       4       1       97 each
//
// The part before the round is the body; its hash is the id of the decision, which the
// next decision names as prev. Slot 1 names the genesis. Voters is the slot of the last
// decision that changed the voters, so that a copy that lacks decisions knows whether it
// knows the voters. A vote signs the ring, the slot, the round and the id.
type Decision struct {
	Slot    uint64
	Prev    ID
	Since   uint64 // the slot that changed the voters last
	Actions []*Action
	Round   uint32
	Votes   []Vote

	id  ID
	raw []byte
}

const (
	kindDecision   = 2
	domainDecision = "weft ipam decision"
	// maxBody bounds the body of a decision, so that it fits a delta with its votes.
	maxBody = 40 << 10
	// maxTakesAll bounds the actions of a decision that look at all ranges. With MaxRanges
	// of them, each takes about 4 ms.
	maxTakesAll = 16
	// maxSlot bounds slots so that they never wrap: at one decision per microsecond it
	// is reached after 146,000 years.
	maxSlot = 1 << 62
)

// maxRecord is the size limit of a record in bytes.
const maxRecord = maxBody + 4 + 1 + MaxVoters*voteLen

// Alone reports whether an action must be the only one of its decision.
func (r *Ring) Alone(a *Action) bool { return r.st != nil && r.st.alone(a) }

// Body encodes the actions as the body of the next decision. It leaves out the actions
// that do not fit: those that have no effect after the ones before them, those beyond the
// size limit, and after the first one those that must be alone. It returns nil if none is
// left.
func (r *Ring) Body(actions []*Action) []byte {
	if r.st == nil || r.st.slot >= maxSlot {
		return nil
	}
	b := r.st.bodyHeader()
	trial := r.st.trial()
	n, all := 0, 0
	for _, a := range actions {
		raw := a.Encode()
		alone := trial.alone(a)
		if alone && n > 0 || a.takesAll() && all == maxTakesAll || len(b)+2+len(raw) > maxBody ||
			trial.check(a, trial.ownsAny) != nil || r.checkSignatures(a) != nil {
			continue
		}
		trial.apply(a)
		if a.takesAll() {
			all++
		}
		b = binary.BigEndian.AppendUint16(b, uint16(len(raw)))
		b = append(b, raw...)
		if n++; alone {
			break
		}
	}
	if n == 0 {
		return nil
	}
	binary.BigEndian.PutUint16(b[33:], uint16(n))
	return b
}

func (st *state) bodyHeader() []byte {
	b := []byte{kindDecision}
	b = binary.BigEndian.AppendUint64(b, st.slot+1)
	b = append(b, st.head[:]...)
	b = binary.BigEndian.AppendUint64(b, st.votersSince)
	return append(b, 0, 0)
}

// BodyID returns the id of the decision with that body.
func BodyID(body []byte) ID { return idOf(domainDecision, body) }

// CheckBody parses the body of the next decision. It returns an error if it does not
// follow the last decision, or if any of its actions has no effect.
func (r *Ring) CheckBody(body []byte) ([]*Action, error) {
	d, rest, err := parseBody(body)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		return nil, malformed("body of a decision", body)
	}
	if r.st == nil || d.Slot != r.st.slot+1 || d.Prev != r.st.head || d.Since != r.st.votersSince {
		return nil, fmt.Errorf("decision of slot %d: %w", d.Slot, ErrEarly)
	}
	trial := r.st.trial()
	all := 0
	for _, a := range d.Actions {
		if trial.alone(a) && len(d.Actions) > 1 {
			return nil, malformed("decision with a "+a.Kind.String()+" and other actions", body)
		}
		if a.takesAll() {
			if all++; all > maxTakesAll {
				return nil, malformed("decision with too many removals", body)
			}
		}
		if err := trial.check(a, trial.ownsAny); err != nil {
			return nil, fmt.Errorf("decision of slot %d: %s: %w", d.Slot, a.Kind, err)
		}
		if err := r.checkSignatures(a); err != nil {
			return nil, fmt.Errorf("decision of slot %d: %w", d.Slot, err)
		}
		trial.apply(a)
	}
	return d.Actions, nil
}

// NewDecision encodes the decision for body that a quorum voted for.
func NewDecision(body []byte, round uint32, votes []Vote) []byte {
	b := slices.Clone(body)
	b = binary.BigEndian.AppendUint32(b, round)
	votes = slices.Clone(votes)
	slices.SortFunc(votes, func(a, b Vote) int { return a.Voter - b.Voter })
	return appendVotes(b, votes)
}

// parseBody parses the body at the front of raw and returns what follows it.
func parseBody(raw []byte) (*Decision, []byte, error) {
	if len(raw) == 0 || raw[0] != kindDecision {
		return nil, nil, malformed("decision", raw)
	}
	r := reader{b: raw[1:]}
	d := &Decision{Slot: r.uint64(), Prev: r.id(), Since: r.uint64()}
	for range r.counted(3) {
		a, err := ParseAction(r.take(r.uint16()))
		if r.bad {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		d.Actions = append(d.Actions, a)
	}
	n := len(raw) - len(r.b)
	if r.bad || n > maxBody || d.Slot == 0 || d.Slot > maxSlot || len(d.Actions) == 0 {
		return nil, nil, malformed("decision", raw)
	}
	d.id = BodyID(raw[:n])
	return d, r.b, nil
}

// ParseDecision parses an encoded decision. It shares the memory of raw.
func ParseDecision(raw []byte) (*Decision, error) {
	d, rest, err := parseBody(raw)
	if err != nil {
		return nil, err
	}
	r := reader{b: rest}
	d.Round, d.Votes = r.uint32(), r.votes()
	if !r.end() {
		return nil, malformed("decision", raw)
	}
	d.raw = raw
	return d, nil
}

// slotOf returns the slot of an encoded decision.
func slotOf(raw []byte) uint64 {
	if len(raw) < 9 || raw[0] != kindDecision {
		return 0
	}
	return binary.BigEndian.Uint64(raw[1:])
}

// checkVotesOf returns an error unless a quorum of voters decided d. It remembers the keys of
// voters that are known by their names only: they may be away when this is checked again.
func (m *merge) checkVotesOf(d *Decision, g *Genesis, voters []Holder) error {
	r := m.ring
	voted := make(map[peer.Name]peer.Key)
	for _, v := range d.Votes {
		if v.Voter < len(voters) && voters[v.Voter].Key == (peer.KeyID{}) {
			voted[voters[v.Voter].Name] = v.Key
		}
	}
	keys := func(n peer.Name) (peer.Key, bool) {
		if k, ok := r.keys(n); !m.disk && (ok || !m.trust) {
			return k, ok
		}
		k, ok := voted[n]
		return k, ok
	}
	err := checkVotes(voters, d.Votes, VoteMessage(g.id, d.Slot, d.Round, d.id), r.verifier, keys)
	if err != nil {
		return fmt.Errorf("decision of slot %d: %w", d.Slot, err)
	}
	maps.Copy(r.bound, voted)
	return nil
}
