// Package router is the data plane: a switch between the containers of this
// host and its neighbours' routers, to which encrypted links lead.
//
//	containers -- bridge -- TAP -- [ lane ] -- switch -- [ lane ] -- UDP -- neighbours
//
// A frame from the TAP is looked up by its destination address: the MAC table
// gives the peer it was last seen behind, the routes give the neighbour on the
// way there, and the neighbour's link seals it into a packet. What the table
// does not know, and what is for a group, goes along the broadcast tree. A
// packet from a link is opened, and its frames go to the TAP, to further
// links, or both.
//
// Goroutines: one for each TAP queue and one for each UDP reader carry a frame
// from where it comes in to where it goes out, in batches, without handing it
// over and without a lock. Each is a lane: it has its own counters in every
// link's key, its own buffers, its own writer. One more, the control goroutine,
// owns everything that changes seldom: the links' step machines, the routes,
// the tables that lanes read by atomic pointers. It is lane 0, so that
// heartbeats do not wait behind frames.
package router
