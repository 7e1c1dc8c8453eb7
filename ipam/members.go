package ipam

import (
	"maps"
	"slices"

	"github.com/weft-net/weft/ipam/ring"
)

// Members returns the peers that own addresses or have a vote, and of these the voters, both
// ascending. The caller owns the slices. There are none while there is no ring.
func (a *Allocator) Members() (all, voters []ring.Holder) {
	a.mu.Lock()
	voters = slices.Clone(a.core.ring.Voters())
	all = slices.Collect(maps.Keys(a.core.ring.Owners()))
	a.mu.Unlock()
	all = append(all, voters...)
	slices.SortFunc(all, ring.Holder.Compare)
	return slices.Compact(all), voters
}
