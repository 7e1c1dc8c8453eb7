// Package fastpath controls the kernel fast path of one host: frames of containers that
// the kernel forwards over VXLAN without the router.
//
//	router ----- Up, Down, Path, Control, Routes ----> [ inbox ] --> Controller
//	lanes ------ Learned, Echoed --------------------> [ queues ] --> Run
//	kernel ----- events, interfaces, routes, rules ------------------> |
//	                                                                   v
//	                                     Kernel, Tunnel, Watch  (maps, WireGuard, netlink)
//
// The goroutine of Controller.Run is the only writer of the kernel's maps. It runs the
// step machines of package plan, one for each neighbour, which decide by probes whether
// frames may use the fast path. From their results, the routes and the MAC table it
// computes the contents of the maps, and writes what differs. Everything that may take
// long (netlink dumps, repairs, WireGuard, scans of maps) happens on this goroutine or on
// that of watchRules, and never under a lock that the router, its heartbeats or its lanes
// need.
//
// # Paths without a session
//
// The kernel keeps forwarding when the process ends. The next process adopts what is in
// the kernel, its short id and its MAC addresses included, and keeps entries that it cannot
// confirm yet for a minute, as long as the neighbours' kernels echo probes. If the router of
// a neighbour is away and its kernel still echoes probes, its entries stay, too, for ten
// minutes at most and under the key of the last session.
//
// Frames go straight to each neighbour whose kernel echoes, wherever routes lead. When a
// router ends or begins, its neighbours hear of it one after the other, and for a moment
// routes lead over a third host, or nowhere. Frames that went there would be lost: the
// kernel of a host without a router has not heard that this host's frames may come over a
// third one, and drops them. Likewise, frames for a peer behind a relay keep going to the
// relay when no route reaches the peer any more, as long as the relay's kernel echoes and
// the mesh knows the peer, which it forgets after a minute: the router of one of the two is
// being replaced.
//
//	               Down                           ten minutes
//	session ----------------------> kept -------------------------------> nothing
//	   |  ^                          | |                                     ^
//	   |  +------- Up, same key -----+ +-- Reject, Refused, banned, ---------+
//	   |           and address              another key or address           |
//	   +-------------------------------- Reject -----------------------------+
//
// A path that was never up is not kept. Nothing means: no frame is sent to the neighbour, as its
// entry in the map of peers says so, and none is accepted from it, as its address is not in the map
// of remotes.
//
// While the kernel of a neighbour does not echo, the path is probed on: echoes of a busy host are
// seconds late, often when its router ends or begins. Silence decides where frames go if they have
// another way, by sleeve or over a relay. If no route leads to the neighbour, nothing is gained by
// dropping its frames, so they keep going straight to it for a minute after the last echo, with a
// session or without. So do frames over what an earlier process left.
//
// Who may end a path:
//
//   - A session that ends because one of the two does not want the other (Reject) proves
//     who the other is, so the path ends whatever it is.
//   - A peer that is banned (PeersBanned) while there is no session. The kernel has the keys
//     of neighbours, so that a relaunched router knows whose paths it found.
//   - A handshake that fails (Refused) proves nothing but an address: the far end has
//     completed a TCP handshake from there. So it says nothing while there is a session
//     with the neighbour at that address, and nothing about a tunnel, whose two ends know
//     each other's keys: only the neighbour can read what is sent there. It ends a path in
//     clear text without a session, if this host dialled the neighbour's port; what
//     answers there speaks for the neighbour's host. Whoever dials from the neighbour's
//     address may be any of its users or containers. That is believed only about entries
//     of an earlier process, which no session of this one has confirmed. A stranger who is
//     not on the path cannot complete a TCP handshake from the address at all.
//
// Entries of an earlier process are valid under the configuration of that process. Its
// fingerprint (Bind) is in the kernel with the entries. A process with another password,
// other trusted subnets or another identity removes them, with the peers of the tunnel,
// before it does anything else.
//
// A host whose own router is away hears of none of this. So the router gives the kernel a
// lease of ten minutes, which it renews every minute. When it ends the kernel neither sends
// nor accepts nor echoes.
//
// # Plain packets
//
// Where the settings allow it, a link also tries encapsulations with less overhead (package plan, Encap),
// for packets of IPv4 and of IPv6 apart. The kernel uses them between addresses that are bound. When the router of
// a peer ends, the mesh forgets the peer's bindings, but its kernel sends on. So its addresses stay
// known here as long as the path to it is kept. A router that starts leaves the addresses that it finds in the
// kernel for a minute, or until it hears something else of them.
//
// Package kerneltest is a kernel in memory, with which the tests of this package run.
package fastpath
