package router

import (
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/mac"
	"github.com/weft-net/weft/router/offload"
)

// Kinds of links.
const (
	Sleeve = "sleeve" // encrypted UDP in user space
	Fastdp = "fastdp" // VXLAN in the kernel
)

// LinkStatus is the status of a link at one moment.
type LinkStatus struct {
	Peer    peer.Name      `json:"peer"`
	Addr    netip.AddrPort `json:"addr"` // of the peer, if known
	Dialled bool           `json:"dialled"`
	State   link.State     `json:"state"`
	Reason  string         `json:"reason,omitempty"` // why not established, not fast or not express
	Kind    string         `json:"kind"`             // Sleeve or Fastdp
	Express bool           `json:"express"`          // Fastdp that bypasses the bridge
	Clear   bool           `json:"clear"`            // frames are not encrypted
	// Encaps are the encapsulations of packets of IPv4 and IPv6 between known addresses of containers,
	// like "none"; empty without Fastdp. EncapReason says why they are not better.
	Encaps      [2]string `json:"encaps"`
	EncapReason string    `json:"encap_reason,omitempty"`
	Cipher      string    `json:"cipher,omitempty"` // once keys are agreed
	// MTU is the largest IP packet of a container that reaches the peer's host
	// unfragmented, in bytes; 0 if the link is not established.
	MTU int           `json:"mtu"`
	RTT time.Duration `json:"rtt_ns"`

	// Packets and bytes of UDP payload, and frames of containers.
	TxPackets uint64 `json:"tx_packets"`
	TxBytes   uint64 `json:"tx_bytes"`
	TxFrames  uint64 `json:"tx_frames"`
	RxPackets uint64 `json:"rx_packets"`
	RxBytes   uint64 `json:"rx_bytes"`
	RxFrames  uint64 `json:"rx_frames"`
	// Drops by reason, without zeros.
	Drops map[string]uint64 `json:"drops,omitempty"`
}

// FDBEntry is an entry of the MAC table.
type FDBEntry struct {
	mac.Entry
	// Frames from and to the address that the kernel forwarded, and their bytes.
	TxPackets, TxBytes uint64 // from it
	RxPackets, RxBytes uint64 // to it
}

// Status is the status of the router at one moment.
type Status struct {
	Addr  netip.AddrPort `json:"addr"` // where it listens
	Links []LinkStatus   `json:"links"`
	// TAPOffloads and UDPOffloads say in words which offloads are on.
	TAPOffloads string `json:"tap_offloads"`
	UDPOffloads string `json:"udp_offloads"`
	// LinksLost counts established links that went down since the start.
	LinksLost uint64 `json:"links_lost"`
	// Frames from and to the containers of this host.
	TAPIn  uint64 `json:"tap_in"`
	TAPOut uint64 `json:"tap_out"`
	// GSO packets among them.
	TAPGSOIn  uint64 `json:"tap_super_in"`
	TAPGSOOut uint64 `json:"tap_super_out"`
	// Drops by reason of frames and packets that belong to no link, without zeros.
	Drops map[string]uint64 `json:"drops,omitempty"`
	MACs  mac.Stats         `json:"macs"`
	// Neighbours counts requests for MAC addresses.
	Neighbours NeighbourStatus `json:"neighbours"`
	// Groups is about multicast.
	Groups GroupStatus `json:"groups"`
	// Queue is the number of events that wait for the control goroutine, and
	// QueueCap its bound.
	Queue    int `json:"queue"`
	QueueCap int `json:"queue_cap"`
}

// Status reads counters and states. It never waits.
func (r *Router) Status() Status {
	s := Status{
		Addr: r.LocalAddr(), LinksLost: r.linksLost.Load(), TAPIn: r.tapIn.Load(), TAPOut: r.tapOut.Load(),
		TAPGSOIn: r.tapGSOIn.Load(), TAPGSOOut: r.tapGSOOut.Load(),
		TAPOffloads: r.tapOffloads(), UDPOffloads: r.udpOffloads(),
		Drops: r.drops.counts(), MACs: r.macs.Stats(), Neighbours: r.neighbourStatus(), Groups: r.groups.status(time.Now()), Queue: len(r.events), QueueCap: cap(r.events),
	}
	for _, l := range *r.byName.Load() {
		s.Links = append(s.Links, r.describe(l))
	}
	slices.SortFunc(s.Links, func(a, b LinkStatus) int { return a.Peer.Compare(b.Peer) })
	return s
}

func (r *Router) tapOffloads() string {
	if r.cfg.NoTAPOffload {
		return "switched off"
	}
	s := r.queues[0].Offloads().String()
	for _, k := range []offload.Kind{offload.TCP4, offload.UDP} {
		if r.refused[k].Load() {
			s += "; no " + k.String() + " GSO packets to containers, the kernel refuses them"
		}
	}
	return s
}

func (r *Router) udpOffloads() string {
	if r.cfg.NoUDPOffload {
		return "switched off"
	}
	if c, ok := r.conn.(interface{ Offloads() string }); ok {
		return c.Offloads()
	}
	return "none"
}

// Link returns the status of the link to a neighbour; false if there is none.
func (r *Router) Link(name peer.Name) (LinkStatus, bool) {
	l, ok := (*r.byName.Load())[name]
	if !ok {
		return LinkStatus{}, false
	}
	return r.describe(l), true
}

func (r *Router) describe(l *sleeve) LinkStatus {
	s := LinkStatus{
		Peer: l.peer, Dialled: l.dialled, Kind: Sleeve,
		TxPackets: l.txPackets.Load(), TxBytes: l.txBytes.Load(), TxFrames: l.txFrames.Load(),
		RxPackets: l.rxPackets.Load(), RxBytes: l.rxBytes.Load(), RxFrames: l.rxFrames.Load(),
		Drops: l.drops.counts(),
	}
	if m := l.status.Load(); m != nil {
		s.Addr, s.State, s.Reason, s.Cipher, s.MTU, s.RTT = m.addr, m.state, m.reason, m.suite, m.mtu, m.rtt
	}
	if f, ok := r.fast.Link(l.peer); ok && s.State == link.Established {
		if s.Reason = ""; f.Reason != nil {
			s.Reason = f.Reason.Error()
		}
		if f.EncapReason != nil {
			s.EncapReason = f.EncapReason.Error()
		}
		if f.Up || f.Plain() {
			s.Kind, s.Express, s.Clear, s.RTT = Fastdp, f.Mode == fastpath.Express, !f.Encrypted, f.RTT
			s.MTU = max(s.MTU, f.MTU)
			s.Encaps = [2]string{f.Encaps[plan.V4].String(), f.Encaps[plan.V6].String()}
		}
	}
	return s
}

// FDB returns about limit entries of the MAC table at most, ordered by address, and the
// number of the others. If there are more, each peer has the same share.
func (r *Router) FDB(limit int) (all []FDBEntry, omitted int) {
	inKernel := r.fast.FDB()
	boot := time.Duration(kernel.BootTime())
	some, omitted := r.macs.Some(r.since(), limit)
	for _, e := range some {
		s := FDBEntry{Entry: e}
		if k, ok := inKernel[e.MAC]; ok {
			s.TxPackets, s.TxBytes, s.RxPackets, s.RxBytes = k.TxPackets, k.TxBytes, k.RxPackets, k.RxBytes
			s.Age = min(s.Age, max(0, boot-time.Duration(k.Seen)))
		}
		all = append(all, s)
	}
	return all, omitted
}

// Kept returns the paths of the kernel to neighbours whose routers are away.
func (r *Router) Kept() map[peer.Name]fastpath.KeptPath { return r.fast.Kept() }

// Fast returns the status of the fast path.
func (r *Router) Fast() fastpath.Status {
	routes := r.fib.Load().routes
	return r.fast.Status(routes.ShortIDs, routes.Unicast)
}
