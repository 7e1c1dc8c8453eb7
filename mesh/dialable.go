package mesh

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// Members say themselves, in their signed entries, at which addresses they may be dialled.
// They may lie. So this peer dials no address that leads to itself, to services of its own
// host, or to several hosts.

// hostAddrsEvery is how often the addresses of this host are read again.
const hostAddrsEvery = 30 * time.Second

// hostAddrs are the addresses of this host. It is used by the goroutine of the topology.
type hostAddrs struct {
	own      map[netip.Addr]bool // also the broadcast addresses of its networks
	readNext time.Time
}

// read reads the addresses again if they are old.
func (h *hostAddrs) read(now time.Time) {
	if now.Before(h.readNext) {
		return
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return // the old ones are better than none
	}
	h.own, h.readNext = make(map[netip.Addr]bool), now.Add(hostAddrsEvery)
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		h.own[p.Addr()] = true
		if p.Addr().Is4() && p.Bits() < 31 {
			h.own[broadcastOf(p)] = true
		}
	}
}

// broadcastOf returns the last address of an IPv4 network.
func broadcastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

var everyHost = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// dialable reports whether a member may be dialled at an address.
func (m *Mesh) dialable(a netip.AddrPort, own map[netip.Addr]bool) bool {
	ip := a.Addr()
	if a.Port() == 0 || ip.Zone() != "" || ip == everyHost || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
		return false
	}
	if ip.IsLoopback() {
		return m.loopback.Load()
	}
	return !own[ip] && (m.cfg.Refuse == nil || m.cfg.Refuse(ip) == nil)
}

// memberAddrs returns the members that may be dialled, with the addresses of their entries
// that may be dialled. A member without such an address is there without any.
func (m *Mesh) memberAddrs(v *View) map[peer.Name][]netip.AddrPort {
	m.hostAddrs.read(time.Now())
	members := make(map[peer.Name][]netip.AddrPort)
	for _, e := range v.entries {
		if e.Name == m.self || !v.Reachable(e.Name) {
			continue
		}
		var addrs []netip.AddrPort
		for _, a := range e.Addrs {
			if m.dialable(a, m.hostAddrs.own) && !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
		}
		members[e.Name] = addrs
	}
	return members
}

// allowLoopback allows to dial members on loopback if a target is there: then the mesh, or
// a part of it, is on this host.
func (m *Mesh) allowLoopback(targets []string) {
	ok := m.cfg.dialLoopback || m.cfg.Host.IsLoopback()
	for _, t := range targets {
		host, _, err := net.SplitHostPort(withPort(t))
		ip, _ := netip.ParseAddr(host)
		ok = ok || err == nil && (ip.IsLoopback() || strings.EqualFold(host, "localhost"))
	}
	m.loopback.Store(ok)
}
