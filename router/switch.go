package router

import (
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// fromTAP switches a frame that a container of this host sent.
func (r *Router) fromTAP(ln *lane, f frame) {
	dst, ok := r.learn(ln, f.bytes(), r.self, &r.drops)
	if !ok {
		return
	}
	fib := r.fib.Load()
	if !dst.IsGroup() {
		at, known := r.macs.Lookup(dst, ln.now)
		if known && at == r.self {
			return // the bridge has delivered it already
		}
		if known {
			p, ok := fib.paths[at]
			if !ok {
				r.drops.add(DropNoRoute)
				return
			}
			ln.send(p.link, &p.head, f)
			return
		}
	}
	f.own = false // the links share it
	for _, l := range fib.trees[r.self] {
		ln.send(l, &fib.all, f)
	}
}

// learn checks a frame that came from behind the peer at and remembers its
// source. It returns the destination.
func (r *Router) learn(ln *lane, b []byte, at peer.Name, d *drops) (dst ethernet.MAC, ok bool) {
	dst, src, ok := ethernet.Addresses(b)
	switch {
	case !ok:
		d.add(DropMalformed)
	case dst.IsReserved():
		d.add(DropReserved)
	case !src.IsStation():
		d.add(DropBadSource)
	default:
		if r.macs.Learn(src, at, ln.now) == mac.Full {
			r.macsRefused.Add(1)
		}
		return dst, true
	}
	return dst, false
}

// fromLink switches what came over a link: f is a frame with its head in
// front.
func (r *Router) fromLink(ln *lane, l *sleeve, f frame) {
	h, n, err := wire.ParseHead(f.bytes())
	if err != nil {
		l.drops.add(DropMalformed)
		return
	}
	f.at += n
	fib := r.fib.Load()
	src, dst, ok := fib.ends(l, &h)
	if !ok {
		l.drops.add(DropUnknownPeer)
		return
	}
	if src == r.self {
		l.drops.add(DropLooped)
		return
	}
	if _, ok := r.learn(ln, f.bytes(), src, &l.drops); !ok {
		return
	}
	l.rxFrames.Add(1)
	switch dst {
	case r.self:
		ln.deliver = append(ln.deliver, f.bytes())
	case peer.Broadcast:
		ln.deliver = append(ln.deliver, f.bytes())
		f.own = false
		for _, next := range fib.trees[src] {
			if next != l {
				ln.relay(next, h, f)
			}
		}
	default:
		p, ok := fib.paths[dst]
		if !ok {
			l.drops.add(DropNoRoute)
			return
		}
		ln.relay(p.link, h, f)
	}
}

// relay passes a frame of another peer on.
func (ln *lane) relay(l *sleeve, h wire.Head, f frame) {
	if h.Hops == 0 {
		l.drops.add(DropHops)
		return
	}
	h.Hops--
	ln.send(l, &h, f)
}

// countTAP writes frames to the host and counts them.
func (r *Router) countTAP(q tap.Queue, frames ...[]byte) {
	n, _ := q.WriteBatch(frames)
	r.tapOut.Add(uint64(n))
	if lost := len(frames) - n; lost > 0 {
		r.drops[DropTAP].Add(uint64(lost))
	}
}

// readTAP carries frames from a queue of the TAP to links, until it is closed.
func (r *Router) readTAP(ln *lane, size int) error {
	bufs, sizes := make([][]byte, batchSize), make([]int, batchSize)
	for i := range bufs {
		bufs[i] = make([]byte, tap.Headroom+size+tap.Tailroom)
	}
	// A frame must leave room for the tag behind it.
	reads := make([][]byte, batchSize)
	for i := range reads {
		reads[i] = bufs[i][:tap.Headroom+size]
	}
	for {
		n, err := ln.tap.ReadBatch(reads, sizes, tap.Headroom)
		if err != nil {
			return err
		}
		ln.now = r.since()
		r.tapIn.Add(uint64(n))
		for i := range n {
			r.fromTAP(ln, frame{buf: bufs[i], at: tap.Headroom, end: tap.Headroom + sizes[i], own: true})
		}
		ln.flush()
	}
}
