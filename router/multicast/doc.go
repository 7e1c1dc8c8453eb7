// Package multicast finds out which groups the containers of a host want, and which frames they send
// to groups. It listens to IGMP (RFC 9776, and versions 1 and 2 of RFC 1112 and 2236) for IPv4, and to
// MLD (RFC 9777 and 2710) for IPv6, as switches do that snoop (RFC 4541).
//
//	container -- report: I want 239.1.2.3 --> Snooper of its host -- groups --> all hosts (mesh/groups)
//	container <-- query: who wants what? --
//
// A Snooper is the querier of its host, as containers that nobody asks say only once what they want. Its
// queries stay on the host. While another querier is heard, it asks only before it drops a group.
//
// IGMP in IPv4, and a query of version 3 as Snooper writes it:
//
//	0     6     12     14            38    39     40    42      46  47  48
//	| dst | src | 0800 | IPv4 header | 11  | time | sum | group | 2 | 125 | 0 0 |
//	                     with router alert
//
// MLD in IPv6:
//
//	0     6     12     14            54           62   63  64    66     68    70      86  87    88
//	| dst | src | 86dd | IPv6 header | hop-by-hop | 130 | 0 | sum | time | 0 0 | group | 2 | 125 | 0 0 |
//	                                   with router alert
//
// A report of version 3 of IGMP has records (type u8, words of auxiliary data u8, number of sources
// u16, group 4, sources) from the eighth byte on; one of version 2 of MLD has the same with addresses of 16
// bytes. Sources are not told apart: whoever wants a group from some sources gets it from all.
//
// Groups of link-local scope (224.0.0.0/24, ff02::/16) are on every host, so a Snooper ignores them.
//
// Nothing here opens a socket or reads a clock. Parse and Group allocate nothing. A Snooper is not safe for
// concurrent use.
package multicast
