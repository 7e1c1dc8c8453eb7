package mesh

import (
	"slices"
	"time"
)

// The version of a topology entry is a time, and entries of the future are refused. Hosts
// without a clock that keeps the time must work all the same. So this peer goes by the
// clock that most of its neighbours show: the upper median of their clocks and its own. One
// lying neighbour can move it only if there is no other.

// now returns the present time as most peers see it.
func (m *Mesh) now() time.Time { return time.Now().Add(time.Duration(m.clockOffset.Load())) }

// Now returns the present time as most peers see it. It jumps when the neighbours change.
func (m *Mesh) Now() time.Time { return m.now() }

// updateClock estimates the time from the clocks of the neighbours. It is called with mu
// held.
func (m *Mesh) updateClock() {
	now := time.Now()
	offsets := []time.Duration{0}
	for _, n := range *m.neighbours.Load() {
		if !n.relayed {
			// The age is measured by the monotonic clock, so a clock that is set has an
			// effect at once.
			offsets = append(offsets, n.Peer.Clock.Add(now.Sub(n.since)).Sub(now))
		}
	}
	m.clockOffset.Store(int64(median(offsets)))
}

// median returns the upper median.
func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
