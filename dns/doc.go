// Package dns is the service discovery for containers: names that are the same on all hosts, and a
// DNS server on each host that answers for them.
//
//	attach, dns-add, expose, Docker
//	        |  Add, Remove                            containers of this host
//	        v                                             |  UDP and TCP 53
//	  +-----------+   deltas   +--------+                 v
//	  |   names   | <--------> |  mesh  |           +-----------+
//	  |  (state)  |   digests  +--------+           |  server   |
//	  +-----------+                |                +-----------+
//	        |  shows those of      |  reachable      |         |
//	        v  reachable peers  <--+  peers          v         v
//	  +-----------+                           +---------+  +---------+
//	  |   table   | <------------------------ |  zone   |  | forward | --> the host's own
//	  +-----------+         Lookup            +---------+  +---------+     name servers
//
// A Service drives these parts with the clock, the host's interfaces and its resolv.conf. It
// writes nothing to disk: whoever added a name adds it again after a restart. The zero Service is
// not usable; make one with New. A Service is safe for concurrent use.
//
// Messages are encoded with github.com/miekg/dns, version 1. It is maintained (CoreDNS 1.15 uses
// it); its successor is not yet available from Go's module proxy.
package dns
