// Package dns is service discovery for containers: names that are the same on
// all hosts, and a DNS server on each host that answers them.
//
//	attach, dns-add, expose, Docker
//	        |  Add, Remove                            containers of this host
//	        v                                             |  UDP and TCP 53
//	  +-----------+   deltas   +--------+                 v
//	  |   names   | <--------> |  mesh  |           +-----------+
//	  |  (state)  |   digests  +--------+           |  server   |
//	  +-----------+                |                +-----------+
//	        |  shows those of      |  who is         |         |
//	        v  peers that live  <--+  reached        v         v
//	  +-----------+                           +---------+  +---------+
//	  |   table   | <------------------------ |  zone   |  | forward | --> the host's own
//	  +-----------+         Lookup            +---------+  +---------+     name servers
//
// A Service drives these parts with the clock, the host's interfaces and its
// resolv.conf. It writes nothing to disk: who adds a name knows it again after a
// restart.
//
// The library for messages is github.com/miekg/dns, version 1: it is kept up
// (CoreDNS 1.15 is built on it); its successor is not to be had as a module from
// Go's proxy yet.
package dns
