// Package router is the data plane: a switch between the containers of this host and
// the routers of its neighbours, connected by encrypted links.
//
//	containers -- bridge -- TAP -- [ lane ] -- switch -- [ lane ] -- UDP -- neighbours
//
// The switch looks up the destination address of a frame from the TAP. The MAC table
// has the peer that the address was last seen behind, the routes have the neighbour on
// the path to that peer, and the link to the neighbour seals the frame into a packet.
// Frames to unknown and group addresses follow the broadcast tree. A packet from a link
// is opened. Its frames go to the TAP, to other links, or to both.
//
// One goroutine for each TAP queue and one for each UDP reader carry a frame from where
// it comes in to where it goes out, in batches, without a hand-over and without a lock.
// Each such goroutine is a lane: it has its own counters in the keys of every link, its
// own buffers and its own writer. The control goroutine owns what seldom changes: the
// step machines of links, the routes, and the tables that lanes read through atomic
// pointers. It is lane 0, so heartbeats do not wait behind frames. What talks to the
// kernel about the fast path has a goroutine of its own, in package fastpath.
package router
