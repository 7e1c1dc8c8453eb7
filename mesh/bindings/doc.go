// Package bindings replicates which MAC and IP addresses weft gave to whom. A State is one peer's
// copy of the bindings of all peers; each peer announces those of its own host: containers, the
// exposed host, attached ports. It is a use of mesh/records, which has the protocol.
//
//	container ethwe 02:42:0a:20:00:05, 10.32.0.5 --- host A ---- signed record ----> all peers
//
//	A Table of each peer:   02:42:0a:20:00:05 -> A
//	                        10.32.0.5         -> 02:42:0a:20:00:05 on A
//
// What is not bound (nested bridges, virtual machines, VRRP addresses) is found by learning and
// flooding.
//
// # Trust
//
// A binding is the word of its host, and a member may lie. So a Table believes no more than this:
//
//   - An address of the mesh's ranges is bound only by the peer that owns it in the ring.
//   - Another address, which no ring divides, is bound while just one peer says so.
//   - A MAC address 02:42:a:b:c:d belongs to the peer that owns the address a.b.c.d in the ring, if
//     that is one of the mesh's ranges. Docker's driver gives such ones.
//   - A MAC address that is the name of a peer belongs to that peer. Bridges have such ones.
//   - Another MAC address that several peers bind is the one's that binds it to an address that it
//     owns in the ring. If there are several of these, or none, it is bound by nobody.
//
// So a liar can take no binding from another peer. It can end a binding of a MAC address that proves
// nothing, and frames to that address are then switched by what was learned, as without bindings.
//
// A peer has few bindings, and all peers together too: beyond the limits of the State, records are
// refused, and a peer that has too many loses all of them.
//
// # Records
//
// A peer sorts its bindings into 16 buckets by a hash of the MAC address, so that a host with a few
// containers has few records. The payload of a bucket, for each binding in order of MAC address:
//
//	kind  u8          1 container, 2 exposed host, 3 attached port
//	MAC   6
//	n     u8          number of addresses, 0 to 16
//	n *   u8, 4 or 16 length of the address, its bytes; in ascending order
//
// Nothing here opens a socket, reads a clock or logs. A State is not safe for concurrent use; a
// Table is. Their zero values are not usable.
package bindings
