package router

import (
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/router/resolve"
)

// NeighbourStatus counts frames of ARP and neighbour discovery.
type NeighbourStatus struct {
	// Requests of containers of this host for the MAC address of an IP address: those that this
	// host answered in the router or in the kernel, those for a container of this host, and those that went to all hosts.
	Answered, Local, Flooded uint64
	// Announced counts the addresses whose new MAC address was announced to the containers of this
	// host, and Dropped those that were not announced because too many moved at once.
	Announced, Dropped uint64
}

// neighbours is what the router needs for ARP and neighbour discovery.
type neighbours struct {
	// Control goroutine only.
	moves resolve.Moves

	// Atomic.
	answered, local, flooded atomic.Uint64
	announced, dropped       atomic.Uint64
}

func (r *Router) neighbourStatus() NeighbourStatus {
	n, k := &r.neighbours, r.fast.Requests()
	return NeighbourStatus{
		Answered: n.answered.Load() + k.Answered, Local: n.local.Load() + k.Local, Flooded: n.flooded.Load(),
		Announced: n.announced.Load(), Dropped: n.dropped.Load(),
	}
}

// place returns where an IP address is. It is safe for concurrent use.
func (r *Router) place(a netip.Addr) (p resolve.Place) {
	if r.cfg.PlaceOf == nil || !a.IsValid() {
		return p
	}
	return r.cfg.PlaceOf(a)
}

// floods reports whether a frame of a container to a group goes to other hosts. If it is a request that
// this router answers, it does that.
func (ln *lane) floods(fib *fib, b []byte) bool {
	r := ln.r
	if r.cfg.PlaceOf == nil {
		return true
	}
	m, ok := neighbour.Parse(b)
	if !ok {
		return true
	}
	target := r.place(m.Target)
	_, reached := fib.paths[target.At]
	switch resolve.Decide(m, r.self, target, r.place(m.From), reached) {
	case resolve.Answer:
		r.neighbours.answered.Add(1)
		r.find(target.MAC, ln.now) // the kernel knows the way before the next frame comes
		ln.hostAnswer(neighbour.AppendAnswer(ln.answer[:0], m, target.MAC))
		return false
	case resolve.Local:
		r.neighbours.local.Add(1)
		return false
	case resolve.False:
		r.drops.add(DropFalseAddr)
		return false
	}
	if m.Target.IsValid() {
		r.neighbours.flooded.Add(1)
	}
	return true
}

// isFalse reports whether a frame to a group says that a bound address is at another MAC address.
func (r *Router) isFalse(b []byte) bool {
	if r.cfg.PlaceOf == nil || len(b) == 0 || b[0]&1 == 0 {
		return false
	}
	m, ok := neighbour.Parse(b)
	return ok && resolve.IsFalse(m, r.place(m.From))
}

// Moved takes changes of where IP addresses are, in order, after PlaceOf tells them. The containers of
// this host hear of an address that has another MAC address than before.
func (r *Router) Moved(list []resolve.Change) {
	r.do(func() { r.neighbours.moves.Changed(time.Now(), r.self, list) })
	r.fast.Moved(list)
}

// announceMoves announces the moves that are due. ln is the lane of the control goroutine.
func (r *Router) announceMoves(ln *lane) {
	n := &r.neighbours
	for _, a := range n.moves.Due(time.Now()) {
		ln.hostAnswer(neighbour.AppendAnnouncement(ln.answer[:0], a.Addr, a.MAC))
		n.announced.Add(1)
	}
	n.dropped.Store(n.moves.Dropped())
}
