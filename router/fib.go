package router

import (
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router/wire"
)

// fib is what lanes need to know of the routes, worked out once for each
// change. It is immutable.
type fib struct {
	self   peer.Name
	routes *topology.Routes
	// paths leads to every peer that has a way, by the link of its next hop.
	paths map[peer.Name]*path
	// trees gives the links for what each source sent to all.
	trees map[peer.Name][]*sleeve
	// byShort are the peers by short id.
	byShort map[uint16]peer.Name
	// all is the head of our own frames to all peers.
	all wire.Head
}

// path is the way to one peer.
type path struct {
	link *sleeve
	head wire.Head // of our frames to the peer
}

func newFIB(self peer.Name, routes *topology.Routes, links map[peer.Name]*sleeve) *fib {
	f := &fib{self: self, routes: routes, byShort: routes.ByShortID, paths: make(map[peer.Name]*path), trees: make(map[peer.Name][]*sleeve)}
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
		f.paths[dst] = &path{l, h}
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

// head names two peers as short as it can without another being meant.
func (f *fib) head(src, dst peer.Name) wire.Head {
	h := wire.Head{Kind: wire.Routed, Hops: wire.MaxHops, SrcID: src.ID(), DstID: dst.ID(), Src: src, Dst: dst}
	clear := func(n peer.Name) bool { return n.ID() != wire.EveryID && f.routes.ByID[n.ID()] == n }
	if !clear(src) || dst != peer.Broadcast && !clear(dst) {
		h.Kind = wire.RoutedLong
	}
	return h
}

// ends returns the source and the destination that a head from l names. ok is
// false if it names a peer that is not known.
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
