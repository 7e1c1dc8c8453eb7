package gossip

import "github.com/weft-net/weft/mesh/peer"

// Refusal is a record of a delta that a channel did not take in.
type Refusal struct {
	From  peer.Name // the neighbour that handed it over; zero if it waited
	Owner peer.Name // whose record it says it is
	Cause error
}

// Refusals are those that nobody has looked at yet. The zero value has none.
type Refusals struct{ list []Refusal }

// mostRefusals is how many are kept: a neighbour may hand over what it wants.
const maxRefusals = 64

// Add adds one, if there are not too many.
func (r *Refusals) Add(from, owner peer.Name, cause error) {
	if len(r.list) < maxRefusals {
		r.list = append(r.list, Refusal{from, owner, cause})
	}
}

// Take returns those since the last call, which are the caller's.
func (r *Refusals) Take() []Refusal {
	list := r.list
	r.list = nil
	return list
}
