// Package wireguard manages the WireGuard interface of the kernel for the fast path.
// VXLAN to the neighbours that require encryption goes through this one interface.
//
//	vethwe-vxlan --> 169.254.208.x (a neighbour's address inside) --> vethwe-wg --> UDP 6785 --> underlay
//
//	| IP 20 | UDP 8 | WireGuard 16 | IP 20 | UDP 8 | VXLAN 8 | frame | authenticator 16 |
//
// Each neighbour is a peer of the interface with one address inside. The kernel accepts
// packets from that address only with the key of that neighbour (cryptokey routing,
// section 2 of https://www.wireguard.com/papers/wireguard.pdf). The key of the interface
// is made with the interface, stays in the kernel and outlives the process of the router.
// Neighbours learn its public half over their session. The pre-shared key of two
// neighbours is derived from the secret of their session, which depends on the password
// of the mesh, and changes with each session. WireGuard itself renews its keys every two
// minutes.
//
// Packets to an address inside that has no route into the interface match an unreachable
// route. They never leave in clear text, not even while the interface is made, replaced
// or removed.
package wireguard
