package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

// disorder does what comeAndGo does, and more: disks go back in time or are lost, hosts that are dead
// are removed by operators or banned, messages are lost, time passes, and some hosts claim addresses
// that they do not use.
func (w *rollbacks) disorder(step int, liars int) {
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	free := !slices.ContainsFunc(w.nodes, func(m *node) bool { return m != n && (m.core == nil || m.core.catch != nil) })
	switch k := w.rng.IntN(20); {
	case k < 8:
		w.comeAndGo(step)
		return
	case k < 10:
		w.old[n] = append(w.old[n], n.disk.clone())
	case k < 12:
		if copies := w.old[n]; free && len(copies) > 0 {
			w.restart(n, copies[w.rng.IntN(len(copies))].clone(), false)
		}
	case k == 12 && free:
		w.restart(n, newDisk(), true)
	case k == 13 && free && len(w.nodes) > 4: // it is dead; another host comes
		w.cut = func(a, b *node) bool { return false }
		clear(w.alive[n])
		n.kill()
		w.run(3 * time.Second)
		ban := w.rng.IntN(2) == 0
		for _, m := range w.nodes {
			if m != n && m.core != nil {
				if ban {
					m.do(func(c *core) { _, _ = c.ban([]peer.Name{n.cfg.Self}, false) }) // not all have a vote
				} else {
					m.removes(n)
				}
			}
		}
		w.run(15 * time.Second)
		w.drop(n)
		delete(w.alive, n)
		delete(w.old, n)
		w.join(len(w.nodes) + 1)
		w.allocateOn(w.nodes[len(w.nodes)-1], fmt.Sprint("new", step)) // so that it gets a vote
		w.run(20 * time.Second)
	case k < 17: // claims of addresses that it does not use
		l := w.nodes[w.rng.IntN(liars)]
		if l.core == nil {
			return
		}
		for range 30 {
			a := netip.AddrFrom4([4]byte{10, 32, 0, byte(w.rng.IntN(64))})
			for _, m := range w.nodes {
				if m != l && m.core != nil {
					w.post(l, m, 'u', (&message{kind: msgClaimAsk, id: w.rng.Uint64(), addr: a, inUse: w.rng.IntN(3) > 0}).encode())
				}
			}
		}
	case k == 17:
		w.loss = float64(w.rng.IntN(3)) * 0.15
	case k == 18: // a long time, while all are there: who is away for an hour can lose its addresses
		w.allBack()
		w.converged(60 * time.Second)
		w.run(20 * time.Second)
		w.now = w.now.Add(time.Duration(w.rng.IntN(90)) * time.Minute)
	default:
		w.cut = func(a, b *node) bool { return false }
	}
	w.run(time.Duration(w.rng.IntN(4000)) * time.Millisecond)
}

// allBack starts all hosts that are dead, and heals the network.
func (w *rollbacks) allBack() {
	w.cut, w.loss = func(a, b *node) bool { return false }, 0
	for _, m := range w.nodes {
		if m.core == nil {
			w.restart(m, m.disk, false)
		}
	}
}

func (w *rollbacks) allocateOn(n *node, owner string) {
	n.begin(func(c *core, id uint64) { c.allocate(id, owner, pfx(rollbackRange)) })
}

// Whatever happens to hosts and their disks, and whatever two hosts claim that they use, no address
// of a container is given to another one.
func TestNoAddressInUseIsGivenInADisorderlyMesh(t *testing.T) {
	first := seed.New(t)
	for seed := first; seed < first+2; seed++ {
		w := newRollbacks(t, seed, 5)
		w.lies = true
		w.allocateOn(w.nodes[0], "first")
		w.converged(30 * time.Second)
		for step := range 150 {
			w.disorder(step, 2)
		}
		w.allBack()
		w.converged(60 * time.Second)
		if w.gave < 20 {
			t.Errorf("seed %d: only %d addresses were given", seed, w.gave)
		}
	}
}
