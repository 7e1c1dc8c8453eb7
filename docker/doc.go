// Package docker knows the containers of this host's Docker engine.
//
// The engine is a guest here: it may be absent, start later, hang, be killed
// or be replaced by another version while the router runs. So everything asked
// of it has a deadline, and what it tells is compared with what it knows: an
// event only says which container to ask about, and each new connection begins
// with asking about all.
//
//	engine --events--> Watcher --which--> track.Tracker
//	   ^                  |                    |
//	   +----inspect-------+ <--what to ask-----+
//	                      +--> Observer: Running, Changed, Stopped, Gone
//
// The packages below hold what goes the other way: plugin is what the engine
// calls (network and address driver), proxy what its users call instead of it.
package docker
