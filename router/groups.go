package router

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/multicast"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/wire"
)

// GroupStatus is what the router knows and does about multicast groups.
type GroupStatus struct {
	Wants multicast.Wants // of the containers of this host
	// Frames of containers of this host to groups: those that went only to hosts that want them, those of
	// them that no other host wants, and those that went to all.
	Pruned, Unwanted, Flooded uint64
	Ignored                   uint64 // reports beyond the limit of groups
}

// wantsEvery is the least time between two reports of what the containers of this host want: each
// costs every peer a signature.
const wantsEvery = 500 * time.Millisecond

// groupPause is the least time after a look at all groups before a report of a container causes the next.
const groupPause = 50 * time.Millisecond

// maxCopies bounds the copies of a frame to a group for hosts behind others: whoever knows the password can
// make up any number of hosts behind its own.
const maxCopies = 16

// multicastGroups is what the router needs to send frames to groups only where they are wanted.
type multicastGroups struct {
	mu      sync.Mutex // comes after no other lock
	snooper *multicast.Snooper
	ticked  time.Time // when it was asked last what is due
	heard   time.Time // when it must be asked again

	wake chan struct{} // of capacity 1: mu.heard is sooner than before

	// Control goroutine only.
	members  *groups.Members
	reported multicast.Wants
	next     time.Time // report at the earliest

	view atomic.Pointer[groupView] // nil: all frames go to all hosts

	pruned, unwanted, flooded atomic.Uint64
}

// groupView is where frames to groups go. It is immutable.
type groupView struct {
	*groups.Members
	// others are the reachable peers that have not said what they want.
	others []peer.Name
}

func (g *multicastGroups) init() {
	g.snooper, g.wake = multicast.New(time.Now()), make(chan struct{}, 1)
}

// SetGroups says which hosts want which groups.
func (r *Router) SetGroups(m *groups.Members) {
	r.do(func() {
		r.groups.members = m
		r.viewGroups()
	})
}

// viewGroups finds the peers that get all frames after a change of groups or routes.
func (r *Router) viewGroups() {
	m := r.groups.members
	if m == nil {
		return
	}
	v := &groupView{Members: m}
	for n := range r.fib.Load().paths {
		if !m.Known[n] {
			v.others = append(v.others, n)
		}
	}
	r.groups.view.Store(v)
}

// hear looks at a frame to a group. local is set if it comes from a container of this host.
func (r *Router) hear(b []byte, local bool) multicast.Kind {
	if r.cfg.Wanted == nil || !multicast.IsControl(b) {
		return multicast.Other
	}
	g, now := &r.groups, time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	kind := g.snooper.Hear(now, b, local)
	at := now
	if soonest := g.ticked.Add(groupPause); soonest.After(now) {
		at = soonest
	}
	if local && kind != multicast.Other && g.heard.After(at) {
		g.heard = at
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
	return kind
}

// tickGroups sends the queries that are due to the containers of this host, and reports what they want. It
// returns when to call it again.
func (r *Router) tickGroups(ln *lane) (next time.Time) {
	g, now := &r.groups, time.Now()
	if r.cfg.Wanted == nil {
		return now.Add(time.Hour)
	}
	g.mu.Lock()
	if at := g.heard; now.Before(at) {
		g.mu.Unlock()
		return at
	}
	asks, due := g.snooper.Tick(now)
	wants := g.snooper.Wants(now)
	if !wants.Equal(g.reported) && now.Before(g.next) && g.next.Before(due) {
		due = g.next
	}
	g.ticked, g.heard = now, due
	g.mu.Unlock()
	for _, q := range asks {
		ln.hostAnswer(q.Append(ln.answer[:0], r.self))
	}
	if !wants.Equal(g.reported) && !now.Before(g.next) {
		g.reported, g.next = wants, now.Add(wantsEvery)
		r.cfg.Wanted(wants)
	}
	return due
}

// toGroup sends a frame of a container of this host that is for no single host: to all others, or to those
// that want the group to which it goes.
func (ln *lane) toGroup(fib *fib, f frame, h offload.Header, isGroup bool) {
	r, frames := ln.r, uint64(1)
	if h.Kind != offload.None {
		frames = uint64(ln.split.Count())
	}
	f.own = false // the links share the memory
	report := isGroup && h.Kind == offload.None && r.hear(f.bytes(), true) == multicast.Membership
	v := r.groups.view.Load()
	if !isGroup || v == nil {
		ln.toAll(fib, f, h, frames)
		return
	}
	var of []peer.Name
	others := v.others
	if report {
		others = nil // a report is for routers and queriers only: it could keep containers from reporting
	} else {
		group, ok := multicast.Group(f.bytes())
		if !ok {
			ln.toAll(fib, f, h, frames)
			return
		}
		of = v.Of[group]
	}
	switch n := len(of) + len(v.All) + len(others); {
	case n == 0:
		r.groups.unwanted.Add(frames)
		return
	case n >= len(fib.paths):
		ln.toAll(fib, f, h, frames)
		return
	}
	lists := [...][]peer.Name{of, v.All, others}
	if !report && fib.areMany(lists[:]) {
		ln.toAll(fib, f, h, frames)
		return
	}
	r.groups.pruned.Add(frames)
	copies := 0
	for _, names := range lists {
		for _, n := range names {
			p, ok := fib.paths[n]
			if ok && p.head.Kind != wire.Direct {
				copies++
			}
			switch {
			case !ok, p.head.Kind != wire.Direct && copies > maxCopies:
			case p.relayed:
				ln.forwardSealed(n, p, f, h)
			default:
				ln.forward(p.link, &p.head, f, h)
			}
		}
	}
}

// areMany reports whether more than maxCopies of the peers are behind others.
func (f *fib) areMany(lists [][]peer.Name) bool {
	behind := 0
	for _, names := range lists {
		for _, n := range names {
			if p, ok := f.paths[n]; ok && p.head.Kind != wire.Direct {
				if behind++; behind > maxCopies {
					return true
				}
			}
		}
	}
	return false
}

// toAll sends a frame of this host along the broadcast tree.
func (ln *lane) toAll(fib *fib, f frame, h offload.Header, frames uint64) {
	ln.r.groups.flooded.Add(frames)
	for _, l := range fib.trees[ln.r.self] {
		ln.forward(l, &fib.all, f, h)
	}
}

func (g *multicastGroups) status(now time.Time) GroupStatus {
	g.mu.Lock()
	defer g.mu.Unlock()
	return GroupStatus{
		Wants: g.snooper.Wants(now), Ignored: g.snooper.Dropped(),
		Pruned: g.pruned.Load(), Unwanted: g.unwanted.Load(), Flooded: g.flooded.Load(),
	}
}
