package mesh

import (
	"slices"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

// View is this peer's knowledge of the mesh at one moment. It is immutable.
type View struct {
	control   *topology.Routes // over sessions
	data      *topology.Routes // over data links
	graph     *topology.Graph
	entries   []*topology.Entry
	byName    map[peer.Name]*topology.Entry
	nicknames map[peer.Name]string

	generation uint64 // of the topology

	dominators func() map[peer.Name]peer.Name // see topology.Dominators
}

// maxNicknames is how many nicknames are kept before those of lost peers are dropped.
const maxNicknames = 1 << 14

// View returns the present knowledge of the mesh.
func (m *Mesh) View() *View { return m.view.Load() }

// Reachable reports whether a path for messages leads to n.
func (v *View) Reachable(n peer.Name) bool {
	_, ok := v.control.Unicast[n]
	return ok || n == v.control.Self
}

// Peers returns the reachable peers except this one, in order.
func (v *View) Peers() []peer.Name {
	names := make([]peer.Name, 0, len(v.control.Unicast))
	for n := range v.control.Unicast {
		names = append(names, n)
	}
	slices.SortFunc(names, peer.Name.Compare)
	return names
}

// Keys returns the keys of the reachable peers except this one. The caller owns the
// map.
func (v *View) Keys() map[peer.Name]peer.Key {
	keys := make(map[peer.Name]peer.Key, len(v.control.Unicast))
	for _, e := range v.entries {
		if _, ok := v.control.Unicast[e.Name]; ok {
			keys[e.Name] = e.Key
		}
	}
	return keys
}

// Nickname returns the nickname of n, "" if it is unknown.
func (v *View) Nickname(n peer.Name) string { return v.nicknames[n] }

// Lookup returns the peers with a nickname, in order, including lost peers.
func (v *View) Lookup(nickname string) (names []peer.Name) {
	for n, known := range v.nicknames {
		if known == nickname {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, peer.Name.Compare)
	return names
}

// Routes returns the routes for frames.
func (v *View) Routes() *topology.Routes { return v.data }

// maxBehind bounds how many peers Behind returns.
const maxBehind = 8

// Behind returns the peers over which every path to n leads, the nearest one first, and n
// itself. Peers that a member made up are behind it.
func (v *View) Behind(n peer.Name) []peer.Name {
	path := []peer.Name{n}
	for d, ok := v.dominators()[n]; ok; d, ok = v.dominators()[d] {
		path = append(path, d)
	}
	slices.Reverse(path)
	if len(path) > maxBehind {
		path = append(path[:maxBehind-1], n)
	}
	return path
}

// relays returns the neighbours through which other peers are reached.
func (v *View) relays() map[peer.Name]bool {
	relays := make(map[peer.Name]bool)
	for dst, via := range v.control.Unicast {
		if dst != via {
			relays[via] = true
		}
	}
	return relays
}

// behind is Behind of the present View.
func (m *Mesh) behind(n peer.Name) []peer.Name { return m.view.Load().Behind(n) }

// displayName returns the name of a peer for users, with its nickname if known.
func (m *Mesh) displayName(n peer.Name) string {
	if s := m.view.Load().nicknames[n]; s != "" {
		return n.String() + "(" + s + ")"
	}
	return n.String()
}
