package router

import (
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
)

// fromKernel handles what the kernel's part of the fast datapath hands over: a
// frame with a tag in front.
func (r *Router) fromKernel(ln *lane, t *tap.Frame, tag kernel.Tag) {
	switch tag.Op {
	case kernel.TagEcho:
		nonce, summed, ok := kernel.ParseEcho(t.Buf[tap.Headroom+kernel.TagLen:])
		if !ok {
			r.drops.add(DropMalformed)
			return
		}
		if !r.fast.Echoed(fastpath.Echo{From: tag.Addr, Nonce: nonce, Summed: summed || t.Header.NeedsSum}) {
			r.drops.add(DropBusy)
		}
	case kernel.TagRelay:
		r.relayFast(ln, t, tag)
	default:
		r.drops.add(DropMalformed)
	}
}

// relayFast passes on over sleeve a frame of another peer that the kernel could
// not: its next hop is not fast, or it does not fit.
func (r *Router) relayFast(ln *lane, t *tap.Frame, tag kernel.Tag) {
	fib := r.fib.Load()
	src, dst := fib.byShort[tag.Src], fib.byShort[tag.Dst]
	if src.IsZero() || dst.IsZero() || src == r.self {
		r.drops.add(DropUnknownPeer)
		return
	}
	h := t.Header
	shift := func(n *uint16) {
		if *n >= kernel.TagLen {
			*n -= kernel.TagLen
		}
	}
	shift(&h.HeaderLen)
	if h.NeedsSum {
		shift(&h.Start)
	}
	f := frame{buf: t.Buf, at: tap.Headroom + kernel.TagLen, end: len(t.Buf), own: true}
	super := h.Kind != offload.None
	switch {
	case super:
		if ln.split.Reset(h, f.bytes()) != nil {
			r.drops.add(DropMalformed)
			return
		}
	case h.NeedsSum:
		if !f.leaveOpen(h) {
			r.drops.add(DropMalformed)
			return
		}
	}
	if _, ok := r.learn(ln, f.bytes(), src, &r.drops); !ok {
		return
	}
	if dst == r.self {
		return // the kernel delivers what is for this host
	}
	p, ok := fib.paths[dst]
	if !ok {
		r.drops.add(DropNoRoute)
		return
	}
	head := fib.head(src, dst)
	if head.Hops = min(head.Hops, tag.TTL); head.Hops == 0 {
		r.drops.add(DropHops)
		return
	}
	if super {
		ln.sendSuper(p.link, &head)
	} else {
		ln.send(p.link, &head, f)
	}
}
