package topology

import "github.com/weft-net/weft/mesh/peer"

// Routes has the routes from one peer for one kind of traffic. It is immutable, so
// readers may keep it in an atomic.Pointer and use it without a lock.
type Routes struct {
	// Self is the peer from which the routes start.
	Self peer.Name
	// Unicast gives the neighbour that is the next hop towards each reachable
	// peer. A neighbour is its own next hop. Self is not in it.
	Unicast map[peer.Name]peer.Name
	// Broadcast gives, for each source including Self, the neighbours that get the
	// frames that the source sent to every peer.
	Broadcast map[peer.Name][]peer.Name
	// From gives, for each reachable peer, the neighbours from which its frames to this
	// peer, or over it, may come: those on a shortest path. A neighbour's own frames come
	// from itself only.
	From map[peer.Name][]peer.Name
	// ByID maps Name.ID to the peer, for all known peers including Self. An ID that
	// two known peers share maps to the zero Name.
	ByID map[uint32]peer.Name
	// ShortIDs gives the short ids, 1 to MaxShortID, of all known peers that have one,
	// reachable or not, including Self. Of peers that claim the same id only the one
	// with the lowest name has it. ByShortID is the inverse.
	ShortIDs  map[peer.Name]uint16
	ByShortID map[uint16]peer.Name
}
