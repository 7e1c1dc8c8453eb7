package netdev

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/weft-net/weft/internal/checksum"
	"golang.org/x/sys/unix"
)

// announce announces the MAC address of addrs on an interface of the namespace at
// path, so that neighbours update their caches at once if a container moved.
func announce(path string, index int, mac net.HardwareAddr, addrs []netip.Prefix) error {
	if len(addrs) == 0 {
		return nil
	}
	return Do(path, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		for _, p := range addrs {
			frame := neighbourAdvert(mac, p.Addr())
			if p.Addr().Is4() {
				frame = gratuitousARP(mac, p.Addr())
			}
			to := unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
			copy(to.Addr[:], frame[:6])
			if err := unix.Sendto(fd, frame, 0, &to); err != nil {
				return fmt.Errorf("announce %s: %w", p.Addr(), err)
			}
		}
		return nil
	})
}

// gratuitousARP returns an ARP announcement (RFC 5227, section 3): a request whose
// sender and target address are both a.
//
//	0      6      12   14                                   42 bytes, big endian
//	| ff.. | mac  |0806| 0001 0800 06 04 0001 mac a 00.. a |
func gratuitousARP(mac net.HardwareAddr, a netip.Addr) []byte {
	b := make([]byte, 0, 42)
	b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	b = append(b, mac...)
	b = append(b, 0x08, 0x06)
	b = append(b, 0, 1, 8, 0, 6, 4, 0, 1)
	b = append(b, mac...)
	b = append(b, a.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, a.AsSlice()...)
}

// neighbourAdvert returns an unsolicited neighbour advertisement to all nodes with
// the override flag (RFC 4861, sections 4.4 and 7.2.6).
//
//	0         6     12   14             54                         86 bytes
//	|33:33::1 | mac |86dd| IPv6 header | 88 00 sum O a  02 01 mac |
func neighbourAdvert(mac net.HardwareAddr, a netip.Addr) []byte {
	allNodes := netip.MustParseAddr("ff02::1").As16()
	src := a.As16()
	b := make([]byte, 0, 86)
	b = append(b, 0x33, 0x33, 0, 0, 0, 1)
	b = append(b, mac...)
	b = append(b, 0x86, 0xdd)
	b = append(b, 0x60, 0, 0, 0, 0, 32, 58, 255) // payload of 32 bytes, ICMPv6, hop limit 255
	b = append(b, src[:]...)
	b = append(b, allNodes[:]...)
	icmp := len(b)
	b = append(b, 136, 0, 0, 0, 0x20, 0, 0, 0)
	b = append(b, src[:]...)
	b = append(b, 2, 1)
	b = append(b, mac...)

	// The pseudo-header is that of RFC 8200, section 8.1.
	sum := checksum.Add(checksum.Sum(src[:]), checksum.Sum(allNodes[:]))
	sum = checksum.Add(sum, uint16(len(b)-icmp)+unix.IPPROTO_ICMPV6)
	sum = checksum.Add(sum, checksum.Sum(b[icmp:]))
	binary.BigEndian.PutUint16(b[icmp+2:], ^sum)
	return b
}
