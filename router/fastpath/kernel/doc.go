// Package kernel is the way of frames through the kernel: VXLAN, steered by
// eBPF. It makes the devices, loads the programs, keeps the maps, and outlives
// the router's process: programs and maps are pinned, and the next process
// takes them over as they are.
//
//	container -- veth -- bridge weft -- vethwe-bridge (port) = vethwe-pcap
//	     |                                 |  ^
//	     |                       from_port |  | from_tap, from_vxlan: in at the port
//	     | from_container         v        |  |
//	     |                  vethwe-vxlan   +--+---> vethwe-tap <--> router
//	     |                        |  from_vxlan
//	     v                        v  ^
//	  underlay interface  ----- UDP 6784 -----  other hosts
//	                 from_underlay
//
// # Programs
//
//	from_port      egress of the bridge's port. Destination known, its peer
//	               fast, frame fits: into VXLAN and out by the underlay's
//	               interface, or with a tunnel key by vethwe-vxlan. Else to the
//	               TAP as it is.
//	from_tap       ingress of the TAP. A frame goes in at the port, as if it came
//	               from outside, but a probe goes to where it says, by
//	               vethwe-vxlan.
//	from_vxlan     ingress of vethwe-vxlan. For this host: in at the port. For
//	               another peer: out again to the next hop, one TTL less, or to
//	               the TAP with a tag if the next hop is not fast. Probes are
//	               echoed, echoes go to the TAP with a tag.
//	from_container ingress of the host's end of a container's veth (express):
//	               to another container of this host, or into VXLAN and out by
//	               the underlay's interface, past bridge and VXLAN device.
//	               What it cannot finish goes on to the bridge, untouched.
//	from_underlay  ingress of the underlay's interface: VXLAN for a container of
//	               this host goes into it (express), or in at the port. What it
//	               cannot finish goes on to the host, untouched.
//
// So there are three ways, which mix, as the bytes on the wire are the same:
//
//	express  past bridge and VXLAN device
//	judged   past the VXLAN device: where rules are to see what the bridge
//	         passes on, and for MAC addresses that are no containers
//	device   neither: an underlay of IPv6, WireGuard, IPsec, no Ethernet, a card with
//	         wrong checksums; and out by an underlay that is a bridge of the host, on which
//	         netfilter would take what it knows of the frame inside, like a
//	         translation of addresses, for the packet's around it
//
// # On the wire
//
// RFC 7348, UDP port 6784, flags 0x08, over IPv4 or IPv6, and in the 24 bits of
// the VNI the short ids of the two peers at the ends, which relays keep:
//
//	| destination 12 | source 12 |
//
// A probe is a frame inside from source address zero, which no MAC address has, with
// a UDP packet as containers send them, of which the sender's kernel is to make
// the checksum, in software or by its card:
//
//	| zero 5 | op 1 | zero 6 | 0x0800 2 | IPv4 20 | UDP 8 | nonce 16 | address 16 |
//	| source 2 | destination 2 | zero ... |
//
// op 1 asks; the kernel of the peer echoes it with op 2 and all else the same,
// ids in the VNI exchanged, whether its router runs or not. Address, source and
// destination tell the sender's own kernel where the probe is to go.
//
// Some cards make wrong checksums of what is inside VXLAN, above all on another
// port than 4789: then small answers pass and TCP hangs. The echo shows it, as
// nobody on the way back makes the checksum again.
//
// # Tags
//
// A tag is in front of a frame that the kernel hands to the router by the TAP; big
// endian:
//
//	| zero 12 | ethertype 0x88b5 2 | op 1 | reason 1 | source 2 | destination 2 |
//	| ttl 1 | zero 3 | address 16 |                                    40 bytes
//
//	op 1 relay  a frame between two peers that this host's kernel cannot pass
//	            on; reason says why, address is the host it came from
//	op 2 echo   an echo that came back; address is who sent it
//
// What follows is a whole Ethernet frame, which may be a GSO packet; positions in
// its virtio-net header count the tag.
//
// IPv4 addresses are written as IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2).
//
// # Maps
//
// bpf/weft.h draws their values. The router is the only writer, but for the
// counters and the time of last use, which the kernel keeps.
//
//	config   what this host is: interfaces, own short id, flags
//	macs     MAC address -> short id of the peer behind which it is, and for one of
//	         this host its veth
//	peers    short id -> how frames for it leave this host
//	remotes  outer address -> the neighbour that it is
//	traffic  short id -> packets and bytes, per CPU
//	drops    reason -> packets, per CPU
//	events   MAC addresses seen where macs does not have them; pending bounds their
//	         number to one for each MAC address in 100 ms
//
// Two levels, so that a change of the routes is one write and touches no
// MAC address.
//
// Programs and maps are pinned in a folder named by the maps' layout; another
// layout's pins are removed, and all begins again.
//
// # What is not seen
//
// A frame by express crosses neither bridge nor VXLAN device nor the host's
// netfilter: bridge ageing, packet filters, conntrack and captures there do not
// see it. Judged, it is seen on the bridge, and the packet around it by nobody. The bridge's port drops what the bridge floods for a MAC address of this
// host.
//
// That a packet comes from the address of a neighbour is all that from_vxlan can
// check: it does not see by which interface the packet came. On an underlay that
// is not trusted something else must keep forged sources away. from_underlay
// takes only what comes from a neighbour that is marked for express, to the
// address that its entry says.
package kernel
