package router_test

import (
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// setPathDiscovery sets or clears DF on what a socket sends.
func setPathDiscovery(t *testing.T, c *net.UDPConn, df bool) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	v4, v6 := unix.IP_PMTUDISC_DONT, unix.IPV6_PMTUDISC_DONT
	if df {
		v4, v6 = unix.IP_PMTUDISC_DO, unix.IPV6_PMTUDISC_DO
	}
	var e4, e6 error
	err = raw.Control(func(fd uintptr) {
		e4 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, v4)
		e6 = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, v6)
	})
	if err != nil || e4 != nil && e6 != nil {
		t.Fatal(errors.Join(err, e4, e6))
	}
}

// card is a packet socket on an interface, a container's or the underlay.
type card struct {
	fd, index int
	mac       net.HardwareAddr
}

func (h *host) card() card { return h.cardOf(h.c, "ethwe") }

func (h *host) cardOf(ns, name string) card {
	h.t.Helper()
	var c card
	err := netdev.Do(ns, func() error {
		ifc, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		c.index, c.mac = ifc.Index, ifc.HardwareAddr
		all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		h.t.Cleanup(func() { unix.Close(c.fd) })
		if err := unix.SetsockoptInt(c.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(timeout / time.Second)}); err != nil {
			return err
		}
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Ifindex: c.index, Protocol: all})
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return c
}

func (c card) send(t *testing.T, frame []byte) {
	t.Helper()
	if err := unix.Sendto(c.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: c.index}); err != nil {
		t.Fatal(err)
	}
}

// receive waits for a frame of an ethertype. The kernel takes a VLAN tag out
// of the frame; it is returned beside it.
func (c card) receive(t *testing.T, ethertype uint16) (frame []byte, tci uint16) {
	t.Helper()
	buf, oob := make([]byte, 2000), make([]byte, 200)
	for {
		n, oobn, _, _, err := unix.Recvmsg(c.fd, buf, oob, 0)
		if err != nil {
			t.Fatalf("no frame of type %#x: %v", ethertype, err)
		}
		if n < 14 || binary.BigEndian.Uint16(buf[12:]) != ethertype {
			continue
		}
		return buf[:n], tagOf(t, oob[:oobn])
	}
}

// tagOf returns the VLAN tag that the kernel took out of a frame.
func tagOf(t *testing.T, oob []byte) (tci uint16) {
	t.Helper()
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_PACKET && m.Header.Type == unix.PACKET_AUXDATA {
			tci = (*unix.TpacketAuxdata)(unsafe.Pointer(&m.Data[0])).Vlan_tci
		}
	}
	return tci
}
