package topology

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// An entry costs baseCost and one for each link. maxCost bounds the cost of all stored
// entries: 4,096 peers with 256 links each, or 1,600 peers with MaxLinks.
const (
	baseCost = 256
	maxCost  = 4096 * 2 * baseCost
)

// refuseFor is how long an entry that lost its place is refused.
const refuseFor = time.Minute

const (
	// maxWaitlist and maxWaitlistBytes bound the entries that wait for the entry that
	// confirms one of their links: two islands of 1,000 peers each that meet. Neighbours
	// announce both ends of a link within a second.
	maxWaitlist      = 2048
	maxWaitlistBytes = 8 << 20
)

var waitLimits = gossip.WaitLimits{Items: maxWaitlist, Bytes: maxWaitlistBytes, TTL: 30 * time.Second}

func (e *Entry) cost() int { return baseCost + len(e.Links) }

// settlePlaces decides which of the stored and the waiting entries are stored, and reports
// whether any changed. Names that lose their place are refused for refuseFor.
func (s *State) settlePlaces(now time.Time) (moved bool) {
	all := make(map[peer.Name]*Entry, len(s.entries)+s.waitlist.Len())
	for n, e := range s.entries {
		all[n] = e
	}
	for w := range s.waitlist.All() {
		if all[w.Key] == nil {
			all[w.Key] = w.Value
		}
	}
	keep := places(s.own, all, s.cfg.maxCost)
	for _, e := range slices.Clone(s.sorted) {
		if keep[e.Name] {
			continue
		}
		if _, unreachable := s.unreachableSince[e.Name]; unreachable && s.cost <= s.cfg.maxCost {
			continue // until it is forgotten, if there is space
		}
		s.drop(e, now, refuseFor)
		s.stats.NoPlace++
		moved = true
	}
	waits := slices.SortedFunc(s.waitlist.All(), func(a, b *gossip.Waiting[peer.Name, *Entry]) int { return a.Key.Compare(b.Key) })
	for _, w := range waits {
		switch {
		case keep[w.Key]:
			moved = s.admit(w.From, w.Value) || moved
		case s.attached(w.Value):
			s.waitlist.Remove(w.Key)
			s.addTombstone(w.Value, now.Add(refuseFor))
			s.stats.NoPlace++
		}
	}
	return moved
}

// places chooses which of the entries are stored if all of them cost more than limit. It
// depends on the entries only, not on the order in which they arrived. own is one of them.
//
// A member can make up peers, and links among them, but not links with honest peers. So
// made-up peers hang behind the few peers that state a link to them. A peer d dominates a
// peer x if every path from this peer to x leads over d. The space is shared among the
// peers that only this peer itself dominates, each with all that it dominates, so that
// none of them loses a part of an equal share to another one that asks for more. The share
// of each is divided in the same way among the peers that it dominates directly.
//
// If the space is not even enough for all that one peer dominates directly, those come
// first with which this peer has a session, then those that have a session with most of
// the neighbours of this peer, then the nearest, and then the lowest names. A peer with
// sessions with many honest peers therefore keeps its place, even if several members give
// the same made-up peers sessions.
func places(own *Entry, all map[peer.Name]*Entry, limit int) map[peer.Name]bool {
	t := newPlaceTree(own, all)
	keep := make(map[peer.Name]bool, len(t.nodes))
	t.give(0, limit, keep)
	keep[own.Name] = true
	return keep
}

// Dominators returns, for each entry that is connected with self and not linked with it in
// two independent ways, the nearest peer over which every path from self leads. Self
// dominates all and is left out. Self must be one of the entries.
func Dominators(self peer.Name, entries []*Entry) map[peer.Name]peer.Name {
	all := make(map[peer.Name]*Entry, len(entries))
	for _, e := range entries {
		all[e.Name] = e
	}
	out := make(map[peer.Name]peer.Name)
	if all[self] == nil {
		return out
	}
	t := newPlaceTree(all[self], all)
	for _, n := range t.nodes[1:] {
		if n.idom > 0 {
			out[n.Name] = t.nodes[n.idom].Name
		}
	}
	return out
}

// placeTree is the tree of dominators of the entries that are connected with own, in order
// of their distance.
type placeTree struct {
	nodes    []*placeNode
	children [][]int
}

type placeNode struct {
	*Entry
	hops    int
	links   []int // of the graph, both ends list them
	idom    int   // the nearest peer that dominates it
	support int   // how many neighbours of own have a link to it
	total   int   // cost of all that it dominates, itself included
}

func newPlaceTree(own *Entry, all map[peer.Name]*Entry) *placeTree {
	entries := slices.SortedFunc(maps.Values(all), func(a, b *Entry) int { return a.Name.Compare(b.Name) })
	index := make(map[peer.Name]int, len(entries))
	for i, e := range entries {
		index[e.Name] = i
	}
	links := confirmed(entries, index)
	// The nodes are the entries that are connected with own, in order of distance; place
	// gives the node of an entry plus one.
	place := make([]int, len(entries))
	place[index[own.Name]] = 1
	t := &placeTree{nodes: []*placeNode{{Entry: own}}}
	order := []int{index[own.Name]}
	for i := 0; i < len(t.nodes); i++ {
		n := t.nodes[i]
		n.links = make([]int, len(links[order[i]]))
		for k, l := range links[order[i]] {
			if place[l.to] == 0 {
				t.nodes = append(t.nodes, &placeNode{Entry: entries[l.to], hops: n.hops + 1, idom: i})
				order = append(order, l.to)
				place[l.to] = len(t.nodes)
			}
			j := place[l.to] - 1
			n.links[k] = j
			if n.hops == 1 {
				t.nodes[j].support++
			}
		}
	}
	t.dominate()
	t.children = make([][]int, len(t.nodes))
	for i := len(t.nodes) - 1; i >= 0; i-- {
		n := t.nodes[i]
		n.total += n.cost()
		if i > 0 {
			t.nodes[n.idom].total += n.total
			t.children[n.idom] = append(t.children[n.idom], i)
		}
	}
	return t
}

// dominate computes idom as in Cooper, Harvey and Kennedy, "A Simple, Fast Dominance
// Algorithm". A dominator of a peer is nearer, so it has a lower index.
func (t *placeTree) dominate() {
	for changed := true; changed; {
		changed = false
		for i, n := range t.nodes[1:] {
			d := n.idom
			for _, j := range n.links {
				for j != d {
					if j > d {
						j = t.nodes[j].idom
					} else {
						d = t.nodes[d].idom
					}
				}
			}
			if d != n.idom {
				t.nodes[i+1].idom, changed = d, true
			}
		}
	}
}

// give divides space among peer i and all that it dominates, and sets keep for those that
// get a place.
func (t *placeTree) give(i, space int, keep map[peer.Name]bool) {
	n := t.nodes[i]
	if n.cost() > space && i > 0 {
		return
	}
	keep[n.Name] = true
	space -= n.cost()
	children := t.children[i]
	slices.SortFunc(children, func(a, b int) int {
		x, y := t.nodes[a], t.nodes[b]
		return cmp.Or(cmp.Compare(min(x.hops, 2), min(y.hops, 2)), cmp.Compare(y.support, x.support), cmp.Compare(x.hops, y.hops), x.Name.Compare(y.Name))
	})
	share := t.fairShare(children, space)
	for _, c := range children {
		part := min(max(share, t.nodes[c].cost()), t.nodes[c].total, space)
		if part < t.nodes[c].cost() {
			return
		}
		t.give(c, part, keep)
		space -= part
	}
}

// fairShare returns the largest share for which the shares of the peers, or all that they
// need if that is less, fit into space.
func (t *placeTree) fairShare(peers []int, space int) int {
	needs := make([]int, len(peers))
	for i, p := range peers {
		needs[i] = t.nodes[p].total
	}
	slices.Sort(needs)
	for i, need := range needs {
		if share := space / (len(needs) - i); share < need {
			return share
		}
		space -= need
	}
	return maxCost
}
