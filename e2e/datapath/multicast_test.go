package datapath

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

const films = 50 // datagrams to the group at each step

// groupLab is a mesh in which containers join groups, with the kernel's own IGMP and MLD, and a witness on
// each host sees which frames come there.
type groupLab struct {
	*testbed.Lab
	t     *testing.T
	group netip.Addr
	sends *net.UDPConn
}

// member joins the group in a container of a host until the returned function is called.
func (l *groupLab) member(host int) (leave func()) {
	l.t.Helper()
	var fd int
	harness.Within(l.t, l.Lab, harness.At(host, "c"), func() error {
		i, err := net.InterfaceByName(netdev.IfaceName)
		if err != nil {
			return err
		}
		family := unix.AF_INET
		if l.group.Is6() {
			family = unix.AF_INET6
		}
		if fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if l.group.Is6() {
			return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: l.group.As16(), Interface: uint32(i.Index)})
		}
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: l.group.As4(), Ifindex: int32(i.Index)})
	})
	return func() { unix.Close(fd) }
}

// listed waits until a host knows that just these hosts want the group.
func (l *groupLab) listed(host int, want ...string) {
	l.t.Helper()
	var got []string
	harness.Eventually(l.t, fmt.Sprintf("h%d knows that %v want %s", host, want, l.group), func() bool {
		got = nil
		for _, g := range harness.Report(l.t, l.Lab, host).Multicast.Groups {
			if g.Group == l.group {
				got = append(got, g.NickName)
			}
		}
		slices.Sort(got)
		return slices.Equal(got, want)
	})
}

// film sends datagrams to the group from h1, and returns how many came to each of the other hosts.
func (l *groupLab) film() (seen string) {
	l.t.Helper()
	end := bytes.Repeat([]byte("end"), 20)
	payload := bytes.Repeat([]byte("film"), 100)
	var stops []func() [][]byte
	ended := make([]atomic.Bool, l.Hosts+1)
	for host := 2; host <= l.Hosts; host++ {
		w := harness.OpenWire(l.t, l.Lab, harness.At(host, "c"), netdev.IfaceName)
		stops = append(stops, w.Capture(func(b []byte) bool {
			if bytes.HasSuffix(b, end) {
				ended[host].Store(true)
			}
			return bytes.HasSuffix(b, payload)
		}))
	}
	to := &net.UDPAddr{IP: l.group.AsSlice(), Port: 7777}
	if l.group.Is6() {
		to.Zone = netdev.IfaceName
	}
	switched := func() uint64 {
		m := harness.Report(l.t, l.Lab, 1).Multicast
		return m.Pruned + m.Unwanted + m.Flooded
	}
	before := switched()
	for range films {
		if _, err := l.sends.WriteToUDP(payload, to); err != nil {
			l.t.Fatal(err)
		}
	}
	// Frames of link-local groups go to all, and this one comes last. Sparse flows overtake others on the way
	// into the router.
	harness.Eventually(l.t, "the router of h1 has sent all", func() bool { return switched() >= before+films })
	last := &net.UDPAddr{IP: net.IPv4(224, 0, 0, 200), Port: 7777}
	if l.group.Is6() {
		last = &net.UDPAddr{IP: net.ParseIP("ff02::200"), Port: 7777, Zone: netdev.IfaceName}
	}
	harness.Eventually(l.t, "the last frame is seen on all hosts", func() bool {
		if _, err := l.sends.WriteToUDP(end, last); err != nil {
			l.t.Fatal(err)
		}
		return allTrue(ended[2:])
	})
	var counts []string
	for _, stop := range stops {
		n := 0 // the router may deliver several in one GSO packet
		for _, b := range stop() {
			n += bytes.Count(b, payload)
		}
		counts = append(counts, fmt.Sprint(n))
	}
	return strings.Join(counts, " ")
}

// comes waits until of the frames so many come to h2, h3 and h4.
func (l *groupLab) comes(what, want string) {
	l.t.Helper()
	harness.Eventually(l.t, what+": frames to h2, h3 and h4 are "+want, func() bool { return l.film() == want })
}

func allTrue(list []atomic.Bool) bool {
	for i := range list {
		if !list[i].Load() {
			return false
		}
	}
	return true
}

// Frames to a group go to the hosts whose containers have joined it, and to no others, over all kinds of
// links, and after a host has left or its router was launched again.
func TestMulticastGoesWhereItIsWanted(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		group    string
		password string
		topology testbed.Topology
	}{
		"IPv4":               {group: "239.7.7.7"},
		"IPv6":               {group: "ff15::7777"},
		"sealed over relays": {"239.7.7.7", "password of the lab", testbed.Line},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			lab := harness.Up(t, testbed.Config{Hosts: 4, Password: c.password, Topology: c.topology})
			l := &groupLab{Lab: lab, t: t, group: netip.MustParseAddr(c.group)}
			for host := 1; host <= 4; host++ {
				harness.AddContainer(t, lab, host, "c", "net:default", fmt.Sprintf("fd01::%d/64", host))
			}
			harness.Within(t, lab, harness.At(1, "c"), func() (err error) {
				i, err := net.InterfaceByName(netdev.IfaceName)
				if err != nil {
					return err
				}
				l.sends, err = net.ListenUDP("udp", &net.UDPAddr{})
				if err != nil {
					return err
				}
				raw, err := l.sends.SyscallConn()
				if err != nil {
					return err
				}
				var set error
				err = raw.Control(func(fd uintptr) {
					set = errors.Join(
						unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, i.Index),
						unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(i.Index)}),
						unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 8),
						unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 8))
				})
				return errors.Join(err, set)
			})
			t.Cleanup(func() { l.sends.Close() })
			for host := 1; host <= 4; host++ {
				harness.Eventually(t, fmt.Sprintf("h%d knows what its containers want", host), func() bool {
					return !harness.Report(t, lab, host).Multicast.All
				})
			}
			l.settled()
			if got := l.film(); got != "0 0 0" {
				t.Errorf("frames of a group that nobody wants come to h2, h3 and h4: %s", got)
			}
			leave := l.member(2)
			stay := l.member(4)
			defer stay()
			l.listed(1, "h2", "h4")
			// Hosts behind relays first agree on keys, and only some frames wait for that.
			l.comes("h2 and h4 want it", fmt.Sprintf("%d 0 %d", films, films))
			if out := harness.Weft(t, lab, 3, "status", "multicast"); strings.Count(out, c.group+" ") != 2 || !strings.Contains(out, "(h4)") {
				t.Errorf("status multicast: %q", out)
			}
			leave()
			l.listed(1, "h4")
			l.comes("h2 has left", fmt.Sprintf("0 0 %d", films))
			if err := lab.Kill(4); err != nil {
				t.Fatal(err)
			}
			harness.Launch(t, lab, 4, testbed.Addr4(1).String(), testbed.Addr4(3).String())
			harness.Eventually(t, "h4 gets the frames again", func() bool { return strings.HasSuffix(l.film(), fmt.Sprintf(" %d", films)) })
			l.listed(1, "h4")
			l.settled()
			l.comes("only h4 wants it, again", fmt.Sprintf("0 0 %d", films))
		})
	}
}

// settled waits until h1 knows of all hosts what they want: it tells by frames that reach nobody.
func (l *groupLab) settled() {
	l.t.Helper()
	group, send := l.group, netip.MustParseAddr("239.250.0.1")
	if group.Is6() {
		send = netip.MustParseAddr("ff15::250")
	}
	l.group = send
	defer func() { l.group = group }()
	harness.Eventually(l.t, "h1 knows what all hosts want", func() bool { return l.film() == "0 0 0" })
}
