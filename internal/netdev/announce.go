package netdev

import (
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/neighbour"
)

// announce announces the MAC address of addrs on an interface of the namespace at
// path, so that neighbours update their caches at once if a container moved.
func announce(path string, index int, mac net.HardwareAddr, addrs []netip.Prefix) error {
	if len(addrs) == 0 {
		return nil
	}
	if len(mac) != len(neighbour.MAC{}) {
		return fmt.Errorf("announce %s: MAC address %q, want one of Ethernet", addrs[0].Addr(), mac)
	}
	return Do(path, func() error {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open packet socket: %w", err)
		}
		defer unix.Close(fd)
		for _, p := range addrs {
			frame := neighbour.AppendAnnouncement(nil, p.Addr(), neighbour.MAC(mac))
			to := unix.SockaddrLinklayer{Ifindex: index, Halen: 6}
			copy(to.Addr[:], frame[:6])
			if err := unix.Sendto(fd, frame, 0, &to); err != nil {
				return fmt.Errorf("announce %s: %w", p.Addr(), err)
			}
		}
		return nil
	})
}
