package mesh

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// Members say themselves, in their signed entries, at which addresses they may be dialled.
// They may lie. So this peer dials no address that leads to itself, to services of its own
// host, or to several hosts.

// hostAddrsEvery is how often the addresses of this host are read again.
const hostAddrsEvery = 30 * time.Second

// hostAddrs are the addresses of this host, and the broadcast addresses of its networks.
type hostAddrs struct {
	own      atomic.Pointer[map[netip.Addr]bool]
	readNext time.Time // of the goroutine of the topology
}

// has reports whether a leads to this host, or to all of a network.
func (h *hostAddrs) has(a netip.Addr) bool {
	own := h.own.Load()
	return own != nil && (*own)[a]
}

// read reads the addresses again if they are old. It is called by the goroutine of the
// topology.
func (h *hostAddrs) read(now time.Time) {
	if now.Before(h.readNext) {
		return
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return // the old ones are better than none
	}
	h.readNext = now.Add(hostAddrsEvery)
	own := make(map[netip.Addr]bool)
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		own[p.Addr()] = true
		if p.Addr().Is4() && p.Bits() < 31 {
			own[broadcastOf(p)] = true
		}
	}
	h.own.Store(&own)
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
func (m *Mesh) dialable(a netip.AddrPort) bool {
	ip := a.Addr()
	if a.Port() == 0 || ip.Zone() != "" || ip == everyHost || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() {
		return false
	}
	if ip.IsLoopback() && !m.loopback.Load() || !ip.IsLoopback() && m.hostAddrs.has(ip) {
		return false
	}
	return m.cfg.Refuse == nil || m.cfg.Refuse(ip) == nil
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
			if m.dialable(a) && !slices.Contains(addrs, a) {
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
