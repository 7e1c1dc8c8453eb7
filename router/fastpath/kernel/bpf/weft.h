// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
//
// What programs and router agree on. A test compares each struct with its twin
// in Go; the layout's version is in the name of the folder of pins.
#ifndef WEFT_H
#define WEFT_H

#define MAX_PEERS 4096    // short ids have 12 bits; 0 is nobody's
#define MAX_MACS 65536
#define MAX_REMOTES 4096
#define VXLAN_PORT 6784   // of config, so that --port moves it
#define ETH_P_WEFT 0x88b5 // IEEE 802, local experimental ethertype 1

enum tag_op { TAG_RELAY = 1, TAG_ECHO = 2 };
// Last byte of the destination of a frame from nobody.
enum probe_op { PROBE_ASK = 1, PROBE_ECHO = 2 };

// Why a frame goes to the router with TAG_RELAY.
enum reason {
	REASON_SLOW = 1, // the next hop is not fast
	REASON_BIG = 2,  // it does not fit the next hop's MTU
};

struct mac {
	__u8 addr[6];
	__u8 zero[2];
};

struct mac_entry {
	__u16 peer;      // short id; config.self for a station of this host
	__u16 flags;     // MAC_*
	__u32 ifindex;   // of the host's end of its veth, 0 if not known or elsewhere
	__u64 seen;      // bpf_ktime_get_boot_ns when a frame came from it, to the second
	__u64 tx_packets, tx_bytes; // frames from it; bytes of Ethernet frame
	__u64 rx_packets, rx_bytes; // frames to it
};
enum { MAC_EXPRESS = 1 }; // may be bypassed to and from: nothing on the bridge judges it

struct peer_entry {
	__u16 flags;   // PEER_*
	__u16 next;    // short id of the next hop
	__u16 mtu;     // largest IP packet inside, bytes
	__u16 zero;
	__u32 ifindex; // underlay interface towards the next hop, for express
	__u8 remote[16];  // outer address of the next hop
	__u8 local[16];   // outer address of this host towards it
	__u8 gateway[16]; // neighbour on the underlay to which packets go: remote or a router
};
enum {
	PEER_KNOWN = 1,   // the id is a peer's
	PEER_FAST = 2,    // its frames go by VXLAN to the next hop
	PEER_EXPRESS = 4, // and may go past the VXLAN device; what a neighbour with it sends may come so
	PEER_DIRECT = 8,  // and so may frames that have crossed the bridge
};

struct remote {
	__u16 peer;      // short id of the neighbour
	__u16 flags;
	__u32 zero;
	__u8 local[16];  // the address of this host that it sends to
};

struct traffic {
	__u64 tx_packets, tx_bytes; // frames of this host's to the peer
	__u64 rx_packets, rx_bytes; // frames from the peer to this host
	__u64 relayed_packets, relayed_bytes; // frames for the peer from others
};

struct config {
	__u32 port;  // ifindex of vethwe-bridge
	__u32 tap;   // ifindex of the TAP, 0 while there is none
	__u32 vxlan; // ifindex of vethwe-vxlan, 0 if there is none
	__u16 self;  // own short id, 0 if none
	__u16 flags; // CONFIG_*
	__u16 vxlan_port; // UDP, host order
	__u16 zero;
};
enum { CONFIG_EXPRESS = 1 }; // frames may pass by the bridge

struct event {
	__u8 addr[6];
	__u16 peer;    // behind which it was seen
	__u32 ifindex; // of the veth it was seen on, 0 if not known
	__u16 old;     // what macs had, 0 if nothing
	__u16 zero;
};

// Why a frame is dropped. Append only: the numbers are indexes of drops.
enum drop {
	DROP_SHORT,          // no whole Ethernet header
	DROP_SOURCE,         // a frame with source zero or group, and no probe
	DROP_UNKNOWN_REMOTE, // from an address that is no neighbour's
	DROP_VNI,            // ids that are nobody's, or this host's own as source
	DROP_SPOOFED,        // a neighbour's probe with another's id
	DROP_TTL,            // passed on too often
	DROP_NO_TAP,         // for the router, which is away
	DROP_REDIRECT,       // the kernel refused a step
	DROP_FORMAT,         // a tag or a probe that makes no sense
	DROP_LOOP,           // its next hop is the one that it came from
	DROP_COUNT
};

#endif
