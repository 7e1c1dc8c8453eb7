package plan

import (
	"encoding/binary"
	"net/netip"
)

// TunnelPrefix is where peers have their addresses inside the tunnel. They are
// link-local (RFC 3927), as the tunnel is a link of its own, and of IPv4, as
// with IPv6 inside of it the default MTU of containers would not fit into packets
// of 1500 bytes.
var TunnelPrefix = netip.MustParsePrefix("169.254.208.0/20")

// TunnelAddr is the address of the peer with a short id. Nobody else can use it:
// the tunnel takes packets from it with that peer's key only.
func TunnelAddr(id uint16) netip.Addr {
	b := TunnelPrefix.Addr().As4()
	binary.BigEndian.PutUint16(b[2:], binary.BigEndian.Uint16(b[2:])+id)
	return netip.AddrFrom4(b)
}

// TunnelMTU is that of the tunnel's device for containers' packets of mtu bytes.
// No smaller one may be: WireGuard pads up to a multiple of 16, but not beyond it.
func TunnelMTU(mtu int) int { return mtu + Overhead(TunnelPrefix.Addr()) }

// SealedOverhead is what VXLAN inside the tunnel puts around an IP packet of a
// container, towards a on the underlay, in bytes of outer IP packet (section 5.4.6
// of the WireGuard paper: 16 of header, 16 of authenticator).
func EncryptedOverhead(a netip.Addr) int {
	const wireguard, udp, ipv4, ipv6 = 32, 8, 20, 40
	n := Overhead(TunnelPrefix.Addr()) + wireguard + udp
	if a.Is4() {
		return n + ipv4
	}
	return n + ipv6
}
