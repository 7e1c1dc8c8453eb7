package datapath

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// inPlace opens a datagram socket in a container, with broadcasts allowed, and joins the
// group over weft's interface, if there is one.
func inPlace(t *testing.T, lab *testbed.Lab, place testbed.Place, addr string, group net.IP) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	err := netdev.Do(lab.Netns(place), func() error {
		lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			cerr := raw.Control(func(fd uintptr) {
				err = errors.Join(
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				)
			})
			return errors.Join(err, cerr)
		}}
		p, err := lc.ListenPacket(context.Background(), "udp4", addr)
		if err != nil {
			return err
		}
		c = p.(*net.UDPConn)
		if group == nil {
			return nil
		}
		i, err := net.InterfaceByName(netdev.IfaceName)
		if err != nil {
			return err
		}
		q := ipv4.NewPacketConn(c)
		return errors.Join(q.JoinGroup(i, &net.UDPAddr{IP: group}), q.SetMulticastInterface(i), q.SetMulticastLoopback(false))
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// Multicast DNS (RFC 6762): a container asks for a name, and the container that has it,
// on another host, answers to the group.
func TestMulticastDNSFindsOtherHosts(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Topology: testbed.Line})
	group := net.IPv4(224, 0, 0, 251)
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	b := harness.AddContainer(t, lab, 3, "b")[0].Addr() // two hops away
	asks := inPlace(t, lab, harness.At(1, "a"), ":5353", group)
	has := inPlace(t, lab, harness.At(3, "b"), ":5353", group)
	to := &net.UDPAddr{IP: group, Port: 5353}
	go func() {
		buf := make([]byte, 1500)
		for {
			n, from, err := has.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if from.Addr() == a && strings.Contains(string(buf[:n]), "\x07printer\x05local\x00") {
				answer := append([]byte("\x00\x00\x84\x00\x00\x00\x00\x01\x00\x00\x00\x00\x07printer\x05local\x00\x00\x01\x80\x01\x00\x00\x00\x78\x00\x04"), b.AsSlice()...)
				_, _ = has.WriteToUDP(answer, to)
			}
		}
	}()
	buf := make([]byte, 1500)
	harness.Eventually(t, "the printer is found", func() bool {
		if _, err := asks.WriteToUDP([]byte("\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07printer\x05local\x00\x00\x01\x00\x01"), to); err != nil {
			t.Fatal(err)
		}
		_ = asks.SetReadDeadline(time.Now().Add(time.Second))
		n, from, err := asks.ReadFromUDPAddrPort(buf)
		return err == nil && from.Addr() == b && strings.HasSuffix(string(buf[:n]), string(b.AsSlice()))
	})
}

// A cluster whose members find each other by multicast or broadcast is complete.
func TestClustersFormByWhatGoesToAll(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3})
	var members []netip.Addr
	var places []testbed.Place
	for host := 1; host <= 3; host++ {
		for _, name := range []string{"a", "b"} {
			members = append(members, harness.AddContainer(t, lab, host, fmt.Sprint(name, host), "net:10.32.5.0/24")[0].Addr())
			places = append(places, harness.At(host, fmt.Sprint(name, host)))
		}
	}
	for _, to := range []string{"239.1.2.3", "10.32.5.255", "255.255.255.255"} {
		formCluster(t, lab, places, members, to)
	}
	if t.Failed() {
		for host := 1; host <= 3; host++ {
			t.Logf("h%d:\n%s%s", host, harness.Weft(t, lab, host, "status", "multicast"), harness.Weft(t, lab, host, "status"))
		}
	}
}

func formCluster(t *testing.T, lab *testbed.Lab, places []testbed.Place, members []netip.Addr, to string) {
	t.Helper()
	addr := &net.UDPAddr{IP: net.ParseIP(to), Port: 7500}
	var group net.IP
	if addr.IP.IsMulticast() {
		group = addr.IP
	}
	// Members go on until all are complete: a host that joined late is heard of late.
	var wg sync.WaitGroup
	var complete atomic.Int64
	for i, place := range places {
		c := inPlace(t, lab, place, ":7500", group)
		if to == "255.255.255.255" { // over weft's interface, as there is no default route
			if err := bindTo(c, netdev.IfaceName); err != nil {
				t.Fatal(err)
			}
		}
		wg.Go(func() {
			defer c.Close()
			known := map[netip.Addr]bool{members[i]: true}
			buf := make([]byte, 100)
			end := time.Now().Add(harness.Timeout)
			counted := false
			for next := (time.Time{}); complete.Load() < int64(len(members)); {
				if !counted && len(known) == len(members) {
					counted = true
					complete.Add(1)
				}
				if time.Now().After(end) {
					t.Errorf("%s by %s: knows %d of %d members", place, to, len(known), len(members))
					return
				}
				if time.Now().After(next) {
					if _, err := c.WriteToUDP([]byte("here I am"), addr); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("%s to %s: %v", place, to, err)
						return
					}
					next = time.Now().Add(200 * time.Millisecond)
				}
				_ = c.SetReadDeadline(next)
				if _, from, err := c.ReadFromUDPAddrPort(buf); err == nil && slices.Contains(members, from.Addr()) {
					known[from.Addr()] = true
				}
			}
		})
	}
	wg.Wait()
}

func bindTo(c *net.UDPConn, iface string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var bound error
	err = raw.Control(func(fd uintptr) { bound = unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, iface) })
	return errors.Join(err, bound)
}
