package ipam

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
)

// An address in use here that another peer owns is called in use there only if it is. A peer that
// does not give a free one at once, because it has given many, is asked again.
func TestOnlyAnAddressInUseIsAConflict(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(2, keepRange)
	a, b := nodes[0], nodes[1]
	a.allocate("a", keepRange)
	taken := b.allocate("b", keepRange)
	s.converged(20 * time.Second)
	free := taken.Next()
	for b.core.space.Uses(free) || !b.core.space.Owns(free) {
		free = free.Next()
	}
	b.do(func(c *core) { c.askers[a.cfg.Self] = &asker{tokens: -1e6, at: c.now} })
	a.do(func(c *core) {
		c.hold("taken", netip.PrefixFrom(taken, 24))
		c.hold("free", netip.PrefixFrom(free, 24))
	})
	s.run(2 * regainEvery)
	inUse := func() (list []netip.Addr) {
		for _, c := range a.core.status().Conflicts {
			if c.InUse {
				list = append(list, c.Address)
			}
		}
		return list
	}
	if got := inUse(); !slices.Equal(got, []netip.Addr{taken}) {
		t.Errorf("conflicts about %v, want %s", got, taken)
	}
	b.do(func(c *core) { delete(c.askers, a.cfg.Self) })
	s.run(2 * regainEvery)
	if !a.core.space.Owns(free) {
		t.Errorf("%s was not given", free)
	}
	b.do(func(c *core) { c.release("b", taken) })
	s.run(2 * regainEvery)
	if got := a.core.status().Conflicts; len(got) != 0 || !a.core.space.Owns(taken) {
		t.Errorf("after the other container ended: conflicts %v", got)
	}
}
