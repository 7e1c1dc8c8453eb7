// Package machine makes machines of namespaces, for tests of what needs a host
// of its own: a Docker engine with its default paths, or a router that others
// must not see.
//
// A machine has the files of the host but for what the engine and weft write,
// and a cable to the bed's bridge. Its first process is this very program, so a
// program that makes machines calls Main before anything else.
//
//	   bed: bridge bed0 in a network namespace of its own, 10.99.0.0/24
//	    |                |
//	+---+------------+  ++---------------+   own: network, mounts, processes,
//	| eth0 10.99.0.11|  | eth0 10.99.0.12|   hostname, IPC, cgroups
//	| /run  tmpfs    |  |                |
//	| /var  a folder |  |                |   /var and /etc outlive PowerOff
//	| /etc /opt over |  |                |
//	+----------------+  +----------------+
//
// Nothing is made in the network namespace of the caller. A machine ends when
// the process that made its bed does, however that ends: the kernel kills its
// first process, and with it everything in it. A janitor, a process that waits
// for the same, removes files, cgroups and the bridge.
package sandbox
