// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
//
// The programs. ../doc.go describes each of them, weft.h the contents of the maps.
//
// They return TC_ACT_UNSPEC for a frame that they leave unchanged: then, with TCX and with
// clsact, other programs of the hook still run.
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stddef.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "weft.h"

char _license[] SEC("license") = "GPL";

#define SECOND 1000000000ULL
#define EVENT_GAP (SECOND / 10)
#define TTL 64
#define VLAN_HLEN 4
#define IP_DF 0x4000
#define ECN_MASK 3
#define ECN_CE 3
#define ECN_ECT0 2
#define AF_INET 2
#define PACKET_HOST 0
#define EINVAL 22
#define NEXTHDR_ICMP 58
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_SOLICITED 0x40000000
#define ND_OVERRIDE 0x20000000
#define VXLAN_FLAGS 0x08000000 // a VNI and nothing else
// No TCP/IP headers are larger, except with IPv6 extension headers.
#define MAX_HEADERS 120

// Since Linux 6.3, so not in every linux/bpf.h.
#define ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)

// bpf_tunnel_key as it was before Linux 6.0 gave it the local address.
#define OLD_TUNNEL_KEY offsetof(struct bpf_tunnel_key, local_ipv4)

union addr {
	__u8 b[16];
	__u32 w[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct config);
	__uint(max_entries, 1);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct binding);
	__uint(max_entries, 1);
} binding SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct mac);
	__type(value, struct mac_entry);
	__uint(max_entries, MAX_MACS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} macs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct peer_entry);
	__uint(max_entries, MAX_PEERS);
} peers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, struct remote);
	__uint(max_entries, MAX_REMOTES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} remotes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct traffic);
	__uint(max_entries, MAX_PEERS);
} traffic SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, DROP_COUNT);
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct mac);
	__type(value, __u64); // bpf_ktime_get_boot_ns of the last event
	__uint(max_entries, 4096);
} pending SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, union addr);
	__type(value, struct neighbour);
	__uint(max_entries, MAX_NEIGHBOURS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} neighbours SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, REQUEST_COUNT);
} requests SEC(".maps");

// Precedes a frame on the TAP.
struct metadata {
	__u8 zero[12];
	__be16 proto;
	__u8 op, reason;
	__be16 src, dst;
	__u8 ttl, zero2[3];
	union addr addr;
} __attribute__((packed, aligned(2)));

// The beginning of a probe. The headers before the nonce look like those of a packet of a
// container, so that everything on the path treats the probe like one.
struct probe {
	struct ethhdr eth;
	struct iphdr ip;
	struct udphdr udp;
	__u8 nonce[16];
	union addr to;
	__be16 src, dst;
} __attribute__((packed, aligned(2)));

_Static_assert(sizeof(struct metadata) == 40, "doc.go draws a metadata header of 40 bytes");
_Static_assert(offsetof(struct probe, to) == 58, "doc.go draws a probe's address at 58");
_Static_assert(sizeof(struct probe) == 78, "doc.go draws the front of a probe");

struct vxlan {
	__be32 flags, vni;
};

// The outer headers of a frame, and the layout of a frame with them.
struct outer {
	struct iphdr ip;
	struct udphdr udp;
	struct vxlan vxlan;
	struct ethhdr eth; // of the inner frame
} __attribute__((packed, aligned(2)));

_Static_assert(sizeof(struct outer) == 50, "20 IPv4, 8 UDP, 8 VXLAN, 14 Ethernet");

// ARP for IPv4 on Ethernet (RFC 826), with the Ethernet header. linux/if_arp.h has no addresses.
struct arp_frame {
	struct ethhdr eth;
	__be16 hrd, pro;
	__u8 hln, pln;
	__be16 op;
	__u8 sha[6];
	__be32 spa;
	__u8 tha[6];
	__be32 tpa;
} __attribute__((packed, aligned(2)));

_Static_assert(sizeof(struct arp_frame) == 42, "internal/neighbour draws an ARP packet of 42 bytes");

// A neighbour solicitation with the MAC address of its sender, or an advertisement with that of its
// target, and no other option (RFC 4861, sections 4.3 and 4.4). pad aligns the addresses on the stack.
struct nd_frame {
	__u16 pad;
	struct ethhdr eth;
	struct ipv6hdr ip;
	__u8 type, code;
	__be16 check;
	__be32 flags;
	union addr target;
	__u8 option, units, mac[6];
} __attribute__((packed, aligned(8)));

#define ND_FRAME_LEN (sizeof(struct nd_frame) - offsetof(struct nd_frame, eth))
#define ND_LEN (sizeof(struct nd_frame) - offsetof(struct nd_frame, type))

_Static_assert(ND_FRAME_LEN == 86, "internal/neighbour draws a solicitation of 86 bytes");

// Bits of the first word of an address that distinguish unicast, group and zero.
static __always_inline int is_zero(const struct ethhdr *eth)
{
	const __u16 *w = (const void *)eth->h_source;

	return (w[0] | w[1] | w[2]) == 0;
}

// Operation of a frame from the zero address: PROBE_*, or -1 if it is not a probe.
static __always_inline int probe_op(const struct ethhdr *eth)
{
	const __u16 *w = (const void *)eth->h_dest;

	if (w[0] | w[1] || eth->h_dest[4] || (eth->h_proto != bpf_htons(ETH_P_IP) && eth->h_dest[5] != PROBE_PLAIN))
		return -1;
	return eth->h_dest[5];
}

static __always_inline void get_mac(struct mac *m, const void *from)
{
	const __u16 *w = from;
	__u16 *to = (void *)m;

	to[0] = w[0];
	to[1] = w[1];
	to[2] = w[2];
	to[3] = 0;
}

static __always_inline int same_mac(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline int is_v4(const union addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline int same_addr(const union addr *a, const union addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline void put_v4(union addr *a, __be32 v4)
{
	a->w[0] = a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

static __always_inline struct config *get_config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline struct peer_entry *get_peer(__u32 id)
{
	return bpf_map_lookup_elem(&peers, &id);
}

static __always_inline int drop(__u32 why)
{
	__u64 *n = bpf_map_lookup_elem(&drops, &why);

	if (n)
		*n += 1;
	return TC_ACT_SHOT;
}

// Reports whether frames may be forwarded between hosts: the router renews config.until.
static __always_inline int leased(const struct config *cfg)
{
	return !cfg->until || bpf_ktime_get_boot_ns() < cfg->until;
}

// Reports whether a neighbour may send frames of the peer with the short id src.
static __always_inline int may_send(const struct peer_entry *p, __u32 src, __u32 neighbour)
{
	if (src == neighbour || p->flags & PEER_ANY)
		return 1;
#pragma unroll
	for (int i = 0; i < MAX_FROM; i++)
		if (p->from[i] == neighbour)
			return 1;
	return 0;
}

// Returns the Ethernet header, pulled into the linear part if necessary; 0 if the frame
// has none.
static __always_inline struct ethhdr *header(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;

	if (data + sizeof(struct ethhdr) > (void *)(long)skb->data_end) {
		if (bpf_skb_pull_data(skb, sizeof(struct ethhdr)))
			return 0;
		data = (void *)(long)skb->data;
		if (data + sizeof(struct ethhdr) > (void *)(long)skb->data_end)
			return 0;
	}
	return data;
}

// Returns the number of packets that the frame is on the wire. A frame from a TAP has
// gso_size, but no gso_segs yet.
static __always_inline __u32 packets(struct __sk_buff *skb)
{
	__u32 size = skb->gso_size, n = skb->gso_segs;

	if (!size)
		return 1;
	return n ? n : (skb->len + size - 1) / size;
}

static __always_inline void touch(struct mac_entry *e)
{
	__u64 now = bpf_ktime_get_boot_ns();

	if (now - e->seen > SECOND)
		e->seen = now;
}

static __always_inline void count_tx(struct mac_entry *e, __u32 n, __u64 bytes)
{
	__sync_fetch_and_add(&e->tx_packets, n);
	__sync_fetch_and_add(&e->tx_bytes, bytes);
}

static __always_inline void count_rx(struct mac_entry *e, __u32 n, __u64 bytes)
{
	__sync_fetch_and_add(&e->rx_packets, n);
	__sync_fetch_and_add(&e->rx_bytes, bytes);
}

// Reports to the router where a MAC address was seen. If the ring is full the event is
// lost, and the next frame after EVENT_GAP reports again. It is a function of its own so
// that BTF has its argument for the test that compares the structs.
static __noinline int tell(const struct event *e)
{
	__u64 now = bpf_ktime_get_boot_ns(), *last;
	struct mac key;

	get_mac(&key, e->addr);
	last = bpf_map_lookup_elem(&pending, &key);
	if (last && now - *last < EVENT_GAP)
		return 0;
	bpf_map_update_elem(&pending, &key, &now, BPF_ANY);
	return bpf_ringbuf_output(&events, (void *)e, sizeof(*e), 0);
}

static __always_inline void seen_at(const struct mac *m, __u32 peer, __u32 ifindex, const struct mac_entry *old)
{
	struct event e = { .peer = peer, .ifindex = ifindex, .old = old ? old->peer : 0 };

	__builtin_memcpy(e.addr, m->addr, sizeof(e.addr));
	tell(&e);
}

// Returns the length of the headers of each segment between Ethernet header and payload,
// including VLAN tags; 0 if it is not TCP or UDP behind at most one tag.
static __always_inline __u32 headers(struct __sk_buff *skb)
{
	__u32 len = skb->vlan_present ? VLAN_HLEN : 0, off = ETH_HLEN, l4;
	__be16 type;
	__u8 b, proto;

	if (bpf_skb_load_bytes(skb, 12, &type, sizeof(type)))
		return 0;
	if (type == bpf_htons(ETH_P_8021Q) || type == bpf_htons(ETH_P_8021AD)) {
		if (bpf_skb_load_bytes(skb, 16, &type, sizeof(type)))
			return 0;
		off += VLAN_HLEN;
		len += VLAN_HLEN;
	}
	if (type == bpf_htons(ETH_P_IP)) {
		if (bpf_skb_load_bytes(skb, off, &b, 1) || bpf_skb_load_bytes(skb, off + 9, &proto, 1))
			return 0;
		l4 = (b & 15) * 4;
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, off + 6, &proto, 1))
			return 0;
		l4 = 40;
	} else {
		return 0;
	}
	if (proto == IPPROTO_UDP)
		return len + l4 + 8;
	if (proto != IPPROTO_TCP || bpf_skb_load_bytes(skb, off + l4 + 12, &b, 1) || b >> 4 < 5)
		return 0;
	return len + l4 + (b >> 4) * 4;
}

// Reports whether the frame, or each of its segments, fits into mtu bytes behind the
// Ethernet header.
static __always_inline int fits(struct __sk_buff *skb, __u32 mtu)
{
	__u32 size = skb->gso_size, len;

	if (!size)
		return skb->len + (skb->vlan_present ? VLAN_HLEN : 0) <= mtu + ETH_HLEN;
	if (size + MAX_HEADERS <= mtu)
		return 1;
	len = headers(skb);
	return len && size + len <= mtu;
}

// Sends the frame by the VXLAN device.
static __always_inline int encap(struct __sk_buff *skb, struct config *cfg, __u32 vni, __u32 ttl,
				 const union addr *remote, const union addr *local)
{
	struct bpf_tunnel_key key = {};
	__u64 flags = BPF_F_DONT_FRAGMENT;
	long err;

	key.tunnel_id = vni;
	key.tunnel_ttl = ttl;
	if (is_v4(remote)) {
		key.remote_ipv4 = bpf_ntohl(remote->w[3]);
		if (is_v4(local))
			key.local_ipv4 = bpf_ntohl(local->w[3]);
		flags |= BPF_F_ZERO_CSUM_TX;
	} else {
		__builtin_memcpy(key.remote_ipv6, remote, 16);
		if (!is_v4(local))
			__builtin_memcpy(key.local_ipv6, local, 16);
		flags |= BPF_F_TUNINFO_IPV6;
	}
	err = bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags);
	if (err == -EINVAL)
		err = bpf_skb_set_tunnel_key(skb, &key, OLD_TUNNEL_KEY, flags);
	if (err)
		return drop(DROP_REDIRECT);
	return bpf_redirect(cfg->vxlan, 0);
}

// Sends the frame to the router unchanged.
static __always_inline int to_tap(struct config *cfg)
{
	if (!cfg->tap)
		return drop(DROP_NO_TAP);
	return bpf_redirect(cfg->tap, 0);
}

// Sends the frame to the router behind a metadata header.
static __always_inline int to_tap_with_metadata(struct __sk_buff *skb, struct config *cfg, __u32 op, __u32 reason,
					 __u32 src, __u32 dst, __u32 ttl, const union addr *addr)
{
	struct metadata *m;

	if (!cfg->tap)
		return drop(DROP_NO_TAP);
	if (bpf_skb_change_head(skb, sizeof(*m), 0))
		return drop(DROP_REDIRECT);
	m = (void *)(long)skb->data;
	if ((void *)(m + 1) > (void *)(long)skb->data_end)
		return drop(DROP_REDIRECT);
	__builtin_memset(m, 0, sizeof(*m));
	m->proto = bpf_htons(ETH_P_WEFT);
	m->op = op;
	m->reason = reason;
	m->src = bpf_htons(src);
	m->dst = bpf_htons(dst);
	m->ttl = ttl;
	m->addr = *addr;
	return bpf_redirect(cfg->tap, 0);
}

// Returns the checksum of the outer header, RFC 1071.
static __always_inline __u16 ip_checksum(const void *ip)
{
	const __u16 *w = ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < (int)sizeof(struct iphdr) / 2; i++)
		sum += w[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	return ~sum;
}

// Inserts space for struct outer in front of an IP packet. ENCAP_L2 is the length of the
// inner Ethernet header only: if it included the VXLAN header, segmentation would drop
// every GSO packet. Kernels before Linux 5.13 do not know ENCAP_L2_ETH and refuse it,
// without changing the frame. Without the flag the payload counts as IP, not Ethernet, at
// the same offset. The kernel segments it in the same way, but cards that look for
// Ethernet in VXLAN leave the segmentation to the kernel.
static __always_inline long make_room(struct __sk_buff *skb, __u64 l2)
{
	return bpf_skb_adjust_room(skb, sizeof(struct outer), BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
				   BPF_F_ADJ_ROOM_ENCAP_L2(ETH_HLEN) | BPF_F_ADJ_ROOM_NO_CSUM_RESET | l2);
}

// Returns the ECN field of the outer header for an IP packet of a type, -1 if it cannot be read: RFC
// 6040, section 4.1, normal mode, like the VXLAN device.
static __always_inline int outer_ecn(struct __sk_buff *skb, __be16 type)
{
	__u8 ecn;

	if (bpf_skb_load_bytes(skb, ETH_HLEN + 1, &ecn, 1))
		return -1;
	if (type != bpf_htons(ETH_P_IP))
		ecn >>= 4;
	ecn &= ECN_MASK;
	return ecn == ECN_CE ? ECN_ECT0 : ecn;
}

// Puts the frame into VXLAN and sends it to the next hop, bypassing the VXLAN device and
// the routes. If it cannot, it returns TC_ACT_UNSPEC and the frame is unchanged.
static __always_inline int wrap(struct __sk_buff *skb, struct config *cfg, __u32 id, struct peer_entry *p)
{
	__u32 n = packets(skb), len = skb->len, vni, hash, ifindex;
	struct bpf_redir_neigh via = {};
	struct outer *o, head = {};
	struct ethhdr *eth;
	struct traffic *t;
	union addr *addr;
	int ecn;

	eth = header(skb);
	if (!eth || (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)) ||
	    eth->h_proto != skb->protocol || skb->vlan_present)
		return TC_ACT_UNSPEC;
	// Read all fields of the entry first: the steps below cannot be undone.
	addr = (void *)p->local;
	if (!is_v4(addr))
		return TC_ACT_UNSPEC;
	head.ip.saddr = addr->w[3];
	addr = (void *)p->remote;
	if (!is_v4(addr))
		return TC_ACT_UNSPEC;
	head.ip.daddr = addr->w[3];
	addr = (void *)p->gateway;
	if (!is_v4(addr))
		return TC_ACT_UNSPEC;
	via.nh_family = AF_INET;
	via.ipv4_nh = addr->w[3];
	ifindex = p->ifindex;
	if (!ifindex || !fits(skb, p->mtu))
		return TC_ACT_UNSPEC;

	ecn = outer_ecn(skb, eth->h_proto);
	if (ecn < 0)
		return TC_ACT_UNSPEC;
	eth = header(skb);
	if (!eth)
		return TC_ACT_UNSPEC;
	head.eth = *eth;

	hash = bpf_get_hash_recalc(skb);
	hash ^= hash >> 16;
	vni = id << 12 | cfg->self;
	head.ip.version = 4;
	head.ip.ihl = 5;
	head.ip.tos = ecn;
	head.ip.tot_len = bpf_htons(len - ETH_HLEN + sizeof(head));
	head.ip.frag_off = bpf_htons(IP_DF);
	head.ip.ttl = TTL;
	head.ip.protocol = IPPROTO_UDP;
	head.ip.check = ip_checksum(&head);
	head.udp.source = bpf_htons(49152 + (hash & 0x3fff));
	head.udp.dest = bpf_htons(cfg->vxlan_port);
	head.udp.len = bpf_htons(len - ETH_HLEN + sizeof(head) - sizeof(head.ip));
	head.vxlan.flags = bpf_htonl(VXLAN_FLAGS);
	head.vxlan.vni = bpf_htonl(vni << 8);

	if (make_room(skb, BPF_F_ADJ_ROOM_ENCAP_L2_ETH) && make_room(skb, 0))
		return TC_ACT_UNSPEC;
	eth = (void *)(long)skb->data;
	o = (void *)(eth + 1);
	if ((void *)(o + 1) > (void *)(long)skb->data_end)
		return drop(DROP_REDIRECT);
	eth->h_proto = bpf_htons(ETH_P_IP);
	*o = head;

	t = bpf_map_lookup_elem(&traffic, &id);
	if (t) {
		t->tx_packets += n;
		t->tx_bytes += len;
	}
	return bpf_redirect_neigh(ifindex, &via, sizeof(via), 0);
}

// Removes len bytes behind the Ethernet header.
static __always_inline long strip(struct __sk_buff *skb, int len, __u64 flags)
{
	return bpf_skb_adjust_room(skb, -len, BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET | flags);
}

// Removes len bytes of IPv4 and other headers in front of an IP packet of a type. It returns 0, or
// TC_ACT_UNSPEC if the frame is unchanged, or that of drop.
static __always_inline int unwrap(struct __sk_buff *skb, int len, __be16 type)
{
	if (type == bpf_htons(ETH_P_IP))
		return strip(skb, len, 0) ? TC_ACT_UNSPEC : 0;
	if (!strip(skb, len, ADJ_ROOM_DECAP_L3_IPV6))
		return 0;
	// Before Linux 6.3 only bpf_skb_change_proto changes skb->protocol from IPv4
	// to IPv6. It inserts as many bytes as the lengths of the headers differ.
	if (bpf_skb_change_proto(skb, bpf_htons(ETH_P_IPV6), 0))
		return TC_ACT_UNSPEC;
	return strip(skb, len + sizeof(struct ipv6hdr) - sizeof(struct iphdr), 0) ? drop(DROP_REDIRECT) : 0;
}

#include "plain.h"

// Sends the frame to the next hop by the interface of the underlay, in the best encapsulation. If it
// cannot, it returns TC_ACT_UNSPEC and the frame is unchanged.
static __always_inline int leave(struct __sk_buff *skb, struct config *cfg, __u32 id, struct peer_entry *p,
				 const struct mac *src, const struct mac *dst)
{
	int verdict = send_plain(skb, cfg, id, p, src, dst);

	if (verdict != TC_ACT_UNSPEC)
		return verdict;
	return p->flags & PEER_FAST ? wrap(skb, cfg, id, p) : TC_ACT_UNSPEC;
}

static __always_inline void count_request(__u32 what)
{
	__u64 *n = bpf_map_lookup_elem(&requests, &what);

	if (n)
		*n += 1;
}

// What becomes of a request for the MAC address of an IP address.
enum { TO_ROUTER, OWN, ANSWER };

// Finds the MAC address of target, which asker wants to know. It is ANSWER only if a frame for it would
// go to another host in the kernel; the router decides everything else.
static __always_inline int resolve(const struct config *cfg, const union addr *target, const void *asker, struct mac *m)
{
	struct neighbour *found = bpf_map_lookup_elem(&neighbours, target);
	struct peer_entry *p;
	struct mac_entry *e;

	if (!found || same_mac(found->mac, asker))
		return TO_ROUTER;
	get_mac(m, found->mac);
	e = bpf_map_lookup_elem(&macs, m);
	if (!e || !cfg->self)
		return TO_ROUTER;
	if (e->peer == cfg->self)
		return OWN;
	p = get_peer(e->peer);
	return p && (p->flags & PEER_FAST || p->encap4 | p->encap6) && leased(cfg) ? ANSWER : TO_ROUTER;
}

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

// Returns the sum of an ICMPv6 message with its pseudo-header (RFC 8200, section 8.1); 0xffff if its
// checksum is right.
static __always_inline __u16 nd_sum(struct nd_frame *f)
{
	__be32 pseudo[2] = { bpf_htonl(ND_LEN), bpf_htonl(NEXTHDR_ICMP) };
	__s64 sum = bpf_csum_diff(0, 0, (void *)&f->ip.saddr, sizeof(*f) - offsetof(struct nd_frame, ip.saddr), 0);

	return fold(bpf_csum_diff(0, 0, pseudo, sizeof(pseudo), sum));
}

static __always_inline int answer_arp(struct __sk_buff *skb, const struct config *cfg, const struct ethhdr *eth)
{
	struct arp_frame f;
	union addr target;
	struct mac m;
	int what;

	if (bpf_skb_load_bytes(skb, 0, &f, sizeof(f)) || f.hrd != bpf_htons(1) || f.pro != bpf_htons(ETH_P_IP) ||
	    f.hln != 6 || f.pln != 4 || f.op != bpf_htons(1) || !f.spa || f.spa == f.tpa || !same_mac(f.sha, eth->h_source))
		return TO_ROUTER;
	put_v4(&target, f.tpa);
	what = resolve(cfg, &target, f.sha, &m);
	if (what != ANSWER)
		return what;
	f.op = bpf_htons(2);
	f.tpa = f.spa;
	f.spa = target.w[3];
	__builtin_memcpy(f.tha, f.sha, 6);
	__builtin_memcpy(f.sha, m.addr, 6);
	__builtin_memcpy(f.eth.h_dest, f.tha, 6);
	__builtin_memcpy(f.eth.h_source, m.addr, 6);
	return bpf_skb_store_bytes(skb, 0, &f, sizeof(f), 0) ? TO_ROUTER : ANSWER;
}

static __always_inline int answer_nd(struct __sk_buff *skb, const struct config *cfg, const struct ethhdr *eth)
{
	struct nd_frame f;
	const __u8 *to = (void *)&f.ip.daddr, *from = (void *)&f.ip.saddr;
	union addr target;
	struct mac m;
	int what;

	// Most IPv6 frames to groups are something else.
	if (bpf_skb_load_bytes(skb, 0, &f.eth, ND_FRAME_LEN) || f.type != ND_SOLICITATION || f.ip.nexthdr != NEXTHDR_ICMP)
		return TO_ROUTER;
	target = f.target;
	if (f.ip.version != 6 || f.ip.hop_limit != 255 || f.ip.payload_len != bpf_htons(ND_LEN) ||
	    f.code || f.option != 1 || f.units != 1 || !same_mac(f.mac, eth->h_source) || from[0] == 0xff || nd_sum(&f) != 0xffff)
		return TO_ROUTER;
	// The group of the target (RFC 4291, section 2.7.1).
	if (f.ip.daddr.in6_u.u6_addr32[0] != bpf_htonl(0xff020000) || f.ip.daddr.in6_u.u6_addr32[1] ||
	    f.ip.daddr.in6_u.u6_addr32[2] != bpf_htonl(1) || to[12] != 0xff || to[13] != target.b[13] || to[14] != target.b[14] ||
	    to[15] != target.b[15] || same_addr((void *)&f.ip.saddr, &target))
		return TO_ROUTER;
	// Duplicate address detection has the source zero.
	if (!(f.ip.saddr.in6_u.u6_addr32[0] | f.ip.saddr.in6_u.u6_addr32[1] | f.ip.saddr.in6_u.u6_addr32[2] | f.ip.saddr.in6_u.u6_addr32[3]))
		return TO_ROUTER;
	what = resolve(cfg, &target, f.mac, &m);
	if (what != ANSWER)
		return what;
	__builtin_memcpy(f.eth.h_dest, f.mac, 6);
	__builtin_memcpy(f.eth.h_source, m.addr, 6);
	f.ip.priority = 0;
	f.ip.flow_lbl[0] = f.ip.flow_lbl[1] = f.ip.flow_lbl[2] = 0;
	f.ip.daddr = f.ip.saddr;
	__builtin_memcpy(&f.ip.saddr, &target, 16);
	f.type = ND_ADVERTISEMENT;
	f.check = 0;
	f.flags = bpf_htonl(ND_SOLICITED | ND_OVERRIDE);
	f.option = 2;
	__builtin_memcpy(f.mac, m.addr, 6);
	f.check = ~nd_sum(&f);
	return bpf_skb_store_bytes(skb, 0, &f.eth, ND_FRAME_LEN, 0) ? TO_ROUTER : ANSWER;
}

// Answers a request for the MAC address of an IP address in place of the one that has it, which is a
// container of another host: the frame comes back in at the port. The router does the same for what
// the kernel does not know.
static __always_inline int to_group(struct __sk_buff *skb, struct config *cfg, const struct ethhdr *eth)
{
	int what = TO_ROUTER;

	if (skb->vlan_present || skb->gso_size)
		return to_tap(cfg);
	if (eth->h_proto == bpf_htons(ETH_P_ARP))
		what = answer_arp(skb, cfg, eth);
	else if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		what = answer_nd(skb, cfg, eth);
	switch (what) {
	case ANSWER:
		count_request(REQUEST_ANSWERED);
		return bpf_redirect(cfg->port, BPF_F_INGRESS);
	case OWN: // the bridge has brought it to the container
		count_request(REQUEST_LOCAL);
		return TC_ACT_SHOT;
	}
	return to_tap(cfg);
}

SEC("tc")
int from_port(struct __sk_buff *skb)
{
	struct config *cfg = get_config();
	struct ethhdr *eth = header(skb);
	__u32 n = packets(skb), len = skb->len, id;
	struct mac_entry *s, *d;
	struct peer_entry *p;
	struct traffic *t;
	struct mac src, dst;
	int verdict;

	if (!cfg)
		return TC_ACT_SHOT;
	if (!eth)
		return drop(DROP_SHORT);
	if (is_zero(eth) || eth->h_source[0] & 1)
		return drop(DROP_SOURCE);
	get_mac(&src, eth->h_source);
	get_mac(&dst, eth->h_dest);

	s = bpf_map_lookup_elem(&macs, &src);
	if (!s || s->peer != cfg->self)
		seen_at(&src, cfg->self, 0, s);
	if (s && s->peer == cfg->self) {
		touch(s);
		count_tx(s, n, len);
	}
	if (dst.addr[0] & 1)
		return to_group(skb, cfg, eth);
	d = bpf_map_lookup_elem(&macs, &dst);
	if (!d)
		return to_tap(cfg);
	id = d->peer;
	if (id == cfg->self) // the bridge forgot the address and flooded the frame
		return TC_ACT_SHOT;
	p = get_peer(id);
	if (!p || !leased(cfg) || !fits(skb, p->mtu))
		return to_tap(cfg);
	if (p->flags & PEER_DIRECT) {
		verdict = leave(skb, cfg, id, p, &src, &dst);
		if (verdict != TC_ACT_UNSPEC)
			return verdict;
	}
	if (!(p->flags & PEER_FAST) || !cfg->vxlan)
		return to_tap(cfg);
	t = bpf_map_lookup_elem(&traffic, &id);
	if (t) {
		t->tx_packets += n;
		t->tx_bytes += len;
	}
	return encap(skb, cfg, id << 12 | cfg->self, TTL, (void *)p->remote, (void *)p->local);
}

SEC("tc")
int from_tap(struct __sk_buff *skb)
{
	struct config *cfg = get_config();
	struct ethhdr *eth = header(skb);
	union addr remote, local = {};
	struct mac_entry *d;
	struct probe *probe;
	struct remote *r;
	struct mac dst;
	__u32 vni;
	int op;

	if (!cfg)
		return TC_ACT_SHOT;
	if (!eth)
		return drop(DROP_SHORT);
	op = is_zero(eth) ? probe_op(eth) : -1;
	if (op == PROBE_PLAIN)
		return probe_plain(skb);
	if (op != PROBE_ASK) {
		get_mac(&dst, eth->h_dest);
		d = dst.addr[0] & 1 ? 0 : bpf_map_lookup_elem(&macs, &dst);
		if (d && d->peer == cfg->self)
			count_rx(d, packets(skb), skb->len);
		return bpf_redirect(cfg->port, BPF_F_INGRESS);
	}
	if (skb->len < sizeof(*probe) || bpf_skb_pull_data(skb, sizeof(*probe)))
		return drop(DROP_FORMAT);
	probe = (void *)(long)skb->data;
	if ((void *)(probe + 1) > (void *)(long)skb->data_end)
		return drop(DROP_FORMAT);
	if (!cfg->vxlan)
		return drop(DROP_REDIRECT);
	vni = bpf_ntohs(probe->dst) << 12 | (bpf_ntohs(probe->src) & 0xfff);
	if (vni > 0xffffff)
		return drop(DROP_FORMAT);
	remote = probe->to;
	r = bpf_map_lookup_elem(&remotes, &remote);
	if (r)
		__builtin_memcpy(&local, r->local, sizeof(local));
	return encap(skb, cfg, vni, TTL, &remote, &local);
}

SEC("tc")
int from_vxlan(struct __sk_buff *skb)
{
	struct config *cfg = get_config();
	struct ethhdr *eth = header(skb);
	__u32 n = packets(skb), len = skb->len, src, dst, ttl;
	struct bpf_tunnel_key key = {};
	struct mac_entry *s, *d;
	struct peer_entry *p;
	struct mac smac, dmac;
	union addr addr;
	struct remote *r;
	struct traffic *t;
	int op;

	if (!cfg)
		return TC_ACT_SHOT;
	if (!eth)
		return drop(DROP_SHORT);
	if (!bpf_skb_get_tunnel_key(skb, &key, OLD_TUNNEL_KEY, 0)) {
		put_v4(&addr, bpf_htonl(key.remote_ipv4));
	} else if (!bpf_skb_get_tunnel_key(skb, &key, OLD_TUNNEL_KEY, BPF_F_TUNINFO_IPV6)) {
		__builtin_memcpy(&addr, key.remote_ipv6, 16);
	} else {
		return drop(DROP_UNKNOWN_REMOTE);
	}
	r = bpf_map_lookup_elem(&remotes, &addr);
	if (!r)
		return drop(DROP_UNKNOWN_REMOTE);
	if (!leased(cfg))
		return drop(DROP_EXPIRED);
	src = key.tunnel_id & 0xfff;
	dst = key.tunnel_id >> 12 & 0xfff;
	ttl = key.tunnel_ttl;
	p = get_peer(src);
	if (!src || src == cfg->self || !p || !(p->flags & PEER_KNOWN))
		return drop(DROP_VNI);

	if (is_zero(eth)) {
		op = probe_op(eth);
		if (op != PROBE_ASK && op != PROBE_ECHO)
			return drop(DROP_SOURCE);
		if (dst != cfg->self)
			return drop(DROP_VNI);
		if (src != r->peer)
			return drop(DROP_SPOOFED);
		if (len < sizeof(struct probe))
			return drop(DROP_FORMAT);
		if (op == PROBE_ECHO)
			return to_tap_with_metadata(skb, cfg, METADATA_ECHO, 0, src, dst, ttl, &addr);
		eth->h_dest[5] = PROBE_ECHO;
		return encap(skb, cfg, src << 12 | dst, TTL, &addr, (void *)r->local);
	}
	if (eth->h_source[0] & 1)
		return drop(DROP_SOURCE);
	if (!may_send(p, src, r->peer))
		return drop(DROP_MISROUTED);

	if (dst == cfg->self) {
		get_mac(&smac, eth->h_source);
		get_mac(&dmac, eth->h_dest);
		s = bpf_map_lookup_elem(&macs, &smac);
		if (!s || s->peer != src)
			seen_at(&smac, src, 0, s);
		if (s && s->peer == src) {
			touch(s);
			count_tx(s, n, len);
		}
		d = dmac.addr[0] & 1 ? 0 : bpf_map_lookup_elem(&macs, &dmac);
		if (d && d->peer == cfg->self)
			count_rx(d, n, len);
		t = bpf_map_lookup_elem(&traffic, &src);
		if (t) {
			t->rx_packets += n;
			t->rx_bytes += len;
		}
		return bpf_redirect(cfg->port, BPF_F_INGRESS);
	}

	p = get_peer(dst);
	if (!p || !(p->flags & PEER_KNOWN))
		return drop(DROP_VNI);
	if (ttl <= 1)
		return drop(DROP_TTL);
	if (!(p->flags & PEER_FAST) || !cfg->vxlan)
		return to_tap_with_metadata(skb, cfg, METADATA_RELAY, REASON_SLOW, src, dst, ttl, &addr);
	if (same_addr(&addr, (void *)p->remote))
		return drop(DROP_LOOP);
	if (!fits(skb, p->mtu))
		return to_tap_with_metadata(skb, cfg, METADATA_RELAY, REASON_BIG, src, dst, ttl, &addr);
	t = bpf_map_lookup_elem(&traffic, &dst);
	if (t) {
		t->relayed_packets += n;
		t->relayed_bytes += len;
	}
	return encap(skb, cfg, dst << 12 | src, ttl - 1, (void *)p->remote, (void *)p->local);
}

SEC("tc")
int from_container(struct __sk_buff *skb)
{
	struct config *cfg = get_config();
	__u32 n = packets(skb), len = skb->len, id;
	struct mac_entry *s, *d;
	struct peer_entry *p;
	struct mac src, dst;
	struct ethhdr *eth;
	int verdict;

	if (!cfg || !(cfg->flags & CONFIG_EXPRESS) || !cfg->self)
		return TC_ACT_UNSPEC;
	eth = header(skb);
	if (!eth || eth->h_source[0] & 1 || is_zero(eth))
		return TC_ACT_UNSPEC;
	get_mac(&src, eth->h_source);
	get_mac(&dst, eth->h_dest);
	s = bpf_map_lookup_elem(&macs, &src);
	if (!s || s->peer != cfg->self || s->ifindex != skb->ifindex) {
		seen_at(&src, cfg->self, skb->ifindex, s);
		return TC_ACT_UNSPEC;
	}
	if (!(s->flags & MAC_EXPRESS) || dst.addr[0] & 1)
		return TC_ACT_UNSPEC;
	d = bpf_map_lookup_elem(&macs, &dst);
	if (!d)
		return TC_ACT_UNSPEC;
	id = d->peer;
	if (id == cfg->self) {
		if (!(d->flags & MAC_EXPRESS) || !d->ifindex || d->ifindex == skb->ifindex)
			return TC_ACT_UNSPEC;
		touch(s);
		count_tx(s, n, len);
		count_rx(d, n, len);
		// The destination is not the address of the host's end of the veth that
		// the frame came from, so the kernel marked it as for another host. Linux
		// 5.10 does not check again, and the container would drop the frame.
		bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(d->ifindex, 0);
	}

	p = get_peer(id);
	if (!p || !(p->flags & PEER_EXPRESS) || !leased(cfg))
		return TC_ACT_UNSPEC;
	verdict = leave(skb, cfg, id, p, &src, &dst);
	if (verdict != TC_ACT_UNSPEC) {
		touch(s);
		count_tx(s, n, len);
	}
	return verdict;
}

// Reports whether the inner frame may be a GSO packet of datagrams (UDP_SEGMENT). strip
// leaves traces of the outer packet in skb->encapsulation and gso_type, because of which
// the kernel drops datagrams when it segments them. It segments TCP correctly.
static __always_inline int bulk_of_datagrams(struct __sk_buff *skb, __be16 inner)
{
	__u32 at = ETH_HLEN + sizeof(struct outer);
	__u8 proto;

	at += inner == bpf_htons(ETH_P_IP) ? offsetof(struct iphdr, protocol) : offsetof(struct ipv6hdr, nexthdr);
	return skb->gso_size && (bpf_skb_load_bytes(skb, at, &proto, 1) || proto != IPPROTO_TCP);
}

// Handles a VXLAN packet for a container of this host. All others it leaves unchanged.
static __always_inline int from_underlay_vxlan(struct __sk_buff *skb, struct config *cfg)
{
	void *data = (void *)(long)skb->data;
	__u32 n, len, src, dst, ifindex;
	struct mac_entry *s, *d;
	struct ethhdr *eth, inner;
	union addr addr, *local;
	struct peer_entry *p;
	struct traffic *t;
	struct remote *r;
	struct mac smac, dmac;
	struct outer *o;
	__be16 port;
	__u8 proto;
	int verdict;

	if (skb->protocol != bpf_htons(ETH_P_IP))
		return TC_ACT_UNSPEC;
	if (data + ETH_HLEN + sizeof(*o) > (void *)(long)skb->data_end) {
		if (skb->len < ETH_HLEN + sizeof(*o) ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct outer, ip.protocol), &proto, 1) ||
		    proto != IPPROTO_UDP ||
		    bpf_skb_load_bytes(skb, ETH_HLEN + offsetof(struct outer, udp.dest), &port, sizeof(port)) ||
		    port != bpf_htons(cfg->vxlan_port) ||
		    bpf_skb_pull_data(skb, ETH_HLEN + sizeof(*o)))
			return TC_ACT_UNSPEC;
		data = (void *)(long)skb->data;
		if (data + ETH_HLEN + sizeof(*o) > (void *)(long)skb->data_end)
			return TC_ACT_UNSPEC;
	}
	o = data + ETH_HLEN;
	if (o->ip.protocol != IPPROTO_UDP || o->udp.dest != bpf_htons(cfg->vxlan_port) ||
	    o->ip.version != 4 || o->ip.ihl != 5 || o->ip.frag_off & bpf_htons(0x3fff))
		return TC_ACT_UNSPEC;
	// The stack verifies checksums, removes padding, and propagates congestion marks
	// of routers.
	if (o->udp.check || (o->ip.tos & ECN_MASK) == ECN_CE || o->vxlan.flags != bpf_htonl(VXLAN_FLAGS) ||
	    (!skb->gso_size && bpf_ntohs(o->ip.tot_len) != skb->len - ETH_HLEN))
		return TC_ACT_UNSPEC;
	if (o->eth.h_proto != bpf_htons(ETH_P_IP) && o->eth.h_proto != bpf_htons(ETH_P_IPV6))
		return TC_ACT_UNSPEC;
	src = bpf_ntohl(o->vxlan.vni) >> 8 & 0xfff;
	dst = bpf_ntohl(o->vxlan.vni) >> 20;
	if (dst != cfg->self || !src || src == cfg->self)
		return TC_ACT_UNSPEC;

	put_v4(&addr, o->ip.saddr);
	r = bpf_map_lookup_elem(&remotes, &addr);
	if (!r || !leased(cfg))
		return TC_ACT_UNSPEC;
	local = (void *)r->local;
	if (!is_v4(local) || local->w[3] != o->ip.daddr)
		return TC_ACT_UNSPEC;
	// A neighbour of an encrypted link has an address inside the tunnel. Frames that
	// claim to come from it must not be accepted from the underlay. A packet that
	// comes by another interface than the one towards its source may be forged. The
	// stack passes it to netfilter, which decides.
	p = get_peer(r->peer);
	if (!p || !(p->flags & PEER_EXPRESS) || p->ifindex != skb->ifindex)
		return TC_ACT_UNSPEC;
	p = get_peer(src);
	if (!p || !(p->flags & PEER_KNOWN) || !may_send(p, src, r->peer))
		return TC_ACT_UNSPEC;
	get_mac(&smac, o->eth.h_source);
	get_mac(&dmac, o->eth.h_dest);
	s = bpf_map_lookup_elem(&macs, &smac);
	if (!s || s->peer != src) // from_vxlan learns it
		return TC_ACT_UNSPEC;
	d = bpf_map_lookup_elem(&macs, &dmac);
	if (!d || d->peer != cfg->self)
		return TC_ACT_UNSPEC;
	ifindex = cfg->flags & CONFIG_EXPRESS && d->flags & MAC_EXPRESS ? d->ifindex : 0;
	inner = o->eth;
	if (bulk_of_datagrams(skb, inner.h_proto))
		return TC_ACT_UNSPEC;
	n = packets(skb);
	len = skb->len - sizeof(*o);

	verdict = unwrap(skb, sizeof(*o), inner.h_proto);
	if (verdict)
		return verdict;
	eth = header(skb);
	if (!eth)
		return drop(DROP_REDIRECT);
	*eth = inner;
	// If the card verified only one checksum, that was the outer one. The stack does
	// the same for a UDP checksum of zero.
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);

	touch(s);
	count_tx(s, n, len);
	count_rx(d, n, len);
	t = bpf_map_lookup_elem(&traffic, &src);
	if (t) {
		t->rx_packets += n;
		t->rx_bytes += len;
	}
	return ifindex ? bpf_redirect_peer(ifindex, 0) : bpf_redirect(cfg->port, BPF_F_INGRESS);
}

SEC("tc")
int from_underlay(struct __sk_buff *skb)
{
	struct config *cfg;
	int verdict;

	// Almost all traffic of a host passes.
	if ((skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)) ||
	    skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	cfg = get_config();
	if (!cfg || !cfg->self)
		return TC_ACT_UNSPEC;
	verdict = from_underlay_vxlan(skb, cfg);
	if (verdict == TC_ACT_UNSPEC && cfg->flags & CONFIG_PLAIN)
		verdict = receive_plain(skb, cfg);
	return verdict;
}
