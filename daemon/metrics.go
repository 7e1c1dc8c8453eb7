package daemon

import (
	"cmp"
	"context"
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/render"
)

// family are the metrics of one name.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// Names and labels of metrics are those of Weave Net with its name replaced, if it has
// such a metric, so that dashboards need only new names.
var (
	connections    = gauge("connections", "Connections to other peers.", "state", "type", "encryption")
	terminations   = counter("connection_terminations_total", "Sessions with other peers that ended.")
	ips            = gauge("ips", "Addresses in use on this host.", "state")
	maxIPs         = gauge("max_ips", "Size of the address range.")
	unreachable    = gauge("ipam_unreachable_count", "Addresses owned by peers that cannot be reached.")
	unreachablePct = gauge("ipam_unreachable_percentage", "Share of the address range owned by peers that cannot be reached, 0 to 100.")
	pendingAlloc   = gauge("ipam_pending_allocates", "Allocations that are waiting.")
	pendingClaims  = gauge("ipam_pending_claims", "Claims that are waiting.")
	flows          = gauge("flows", "MAC addresses of other hosts in the fast datapath.")
	fastdpBytes    = counter("fastdp_bytes_total", "Bytes of frames that the fast datapath carried, by the peer at the other end.", "peer", "direction")
	fastdpPackets  = counter("fastdp_packets_total", "Frames that the fast datapath carried, by the peer at the other end.", "peer", "direction")
	fastdpDrops    = counter("fastdp_drops_total", "Frames that the fast datapath dropped.", "reason")
	macs           = gauge("macs", "MAC addresses in the MAC table.")
	macMoves       = counter("mac_moves_total", "MAC addresses that were seen behind another peer than before.")
	macsRefused    = counter("macs_refused_total", "Frames whose source MAC address was not remembered because its peer has too many.")
	macsElsewhere  = counter("macs_elsewhere_total", "Frames whose source MAC address is bound to another peer, and so was not remembered.")
	requests       = counter("neighbour_requests_total", "Requests of containers for the MAC address of an IP address: answered by this host, local (for a container of this host), or flooded to all hosts.", "result")
	announced      = counter("neighbour_announcements_total", "Addresses that got another MAC address: announced to the containers of this host (sent), or not because too many did at once (dropped).", "result")
	peers          = gauge("peers", "Peers of the mesh, this one among them.")
	linkBytes      = counter("link_bytes_total", "Bytes of frames carried.", "peer", "type", "direction")
	linkPackets    = counter("link_packets_total", "Frames carried.", "peer", "type", "direction")
	linkDrops      = counter("link_drops_total", "Frames dropped on a link.", "peer", "type", "reason")
	drops          = counter("drops_total", "Frames dropped before a link was chosen.", "reason")
	queueDepth     = gauge("queue_depth", "Entries in a queue.", "queue")
	queueLimit     = gauge("queue_limit", "Capacity of a queue.", "queue")
	queueDrops     = counter("queue_drops_total", "Entries dropped because a queue was full.", "queue")
	dnsEntries     = gauge("dns_entries", "Addresses of host names that this host answers.")
	dnsUnanswered  = gauge("dns_entries_refused", "Of these, those that this host does not answer, because their peer may not name the address.")
	dnsQueries     = counter("dns_queries_total", "DNS queries of containers.", "type", "result")
	dnsRefused     = counter("dns_forwards_refused_total", "DNS queries not forwarded because too many were in flight.")
	bindingsKnown  = gauge("bindings", "MAC addresses of containers on all hosts, with the IP addresses that weft gave them.")
	bindingsOwn    = gauge("bindings_own", "Of these, those on this host.")
	bindingsDoubt  = gauge("bindings_refused", "MAC and IP addresses that a host announces as its own, and that this host does not believe to be there.")
	groupsKnown    = gauge("multicast_groups", "Multicast groups that hosts want, each counted once for each host.")
	groupsOwn      = gauge("multicast_groups_own", "Of these, those that containers of this host want.")
	groupFrames    = counter("multicast_frames_total", "Frames of containers of this host to no single host: those that went only to hosts that want their group (pruned), to none as no other host wants it (unwanted), or to all hosts (flooded).", "result")
	groupsIgnored  = counter("multicast_reports_ignored_total", "Reports of containers for more groups than are told apart.")
	refusals       = counter("mesh_refused_total", "What other peers sent and the mesh refused.", "reason")
	spoofed        = counter("spoofed_frames_total", "Frames of containers that were dropped because their addresses were not the container's.", "container", "reason")
	repairs        = counter("kernel_repairs_total", "Objects in the kernel that other software had changed and weft repaired, by kind.", "object")
	kernelFaults   = gauge("kernel_faults", "Objects in the kernel that weft cannot repair, or that other software changes again and again.", "object")
	handshakes     = counter("handshake_failures_total", "Sessions refused.", "reason")
)

func gauge(name, help string, labels ...string) family {
	return family{prometheus.NewDesc("weft_"+name, help, labels, nil), prometheus.GaugeValue}
}

func counter(name, help string, labels ...string) family {
	return family{prometheus.NewDesc("weft_"+name, help, labels, nil), prometheus.CounterValue}
}

// metricsHandler serves the metrics of one router. refusedNames counts the DNS entries that
// this host does not answer.
func metricsHandler(report func(context.Context, api.Lists) (*api.Report, error), refusedNames func(context.Context) int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		made, err := report(q.Context(), api.NoLists)
		if err != nil {
			http.Error(w, render.Text(err.Error()), http.StatusServiceUnavailable)
			return
		}
		r := prometheus.NewRegistry()
		r.MustRegister(collector{made, refusedNames(q.Context())})
		promhttp.HandlerFor(r, promhttp.HandlerOpts{}).ServeHTTP(w, q)
	})
}

// collector converts a report to metrics.
type collector struct {
	report       *api.Report
	refusedNames int
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- connections.desc }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	r := c.report
	s := newSums()
	s.add(terminations, float64(r.Router.TerminationCount))
	s.add(flows, float64(r.Router.Flows))
	s.add(macs, float64(r.Router.MACTable.Entries))
	s.add(macMoves, float64(r.Router.MACTable.Moves))
	s.add(macsRefused, float64(r.Router.MACTable.Refused))
	s.add(macsElsewhere, float64(r.Router.MACTable.Elsewhere))
	for result, n := range map[string]uint64{"answered": r.Router.Neighbours.Answered, "local": r.Router.Neighbours.Local, "flooded": r.Router.Neighbours.Flooded} {
		s.add(requests, float64(n), result)
	}
	s.add(announced, float64(r.Router.Neighbours.Announced), "sent")
	s.add(announced, float64(r.Router.Neighbours.Dropped), "dropped")
	s.add(peers, float64(len(r.Router.Peers)+r.Omitted["Peers"]))
	for _, k := range r.Router.Connections {
		s.connection(k)
	}
	for _, p := range r.Router.Fastdp.Peers {
		s.fastdp(p)
	}
	for reason, n := range r.Router.Fastdp.Drops {
		s.add(fastdpDrops, float64(n), reason)
	}
	for reason, n := range r.Router.Drops {
		s.add(drops, float64(n), reason)
	}
	for reason, n := range r.Router.HandshakeFailures {
		s.add(handshakes, float64(n), reason)
	}
	for reason, n := range r.Router.MeshRefused {
		s.add(refusals, float64(n), reason)
	}
	for _, c := range r.SpoofGuard.Containers {
		for reason, n := range c.Frames {
			s.add(spoofed, float64(n), cmp.Or(c.Name, c.ID, c.Port), reason)
		}
	}
	for kind, n := range r.Kernel.Repairs {
		s.add(repairs, float64(n), kind)
	}
	for _, f := range r.Kernel.Faults {
		s.add(kernelFaults, 1, f.Kind)
	}
	for _, q := range r.Router.Queues {
		s.add(queueDepth, float64(q.Depth), q.Name)
		s.add(queueLimit, float64(q.Limit), q.Name)
		s.add(queueDrops, float64(q.Drops), q.Name)
	}
	if d := r.DNS; d != nil {
		s.add(dnsEntries, float64(len(d.Entries)+r.Omitted["DNS.Entries"]))
		s.add(dnsUnanswered, float64(c.refusedNames))
		s.add(dnsRefused, float64(d.Refused))
		for _, q := range d.Queries {
			s.add(dnsQueries, float64(q.Count), q.Type, q.Result)
		}
	}
	s.add(bindingsKnown, float64(r.Bindings.Known))
	s.add(bindingsOwn, float64(r.Bindings.Own))
	s.add(bindingsDoubt, float64(r.Bindings.Refused))
	s.add(groupsKnown, float64(r.Multicast.Known))
	s.add(groupsOwn, float64(r.Multicast.Own))
	s.add(groupFrames, float64(r.Multicast.Pruned), "pruned")
	s.add(groupFrames, float64(r.Multicast.Unwanted), "unwanted")
	s.add(groupFrames, float64(r.Multicast.Flooded), "flooded")
	s.add(groupsIgnored, float64(r.Multicast.Ignored))
	// Weave had one range, so these metrics have no label for it, and a sum with the
	// IPv6 range would hide the IPv4 one.
	if u := r.IPAM; u != nil {
		s.ipam(u)
	} else if u := r.IPAM6; u != nil {
		s.ipam(u)
	}
	for _, m := range s.samples {
		ch <- m.metric()
	}
}

// maxSeries is the most series of one metric. Peers and reasons beyond are summed up in a
// series whose labels are all otherLabel: the number of peers is not in this host's hands.
const (
	maxSeries  = 1000
	otherLabel = "other"
)

// sums holds values by their labels, and adds those with equal labels: while both sides
// dial there are two links to one peer.
type sums struct {
	samples map[string]*sample
	count   map[*prometheus.Desc]int
}

type sample struct {
	family
	labels []string
	value  float64
}

func newSums() sums { return sums{make(map[string]*sample), make(map[*prometheus.Desc]int)} }

func (s sums) add(f family, v float64, labels ...string) {
	for i := range labels {
		labels[i] = render.Label(labels[i])
	}
	key := f.key(labels)
	if s.samples[key] == nil && s.count[f.desc] >= maxSeries {
		for i := range labels {
			labels[i] = otherLabel
		}
		key = f.key(labels)
	}
	if s.samples[key] == nil {
		s.samples[key] = &sample{family: f, labels: labels}
		s.count[f.desc]++
	}
	s.samples[key].value += v
}

func (f family) key(labels []string) string {
	return f.desc.String() + "\xff" + strings.Join(labels, "\xff") // a byte that never occurs in UTF-8
}

func (m *sample) metric() prometheus.Metric {
	metric, err := prometheus.NewConstMetric(m.desc, m.kind, m.value, m.labels...)
	if err != nil {
		return prometheus.NewInvalidMetric(m.desc, err)
	}
	return metric
}

func (s sums) connection(k api.Connection) {
	encryption := ""
	if k.Encrypted {
		encryption = "yes"
	}
	s.add(connections, 1, k.State, k.Kind, encryption)
	if k.Name == "" || k.Kind == "" {
		return // an attempt carries nothing
	}
	s.add(linkBytes, float64(k.RxBytes), k.Name, k.Kind, "rx")
	s.add(linkBytes, float64(k.TxBytes), k.Name, k.Kind, "tx")
	s.add(linkPackets, float64(k.RxPackets), k.Name, k.Kind, "rx")
	s.add(linkPackets, float64(k.TxPackets), k.Name, k.Kind, "tx")
	for reason, n := range k.Drops {
		s.add(linkDrops, float64(n), k.Name, k.Kind, reason)
	}
}

func (s sums) fastdp(p api.FastdpPeer) {
	for direction, n := range map[string][2]uint64{
		"rx": {p.RxPackets, p.RxBytes}, "tx": {p.TxPackets, p.TxBytes}, "relayed": {p.RelayedPackets, p.RelayedBytes},
	} {
		s.add(fastdpPackets, float64(n[0]), p.Name, direction)
		s.add(fastdpBytes, float64(n[1]), p.Name, direction)
	}
}

func (s sums) ipam(u *api.IPAM) {
	lost := 0.0
	for _, o := range u.Owners {
		if !o.Reachable {
			lost += o.NumIPs
		}
	}
	s.add(ips, float64(u.ActiveIPs), "local-used")
	s.add(maxIPs, u.RangeNumIPs)
	s.add(unreachable, lost)
	s.add(unreachablePct, 100*lost/max(u.RangeNumIPs, 1))
	s.add(pendingAlloc, float64(len(u.PendingAllocates)))
	s.add(pendingClaims, float64(len(u.PendingClaims)))
}
