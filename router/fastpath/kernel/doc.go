// Package kernel is the kernel's part of the fast path: VXLAN controlled by eBPF
// programs. It makes the devices, loads the programs and writes the maps. Programs and
// maps are pinned, so they outlive the process of the router, and the next process takes
// them over as they are.
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
//	from_port      egress of the bridge's port. If the destination is known, its
//	               peer is fast and the frame fits: into VXLAN and out by the
//	               interface of the underlay, or by vethwe-vxlan with a tunnel
//	               key. A request for the MAC address of an IP address of
//	               another host is answered: the answer comes in at the port.
//	               Else to the TAP, unchanged.
//	from_tap       ingress of the TAP. A frame enters the bridge by the port, as
//	               if it came from outside. A probe goes to the address in it,
//	               by vethwe-vxlan.
//	from_vxlan     ingress of vethwe-vxlan. A frame for this host enters the
//	               bridge by the port. A frame for another peer goes to the next
//	               hop with its TTL decremented, or to the TAP with a metadata
//	               header if the next hop is not fast. Probes are echoed. Echoes
//	               go to the TAP with a metadata header.
//	from_container ingress of the host's end of a container's veth (express):
//	               to another container of this host, or into VXLAN and out by
//	               the interface of the underlay, bypassing the bridge and the
//	               VXLAN device. Other frames continue to the bridge, unchanged.
//	from_underlay  ingress of an interface of the underlay: VXLAN packets and plain
//	               packets for a container of this host go to its veth (express)
//	               or to the port. Other packets continue to the host, unchanged.
//
// There are three modes. Hosts and links with different modes work together, as the bytes
// on the wire are the same:
//
//	express  bypasses the bridge and the VXLAN device
//	bridged  bypasses the VXLAN device: if rules must see bridged frames, and for
//	         MAC addresses that are not containers
//	device   bypasses neither: if the underlay is IPv6, WireGuard, IPsec or not
//	         Ethernet, or the card computes wrong checksums; and for packets that leave
//	         by a bridge of the host, on which netfilter would apply what it knows about
//	         the inner frame, such as a translation of addresses, to the outer packet
//
// # On the wire
//
// RFC 7348, UDP port 6784, flags 0x08, over IPv4 or IPv6. The 24 bits of the VNI are the
// short ids of the peers that the frame comes from and goes to, which relays keep:
//
//	| destination 12 | source 12 |
//
// A probe is an inner frame from the source address zero, which no interface has. It
// contains a UDP packet like those of containers, whose checksum the kernel of the sender
// computes, in software or by its card:
//
//	| zero 5 | op 1 | zero 6 | 0x0800 2 | IPv4 20 | UDP 8 | nonce 16 | address 16 |
//	| source 2 | destination 2 | zero ... |
//
// op 1 is a request. The kernel of the peer echoes it with op 2, exchanged ids in the VNI
// and everything else unchanged, whether its router runs or not. Address, source and
// destination are the destination of the probe for the kernel of the sender.
//
// Some cards compute wrong checksums inside VXLAN, above all on ports other than 4789:
// then small answers pass and TCP hangs. The echo reveals this, as nobody on the path back
// computes the checksum again.
//
// # Plain packets
//
// An IP packet between two containers needs no Ethernet header on the way if both ends know at which
// MAC addresses its two IP addresses are. from_container and from_port then send it to the host
// of its destination as it is (ENCAP_NONE, what others call host-gw or direct routing), or behind an IPv4 header
// (ENCAP_IPIP, RFC 2003 and RFC 4213). from_underlay finds the MAC addresses, writes the Ethernet header
// again, and hands the frame on as one that came in VXLAN. TTL, DSCP, ECN, fragments and options stay as the
// container made them; an outer header has the ECN bits, as RFC 6040 says.
//
//	as it is  | Ethernet of the underlay 14 | packet |
//	IPIP      | Ethernet of the underlay 14 | IPv4 20, protocol 4 or 41 | packet |
//
// The sender uses it if the map of neighbours says of both addresses that they are where the frame says,
// and has said so for three seconds, within which the receiver hears of a new address too. A frame for a peer
// behind a relay goes by VXLAN, which has the TTL of the relays. The receiver takes it if the map says that
// the destination is here and the source at a peer that may send plain packets (PEER_PLAIN), and if it came by the
// interface towards that peer. So a plain packet can have no other addresses than a frame in VXLAN from the
// same host. What is not taken continues to the host, as packets of clients in the LAN do.
//
// A packet of a container that the receiver would take for a probe, one of UDP to the port of VXLAN, goes by
// VXLAN. So does a packet with a TTL below 32, or of 255, that a router between the hosts would count down: it may
// not arrive, or be refused as one that is not of a neighbour.
//
// The next hop of an IPv6 packet that has an IPv4 address is found by bpf_fib_lookup, which needs a
// host that forwards IPv4: bpf_redirect_neigh takes the family of the packet for that of the next hop.
//
// A probe by plain packets is one itself, of UDP from a container's address here to one there, so everything
// on the path treats it like those of containers: filters of sources above all. The payload is, big endian:
//
//	| 0x77656674 4 | source 2 | destination 2 | op 1 | encapsulation 1 | zero 2 | nonce 16 | zero ... |
//
// Source and destination are short ids. The router writes it to the TAP behind the Ethernet header
// | zero 5 | 3 | zero 6 | ethertype 2 |. The kernel of the peer exchanges both ends and sends it back with op 2. That
// of the sender passes it to the router, with the encapsulation as reason of the metadata header.
//
// # Metadata header
//
// A metadata header precedes a frame that the kernel passes to the router through the
// TAP; big endian:
//
//	| zero 12 | ethertype 0x88b5 2 | op 1 | reason 1 | source 2 | destination 2 |
//	| ttl 1 | zero 3 | address 16 |                                    40 bytes
//
//	op 1 relay  a frame between two other peers that the kernel of this host cannot
//	            forward; reason says why, address is the host that it came from
//	op 2 echo   an echo; address is the host that sent it
//
// An Ethernet frame follows, which may be a GSO packet. Positions in its virtio-net header
// include the metadata header.
//
// IPv4 addresses are written as IPv4-mapped IPv6 addresses (RFC 4291, 2.5.5.2).
//
// # Maps
//
// bpf/weft.h has their layout. The router is the only writer, except for counters and the
// time of last use, which the programs write.
//
//	config   this host: interfaces, own short id, flags
//	binding  for which configuration the contents of the other maps are valid
//	macs     MAC address -> short id of the peer that it is behind, and the veth of
//	         one of this host
//	peers    short id -> how frames for the peer leave this host
//	         and which neighbours may relay frames of the peer
//	remotes  outer address -> the neighbour that has it, with its key
//	traffic  short id -> packets and bytes, per CPU
//	drops    reason -> packets, per CPU
//	neighbours  IP address -> MAC address and short id of its host, of all hosts, by their
//	         signed word
//	requests    what became of a request for a MAC address -> number, per CPU
//	events   MAC addresses seen in another place than macs has; pending bounds them
//	         to one for each address in 100 ms
//
// The two levels make a change of the routes one write, which touches no MAC address.
//
// A request is answered only if a frame for the MAC address would leave in the kernel. So the answer is
// never about a host that cannot be reached, and the router hears of each MAC address first. It gets
// all other requests too: probes for duplicates, those with other options, and announcements.
//
// Programs and maps are pinned in a folder that is named after the layout of the maps.
// Pins of another layout are removed, and the maps start empty.
//
// # Spoof guard
//
// The spoof guard is one more program, which needs no Datapath: a container may only send with
// the addresses that weft gave it. It is a program at the ingress of the host's end of the
// container's veth, in front of all others, so it checks a frame once, where it enters, and
// everything behind it needs no check: the bridge and its other ports, express, VXLAN, sleeve
// and other hosts.
//
//	container -- veth [guard] --> from_container (express) --> bridge --> from_port --> ...
//	                     |
//	                     +--> dropped and counted
//
// nftables could do it without eBPF, at the ingress of the interface or in the bridge. But
// programs of tc run before both (__netif_receive_skb_core of net/core/dev.c), so frames of
// express would need another guard; rules cannot walk the options of neighbour discovery; and
// "nft flush ruleset" would remove it. Without eBPF there is no guard, and status says so.
//
// Rules. What none of them drops passes.
//
//	any frame  the source is the MAC address that the container was given
//	VLAN       none: a tag hides the packet from the other rules, and a tag with VLAN 0 from
//	           no receiver
//	IPv4       the source is an address of the container, or zero (DHCP, RFC 2131)
//	ARP        so is the sender (zero: RFC 5227), with the MAC address of the container. Only
//	           for IPv4 on Ethernet
//	IPv6       the source is an address of the container, zero (RFC 4862), or link-local. If a
//	           link-local address is derived from a MAC address (EUI-64), that is its own
//	ND         no router advertisement and no redirect (RFC 6105). The target of a neighbour
//	           advertisement is an address that the container may use as source, and so is
//	           the target of a solicitation from the address zero, which claims it. MAC
//	           addresses in options are the container's
//	ND hidden  extension headers are walked, up to eight. ND in a fragment is dropped (RFC
//	           6980), and so is a first fragment, or a packet, that ends before it is clear
//	           that it is not ND (RFC 7112, 7113). Further fragments pass: without the first
//	           they are nothing
//
// The link-local addresses of containers are not known: containers make them. One that is not
// derived from a MAC address can be taken by another container. Other protocols are checked
// for the MAC address only; Linux takes IP from no other frame. What other hosts send, and the
// host itself, is not checked here: a remote frame is checked where it enters.
//
//	ports  ifindex -> MAC address, some addresses, whether there are more
//	addrs  ifindex and IP address -> 1
//	drops  ifindex -> frames by reason, and what the last one claimed
//
// A program at a port that is not in ports drops everything. Each process loads the program
// with maps of its own, fills them, and then replaces the program at the port: so neither the
// end of a router nor the start of the next one, of whatever version, opens a gap. What a
// container may send is read from the alias of its port, see netdev.GivenPort.
//
// At first the program is a filter of clsact, which is attached in 0.3 ms. To attach a program
// of TCX the kernel waits 10 ms, and whoever connects a container would wait too. But programs
// of TCX run before filters: so before express is attached to a port with TCX, PutFirst moves
// the guard there. Such a link is pinned in the folder guard. If another program is going to
// limit the rate of the port, which needs the place of clsact, the guard uses TCX at once; a
// kernel without TCX attaches it to the ingress qdisc of that program, when it is there.
//
// # Limits
//
// In express mode a frame crosses neither the bridge nor the VXLAN device nor the
// netfilter of the host: ageing of the bridge, packet filters, conntrack and captures
// there do not see it. In bridged mode the bridge sees the frame, but nothing sees the
// outer packet. The bridge's port drops frames that the bridge floods for a MAC address of
// this host.
//
// A neighbour may send its own frames and those of peers whose shortest paths lead over it.
// It could lie about such a peer. A peer with more than 16 neighbours on equally short paths
// may come over any neighbour.
//
// from_vxlan can only check that a packet comes from the address of a neighbour, not by
// which interface it came. If the underlay is not trusted, something else must drop packets
// with forged sources. from_underlay accepts only packets from a neighbour that is marked
// for express, to the address in its entry.
package kernel
