package topology

import "github.com/weft-net/weft/mesh/peer"

// Routes is what the topology says of the ways from one peer, for one kind of
// traffic. It is immutable: a change makes a new one, so readers may keep it
// in an atomic.Pointer and use it without a lock.
type Routes struct {
	// Self is the peer that the ways start from.
	Self peer.Name
	// Unicast gives the neighbour that is the next hop towards each reachable
	// peer. A neighbour is its own next hop. Self is not in it.
	Unicast map[peer.Name]peer.Name
	// Broadcast gives, for each source (Self among them), the neighbours to
	// pass on what that source sent to every peer. No entry: pass it to none.
	Broadcast map[peer.Name][]peer.Name
	// ByID finds a peer by its Name.ID, Self among them; an ID that two known
	// peers share maps to the zero Name.
	ByID map[uint32]peer.Name
	// ShortIDs gives the short ids, 1 to MaxShortID, of all known peers that
	// have one, reachable or not, Self among them. Of peers that say the same id
	// only that of the lowest name is here. ByShortID is its inverse.
	ShortIDs  map[peer.Name]uint16
	ByShortID map[uint16]peer.Name
}
