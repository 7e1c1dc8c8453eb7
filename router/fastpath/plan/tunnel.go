package plan

import (
	"encoding/binary"
	"net/netip"
)

// TunnelPrefix has the addresses of peers inside the tunnel. They are link-local
// (RFC 3927), as the tunnel is a link of its own, and IPv4, because with IPv6
// packets with the default MTU of containers would not fit into 1500 bytes.
var TunnelPrefix = netip.MustParsePrefix("169.254.208.0/20")

// TunnelAddr returns the address inside the tunnel of the peer with a short id. The
// tunnel accepts packets from it only with the key of that peer.
func TunnelAddr(id uint16) netip.Addr {
	b := TunnelPrefix.Addr().As4()
	binary.BigEndian.PutUint16(b[2:], binary.BigEndian.Uint16(b[2:])+id)
	return netip.AddrFrom4(b)
}

// TunnelMTU returns the MTU of the tunnel's device for packets of containers with
// mtu bytes. It must not be smaller: WireGuard pads packets to a multiple of 16
// bytes, but not beyond the MTU.
func TunnelMTU(mtu int) int { return mtu + Overhead(TunnelPrefix.Addr()) }

// EncryptedOverhead returns the overhead of VXLAN inside the tunnel for an IP packet
// of a container to a host at a, in bytes of outer IP packet (section 5.4.6 of the
// WireGuard paper: 16 bytes of header and 16 of authenticator).
func EncryptedOverhead(a netip.Addr) int {
	const wireguard, udp, ipv4, ipv6 = 32, 8, 20, 40
	n := Overhead(TunnelPrefix.Addr()) + wireguard + udp
	if a.Is4() {
		return n + ipv4
	}
	return n + ipv6
}
