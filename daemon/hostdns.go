package daemon

import (
	"net/netip"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// discovery converts the status of service discovery for the API, nil if it is off.
func (h *host) discovery(r *api.Report, lists api.Lists) *api.DNS {
	s := h.names.Status()
	if s.Off {
		return nil
	}
	out := &api.DNS{Domain: s.Domain, TTL: int(s.TTL), Address: h.serverFor(s.Listening), Refused: s.Busy}
	if s.Fault != "" {
		r.Warnings = append(r.Warnings, "DNS: "+s.Fault)
	}
	for _, l := range s.Listening {
		out.Listening = append(out.Listening, api.DNSListener{Place: l.Listen.String(), Addresses: l.Addrs, Fault: l.Fault, Idle: l.Idle})
	}
	for _, u := range s.Upstream {
		out.Upstream = append(out.Upstream, api.DNSUpstream{Address: u.Addr, Fault: u.Fault})
	}
	v := h.mesh.View()
	entries, omitted := h.names.Entries(limit(lists, api.ListNames, maxNames))
	omit(r, "DNS.Entries", omitted)
	for _, e := range entries {
		out.Entries = append(out.Entries, api.DNSEntry{
			Hostname: e.Name, Address: e.Addr, ContainerID: e.Container, Origin: e.Owner.String(), NickName: v.Nickname(e.Owner), Refused: e.Refused,
		})
	}
	for _, q := range s.Queries {
		out.Queries = append(out.Queries, api.DNSQueries{Type: q.Type, Result: q.Result, Count: q.Queries})
	}
	return out
}

// serverFor returns the address of the name server for containers, "" if there is
// none: the first one of the places, which are in order of preference. If the server
// listens on all addresses it is that of Docker's bridge, or else of weft's.
func (h *host) serverFor(places []dns.Listening) string {
	for _, l := range places {
		for _, a := range l.Addrs {
			if !a.Addr().IsUnspecified() {
				return a.String()
			}
			for _, iface := range []string{dns.DockerBridge, h.config.Bridge} {
				if addrs, _, _ := netdev.InterfaceAddresses(iface); len(addrs) > 0 {
					return netip.AddrPortFrom(addrs[0], a.Port()).String()
				}
			}
		}
	}
	return ""
}
