// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
//
// The spoof guard: a program at the host's end of a container's veth that drops frames with
// addresses that are not the container's. "Spoof guard" in ../doc.go has the rules with their
// reasons.
//
// It returns TC_ACT_UNSPEC for a frame that may pass: then the programs behind it, express among
// them, and the bridge handle the frame.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "guard.h"

char _license[] SEC("license") = "GPL";

#define MAX_CHAIN 8   // extension headers of a packet, and options of a neighbour discovery message
#define ICMP_OFFSET 8 // of a target, or of the options of a router solicitation

// Numbers of IPv6 headers. linux/in6.h lacks some.
#define NEXT_HOP 0
#define NEXT_ROUTING 43
#define NEXT_FRAGMENT 44
#define NEXT_AUTH 51
#define NEXT_ICMP 58
#define NEXT_DEST 60
#define NEXT_MOBILITY 135
#define NEXT_HIP 139
#define NEXT_SHIM6 140

// Types of ICMPv6, RFC 4861.
#define ND_ROUTER_SOLICIT 133
#define ND_ROUTER_ADVERT 134
#define ND_NEIGHBOUR_SOLICIT 135
#define ND_NEIGHBOUR_ADVERT 136
#define ND_REDIRECT 137

#define ND_OPT_SOURCE 1
#define ND_OPT_TARGET 2

union addr {
	__u8 b[16];
	__u32 w[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct guard_port);
	__uint(max_entries, GUARD_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct guard_key);
	__type(value, __u32);
	__uint(max_entries, GUARD_MAX_ADDRS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} addrs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct guard_drops);
	__uint(max_entries, GUARD_MAX_PORTS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} drops SEC(".maps");

// RFC 826, for IPv4 on Ethernet. linux/if_arp.h needs the C library.
struct arp {
	__be16 hardware, protocol;
	__u8 hardware_len, protocol_len;
	__be16 op;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
} __attribute__((packed));

// Drops the frame and counts it. Without an address addr is zero. It is a function of its own, as
// are all that frames of bulk data do not reach, so that the code for those is short.
static __noinline int refuse(struct __sk_buff *skb, __u32 reason, const union addr *addr)
{
	__u32 ifindex = skb->ifindex;
	struct guard_drops *d = bpf_map_lookup_elem(&drops, &ifindex);

	if (d && reason < GUARD_REASONS) {
		__sync_fetch_and_add(&d->frames[reason], 1);
		bpf_skb_load_bytes(skb, ETH_ALEN, d->mac, sizeof(d->mac));
		__builtin_memcpy(d->addr, addr, sizeof(d->addr));
		d->reason = reason;
	}
	return TC_ACT_SHOT;
}

static __always_inline int same_mac(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const void *)a, *y = (const void *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline int is_more(__u32 ifindex, const union addr *a)
{
	struct guard_key key = { .ifindex = ifindex };

	__builtin_memcpy(key.addr, a, sizeof(key.addr));
	return bpf_map_lookup_elem(&addrs, &key) != 0;
}

// Reports whether the container has an IPv4 address, or it is none. With the address zero a
// host asks for one (DHCP, ACD), and nobody is deceived.
static __always_inline int has_v4(const struct guard_port *p, __u32 ifindex, const union addr *a)
{
	__be32 v4 = a->w[3];

	if (!v4)
		return 1;
#pragma unroll
	for (int i = 0; i < GUARD_V4; i++)
		if (p->v4[i] == v4)
			return 1;
	return p->flags & GUARD_MORE && is_more(ifindex, a);
}

static __always_inline int is_zero(const union addr *a) { return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]); }

// Reports whether the container may use an IPv6 address: it has it, or it is link-local. A
// link-local address that is derived from a MAC address (RFC 4291, appendix A) must be derived
// from its own.
static __always_inline int has_v6(const struct guard_port *p, __u32 ifindex, const union addr *a)
{
	const __u8 *b = a->b;

#pragma unroll
	for (int i = 0; i < GUARD_V6; i++) {
		const __u32 *own = (const void *)p->v6[i];

		if (own[0] == a->w[0] && own[1] == a->w[1] && own[2] == a->w[2] && own[3] == a->w[3] && !is_zero(a))
			return 1;
	}
	if (b[0] == 0xfe && (b[1] & 0xc0) == 0x80) {
		if (b[11] != 0xff || b[12] != 0xfe)
			return 1;
		return b[8] == (p->mac[0] ^ 2) && b[9] == p->mac[1] && b[10] == p->mac[2] &&
		       b[13] == p->mac[3] && b[14] == p->mac[4] && b[15] == p->mac[5];
	}
	return p->flags & GUARD_MORE && is_more(ifindex, a);
}

static __always_inline void put_v4(union addr *a, const void *v4)
{
	a->w[0] = a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	__builtin_memcpy(&a->w[3], v4, 4);
}

static __noinline int check_v4(struct __sk_buff *skb, const struct guard_port *p, __u32 ifindex)
{
	union addr a = {};
	struct iphdr ip;

	if (!p)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 4)
		return refuse(skb, GUARD_MALFORMED, &a);
	put_v4(&a, &ip.saddr);
	if (!has_v4(p, ifindex, &a))
		return refuse(skb, GUARD_IPV4, &a);
	return TC_ACT_UNSPEC;
}

static __noinline int check_arp(struct __sk_buff *skb, const struct guard_port *p, __u32 ifindex)
{
	union addr a = {};
	struct arp m;

	if (!p)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &m, sizeof(m)) || m.hardware != bpf_htons(1) ||
	    m.protocol != bpf_htons(ETH_P_IP) || m.hardware_len != ETH_ALEN || m.protocol_len != 4)
		return refuse(skb, GUARD_MALFORMED, &a);
	put_v4(&a, m.sender);
	if (!has_v4(p, ifindex, &a) || !same_mac(m.sender_mac, p->mac))
		return refuse(skb, GUARD_ARP, &a);
	return TC_ACT_UNSPEC;
}

// Checks a message of neighbour discovery at off, which ends at end.
static __always_inline int check_nd(struct __sk_buff *skb, const struct guard_port *p, __u32 ifindex, __u32 type,
				    __u32 off, __u32 end, int unspecified)
{
	union addr target = {};
	__u8 opt[8];

	if (type == ND_ROUTER_ADVERT || type == ND_REDIRECT)
		return refuse(skb, GUARD_ROUTER, &target);
	off += ICMP_OFFSET;
	if (type != ND_ROUTER_SOLICIT) {
		if (off + sizeof(target) > end || bpf_skb_load_bytes(skb, off, &target, sizeof(target)))
			return refuse(skb, GUARD_MALFORMED, &target);
		// A solicitation from the address zero claims its target (RFC 4862, 5.4).
		if ((type == ND_NEIGHBOUR_ADVERT || unspecified) && !has_v6(p, ifindex, &target))
			return refuse(skb, GUARD_ND, &target);
		off += sizeof(target);
	}
	for (int i = 0; i < MAX_CHAIN; i++) {
		if (off >= end)
			return TC_ACT_UNSPEC;
		// The shortest option has eight bytes, as has one with a MAC address.
		if (off + sizeof(opt) > end || bpf_skb_load_bytes(skb, off, opt, sizeof(opt)) || !opt[1])
			return refuse(skb, GUARD_MALFORMED, &target);
		if ((opt[0] == ND_OPT_SOURCE || opt[0] == ND_OPT_TARGET) && !same_mac(opt + 2, p->mac))
			return refuse(skb, GUARD_ND, &target);
		off += opt[1] * 8;
	}
	return refuse(skb, GUARD_MALFORMED, &target);
}

// Finds ICMPv6 behind extension headers. What is behind the end of the packet is not part of it.
static __noinline int check_chain(struct __sk_buff *skb, const struct guard_port *p, __u32 next, __u32 end, __u32 unspecified)
{
	__u32 ifindex = skb->ifindex, off = ETH_HLEN + sizeof(struct ipv6hdr);
	int fragment = 0;
	union addr none = {};
	__u8 h[4];

	if (!p)
		return TC_ACT_SHOT;
	for (int i = 0; i < MAX_CHAIN; i++) {
		switch (next) {
		case NEXT_HOP:
		case NEXT_ROUTING:
		case NEXT_DEST:
		case NEXT_MOBILITY:
		case NEXT_HIP:
		case NEXT_SHIM6:
		case NEXT_AUTH:
		case NEXT_FRAGMENT:
			if (off + sizeof(h) > end || bpf_skb_load_bytes(skb, off, h, sizeof(h)))
				return refuse(skb, GUARD_MALFORMED, &none);
			if (next == NEXT_FRAGMENT) {
				// The first fragment was checked. Without it nothing is joined.
				if (h[2] | (h[3] & 0xf8))
					return TC_ACT_UNSPEC;
				fragment = 1;
				off += 8;
			} else if (next == NEXT_AUTH) {
				off += (h[1] + 2) * 4;
			} else {
				off += (h[1] + 1) * 8;
			}
			next = h[0];
			break;
		case NEXT_ICMP:
			if (off >= end || bpf_skb_load_bytes(skb, off, h, 1))
				return refuse(skb, GUARD_MALFORMED, &none);
			if (h[0] < ND_ROUTER_SOLICIT || h[0] > ND_REDIRECT)
				return TC_ACT_UNSPEC;
			if (fragment) // RFC 6980, section 5
				return refuse(skb, GUARD_MALFORMED, &none);
			return check_nd(skb, p, ifindex, h[0], off, end, unspecified);
		default:
			return TC_ACT_UNSPEC;
		}
	}
	return refuse(skb, GUARD_MALFORMED, &none);
}

static __noinline int check_v6(struct __sk_buff *skb, const struct guard_port *p, __u32 ifindex)
{
	struct ipv6hdr ip;
	union addr a = {};
	__u32 end;

	if (!p)
		return TC_ACT_SHOT;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)) || ip.version != 6)
		return refuse(skb, GUARD_MALFORMED, &a);
	__builtin_memcpy(&a, &ip.saddr, sizeof(a));
	if (!is_zero(&a) && !has_v6(p, ifindex, &a))
		return refuse(skb, GUARD_IPV6, &a);
	if (ip.nexthdr == IPPROTO_TCP || ip.nexthdr == IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	end = ETH_HLEN + sizeof(ip) + bpf_ntohs(ip.payload_len);
	if (!ip.payload_len && ip.nexthdr == NEXT_HOP) // a jumbogram (RFC 2675); Linux checks no more
		end = skb->len;
	return check_chain(skb, p, ip.nexthdr, end, is_zero(&a));
}

SEC("tc")
int guard(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex;
	struct guard_port *p = bpf_map_lookup_elem(&ports, &ifindex);
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	union addr none = {};
	struct iphdr *ip;
	__be16 proto;

	if (!p) // not known what it may send
		return TC_ACT_SHOT;
	if (data + sizeof(*eth) > end) {
		if (bpf_skb_pull_data(skb, sizeof(*eth)))
			return refuse(skb, GUARD_MALFORMED, &none);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		eth = data;
		if (data + sizeof(*eth) > end)
			return refuse(skb, GUARD_MALFORMED, &none);
	}
	if (!same_mac(eth->h_source, p->mac))
		return refuse(skb, GUARD_MAC, &none);
	proto = eth->h_proto;
	if (skb->vlan_present || proto == bpf_htons(ETH_P_8021Q) || proto == bpf_htons(ETH_P_8021AD))
		return refuse(skb, GUARD_TAGGED, &none);
	if (proto == bpf_htons(ETH_P_IP)) {
		// Most frames end here: their source is one of the first addresses.
		ip = data + ETH_HLEN;
		if ((void *)(ip + 1) > end || ip->version != 4 || !ip->saddr)
			return check_v4(skb, p, ifindex);
#pragma unroll
		for (int i = 0; i < GUARD_V4; i++)
			if (p->v4[i] == ip->saddr)
				return TC_ACT_UNSPEC;
		return check_v4(skb, p, ifindex);
	}
	if (proto == bpf_htons(ETH_P_IPV6))
		return check_v6(skb, p, ifindex);
	if (proto == bpf_htons(ETH_P_ARP))
		return check_arp(skb, p, ifindex);
	return TC_ACT_UNSPEC;
}
