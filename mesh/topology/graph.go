package topology

import (
	"math/bits"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// Graph is the mesh at one moment: the peers, and the links that both ends list. It is
// immutable.
type Graph struct {
	self  int
	names []peer.Name // in order
	index map[peer.Name]int
	// links[i] lists the neighbours of names[i] in order of index.
	links   [][]edge
	reaches bitset // from self, over links of any kind

	shortIDs  map[peer.Name]uint16
	byShortID map[uint16]peer.Name
}

type edge struct {
	to    int
	flags LinkFlags
	cost  uint8 // the larger cost of the two ends
}

// Graph returns the graph of the present entries.
func (s *State) Graph() *Graph {
	if s.graph != nil {
		return s.graph
	}
	g := &Graph{index: make(map[peer.Name]int, len(s.entries))}
	entries := s.Entries()
	for i, e := range entries {
		g.names = append(g.names, e.Name)
		g.index[e.Name] = i
	}
	g.self = g.index[s.cfg.Self]
	g.links = confirmed(entries, g.index)
	g.reaches = newBitset(len(g.names))
	g.reaches.set(g.self)
	for queue := []int{g.self}; len(queue) > 0; queue = queue[1:] {
		for _, e := range g.links[queue[0]] {
			if !g.reaches.has(e.to) {
				g.reaches.set(e.to)
				queue = append(queue, e.to)
			}
		}
	}
	g.shortIDs, g.byShortID = shortIDs(entries)
	s.graph = g
	return g
}

// confirmed returns for each entry the links that both ends list, in order of index. The
// entries are in order of name, and index gives their places.
func confirmed(entries []*Entry, index map[peer.Name]int) [][]edge {
	links := make([][]edge, len(entries))
	// Links are in order of name, too. While i goes through the entries in that order, each
	// entry needs to be looked through for links back only once.
	next := make([]int, len(entries))
	for i, e := range entries {
		for _, l := range e.Links {
			j, ok := index[l.To]
			if !ok {
				continue
			}
			back := entries[j].Links
			for next[j] < len(back) && back[next[j]].To.Compare(e.Name) < 0 {
				next[j]++
			}
			if next[j] == len(back) || back[next[j]].To != e.Name {
				continue
			}
			if b := back[next[j]]; l.Flags&b.Flags != 0 {
				links[i] = append(links[i], edge{j, l.Flags & b.Flags, max(l.Cost, b.Cost)})
			}
		}
	}
	return links
}

// Names returns the peers of the graph in order, reachable or not. The slice is
// read-only.
func (g *Graph) Names() []peer.Name { return g.names }

// Reaches reports whether a path leads from this peer to n.
func (g *Graph) Reaches(n peer.Name) bool {
	i, ok := g.index[n]
	return ok && g.reaches.has(i)
}

// Routes computes the routes from this peer over links that have all of flags. Unicast
// minimises hops, then round-trip time. Broadcast follows one tree for each source; all
// peers with equal entries compute equal trees.
func (g *Graph) Routes(flags LinkFlags) *Routes {
	r := &Routes{
		Self:      g.names[g.self],
		Unicast:   make(map[peer.Name]peer.Name),
		Broadcast: make(map[peer.Name][]peer.Name),
		From:      make(map[peer.Name][]peer.Name),
		ByID:      make(map[uint32]peer.Name, len(g.names)),
		ShortIDs:  g.shortIDs,
		ByShortID: g.byShortID,
	}
	for _, n := range g.names {
		if _, clash := r.ByID[n.ID()]; clash {
			r.ByID[n.ID()] = peer.Name{}
		} else {
			r.ByID[n.ID()] = n
		}
	}
	g.unicast(flags, r.Unicast)
	g.broadcast(flags, r.Broadcast, r.From)
	return r
}

func (g *Graph) unicast(flags LinkFlags, out map[peer.Name]peer.Name) {
	const unseen = -1
	type node struct {
		hops, via int
		rtt       uint64 // microseconds
	}
	nodes := make([]node, len(g.names))
	for i := range nodes {
		nodes[i].hops = unseen
	}
	nodes[g.self].hops = 0
	for layer, hops := []int{g.self}, 1; len(layer) > 0; hops++ {
		var next []int
		for _, u := range layer {
			for _, e := range g.links[u] {
				if e.flags&flags != flags {
					continue
				}
				v := &nodes[e.to]
				rtt, via := nodes[u].rtt+micros(e.cost), nodes[u].via
				if u == g.self {
					via = e.to
				}
				switch {
				case v.hops == unseen:
					*v = node{hops, via, rtt}
					next = append(next, e.to)
				case v.hops == hops && (rtt < v.rtt || rtt == v.rtt && via < v.via):
					v.rtt, v.via = rtt, via
				}
			}
		}
		layer = next
	}
	for i, v := range nodes {
		if v.hops > 0 {
			out[g.names[i]] = g.names[v.via]
		}
	}
}

// broadcast fills in the children of self in the tree of each source. A tree has
// shortest paths. The parent of a peer in layer d+1 is the neighbour in layer d with the
// next higher index, wrapping around, so that children are spread over the possible
// parents. Only the layers up to the one after self's are computed, on bit sets: a mesh
// of 1,000 peers has 1,000 trees. from gets the neighbours in the layer before self's: every
// shortest path from the source, of its tree or of a unicast route, comes over one of them.
func (g *Graph) broadcast(flags LinkFlags, out, from map[peer.Name][]peer.Name) {
	n := len(g.names)
	adj := make([]bitset, n)
	for i, links := range g.links {
		adj[i] = newBitset(n)
		for _, e := range links {
			if e.flags&flags == flags {
				adj[i].set(e.to)
			}
		}
	}
	seen, layer, next := newBitset(n), newBitset(n), newBitset(n)
	for src := range n {
		clear(seen)
		clear(layer)
		layer.set(src)
		seen.set(src)
		for !layer.has(g.self) {
			next.spread(layer, adj, seen)
			if next.empty() {
				break
			}
			layer, next = next, layer
		}
		if !layer.has(g.self) {
			continue
		}
		if src != g.self {
			before := next // layer and next have changed places
			adj[g.self].each(func(v int) {
				if before.has(v) {
					from[g.names[src]] = append(from[g.names[src]], g.names[v])
				}
			})
		}
		var children []peer.Name
		adj[g.self].each(func(v int) {
			if !seen.has(v) && adj[v].firstCommonAfter(layer, v) == g.self {
				children = append(children, g.names[v])
			}
		})
		if children != nil {
			out[g.names[src]] = children
		}
	}
}

// Linked reports whether both this peer and n list a link between the two.
func (g *Graph) Linked(n peer.Name) bool {
	to, ok := g.index[n]
	return ok && slices.ContainsFunc(g.links[g.self], func(e edge) bool { return e.to == to })
}

// Common returns the peers that have links with all of flags both to this peer
// and to n, in order.
func (g *Graph) Common(n peer.Name, flags LinkFlags) (names []peer.Name) {
	to, ok := g.index[n]
	if !ok {
		return nil
	}
	for _, a := range g.links[g.self] {
		for _, b := range g.links[a.to] {
			if b.to == to && a.flags&b.flags&flags == flags {
				names = append(names, g.names[a.to])
			}
		}
	}
	return names
}

type bitset []uint64

func newBitset(n int) bitset    { return make(bitset, (n+63)/64) }
func (b bitset) set(i int)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }
func (b bitset) empty() bool    { return !slices.ContainsFunc(b, func(w uint64) bool { return w != 0 }) }
func (b bitset) each(f func(int)) {
	for i, w := range b {
		for ; w != 0; w &= w - 1 {
			f(i*64 + bits.TrailingZeros64(w))
		}
	}
}

// spread sets b to the neighbours of layer that are not in seen, and adds them to seen.
func (b bitset) spread(layer bitset, adj []bitset, seen bitset) {
	clear(b)
	layer.each(func(u int) {
		for i, w := range adj[u] {
			b[i] |= w
		}
	})
	for i := range b {
		b[i] &^= seen[i]
		seen[i] |= b[i]
	}
}

// firstCommonAfter returns the first common member of b and c above i, or else the first
// common member; -1 if there is none.
func (b bitset) firstCommonAfter(c bitset, i int) int {
	first := -1
	for k := range b {
		for w := b[k] & c[k]; w != 0; w &= w - 1 {
			j := k*64 + bits.TrailingZeros64(w)
			if j > i {
				return j
			}
			if first < 0 {
				first = j
			}
		}
	}
	return first
}
