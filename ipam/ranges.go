package ipam

import (
	"fmt"
	"time"

	"github.com/weft-net/weft/ipam/ring"
)

// How many ranges the ring has is bounded, and each costs every peer memory and time. A
// peer that gives single addresses to others that it made up adds two with each transfer.
// So once there are many ranges, a voter does not agree to a transfer that adds some to a
// host that has too many already. All peers that are not alone at their underlay address
// count as one host, but each of them may have a few.
//
// A transfer that adds none is always possible: ranges can be joined again.

// Parts of the bound on ranges: one in so many.
const (
	partMany   = 8  // from here on there are many
	partHost   = 64 // for one host
	partOthers = 4  // for all peers that are not alone at their address
	partFew    = 2  // up to here each of those may have fewRanges, whatever the others have
	fewRanges  = 8
)

// othersRanges is how many ranges the peers have together that are not alone at their
// underlay address, at one moment.
type othersRanges struct {
	count int
	epoch uint64
	at    time.Time
}

// agreeCut returns an error if this peer does not agree to the ranges that a transfer adds.
func (c *core) agreeCut(a *ring.Action) error {
	by, total := c.ring.Ranges()
	most := c.cfg.maxRanges
	if total < most/partMany || c.ring.Cuts(a) <= 0 {
		return nil
	}
	for _, h := range []ring.Holder{a.From, a.To} {
		n := by[h]
		switch {
		case c.eligible(h):
			if n < most/partHost {
				continue
			}
		case n < fewRanges && total < most/partFew:
			continue
		default:
			if n = c.rangesOfOthers(); n < most/partOthers {
				continue
			}
		}
		return fmt.Errorf("the ring has %d ranges already, and %s has %d", total, c.displayName(h.Name), n)
	}
	return nil
}

func (c *core) rangesOfOthers() int {
	if o := &c.others; o.epoch != c.ring.Epoch() || !o.at.Equal(c.now) {
		*o = othersRanges{0, c.ring.Epoch(), c.now}
		by, _ := c.ring.Ranges()
		for h, n := range by {
			if !c.eligible(h) {
				o.count += n
			}
		}
	}
	return c.others.count
}
