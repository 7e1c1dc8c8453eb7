package testbed

import (
	"net"
	"testing"

	"github.com/weft-net/weft/internal/netdev"
)

func listenUDP(t *testing.T, l *Lab, host int) (c net.PacketConn) {
	t.Helper()
	err := netdev.Do(l.Netns(Place{Host: host}), func() (err error) {
		c, err = net.ListenPacket("udp4", Addr4(host).String()+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dialUDP(t *testing.T, l *Lab, host int, to string) (c net.Conn) {
	t.Helper()
	err := netdev.Do(l.Netns(Place{Host: host}), func() (err error) {
		c, err = net.Dial("udp4", to)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// dialTCP checks whether host a can open a TCP connection to host b.
func dialTCP(t *testing.T, l *Lab, a, b int, want bool) {
	t.Helper()
	var listener net.Listener
	err := netdev.Do(l.Netns(Place{Host: b}), func() (err error) {
		listener, err = net.Listen("tcp4", Addr4(b).String()+":0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	err = netdev.Do(l.Netns(Place{Host: a}), func() error {
		c, err := net.DialTimeout("tcp4", listener.Addr().String(), waitTime(want))
		if err == nil {
			c.Close()
		}
		return err
	})
	if (err == nil) != want {
		t.Errorf("h%d dials h%d: %v, want a connection: %v", a, b, err, want)
	}
}
