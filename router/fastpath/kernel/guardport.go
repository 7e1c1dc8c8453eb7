package kernel

import (
	"net"
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-net/weft/internal/netdev"
)

// What a guarded port may send, and what was dropped of it, as the program and the router share them.

// GuardReason says why the spoof guard dropped a frame.
type GuardReason uint16

// Reasons, as enum guard_reason of bpf/guard.h has them. Append only.
const (
	GuardMAC       GuardReason = iota // source MAC address
	GuardIPv4                         // IPv4 source
	GuardIPv6                         // IPv6 source
	GuardARP                          // sender in ARP
	GuardND                           // neighbour discovery for an address, or with a MAC address, of others
	GuardRouter                       // router advertisement or redirect
	GuardTagged                       // VLAN tag
	GuardMalformed                    // headers that hide what the frame is
	numGuardReasons
)

var guardReasonNames = [numGuardReasons]string{"mac", "ipv4", "ipv6", "arp", "nd", "router", "tagged", "malformed"}

// String returns the label of the reason in metrics.
func (r GuardReason) String() string {
	if r < numGuardReasons {
		return guardReasonNames[r]
	}
	return "reason " + strconv.Itoa(int(r))
}

// Numbers of addresses of a port that the program finds without a second lookup.
const (
	guardV4 = 4
	guardV6 = 2
)

// guardMore says that the map addrs has further addresses of a port.
const guardMore = 1

// guardPort is struct guard_port of bpf/guard.h: what one container may send.
type guardPort struct {
	MAC   [6]byte
	Flags uint16
	V4    [guardV4][4]byte // zero for none
	V6    [guardV6]Addr    // zero for none
}

// guardKey is struct guard_key of bpf/guard.h: a further address of a port.
type guardKey struct {
	Ifindex uint32
	Addr    Addr
}

// guardDrops is struct guard_drops of bpf/guard.h.
type guardDrops struct {
	Frames [numGuardReasons]uint64
	Addr   Addr
	MAC    [6]byte
	Reason GuardReason
}

// GuardPort is the host's end of a container's veth, with what the container may send.
type GuardPort struct {
	Ifindex int
	MAC     [6]byte
	Addrs   []netip.Addr
	// RateLimited says that another program is going to install an ingress qdisc.
	RateLimited bool
}

// GuardPortOf returns what the container at a port may send: with what weft gave it.
func GuardPortOf(p netdev.GivenPort) (g GuardPort) {
	g = GuardPort{Ifindex: p.Index, RateLimited: p.RateLimited}
	copy(g.MAC[:], p.MAC)
	for _, a := range p.Addrs {
		g.Addrs = append(g.Addrs, a.Addr())
	}
	return g
}

// entry returns the entry of the map ports, and the addresses that do not fit into it.
func (p GuardPort) entry() (e guardPort, more []netip.Addr) {
	e.MAC = p.MAC
	v4, v6 := 0, 0
	for _, a := range p.Addrs {
		switch a = a.Unmap(); {
		case a.IsUnspecified():
		case a.Is4() && v4 < guardV4:
			e.V4[v4] = a.As4()
			v4++
		case a.Is6() && v6 < guardV6:
			e.V6[v6] = a.As16()
			v6++
		default:
			more = append(more, a)
		}
	}
	if len(more) > 0 {
		e.Flags = guardMore
	}
	return e, more
}

func (p GuardPort) equal(o GuardPort) bool {
	return p.Ifindex == o.Ifindex && p.MAC == o.MAC && slices.Equal(p.Addrs, o.Addrs)
}

// GuardDrops is what was dropped of one port since the guard was opened.
type GuardDrops struct {
	Frames [numGuardReasons]uint64
	// The last frame: why it was dropped, its source MAC address, and the IP address that
	// it claimed, the zero Addr if that was not the reason.
	Reason GuardReason
	MAC    net.HardwareAddr
	Addr   netip.Addr
}

// Total returns the number of frames.
func (d GuardDrops) Total() (n uint64) {
	for _, f := range d.Frames {
		n += f
	}
	return n
}

// ByReason returns the number of frames by reason, without zeros.
func (d GuardDrops) ByReason() map[string]uint64 {
	m := make(map[string]uint64)
	for r, n := range d.Frames {
		if n > 0 {
			m[GuardReason(r).String()] = n
		}
	}
	return m
}
