package router

import (
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/flow"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// fromTAP switches a frame that a container of this host sent.
func (r *Router) fromTAP(ln *lane, t *tap.Frame) {
	f := frame{buf: t.Buf, at: tap.Headroom, end: len(t.Buf), own: true}
	ln.light = t.Light
	// Where the TAP is the bridge's port, what looks like a tag is a container's.
	if ln.fast {
		if tag, ok := kernel.ParseTag(f.bytes()); ok {
			r.fromKernel(ln, t, tag)
			return
		}
	}
	super := t.Header.Kind != offload.None
	frames := 1
	switch {
	case super:
		if ln.split.Reset(t.Header, f.bytes()) != nil {
			r.drops.add(DropMalformed)
			return
		}
		frames = ln.split.Count()
		r.tapSuperIn.Add(1)
	case t.Header.NeedsSum:
		if !f.leaveOpen(t.Header) {
			r.drops.add(DropMalformed)
			return
		}
	}
	r.tapIn.Add(uint64(frames))
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
			switch {
			case !ok:
				r.drops[DropNoRoute].Add(uint64(frames))
			case super:
				ln.sendSuper(p.link, &p.head)
			default:
				ln.send(p.link, &p.head, f)
			}
			return
		}
	}
	f.own = false // the links share it
	for _, l := range fib.trees[r.self] {
		if super {
			ln.sendSuper(l, &fib.all)
		} else {
			ln.send(l, &fib.all, f)
		}
	}
}

// leaveOpen makes a frame partial whose checksum h says is missing, if that is
// worth it and the checksum is one that the other end can find; else it
// completes the frame. It is false if h makes no sense.
func (f *frame) leaveOpen(h offload.Header) bool {
	b := f.bytes()
	if len(b) > smallFrame {
		if l, ok := offload.Parse(b); ok && l.Partial() == (offload.Header{NeedsSum: true, Start: h.Start, Offset: h.Offset}) {
			f.partial = true
			return true
		}
	}
	return offload.Complete(h, b)
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
		switch r.macs.Learn(src, at, ln.now) {
		case mac.Added, mac.Moved:
			r.fast.Learned(src)
		case mac.Full:
			r.macsRefused.Add(1)
			r.fast.Learned(src) // it may be known elsewhere
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
		ln.toHost(f.bytes(), f.partial)
	case peer.Broadcast:
		f.own = false
		for _, next := range fib.trees[src] {
			if next != l {
				ln.relay(next, h, f)
			}
		}
		ln.toHost(f.bytes(), f.partial) // last, as it may change the frame
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

// readTAP carries frames from a queue of the TAP to links, until it is closed.
func (r *Router) readTAP(ln *lane, q tap.Queue) error {
	reader := q.NewReader()
	if p, ok := reader.(tap.Prioritizer); ok {
		flows := flow.New()
		p.Prioritize(func(frame []byte) bool { return flows.Light(r.since(), frame) })
	}
	for {
		frames, err := reader.ReadBatch()
		if err != nil {
			return err
		}
		ln.now = r.since()
		for i := range frames {
			r.fromTAP(ln, &frames[i])
		}
		ln.flush()
	}
}
