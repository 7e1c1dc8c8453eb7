// Package sandbox makes sandbox hosts for tests: sets of Linux namespaces that look like
// separate hosts. Tests use them to run a Docker engine with its default paths, or a
// router that must be invisible to others.
//
// A sandbox host sees the files of the real host, except for the directories that the
// engine and weft write to, and has a veth pair to the bridge of its network. Its first
// process is the calling program itself, so a program that makes sandbox hosts must
// call Main before anything else.
//
//	   network: bridge sandbox0 in a network namespace of its own, 10.99.0.0/24
//	    |                |
//	+---+------------+  ++---------------+   own namespaces: network, mounts,
//	| eth0 10.99.0.11|  | eth0 10.99.0.12|   processes, hostname, IPC, cgroups
//	| /run  tmpfs    |  |                |
//	| /var  directory|  |                |   /var, /etc and /opt survive PowerOff
//	| /etc overlay   |  |                |
//	| /opt overlay   |  |                |
//	+----------------+  +----------------+
//
// The package changes nothing in the network namespace of the caller. A sandbox host ends
// with the process that made its network, even if that is killed: the kernel then kills
// the first process of the host, and with it all others. A cleaner process waits for the
// same event and removes files, cgroups and the bridge.
package sandbox
