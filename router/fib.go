package router

import (
	"sync/atomic"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/origin"
	"github.com/weft-net/weft/router/wire"
)

// fib is what lanes need to know about the routes. It is immutable and made once for
// each change.
type fib struct {
	self   peer.Name
	routes *topology.Routes
	// paths has the next hop's link for every peer that is reached.
	paths map[peer.Name]*path
	// trees has the links that a broadcast frame is sent to, by the peer that it
	// comes from.
	trees map[peer.Name][]*sleeve
	// from says from which neighbours frames of other peers may come.
	from origin.Table
	// byShort has the peers by short id.
	byShort map[uint16]peer.Name
	// all is the head of this host's broadcast frames.
	all wire.Head
}

// path is the path to one peer.
type path struct {
	link *sleeve
	head wire.Head // of this host's frames to the peer
	// relayed: other peers carry the frames and must not read them.
	relayed bool
	// seal is the link to the peer itself, which has the keys, nil if there is none.
	// sealHead is the head of sealed frames.
	seal     *sleeve
	sealHead wire.Head
	// When the mesh heard last that the keys are used to send or to receive, each a
	// time.Duration.
	asked, heard atomic.Int64
}

func newFIB(self peer.Name, routes *topology.Routes, links map[peer.Name]*sleeve, from origin.Table, sealRelayed bool) *fib {
	f := &fib{self: self, routes: routes, from: from, byShort: routes.ByShortID, paths: make(map[peer.Name]*path), trees: make(map[peer.Name][]*sleeve)}
	f.all = f.head(self, peer.Broadcast)
	for dst, next := range routes.Unicast {
		l, ok := links[next]
		if !ok {
			continue
		}
		h := wire.Head{Kind: wire.Direct, Hops: wire.MaxHops}
		if next != dst {
			h = f.head(self, dst)
		}
		p := &path{link: l, head: h}
		if next != dst && sealRelayed {
			p.relayed, p.seal, p.sealHead = true, links[dst], h
			p.sealHead.Sealed = true
		}
		f.paths[dst] = p
	}
	for src, nexts := range routes.Broadcast {
		for _, next := range nexts {
			if l, ok := links[next]; ok {
				f.trees[src] = append(f.trees[src], l)
			}
		}
	}
	return f
}

// head returns a head that names two peers in the shortest unambiguous form.
func (f *fib) head(src, dst peer.Name) wire.Head {
	h := wire.Head{Kind: wire.Routed, Hops: wire.MaxHops, SrcID: src.ID(), DstID: dst.ID(), Src: src, Dst: dst}
	clear := func(n peer.Name) bool { return n.ID() != wire.EveryID && f.routes.ByID[n.ID()] == n }
	if !clear(src) || dst != peer.Broadcast && !clear(dst) {
		h.Kind = wire.RoutedLong
	}
	return h
}

// ends returns the source and the destination in a head from l. ok is false if one
// of them is not a known peer.
func (f *fib) ends(l *sleeve, h *wire.Head) (src, dst peer.Name, ok bool) {
	switch h.Kind {
	case wire.Direct:
		return l.peer, f.self, true
	case wire.Routed:
		src = f.routes.ByID[h.SrcID]
		if dst = peer.Broadcast; h.DstID != wire.EveryID {
			dst = f.routes.ByID[h.DstID]
		}
	default:
		src, dst = h.Src, h.Dst
	}
	return src, dst, !src.IsZero() && !dst.IsZero()
}
