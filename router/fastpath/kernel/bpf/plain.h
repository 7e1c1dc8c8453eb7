// SPDX-License-Identifier: (GPL-2.0-only OR Apache-2.0)
//
// Plain packets: IP packets of containers that go from host to host without their Ethernet header, as they
// are or behind an IPv4 header. The receiver finds the container, and the Ethernet header, by the IP
// addresses, which must be known to be where they are: see ../doc.go.
#ifndef PLAIN_H
#define PLAIN_H

// How long this host has known an address before plain packets use it: the receiver must know it, too.
#define KNOWN_FOR (3 * SECOND)

// What follows the UDP header of a probe by plain packets.
struct plain_probe {
	__be32 magic;
	__be16 src, dst;
	__u8 op, encap, zero[2]; // PROBE_*, ENCAP_*
	__u8 nonce[16];
} __attribute__((packed, aligned(2)));

_Static_assert(sizeof(struct plain_probe) == 28, "doc.go draws 28 bytes");

#define PLAIN_MAGIC 0x77656674

// With these TTLs a packet that a router on the way counts down may not arrive, or not count as one of a
// neighbour (RFC 4861, section 7.1; RFC 5082).
#define LOW_TTL 32
#define NEIGHBOUR_TTL 255

// The ends of an IP packet.
struct ends {
	union addr src, dst;
	__u32 payload; // offset in the frame; 0 for a fragment or a header of IPv4 with options
	__u8 proto;    // of IPv6: the first next header
	__u8 ttl;
};

// Reads the ends of an IP packet of a type at an offset. It returns not 0 if that cannot be read.
static __always_inline int read_ends(struct __sk_buff *skb, __u32 at, __be16 type, struct ends *e)
{
	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 4)
			return -1;
		put_v4(&e->src, ip.saddr);
		put_v4(&e->dst, ip.daddr);
		e->proto = ip.protocol;
		e->ttl = ip.ttl;
		e->payload = ip.ihl == 5 && !(ip.frag_off & bpf_htons(0x3fff)) ? at + sizeof(ip) : 0;
		return 0;
	}
	if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, at, &ip, sizeof(ip)) || ip.version != 6)
			return -1;
		__builtin_memcpy(&e->src, &ip.saddr, 16);
		__builtin_memcpy(&e->dst, &ip.daddr, 16);
		e->proto = ip.nexthdr;
		e->ttl = ip.hop_limit;
		e->payload = at + sizeof(ip);
		return 0;
	}
	return -1;
}

// Reports whether an address has been known for long enough to be at a MAC address behind a peer.
static __always_inline int known_at(const union addr *a, const struct mac *m, __u32 peer, __u64 now)
{
	struct neighbour *n = bpf_map_lookup_elem(&neighbours, a);

	return n && n->peer == peer && same_mac(n->mac, m->addr) && now > n->since + KNOWN_FOR;
}

// Reports whether the packet of a container would be a probe for the receiver. It must not arrive as one.
static __always_inline int like_probe(struct __sk_buff *skb, const struct config *cfg, const struct ends *e)
{
	__be16 port;

	return e->proto == IPPROTO_UDP && e->payload &&
	       (bpf_skb_load_bytes(skb, e->payload + offsetof(struct udphdr, dest), &port, sizeof(port)) ||
		port == bpf_htons(cfg->vxlan_port));
}

// Sends an IP packet of a type to a neighbour. It returns TC_ACT_UNSPEC if the packet is unchanged.
static __always_inline int plain_out(struct __sk_buff *skb, struct peer_entry *p, __u32 encap, __be16 type)
{
	__u32 ifindex = p->ifindex, len = skb->len;
	struct bpf_redir_neigh via = {};
	struct ethhdr *eth;
	union addr *addr;
	__be32 local, remote;
	struct iphdr *ip;
	int ecn;

	addr = (void *)p->gateway;
	if (!ifindex || !is_v4(addr))
		return TC_ACT_UNSPEC;
	via.nh_family = AF_INET;
	via.ipv4_nh = addr->w[3];
	addr = (void *)p->local;
	local = addr->w[3];
	addr = (void *)p->remote;
	remote = addr->w[3];

	if (encap == ENCAP_IPIP) {
		struct iphdr head = {};

		ecn = outer_ecn(skb, type);
		if (ecn < 0)
			return TC_ACT_UNSPEC;
		head.version = 4;
		head.ihl = 5;
		head.tos = ecn;
		head.tot_len = bpf_htons(len - ETH_HLEN + sizeof(head));
		head.frag_off = bpf_htons(IP_DF);
		head.ttl = TTL;
		head.protocol = type == bpf_htons(ETH_P_IP) ? IPPROTO_IPIP : IPPROTO_IPV6;
		head.saddr = local;
		head.daddr = remote;
		head.check = ip_checksum(&head);
		if (bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
			return TC_ACT_UNSPEC;
		eth = (void *)(long)skb->data;
		ip = (void *)(eth + 1);
		if ((void *)(ip + 1) > (void *)(long)skb->data_end)
			return drop(DROP_REDIRECT);
		eth->h_proto = bpf_htons(ETH_P_IP);
		*ip = head;
	} else if (type != bpf_htons(ETH_P_IP)) {
		// bpf_redirect_neigh takes the address of the next hop for one of IPv6.
		struct bpf_fib_lookup fib = {};

		fib.family = AF_INET;
		fib.ifindex = ifindex;
		fib.ipv4_src = local;
		fib.ipv4_dst = via.ipv4_nh;
		if (bpf_fib_lookup(skb, &fib, sizeof(fib), BPF_FIB_LOOKUP_OUTPUT) != BPF_FIB_LKUP_RET_SUCCESS || fib.ifindex != ifindex)
			return TC_ACT_UNSPEC;
		eth = header(skb);
		if (!eth)
			return TC_ACT_UNSPEC;
		__builtin_memcpy(eth->h_dest, fib.dmac, 6);
		__builtin_memcpy(eth->h_source, fib.smac, 6);
		return bpf_redirect(ifindex, 0);
	}
	return bpf_redirect_neigh(ifindex, &via, sizeof(via), 0);
}

// Sends the frame to the peer id, its next hop, as a plain packet, if it is an IP packet between known
// addresses. Else it returns TC_ACT_UNSPEC and the frame is unchanged.
static __always_inline int send_plain(struct __sk_buff *skb, struct config *cfg, __u32 id, struct peer_entry *p,
				      const struct mac *src, const struct mac *dst)
{
	__be16 type = skb->protocol;
	__u32 encap = type == bpf_htons(ETH_P_IP) ? p->encap4 : p->encap6;
	struct ethhdr *eth;
	struct traffic *t;
	__u32 n, len;
	struct ends e;
	int verdict;
	__u64 now;

	if (!encap || p->next != id)
		return TC_ACT_UNSPEC;
	eth = header(skb);
	if (!eth || eth->h_proto != type || skb->vlan_present || !fits(skb, p->mtu) || read_ends(skb, ETH_HLEN, type, &e))
		return TC_ACT_UNSPEC;
	// from_underlay leaves traces of IPIP in GSO packets, because of which the kernel drops datagrams when it
	// segments them; see bulk_of_datagrams.
	if (encap == ENCAP_IPIP && skb->gso_size && e.proto != IPPROTO_TCP)
		return TC_ACT_UNSPEC;
	if (encap == ENCAP_NONE && !same_addr((void *)p->gateway, (void *)p->remote) && (e.ttl < LOW_TTL || e.ttl == NEIGHBOUR_TTL))
		return TC_ACT_UNSPEC;
	if (like_probe(skb, cfg, &e))
		return TC_ACT_UNSPEC;
	now = bpf_ktime_get_boot_ns();
	if (!known_at(&e.src, src, cfg->self, now) || !known_at(&e.dst, dst, id, now))
		return TC_ACT_UNSPEC;
	n = packets(skb);
	len = skb->len;
	verdict = plain_out(skb, p, encap, type);
	t = verdict == TC_ACT_UNSPEC ? 0 : bpf_map_lookup_elem(&traffic, &id);
	if (t) {
		t->tx_packets += n;
		t->tx_bytes += len;
	}
	return verdict;
}

// Sends a probe of the router to the neighbour in it.
static __always_inline int probe_plain(struct __sk_buff *skb)
{
	struct plain_probe probe;
	struct peer_entry *p;
	struct ends e;
	__u32 id;

	if (read_ends(skb, ETH_HLEN, skb->protocol, &e) || !e.payload ||
	    bpf_skb_load_bytes(skb, e.payload + sizeof(struct udphdr), &probe, sizeof(probe)))
		return drop(DROP_FORMAT);
	id = bpf_ntohs(probe.dst);
	p = get_peer(id);
	if (!p || p->next != id || plain_out(skb, p, probe.encap, skb->protocol) != TC_ACT_REDIRECT)
		return drop(DROP_REDIRECT);
	return TC_ACT_REDIRECT;
}

// Exchanges two fields of n bytes in a packet.
#define EXCHANGE(skb, a, b, n)                                                                              \
	({                                                                                                  \
		__u8 x[n], y[n];                                                                            \
		bpf_skb_load_bytes(skb, a, x, n) || bpf_skb_load_bytes(skb, b, y, n) ||                     \
			bpf_skb_store_bytes(skb, a, y, n, 0) || bpf_skb_store_bytes(skb, b, x, n, 0);       \
	})

// Exchanges the addresses of the IP packet of a type at an offset.
static __always_inline int turn(struct __sk_buff *skb, __u32 at, __be16 type)
{
	if (type == bpf_htons(ETH_P_IP))
		return EXCHANGE(skb, at + offsetof(struct iphdr, saddr), at + offsetof(struct iphdr, daddr), 4);
	return EXCHANGE(skb, at + offsetof(struct ipv6hdr, saddr), at + offsetof(struct ipv6hdr, daddr), 16);
}

// Handles a packet of the peer id that may be a probe: it echoes it, or passes an echo to the router. at is
// the offset of the IP packet with the ends e. It returns TC_ACT_UNSPEC if it is not a probe.
static __always_inline int plain_probe(struct __sk_buff *skb, struct config *cfg, __u32 id, struct peer_entry *p, __u32 encap,
				       __u32 at, __be16 type, const struct ends *e)
{
	__u32 probe = e->payload + sizeof(struct udphdr);
	struct bpf_redir_neigh via = {};
	struct plain_probe is;
	struct udphdr udp;
	union addr *addr;
	__be16 was, now;

	if (e->proto != IPPROTO_UDP || !e->payload || bpf_skb_load_bytes(skb, e->payload, &udp, sizeof(udp)) ||
	    udp.dest != bpf_htons(cfg->vxlan_port) || bpf_skb_load_bytes(skb, probe, &is, sizeof(is)) ||
	    is.magic != bpf_htonl(PLAIN_MAGIC) || is.src != bpf_htons(id) || is.dst != bpf_htons(cfg->self) || is.encap != encap)
		return TC_ACT_UNSPEC;
	if (is.op == PROBE_ECHO)
		return to_tap_with_metadata(skb, cfg, METADATA_ECHO, encap, id, cfg->self, 0, (void *)p->remote);
	if (is.op != PROBE_ASK)
		return TC_ACT_UNSPEC;
	was = bpf_htons(PROBE_ASK << 8 | encap);
	now = bpf_htons(PROBE_ECHO << 8 | encap);
	addr = (void *)p->gateway;
	via.nh_family = AF_INET;
	via.ipv4_nh = addr->w[3];
	if (turn(skb, at, type) || (at != ETH_HLEN && turn(skb, ETH_HLEN, bpf_htons(ETH_P_IP))) ||
	    EXCHANGE(skb, probe + offsetof(struct plain_probe, src), probe + offsetof(struct plain_probe, dst), 2) ||
	    bpf_l4_csum_replace(skb, e->payload + offsetof(struct udphdr, check), was, now, 2 | BPF_F_MARK_MANGLED_0) ||
	    bpf_skb_store_bytes(skb, probe + offsetof(struct plain_probe, op), &now, 2, 0))
		return drop(DROP_REDIRECT);
	if (at == ETH_HLEN && type != bpf_htons(ETH_P_IP)) {
		// It goes back to where it came from.
		if (EXCHANGE(skb, offsetof(struct ethhdr, h_dest), offsetof(struct ethhdr, h_source), 6))
			return drop(DROP_REDIRECT);
		return bpf_redirect(p->ifindex, 0);
	}
	return bpf_redirect_neigh(p->ifindex, &via, sizeof(via), 0);
}

// Handles a plain packet for a container of this host. It leaves all others unchanged, and returns
// TC_ACT_UNSPEC.
static __always_inline int receive_plain(struct __sk_buff *skb, struct config *cfg)
{
	__u32 n = packets(skb), at = ETH_HLEN, encap = ENCAP_NONE, len, id, ifindex = 0;
	__be16 type = skb->protocol;
	struct mac_entry *s, *d;
	struct neighbour *found;
	struct remote *r = 0;
	struct peer_entry *p;
	struct mac src, dst;
	struct ethhdr *eth;
	struct traffic *t;
	__u8 tos = 0;
	struct ends e;
	int verdict;

	if (read_ends(skb, at, type, &e))
		return TC_ACT_UNSPEC;
	if (type == bpf_htons(ETH_P_IP) && (e.proto == IPPROTO_IPIP || e.proto == IPPROTO_IPV6) && e.payload) {
		r = bpf_map_lookup_elem(&remotes, &e.src);
		if (r && !same_addr((void *)r->local, &e.dst))
			return TC_ACT_UNSPEC;
	}
	if (r) { // else it may be IPIP of a container, as it is
		if (bpf_skb_load_bytes(skb, at + offsetof(struct iphdr, tos), &tos, 1))
			return TC_ACT_UNSPEC;
		at = ETH_HLEN + sizeof(struct iphdr);
		type = e.proto == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
		encap = ENCAP_IPIP;
		if (read_ends(skb, at, type, &e))
			return TC_ACT_UNSPEC;
	}
	found = bpf_map_lookup_elem(&neighbours, &e.dst);
	if (!found || found->peer != cfg->self)
		return TC_ACT_UNSPEC;
	get_mac(&dst, found->mac);
	found = bpf_map_lookup_elem(&neighbours, &e.src);
	if (!found)
		return TC_ACT_UNSPEC;
	get_mac(&src, found->mac);
	id = found->peer;
	p = get_peer(id);
	if (!id || id == cfg->self || !p || !(p->flags & PEER_PLAIN) || p->ifindex != skb->ifindex || (r && r->peer != id))
		return TC_ACT_UNSPEC;
	if (!leased(cfg))
		return drop(DROP_EXPIRED);
	verdict = plain_probe(skb, cfg, id, p, encap, at, type, &e);
	if (verdict != TC_ACT_UNSPEC)
		return verdict;

	len = skb->len;
	if (encap == ENCAP_IPIP) {
		verdict = unwrap(skb, sizeof(struct iphdr), type);
		if (verdict)
			return verdict;
		len -= sizeof(struct iphdr);
		if ((tos & ECN_MASK) == ECN_CE && !bpf_skb_ecn_set_ce(skb))
			return drop(DROP_CONGESTION);
	}
	eth = header(skb);
	if (!eth)
		return drop(DROP_REDIRECT);
	__builtin_memcpy(eth->h_dest, dst.addr, 6);
	__builtin_memcpy(eth->h_source, src.addr, 6);
	eth->h_proto = type;

	s = bpf_map_lookup_elem(&macs, &src);
	if (!s || s->peer != id)
		seen_at(&src, id, 0, s);
	if (s && s->peer == id) {
		touch(s);
		count_tx(s, n, len);
	}
	d = bpf_map_lookup_elem(&macs, &dst);
	if (d && d->peer == cfg->self) {
		count_rx(d, n, len);
		if (cfg->flags & CONFIG_EXPRESS && d->flags & MAC_EXPRESS)
			ifindex = d->ifindex;
	}
	t = bpf_map_lookup_elem(&traffic, &id);
	if (t) {
		t->rx_packets += n;
		t->rx_bytes += len;
	}
	return ifindex ? bpf_redirect_peer(ifindex, 0) : bpf_redirect(cfg->port, BPF_F_INGRESS);
}

#endif
