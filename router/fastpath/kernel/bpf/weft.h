// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
//
// Types that the programs and the router share. A test compares each struct with the one
// in Go. The name of the folder of pins has the version of the layout.
#ifndef WEFT_H
#define WEFT_H

#define MAX_PEERS 4096    // short ids have 12 bits; no peer has 0
#define MAX_MACS 65536
#define MAX_REMOTES 4096
#define MAX_NEIGHBOURS 65536
#define MAX_FROM 16       // neighbours over which frames of one peer may come
#define VXLAN_PORT 6784   // the default; the port in use is in config
#define ETH_P_WEFT 0x88b5 // IEEE 802, local experimental ethertype 1

// Purpose of a metadata header.
enum metadata_op { METADATA_RELAY = 1, METADATA_ECHO = 2 };
// Last byte of the destination of a frame from the zero address.
// PROBE_PLAIN: a struct plain_probe says what the frame is. Such a frame comes from the TAP only.
enum probe_op { PROBE_ASK = 1, PROBE_ECHO = 2, PROBE_PLAIN = 3 };

// Why a frame goes to the router with METADATA_RELAY.
enum reason {
	REASON_SLOW = 1, // the next hop is not fast
	REASON_BIG = 2,  // it does not fit the next hop's MTU
};

struct mac {
	__u8 addr[6];
	__u8 zero[2];
};

// Where an IP address is, by the signed word of the host that gave it.
struct neighbour {
	__u8 mac[6];
	__u16 peer;   // short id of its host, 0 if not known
	__u64 since;  // bpf_ktime_get_boot_ns when this host heard of it
};

struct mac_entry {
	__u16 peer;      // short id; config.self for a MAC address of this host
	__u16 flags;     // MAC_*
	__u32 ifindex;   // of the host's end of its veth, 0 if not known or elsewhere
	__u64 seen;      // bpf_ktime_get_boot_ns when a frame came from it, to the second
	__u64 tx_packets, tx_bytes; // frames from it; bytes of Ethernet frame
	__u64 rx_packets, rx_bytes; // frames to it
};
enum { MAC_EXPRESS = 1 }; // frames from and to it may bypass the bridge

struct peer_entry {
	__u16 flags;   // PEER_*
	__u16 next;    // short id of the next hop
	__u16 mtu;     // largest inner IP packet, bytes
	__u8 encap4, encap6; // ENCAP_*, of packets of IPv4 and IPv6 between known addresses
	__u32 ifindex; // underlay interface towards the next hop, for express
	__u8 remote[16];  // outer address of the next hop
	__u8 local[16];   // outer address of this host towards it
	__u8 gateway[16]; // next hop on the underlay: remote or a router
	__u16 from[MAX_FROM]; // short ids of the neighbours that may relay frames of the peer
};
enum {
	PEER_KNOWN = 1,   // a peer has the id
	PEER_FAST = 2,    // frames for it go to the next hop by VXLAN
	PEER_EXPRESS = 4, // they may bypass the VXLAN device; from a neighbour they may come so
	PEER_DIRECT = 8,  // so may frames that crossed the bridge
	PEER_ANY = 16,    // any neighbour may relay its frames: from is too short
	PEER_PLAIN = 32,  // IP packets without VXLAN may come from it
};

// How IP packets between addresses that are known to be at containers go to a neighbour. VXLAN carries
// all other frames. The numbers are in probes.
enum encap {
	ENCAP_VXLAN,
	ENCAP_IPIP, // RFC 2003, RFC 4213: without Ethernet header, behind an IPv4 header
	ENCAP_NONE, // without Ethernet header, as they are
};

struct remote {
	__u16 peer;      // short id of the neighbour
	__u16 flags;
	__u32 zero;
	__u8 local[16];  // the address of this host that it sends to
	__u8 key[32];    // identity that it proved, which only the router reads
};

struct traffic {
	__u64 tx_packets, tx_bytes; // frames from this host to the peer
	__u64 rx_packets, rx_bytes; // frames from the peer to this host
	__u64 relayed_packets, relayed_bytes; // frames from other peers to the peer
};

struct config {
	__u32 port;  // ifindex of vethwe-bridge
	__u32 tap;   // ifindex of the TAP, 0 while there is none
	__u32 vxlan; // ifindex of vethwe-vxlan, 0 if there is none
	__u16 self;  // short id of this host, 0 if none
	__u16 flags; // CONFIG_*
	__u16 vxlan_port; // UDP, host order
	__u16 zero;
	__u32 zero2;
	__u64 until; // bpf_ktime_get_boot_ns at which nothing is forwarded any more; 0 for never
};
enum {
	CONFIG_EXPRESS = 1, // frames may bypass the bridge
	CONFIG_PLAIN = 2,   // a peer has PEER_PLAIN
};

// For which configuration the contents of the other maps are valid. Only the router reads
// and writes it.
struct binding {
	__u8 fingerprints[8][16];
};

struct event {
	__u8 addr[6];
	__u16 peer;    // that it was seen behind
	__u32 ifindex; // of the veth that it was seen on, 0 if not known
	__u16 old;     // short id in macs, 0 if none
	__u16 zero;
};

// Why a frame is dropped. Append only: the numbers are indexes of drops.
enum drop {
	DROP_SHORT,          // no whole Ethernet header
	DROP_SOURCE,         // source address is zero or a group, and it is not a probe
	DROP_UNKNOWN_REMOTE, // from an address that no neighbour has
	DROP_VNI,            // unknown ids, or the id of this host as source
	DROP_SPOOFED,        // probe of a neighbour with the id of another peer
	DROP_TTL,            // forwarded too often
	DROP_NO_TAP,         // for the router, which does not run
	DROP_REDIRECT,       // the kernel refused to forward it
	DROP_FORMAT,         // malformed metadata header or probe
	DROP_LOOP,           // the next hop is where it came from
	DROP_MISROUTED,      // of a peer whose frames the routes do not lead over that neighbour
	DROP_EXPIRED,        // the router has been away for too long
	DROP_CONGESTION,     // marked by a router, and the sender does not know marks (RFC 6040)
	DROP_COUNT
};

// What the kernel did with a request for the MAC address of an IP address; the others reach the router.
// Indexes of requests.
enum request {
	REQUEST_ANSWERED, // in place of a container of another host
	REQUEST_LOCAL,    // a container of this host answers itself
	REQUEST_COUNT
};

#endif
