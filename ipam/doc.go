// Package ipam gives containers addresses that are unique in the whole mesh,
// without a central store and, in the normal case, without asking another peer.
//
//	Allocate, Claim ...       one ring for each address range, IPv4 and IPv6 alike
//	      |
//	  Allocator   driver: a lock, the clock, the disk, the mesh     allocator.go
//	      |
//	    core      step machine: event in, writes and effects out    core.go
//	   /  |  \
//	ring space consensus       owners of ranges | use on this host | decisions
//
// An address comes from a range that this peer owns in the ring. If no address is
// free there, the allocator asks a peer that has free ones (request.go), which offers a
// range (give.go). The ring changes only by decisions of the voters (decide.go,
// voters.go): they move an offered range, give the space of a dead peer to an heir
// (remove.go), which leaves it unused for a time (keep.go, notes.go), hand over that of a leaving
// peer (leave.go), and ban peers (ban.go). The first ring comes from an election or a list
// of seeds (establish.go). If an address is in use here and another peer owns it, the
// allocator asks for it until it owns it (regain.go).
//
// # Trust
//
// Messages arrive signed by their source, see package mesh. Nothing that one peer says
// takes from another: what is taken needs the signature of its owner or of a quorum of
// the voters, and a voter agrees to what it knows itself, not to what it is told.
//
// # Write, then tell
//
// A step first changes memory, then writes all its decisions to disk, and only
// then lets anyone hear of them: the caller gets its address, the peers get a
// grant, a promise or a vote. So a peer that is killed at any moment still knows
// everything that it announced when it comes back. Records of other peers are
// written together with the next record of this peer, or within a second; losing
// them does no harm. While the disk fails, nothing is sent and nothing is merged,
// and requests fail at their deadline with the error of the disk.
//
// # Old state
//
// A state file may be old, damaged or lost. So after a start the allocator first takes the
// word of the mesh, see catchup.go, and that of the kernel of this host, see Hold. Until then
// it gives nothing.
//
// # Waiting
//
// Allocate, Claim, Prime, RemovePeers and Handover wait until their context is
// done. The error then says what the request waited for: consensus (with counts),
// unreachable peers that own the addresses, or the disk. None of them fails at
// once because of a state that may pass.
//
// # Two rings
//
// Two islands that each made a ring refuse each other's records, and both show
// that in Status.Divergent. Adopt, on any voter, asks its island to leave its ring for the
// other one. Addresses in use stay in use; the peers then
// ask for them one by one in the adopted ring. An address in use on both sides is
// a conflict: both containers keep it, Status.Conflicts shows both peers until one
// of them releases it, and nobody else is given it.
package ipam
