// Package wireguard drives the kernel's WireGuard for the fast datapath: one
// interface, through which VXLAN goes to the neighbours that want encryption.
//
//	vethwe-vxlan --> 169.254.208.x (a neighbour's address inside) --> vethwe-wg --> UDP 6785 --> underlay
//
//	| IP 20 | UDP 8 | WireGuard 16 | IP 20 | UDP 8 | VXLAN 8 | frame | tag 16 |
//
// Each neighbour is a peer of the interface with one address inside, so the
// kernel takes packets from that address with that neighbour's key only
// (cryptokey routing, section 2 of the paper, https://www.wireguard.com/papers/wireguard.pdf).
// The interface's key is made with the interface, stays in the kernel and
// outlives the router's process; neighbours learn its public half over their
// session. The pre-shared key of two neighbours comes from their session's
// secret, which rests on the mesh's password, and changes with each session;
// WireGuard's own exchange gives fresh keys every two minutes.
//
// What is meant for an address inside and finds no route into the interface
// finds an unreachable one: it never leaves in clear, also not while the
// interface is made, replaced or removed.
package wireguard
