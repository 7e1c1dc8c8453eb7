// Package rotation lets a new password take the place of the old one on all hosts of a mesh
// that is in use.
//
// # Steps
//
// Each peer publishes which passwords it accepts from others, and which one it offers when it
// dials (State, a use of package records). It takes each step by itself, on what the members
// publish:
//
//	step     when                                    accepts    offers
//	accept   it learns the new password              old new    old
//	offer    all members accept the new one          old new    new
//	only     all members offer the new one           new        new
//
// A member is a peer that must not be locked out: it owns addresses, has a vote, or can be
// reached. So any two members have a password in common at any moment, whatever messages are
// lost or late, and whoever dies. A member that is away stops the steps until it is back, or
// is removed from the mesh.
//
// # Orders
//
// An operator starts the change on one host. Its peer signs an order, which names the password
// by its id, and the peers that may know it by their keys. An order is passed on with the
// password from neighbour to neighbour, in sessions, and only to peers that it names. Each peer
// that has it does that, so the host on which it was given may die. Numbers are big-endian:
//
//	 0  format    u8   1
//	 1  time      u64  of the order, microseconds since 1970
//	 9  by        32   key of the peer that gave it
//	41  password  8    its id
//	49  count     u16
//	51  peers     16 * count, key ids in order
//	..  signature 64   by the key, over "weft rotation" and all bytes before it
//	..  text      8 to 1024, the password, not signed: the id proves it
//
// Of two orders the later one wins. A second order for the same password can name more peers.
//
// # Trust
//
// Only peers with a vote can give orders. A member that lies can spread a password, as it can
// tell anybody the old one. It cannot lock a member out: each peer decides by itself who the
// members are, and drops the old password only if all of them offer the new one. It cannot
// hold the change up for longer than it is a member: who is behind is shown, and can be banned.
//
// # Configuration
//
// The host's own configuration, such as a file or a Secret of Kubernetes, can change the
// password, too (Configure). The steps are the same; only nobody passes anything on.
//
// Nothing here opens a socket, reads a clock or logs. A Machine is not safe for concurrent use.
package rotation
