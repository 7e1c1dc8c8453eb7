package gossip

import "github.com/weft-net/weft/mesh/peer"

// Refusal describes a record of a delta that a channel did not merge.
type Refusal struct {
	From  peer.Name // the neighbour that passed it on; zero if the record was waiting
	Owner peer.Name // the owner that the record names
	Cause error
}

// Refusals collects refusals until Take is called. The zero value is empty.
type Refusals struct{ list []Refusal }

// maxRefusals bounds how many are kept, because a neighbour may send any number of bad
// records.
const maxRefusals = 64

// Add adds a refusal unless there are already maxRefusals.
func (r *Refusals) Add(from, owner peer.Name, cause error) {
	if len(r.list) < maxRefusals {
		r.list = append(r.list, Refusal{from, owner, cause})
	}
}

// Take returns the refusals since its last call. The caller owns the slice.
func (r *Refusals) Take() []Refusal {
	list := r.list
	r.list = nil
	return list
}
