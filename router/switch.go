package router

import (
	"hash/maphash"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/flow"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// fromTAP switches a frame that the kernel wrote to the TAP: one of a container of this
// host or, behind a metadata header, one of another peer that the kernel could not
// forward.
func (r *Router) fromTAP(ln *lane, t *tap.Frame) {
	f := frame{buf: t.Buf, at: tap.Headroom, end: len(t.Buf), own: true}
	ln.sparse = t.Sparse
	fib, h, from := r.fib.Load(), t.Header, transit{src: r.self}
	if ln.metadata {
		if m, ok := kernel.ParseMetadata(f.bytes()); ok {
			if from, ok = r.fromKernel(fib, t, m); !ok {
				return
			}
			f.at += kernel.MetadataLen
			h = behindMetadata(h)
		}
	}
	count, ok := ln.offloads(&f, h)
	if !ok {
		r.drops.add(DropMalformed)
		return
	}
	own := from.src == r.self
	if own {
		r.tapIn.Add(uint64(count))
		if h.Kind != offload.None {
			r.tapGSOIn.Add(1)
		}
	}
	mac, ok := r.learn(ln, f.bytes(), from.src, &r.drops)
	if !ok {
		return
	}
	dst := from.dst
	if own {
		known := false
		switch {
		case !mac.IsGroup():
			dst, known = r.find(mac, ln.now)
		case h.Kind == offload.None && !ln.floods(fib, f.bytes()):
			return
		}
		if !known {
			ln.toGroup(fib, f, h, mac.IsGroup())
			return
		}
	}
	if dst == r.self {
		return // the bridge or the kernel has delivered it already
	}
	p, ok := fib.paths[dst]
	if !ok {
		r.drops[DropNoRoute].Add(uint64(count))
		return
	}
	switch {
	case own && p.relayed:
		ln.forwardSealed(dst, p, f, h)
		return
	case own:
		ln.forward(p.link, &p.head, f, h)
		return
	}
	head := fib.head(from.src, dst)
	if head.Hops = min(head.Hops, from.hops); head.Hops == 0 {
		r.drops[DropHops].Add(uint64(count))
		return
	}
	ln.forward(p.link, &head, f, h)
}

// offloads prepares a frame that has a virtio-net header: it puts a GSO packet into
// ln.split, and completes a missing checksum or leaves it partial. It returns the
// number of frames, and false if the header is malformed.
func (ln *lane) offloads(f *frame, h offload.Header) (count int, ok bool) {
	switch {
	case h.Kind != offload.None:
		err := ln.split.Reset(h, f.bytes())
		return ln.split.Count(), err == nil
	case h.NeedsSum:
		return 1, f.leavePartial(h)
	}
	return 1, true
}

// forward puts a frame that offloads has prepared on a link.
func (ln *lane) forward(l *sleeve, head *wire.Head, f frame, h offload.Header) {
	if h.Kind != offload.None {
		ln.sendGSO(l, head)
	} else {
		ln.send(l, head, f)
	}
}

// leavePartial marks a frame partial whose checksum is missing according to h, if
// that saves work and the other end can find the checksum. Else it completes the
// frame. It is false if h is malformed.
func (f *frame) leavePartial(h offload.Header) bool {
	b := f.bytes()
	if len(b) > smallFrame {
		if l, ok := offload.Parse(b); ok && l.Partial() == (offload.Header{NeedsSum: true, Start: h.Start, Offset: h.Offset}) {
			f.partial = true
			return true
		}
	}
	return offload.Complete(h, b)
}

// learn checks a frame from behind the peer at and remembers its source address. It
// returns the destination address.
func (r *Router) learn(ln *lane, b []byte, at peer.Name, d *drops) (dst ethernet.MAC, ok bool) {
	dst, src, ok := ethernet.Addresses(b)
	switch {
	case !ok:
		d.add(DropMalformed)
	case dst.IsReserved():
		d.add(DropReserved)
	case !src.IsUnicast():
		d.add(DropBadSource)
	default:
		switch r.macs.Learn(src, at, ln.now) {
		case mac.Added, mac.Moved:
			r.fast.Learned(src)
		case mac.Bound:
			if to, _ := r.macs.BoundTo(src); to == r.self && at != r.self {
				// The bridge would send the frames of the container to the other host.
				d.add(DropSpoofed)
				return dst, false
			}
		}
		return dst, true
	}
	return dst, false
}

// find returns the peer that has the destination address of a frame.
func (r *Router) find(m ethernet.MAC, now time.Duration) (at peer.Name, ok bool) {
	at, change, ok := r.macs.Find(m, now)
	if change == mac.Added {
		r.fast.Learned(m)
	}
	return at, ok
}

// Bind says that the peer at has a MAC address on its host, by its signed word; the zero Name
// ends that. Frames for the address follow at once if it was seen elsewhere.
func (r *Router) Bind(m ethernet.MAC, at peer.Name) {
	if r.macs.Bind(m, at) {
		r.fast.Learned(m)
	}
}

// fromLink switches a frame that came over a link. f begins with its head.
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
	if !fib.from.Allows(src, l.peer, ln.now) {
		l.drops.add(DropMisrouted)
		return
	}
	if h.Sealed {
		r.fromSource(ln, l, src, dst, h, f)
		return
	}
	if r.cfg.SealRelayed && dst == r.self && src != l.peer {
		l.drops.add(DropUnsealed)
		return
	}
	if _, ok := r.learn(ln, f.bytes(), src, &l.drops); !ok {
		return
	}
	l.rxFrames.Add(1)
	switch dst {
	case r.self:
		ln.toHost(f)
	case peer.Broadcast:
		f.own = false
		for _, next := range fib.trees[src] {
			if next != l {
				ln.relay(next, h, f)
			}
		}
		ln.toHost(f) // last, as it may change the frame
	default:
		p, ok := fib.paths[dst]
		if !ok {
			l.drops.add(DropNoRoute)
			return
		}
		ln.relay(p.link, h, f)
	}
}

// fromSource handles a frame that the peer src has sealed for the peer dst.
func (r *Router) fromSource(ln *lane, l *sleeve, src, dst peer.Name, h wire.Head, f frame) {
	if dst == r.self {
		r.openSealed(ln, l, src, f)
		return
	}
	p, ok := r.fib.Load().paths[dst]
	if !ok {
		l.drops.add(DropNoRoute)
		return
	}
	l.rxFrames.Add(1)
	f.partial = false
	ln.relay(p.link, h, f)
}

// relay forwards a frame of another peer.
func (ln *lane) relay(l *sleeve, h wire.Head, f frame) {
	if h.Hops == 0 {
		l.drops.add(DropHops)
		return
	}
	h.Hops--
	ln.send(l, &h, f)
}

// readTAP carries frames from a queue of the TAP to links until it is closed.
func (r *Router) readTAP(ln *lane, q tap.Queue) error {
	reader := q.NewReader()
	if p, ok := reader.(tap.Prioritizer); ok {
		flows := flow.New(maphash.MakeSeed())
		p.Prioritize(func(frame []byte) bool { return flows.Sparse(r.since(), frame) })
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
