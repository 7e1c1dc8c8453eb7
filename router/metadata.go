package router

import (
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
)

// transit is where a frame of the TAP comes from and goes to.
type transit struct {
	src  peer.Name
	dst  peer.Name // if src is another peer
	hops uint8     // links that it may still cross, likewise
}

// fromKernel reads what the kernel put in front of a frame. It is false if the frame is
// an echo, which the controller of the fast path gets, or cannot be forwarded.
func (r *Router) fromKernel(fib *fib, t *tap.Frame, m kernel.Metadata) (transit, bool) {
	switch m.Op {
	case kernel.MetadataEcho:
		nonce, summed, ok := parseEcho(t.Buf[tap.Headroom+kernel.MetadataLen:], kernel.Encap(m.Reason))
		if !ok {
			r.drops.add(DropMalformed)
		} else if !r.fast.Echoed(fastpath.Echo{From: m.Addr, Nonce: nonce, Summed: summed || t.Header.NeedsSum}) {
			r.drops.add(DropBusy)
		}
		return transit{}, false
	case kernel.MetadataRelay:
		src, dst := fib.byShort[m.Src], fib.byShort[m.Dst]
		if src.IsZero() || dst.IsZero() || src == r.self {
			r.drops.add(DropUnknownPeer)
			return transit{}, false
		}
		return transit{src, dst, m.TTL}, true
	}
	r.drops.add(DropMalformed)
	return transit{}, false
}

// parseEcho reads the nonce of an echo that came in an encapsulation, and whether its checksum is right.
func parseEcho(frame []byte, e kernel.Encap) (nonce [kernel.NonceLen]byte, summed, ok bool) {
	if e == kernel.EncapVXLAN {
		return kernel.ParseEcho(frame)
	}
	return kernel.ParsePlainEcho(frame, e)
}

// behindMetadata returns a virtio-net header for the frame without the metadata header,
// which the positions of h count.
func behindMetadata(h offload.Header) offload.Header {
	if h.HeaderLen >= kernel.MetadataLen {
		h.HeaderLen -= kernel.MetadataLen
	}
	if h.NeedsSum && h.Start >= kernel.MetadataLen {
		h.Start -= kernel.MetadataLen
	}
	return h
}
