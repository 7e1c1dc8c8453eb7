// Package ipam gives containers their addresses: unique over the whole mesh,
// without a store, and, in the normal case, without asking anyone.
//
//	Allocate, Claim ...       one ring for each universe, IPv4 and IPv6 alike
//	      |
//	  Allocator   driver: a lock, the clock, the disk, the mesh     allocator.go
//	      |
//	    core      step machine: event in, writes and effects out    core.go
//	   /  |  \
//	ring space paxos           who owns what | what is in use here | agreement
//
// An address comes from a range that this peer owns in the ring. If none is
// free there, a peer that has free ones is asked and gives a range away
// (request.go). The first ring comes from an election or a list of seeds
// (establish.go). The space of a dead peer is taken over by the votes of the
// other owners (remove.go), that of a leaving one is handed to an heir
// (leave.go), and addresses that are in use here in a range of somebody else are
// asked for until they are here (regain.go).
//
// # Order of things
//
// A step first changes memory, then everything that it decided is on disk, and
// only then does anyone hear of it: the caller its address, the peers a grant, a
// promise or a vote. So a peer that is killed at any moment has told nobody
// anything that it does not know when it comes back. Records of others are
// written with the next own one, or within a second: losing them costs nothing.
// While the disk refuses, nothing is told and nothing is merged, and requests
// fail at their deadline with the disk's words.
//
// # What can wait, and what for
//
// Allocate, Claim, Prime, RemovePeers and Handover wait until their context is
// done, and their error then says what for: consensus with counts, peers that
// own what is needed and cannot be reached, a disk. None of them fails at once
// for a state that may pass.
//
// # Two rings
//
// Two islands that each made a ring refuse each other's; both show it in
// Status.Divergent. Adopt, on any one peer, makes all peers of its island leave
// their ring for the other one. Their addresses in use stay in use and are then
// asked for one by one in the ring that was adopted. An address in use on both
// sides is a conflict: both containers keep it, Status.Conflicts names both
// peers until one is released, and it is given to nobody else.
package ipam
