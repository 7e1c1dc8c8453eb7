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
// The kernel keeps forwarding when the process ends. The next process adopts what is in
// the kernel, and keeps entries that it cannot confirm yet for a minute. If the router of
// a neighbour is away and its kernel still echoes probes, its entries stay, too.
//
// Package kerneltest is a kernel in memory, with which the tests of this package run.
package fastpath
