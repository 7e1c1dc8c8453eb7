package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/dial"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/link"
)

// Limits of a report with all lists. Peers and names cost those who make them up nothing, so
// a report says how many entries it leaves out, and has a size of some ten megabytes at most.
const (
	maxListed = 1 << 14 // peers, routes to peers
	maxLinks  = 200_000 // of all peers together; a mesh of 1,000 peers with 200 links each
	minLinks  = 16      // of one peer
	maxNames  = 1 << 16 // DNS entries, ranges of addresses, bindings
	maxMACs   = 1 << 14 // FDB entries
	maxShort  = 1 << 12 // attempts at connections, owners of addresses: every report has them
)

// listed returns the first limit elements of list, and notes in r how many it leaves out.
func listed[T any](r *api.Report, name string, list []T, limit int) []T {
	if len(list) <= limit {
		return list
	}
	omit(r, name, len(list)-limit)
	return list[:limit]
}

// limit returns the limit of a list, 0 if it is not among lists.
func limit(lists, list api.Lists, limit int) int {
	if !lists.Has(list) {
		return 0
	}
	return limit
}

// omit notes that n entries of a list are left out.
func omit(r *api.Report, name string, n int) {
	if n == 0 {
		return
	}
	if r.Omitted == nil {
		r.Omitted = make(map[string]int)
	}
	r.Omitted[name] += n
}

// Report implements node.
func (h *host) Report(ctx context.Context, r *api.Report, lists api.Lists) error {
	ms, rs := h.mesh.Status(), h.router.Status()
	now := time.Now()
	r.Router = api.Router{
		Protocol: "weft", ProtocolMinVersion: int(ms.ProtocolMin), ProtocolMaxVersion: int(ms.ProtocolMax),
		Name: ms.Name.String(), NickName: ms.Nickname, Port: int(ms.Port), Encryption: ms.Authenticated,
		PeerDiscovery: ms.Discover, ConnLimit: ms.ConnLimit, Interface: h.config.Bridge, MTU: h.config.MTU,
		TrustedSubnets: h.config.Fast.Trusted, TerminationCount: ms.Terminations,
		HandshakeFailures: ms.HandshakeFailures, MeshRefused: meshRefused(ms), Drops: rs.Drops,
		Offloads: map[string]string{"tap": rs.TAPOffloads, "udp": rs.UDPOffloads},
		Queues: []api.Queue{
			{Name: "router-control", Depth: rs.Queue, Limit: rs.QueueCap, Drops: rs.Drops[router.DropBusy.String()]},
			{Name: "gossip", Depth: ms.Gossip.QueuedDeltas, Limit: ms.Gossip.MaxQueue, Drops: ms.Gossip.Dropped},
			{Name: "topology", Depth: ms.Topology.Cost, Limit: ms.Topology.MaxCost, Drops: ms.Topology.NoPlace},
			{Name: "topology-waiting", Depth: ms.Topology.Waiting, Limit: ms.Topology.MaxWaiting, Drops: ms.Topology.WaitDropped},
			sessionQueue(ms),
			{Name: "relayed-keys", Depth: ms.Wanted, Limit: ms.MaxWanted, Drops: ms.Unwanted},
		},
	}
	h.records(&r.Router)
	h.connections(&r.Router, ms, rs, now)
	r.Router.Connections = listed(r, "Connections", r.Router.Connections, len(ms.Sessions)+maxShort)
	if err := h.peers(ctx, r, ms, lists); err != nil {
		return err
	}
	h.relayed(r, lists)
	macs, omitted := h.router.FDB(limit(lists, api.ListMACs, maxMACs))
	omit(r, "MACs", omitted)
	r.Router.MACTable = api.MACTable{Entries: rs.MACs.Entries, Moves: rs.MACs.Moves, Refused: rs.MACs.Refused, Elsewhere: rs.MACs.Elsewhere}
	r.Router.Neighbours = api.Neighbours(rs.Neighbours)
	for _, e := range macs {
		r.Router.MACs = append(r.Router.MACs, api.MAC{
			MAC: e.MAC.String(), Name: e.Peer.String(), NickName: h.mesh.View().Nickname(e.Peer), LastSeen: now.Add(-e.Age),
			TxPackets: e.TxPackets, RxPackets: e.RxPackets, TxBytes: e.TxBytes, RxBytes: e.RxBytes,
		})
	}
	h.fastdp(&r.Router)
	h.bindings.report(r, lists, h.mesh.View().Nickname)
	h.groups.report(r, lists, rs.Groups, h.mesh.View().Nickname)
	if r.DNS = h.discovery(r, lists); ctx.Err() != nil {
		return ctx.Err()
	}
	// Each report makes its own warnings. How each of them ends:
	//
	//	this host is banned          the voters decide so; or, if that decision did not arrive, it reaches
	//	                             the peers that refuse it again; a day after the last refusal
	//	a session was refused        there is a session with that peer or address; the ban that was
	//	                             the reason ends; ten minutes after the last time
	//	gossip or entries refused    the neighbour is banned; a minute after the last time, as gossip that
	//	                             is still wrong comes again sooner
	//	another ring                 its peers follow; two minutes after it was last seen
	//	another address range        a minute after it was last heard of, as peers compare more often
	//	spoofing, full tables        ten minutes, an hour after the last time
	//	conflicts, disk, DNS, Docker, the kernel, passwords, connection limit, lost state
	//	                             they are states, and end with those
	//	files set aside at the start  when the router starts again
	//
	// Those that end some time after the last time say how long ago that was.
	states, decided := make([]ipam.Status, len(h.allocators)), false
	for i, a := range h.allocators {
		states[i] = a.Status()
		decided = decided || states[i].Out
	}
	if decided || len(ms.BannedBy) > 0 {
		r.Router.Banned = banned(ms.Name, decided, ms.BannedBy, now)
		r.Warnings = append(r.Warnings, r.Router.Banned)
	}
	for _, p := range ms.Problems {
		r.Warnings = append(r.Warnings, fmt.Sprintf("%s (%s, last %s ago)", p.Text, count.Of(p.Count, "time", "times"), age(p.Last, now)))
	}
	if n := unlinked(ms); n > 0 && ms.ConnLimit > 0 && len(ms.Sessions) >= ms.ConnLimit {
		r.Warnings = append(r.Warnings, fmt.Sprintf("the connection limit of %d is reached: %s reached over other peers", ms.ConnLimit, count.Of(n, "peer is", "peers are")))
	}
	for i, a := range h.allocators {
		s := states[i]
		if u := h.addrRange(r, s, lists); a.Range().Addr().Is4() {
			r.IPAM = u
		} else {
			r.IPAM6 = u
		}
		r.Warnings = append(r.Warnings, h.allocatorWarnings(s, r.Router.Banned != "", now)...)
	}
	r.Warnings = append(r.Warnings, h.rotationWarnings()...)
	r.Warnings = append(append(r.Warnings, h.notes...), h.lostWarnings()...)
	return ctx.Err()
}

// sessionQueue sums up the queues to all neighbours.
func sessionQueue(ms mesh.Status) api.Queue {
	q := api.Queue{Name: "session", Drops: ms.UnicastDrops}
	for _, s := range ms.Sessions {
		q.Depth += s.Queued
		q.Limit += mesh.MaxControl
		q.Drops += s.Dropped
	}
	return q
}

// unlinked counts the peers that are reached over other peers.
func unlinked(ms mesh.Status) (n int) {
	for _, p := range ms.Peers {
		if p.Reachable && p.Name != ms.Name && !slices.ContainsFunc(ms.Sessions, func(s mesh.SessionStatus) bool { return s.Peer == p.Name }) {
			n++
		}
	}
	return n
}

// connections lists a line for each session with its link, and for each
// attempt at one.
func (h *host) connections(out *api.Router, ms mesh.Status, rs router.Status, now time.Time) {
	links := make(map[peer.Name]router.LinkStatus)
	for _, l := range rs.Links {
		links[l.Peer] = l
	}
	for _, s := range ms.Sessions {
		if s.Relayed && links[s.Peer].State != link.Established {
			continue // only for the keys of relayed frames
		}
		c := api.Connection{
			Address: s.Addr, Outbound: s.Dialled, State: api.StatePending, Name: s.Peer.String(), NickName: s.Nickname,
			Encrypted: true, RTT: s.RTT, Info: "waiting for the link",
		}
		if l, ok := links[s.Peer]; ok {
			c.Kind, c.MTU, c.Express = l.Kind, l.MTU, l.Express
			c.Encrypted = !l.Clear
			c.Encap = encapText(l.Encaps)
			c.Counters = api.Counters{RxPackets: l.RxPackets, TxPackets: l.TxPackets, RxBytes: l.RxBytes, TxBytes: l.TxBytes, Drops: l.Drops}
			c.Info = l.Reason
			if l.State == link.Established {
				c.State, c.RTT, c.Info = api.StateEstablished, l.RTT, h.degradedReason(l)
			}
			if s.Relayed {
				c.Address = l.Addr.String()
				c.Info = "no session of its own, control over other peers; " + c.Info
			}
		}
		out.Connections = append(out.Connections, c)
	}
	kept := h.router.Kept()
	for _, k := range ms.Candidates {
		if k.State == dial.Connected || slices.ContainsFunc(ms.Sessions, func(s mesh.SessionStatus) bool { return s.Peer == k.Peer }) {
			continue
		}
		c := api.Connection{Address: cmp.Or(k.Target, k.Addr), Outbound: true, State: api.StateConnecting}
		if !k.Peer.IsZero() {
			c.Name, c.NickName = k.Peer.String(), h.mesh.View().Nickname(k.Peer)
		}
		switch k.State {
		case dial.Itself:
			c.State, c.Info = api.StateFailed, "this is the host itself"
		case dial.Waiting:
			c.State, c.Info = api.StateRetrying, whyWaiting(k, now)
			if r := (*session.Refusal)(nil); errors.As(k.Err, &r) {
				c.State = api.StateFailed
			}
		}
		if p, ok := kept[k.Peer]; ok {
			c.Info = strings.TrimPrefix(c.Info+"; "+whileAway(p, now), "; ")
			delete(kept, k.Peer)
		}
		out.Connections = append(out.Connections, c)
	}
	for _, n := range slices.SortedFunc(maps.Keys(kept), peer.Name.Compare) {
		if slices.ContainsFunc(ms.Sessions, func(s mesh.SessionStatus) bool { return s.Peer == n }) {
			continue // it has just come back
		}
		p := kept[n]
		out.Connections = append(out.Connections, api.Connection{
			Address: p.Addr.String(), State: api.StateAway, Name: n.String(), NickName: h.mesh.View().Nickname(n),
			Info: "not dialled now; " + whileAway(p, now),
		})
	}
}

// whileAway says how long frames still use the fast datapath to a peer without a session.
func whileAway(p fastpath.KeptPath, now time.Time) string {
	return fmt.Sprintf("its router is away, fastdp goes on for %v", max(0, p.Until.Sub(now).Round(time.Second)))
}

// relayed lists the peers without a direct link, and who can read the frames to them.
func (h *host) relayed(r *api.Report, lists api.Lists) {
	out, v := &r.Router, h.mesh.View()
	for _, s := range listed(r, "Relayed", h.router.Relayed(), limit(lists, api.ListRelayed, maxListed)) {
		p := api.RelayedPeer{
			Name: s.Peer.String(), NickName: v.Nickname(s.Peer), Via: s.Via.String(), ViaNickName: v.Nickname(s.Via),
			Sealed: s.Cipher != "",
		}
		switch {
		case !out.Encryption:
			p.Info = "relays can read frames, as there is no password"
		case p.Sealed:
			p.Info = s.Cipher
		case s.Wanted:
			p.Info = "frames wait for keys, and are dropped after a second"
		default:
			p.Info = "keys are agreed when the first frame is sent"
		}
		out.Relayed = append(out.Relayed, p)
	}
}

func whyWaiting(k dial.Candidate, now time.Time) string {
	wait := max(0, k.Retry.Sub(now).Round(time.Second))
	if k.Err == nil {
		return fmt.Sprintf("dialled in %v", wait)
	}
	return fmt.Sprintf("%v; tried again in %v", k.Err, wait)
}

// fastdp fills in the counters of the kernel.
func (h *host) fastdp(out *api.Router) {
	s := h.router.Fast()
	out.Flows = s.MACs
	out.Fastdp = api.Fastdp{Drops: s.Drops}
	if s.Mode == fastpath.Unsupported {
		out.Fastdp.Off = s.Reason.Error()
	}
	for n, t := range s.Peers {
		out.Fastdp.Peers = append(out.Fastdp.Peers, api.FastdpPeer{
			Name: n.String(), NickName: h.mesh.View().Nickname(n), RxPackets: t.RxPackets, TxPackets: t.TxPackets,
			RxBytes: t.RxBytes, TxBytes: t.TxBytes, RelayedPackets: t.RelayedPackets, RelayedBytes: t.RelayedBytes,
		})
	}
	slices.SortFunc(out.Fastdp.Peers, func(a, b api.FastdpPeer) int { return cmp.Compare(a.Name, b.Name) })
}

// encapText returns the encapsulation of IP packets, or those of IPv4 and IPv6.
func encapText(e [2]string) string {
	if e[0] == e[1] {
		return e[0]
	}
	return e[0] + "/" + e[1]
}

// degradedReason returns why an established link does not use the fastest mode and the best encapsulation, "" if
// it does.
func (h *host) degradedReason(l router.LinkStatus) string {
	why := h.degradedMode(l)
	if l.EncapReason == "" {
		return why
	}
	return strings.TrimPrefix(why+"; no better encap: "+l.EncapReason, "; ")
}

func (h *host) degradedMode(l router.LinkStatus) string {
	switch {
	case l.Kind == router.Fastdp && l.Express:
		return ""
	case l.Kind == router.Fastdp:
		return "no express: " + l.Reason
	case l.MTU > 0 && l.MTU < h.config.MTU:
		return fmt.Sprintf("no fastdp: %s; the path MTU is smaller than the container MTU, so packets over %d bytes are fragmented", l.Reason, l.MTU)
	}
	return "no fastdp: " + l.Reason
}

// peers fills in the peers and the routes.
func (h *host) peers(ctx context.Context, r *api.Report, ms mesh.Status, lists api.Lists) error {
	v := h.mesh.View()
	routes := v.Routes()
	text := newPeerTexts(v.Nickname)
	r.Router.PeerConnections = countLinks(ms.Peers)
	if !lists.Has(api.ListPeers) {
		omit(r, "Peers", len(ms.Peers))
	} else if err := listPeers(ctx, r, ms, routes.ShortIDs, text); err != nil {
		return err
	}
	if !lists.Has(api.ListRoutes) {
		omit(r, "UnicastRoutes", len(routes.Unicast))
		omit(r, "BroadcastRoutes", len(routes.Broadcast))
		return nil
	}
	dests := slices.SortedFunc(maps.Keys(routes.Unicast), peer.Name.Compare)
	for _, dst := range listed(r, "UnicastRoutes", dests, maxListed) {
		r.Router.UnicastRoutes = append(r.Router.UnicastRoutes, api.UnicastRoute{Dest: text.of(dst).name, Via: text.of(routes.Unicast[dst]).name})
	}
	return listBroadcast(ctx, r, routes.Broadcast, text)
}

// countLinks counts the links that peers announce.
func countLinks(peers []mesh.PeerStatus) (n api.PeerConnections) {
	for _, p := range peers {
		for _, l := range p.Links {
			if l.Flags&topology.LinkData != 0 {
				n.Established++
			} else {
				n.Pending++
			}
		}
	}
	return n
}

// listPeers fills in the peers with their connections: all of this peer's, and as many of
// the others' as the limits allow.
func listPeers(ctx context.Context, r *api.Report, ms mesh.Status, shortIDs map[peer.Name]uint16, text *peerTexts) error {
	sessions := make(map[peer.Name]mesh.SessionStatus, len(ms.Sessions))
	for _, s := range ms.Sessions {
		sessions[s.Peer] = s
	}
	peers := listed(r, "Peers", ms.Peers, maxListed)
	each := max(minLinks, maxLinks/max(1, len(peers)))
	r.Router.Peers = make([]api.Peer, 0, len(peers))
	for _, p := range peers {
		if err := ctx.Err(); err != nil {
			return err
		}
		links := p.Links
		if p.Name != ms.Name {
			links = links[:min(len(links), each)]
		}
		e := api.Peer{
			Name: p.Name.String(), NickName: p.Nickname, Version: p.Version, ShortID: shortIDs[p.Name],
			OmittedConnections: len(p.Links) - len(links), Connections: make([]api.PeerConnection, 0, len(links)),
		}
		for _, l := range links {
			to := text.of(l.To)
			c := api.PeerConnection{Name: to.name, NickName: to.nick, Established: l.Flags&topology.LinkData != 0}
			if p.Name == ms.Name {
				c.Address, c.Outbound = sessions[l.To].Addr, sessions[l.To].Dialled
			}
			e.Connections = append(e.Connections, c)
		}
		r.Router.Peers = append(r.Router.Peers, e)
	}
	return nil
}

// listBroadcast fills in the broadcast routes, with maxLinks next hops in all.
func listBroadcast(ctx context.Context, r *api.Report, routes map[peer.Name][]peer.Name, text *peerTexts) error {
	left := maxLinks
	for _, src := range slices.SortedFunc(maps.Keys(routes), peer.Name.Compare) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if left -= len(routes[src]); left < 0 {
			omit(r, "BroadcastRoutes", len(routes)-len(r.Router.BroadcastRoutes))
			return nil
		}
		b := api.BroadcastRoute{Source: text.of(src).name}
		for _, n := range routes[src] {
			b.Via = append(b.Via, text.of(n).name)
		}
		r.Router.BroadcastRoutes = append(r.Router.BroadcastRoutes, b)
	}
	return nil
}

// peerTexts holds the text of each peer's name once: in a report most names occur many times.
type peerTexts struct {
	nickname func(peer.Name) string
	known    map[peer.Name]peerText
}

type peerText struct{ name, nick string }

func newPeerTexts(nickname func(peer.Name) string) *peerTexts {
	return &peerTexts{nickname, make(map[peer.Name]peerText)}
}

func (t *peerTexts) of(n peer.Name) peerText {
	known, ok := t.known[n]
	if !ok {
		known = peerText{n.String(), t.nickname(n)}
		t.known[n] = known
	}
	return known
}

// addrRange converts an allocator's status for the API.
func (h *host) addrRange(r *api.Report, s ipam.Status, lists api.Lists) *api.IPAM {
	u := &api.IPAM{
		Status: stateOf(s.State, r.Router.Banned != ""), Range: s.Range, RangeNumIPs: s.Max.Float(), ActiveIPs: int(s.Used), DefaultSubnet: s.Default,
		PendingAllocates: []string{}, PendingClaims: []string{},
	}
	v := h.mesh.View()
	name := s.Range.String()
	for _, e := range listed(r, name+" Entries", s.Entries, limit(lists, api.ListRing, maxNames)) {
		u.Entries = append(u.Entries, api.RingEntry{
			Token: e.Range.First, Size: e.Range.Size().Float(), Peer: e.Owner.Name.String(),
			NickName: v.Nickname(e.Owner.Name), Since: e.Since,
		})
	}
	for _, o := range listed(r, name+" Owners", s.Owners, maxShort) {
		u.Owners = append(u.Owners, api.Owner{
			Peer: o.Name.String(), NickName: cmp.Or(o.Nickname, v.Nickname(o.Name)), NumIPs: o.Addresses.Float(),
			Active: o.Active, Reachable: !o.Unreachable,
		})
	}
	u.Decisions, u.Quorum = s.Slot, s.Quorum
	for _, p := range s.Voters {
		u.Voters = append(u.Voters, api.Voter{Peer: p.Name.String(), NickName: cmp.Or(p.Nickname, v.Nickname(p.Name)), Reachable: p.Present})
	}
	for _, n := range s.Banned {
		u.Banned = append(u.Banned, h.describe(n))
	}
	for _, p := range listed(r, name+" Votes", s.Votes, maxListed) {
		u.Votes = append(u.Votes, h.vote(p))
	}
	for _, k := range listed(r, name+" Kept", s.Kept, maxListed) {
		u.Kept = append(u.Kept, api.KeptIPs{Peer: k.Name.String(), NickName: cmp.Or(k.Nickname, v.Nickname(k.Name)),
			NumIPs: k.Addresses.Float(), Until: k.Until, Open: k.Open})
	}
	for _, c := range listed(r, name+" Conflicts", s.Conflicts, maxListed) {
		u.Conflicts = append(u.Conflicts, api.Conflict{Address: c.Address, Owner: c.Owner, Peer: c.Peer.String(), NickName: v.Nickname(c.Peer), InUse: c.InUse})
	}
	for _, id := range s.LeftRings {
		u.LeftRings = append(u.LeftRings, id.String())
	}
	for i := range s.PendingAllocates {
		u.PendingAllocates = append(u.PendingAllocates, why(s.Waiting, i))
	}
	for i := range s.PendingClaims {
		u.PendingClaims = append(u.PendingClaims, why(s.Waiting, i))
	}
	return u
}

// vote converts a vote for the API.
func (h *host) vote(v ipam.Vote) api.Vote {
	nickname := h.mesh.View().Nickname
	voters := func(vs []ipam.Voter) (out []api.Voter) {
		for _, p := range vs {
			out = append(out, api.Voter{Peer: p.Name.String(), NickName: cmp.Or(p.Nickname, nickname(p.Name)), Reachable: p.Present})
		}
		return out
	}
	out := api.Vote{For: voters(v.For), Missing: voters(v.Missing), Needed: v.Needed, Until: v.Until, Waits: v.Waits,
		Decided: v.Decided, TakenBack: v.TakenBack}
	switch v.Kind {
	case ring.Ban:
		out.Kind = api.VoteBan
	case ring.Unban:
		out.Kind = api.VoteUnban
	case ring.Remove:
		out.Kind = api.VoteRemoval
	case ring.Adopt:
		out.Kind, out.Ring = api.VoteAdopt, v.Ring.String()
	default:
		panic("no operator votes on a " + v.Kind.String())
	}
	if out.Ring == "" {
		out.Peer, out.NickName = v.Peer.String(), cmp.Or(v.Nickname, nickname(v.Peer))
	}
	return out
}

// why returns the reason for which the i-th request waits: equal reasons are listed
// once.
func why(reasons []string, i int) string {
	if len(reasons) == 0 {
		return ""
	}
	return reasons[min(i, len(reasons)-1)]
}

// stateOf returns the state of an allocator. An allocator does not know that its peer is banned.
func stateOf(state string, banned bool) string {
	const out = "banned from the mesh"
	switch {
	case !banned:
		return state
	case state == "ready":
		return out
	}
	return out + "; " + state
}

// maxBannedBy bounds the peers that the sentence on a ban names.
const maxBannedBy = 5

// banned says that this peer is banned and how it knows, what still works, and what to do. If
// decided is set it has the decision of the voters, by which its addresses belong to others. Its
// nickname stands for nobody on the other hosts, so it names the peer.
func banned(self peer.Name, decided bool, by []mesh.BannedBy, now time.Time) string {
	var last time.Time
	var names []string
	for i, b := range by {
		if b.Last.After(last) {
			last = b.Last
		}
		if i < maxBannedBy {
			names = append(names, b.Name.With(b.Nickname))
		}
	}
	if n := len(by) - maxBannedBy; n > 0 {
		names = append(names, count.Of(n, "other", "others"))
	}
	var know []string
	if decided {
		know = append(know, "the voters decided it")
	}
	if len(by) > 0 {
		know = append(know, fmt.Sprintf("%s %s its sessions with that reason, last %s ago",
			strings.Join(names, ", "), count.Form(len(by), "refuses", "refuse"), age(last, now)))
	}
	works := "Its containers keep their addresses and reach each other, but no container of another host"
	if decided {
		works += "; new containers get no address of the range"
	}
	return fmt.Sprintf("this host is banned from the mesh: %s. %s. To let it in again, operators on as many other hosts as must agree run: weft unban %s",
		strings.Join(know, "; "), works, self)
}

// age returns how long ago a time was, in seconds, for people.
func age(t, now time.Time) time.Duration { return max(0, now.Sub(t).Round(time.Second)) }

func (h *host) allocatorWarnings(s ipam.Status, banned bool, now time.Time) (w []string) {
	for _, d := range s.Divergent {
		w = append(w, fmt.Sprintf("%s (last seen %s ago)", d, age(d.Seen, now)))
	}
	for _, r := range s.OtherRanges {
		w = append(w, fmt.Sprintf("other peers of this mesh have the address range %s, and this one has %s, so they share no addresses: launch all with the same --ipalloc-range", r, s.Range))
	}
	for _, c := range s.Conflicts {
		text := fmt.Sprintf("address %s is in use here by %s and belongs to %s", c.Address, api.DescribeOwner(c.Owner), h.describe(c.Peer))
		if c.Away && !banned { // else it is this host that is out
			text += ", which is away; if that is an old name of this host, or a host that is dead for good, remove it with weft rmpeer"
		}
		w = append(w, text)
	}
	if s.Unheard != "" {
		w = append(w, s.Unheard)
	}
	if s.DiskErr != nil {
		w = append(w, "addresses cannot be written to disk, so none are given: "+s.DiskErr.Error())
	}
	return w
}

// records fills in the limits of replicated records and what was refused of them.
func (h *host) records(out *api.Router) {
	for _, use := range []struct {
		name  string
		stats records.Stats
	}{{"names", h.names.RecordStats()}, {"passwords", h.passwords.RecordStats()}, {"bindings", h.bindings.Stats()}, {"groups", h.groups.Stats()}} {
		s := use.stats
		out.Queues = append(out.Queues,
			api.Queue{Name: use.name, Depth: s.Bytes, Limit: s.MaxBytes, Drops: s.Dropped},
			api.Queue{Name: use.name + "-waiting", Depth: s.Waiting, Limit: s.MaxWaiting, Drops: s.WaitDropped})
		for reason, n := range s.Refused {
			out.MeshRefused[use.name+"-"+reason] = n
		}
	}
}

// meshRefused returns what the mesh refused, by reason.
func meshRefused(s mesh.Status) map[string]uint64 {
	return map[string]uint64{
		"too-many-entries":      s.Topology.Unverified,
		"entry-of-the-future":   s.Topology.Ahead,
		"message":               s.UnicastDrops,
		"message-not-proved":    s.Unproved,
		"session-misbehaved":    s.Misbehaved,
		"session-made-room":     s.Evicted,
		"gossip-not-understood": s.Gossip.Refused,
	}
}
