// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
//
// Types that the spoof guard and the router share. A test compares each struct with the one
// in Go.
#ifndef WEFT_GUARD_H
#define WEFT_GUARD_H

#define GUARD_MAX_PORTS 16384
#define GUARD_MAX_ADDRS 262144
#define GUARD_V4 4 // addresses of a port that need no second lookup
#define GUARD_V6 2

// What one container may send.
struct guard_port {
	__u8 mac[6];
	__u16 flags;            // GUARD_*
	__be32 v4[GUARD_V4];    // 0 for none
	__u8 v6[GUARD_V6][16];  // zero for none
};
enum { GUARD_MORE = 1 }; // addrs has further addresses of the port

// A further address of a port.
struct guard_key {
	__u32 ifindex;
	__u8 addr[16]; // IPv4 as IPv4-mapped IPv6
};

// Why a frame of a container is dropped. Append only: the numbers are indexes of
// drops.frames.
enum guard_reason {
	GUARD_MAC,       // source MAC address
	GUARD_IPV4,      // IPv4 source
	GUARD_IPV6,      // IPv6 source
	GUARD_ARP,       // sender in ARP
	GUARD_ND,        // neighbour discovery for an address, or with a MAC address, of others
	GUARD_ROUTER,    // router advertisement or redirect
	GUARD_TAGGED,    // VLAN tag
	GUARD_MALFORMED, // headers that hide what the frame is
	GUARD_REASONS
};

// What was dropped of one port. The last frame may be mixed from two that were dropped at the
// same time.
struct guard_drops {
	__u64 frames[GUARD_REASONS];
	__u8 addr[16];  // that the last frame claimed, zero if it has none
	__u8 mac[6];    // source MAC address of the last frame
	__u16 reason;   // of the last frame
};

#endif
