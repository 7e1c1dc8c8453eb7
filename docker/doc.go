// Package docker knows the containers of this host's Docker engine.
//
// The engine is a guest here: it may be absent, start later, hang, be killed
// or be replaced by another version while the router runs. Every request to it has a
// deadline, and its events are hints only: an event says which container to ask
// about, and each new connection begins by asking about all.
//
//	engine --events--> Watcher --which--> track.Tracker
//	   ^                  |                    |
//	   +----inspect-------+ <--what to ask-----+
//	                      +--> Observer: Running, Changed, Stopped, Gone
//
// The packages below work in the other direction: the engine calls plugin (network
// and address driver), and its users call proxy instead of the engine.
package docker
