package mesh

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
)

// marker is the ethertype of a frame that says that all before it were seen: for experiments, IEEE 802.
const marker = 0x88b5

// requestLab counts requests for MAC addresses that cross links.
type requestLab struct {
	*bindingLab
	witness []testbed.Place       // containers that see what comes to their hosts from others
	hostOf  map[neighbour.MAC]int // of the containers and hosts that ask
}

// asksAt notes from which host the requests of a place come.
func (l *requestLab) asksAt(place testbed.Place, iface string) {
	l.t.Helper()
	harness.Within(l.t, l.Lab, place, func() error {
		link, err := netlink.LinkByName(iface)
		if err == nil {
			l.hostOf[neighbour.MAC(link.Attrs().HardwareAddr)] = place.Host
		}
		return err
	})
}

// crossing calls f and returns the requests of places that containers of other hosts saw meanwhile, until
// a frame of from is heard there. Link-local addresses are not bound: each host makes its own.
func (l *requestLab) crossing(from testbed.Place, f func()) (seen []string) {
	l.t.Helper()
	var mu sync.Mutex
	var stops []func() [][]byte
	heard := make([]atomic.Bool, len(l.witness))
	for i, place := range l.witness {
		w := harness.OpenWire(l.t, l.Lab, place, netdev.IfaceName)
		stops = append(stops, w.Capture(func(b []byte) bool {
			if len(b) > 14 && b[12] == marker>>8 && b[13] == marker&0xff {
				heard[i].Store(true)
			}
			m, ok := neighbour.Parse(b)
			if host := l.hostOf[m.MAC]; ok && m.Target.IsValid() && !m.Target.IsLinkLocalUnicast() && host != 0 && host != place.Host {
				mu.Lock()
				defer mu.Unlock()
				seen = append(seen, fmt.Sprintf("%s saw %+v", place, m))
			}
			return false
		}))
	}
	f()
	own, err := netipMAC(l.macInside(from))
	if err != nil {
		l.t.Fatal(err)
	}
	w := harness.OpenWire(l.t, l.Lab, from, netdev.IfaceName)
	frame := append(slices.Concat(bytes.Repeat([]byte{0xff}, 6), own, []byte{marker >> 8, marker & 0xff}), make([]byte, 46)...)
	if err := w.Send(frame); err != nil {
		l.t.Fatal(err)
	}
	harness.Eventually(l.t, "the frame after all others is seen", func() bool {
		for i := range heard {
			if !heard[i].Load() {
				return false
			}
		}
		return true
	})
	for _, stop := range stops {
		stop()
	}
	return seen
}

// A container that begins to send to one of another host makes no request cross a link, and the other
// one none to answer. Nor does the host itself, for its exposed address. Duplicates are found all the
// same, and an address that moves to another host is followed within a second.
func TestRequestsCrossNoLink(t *testing.T) {
	for _, mode := range []string{"sleeve", "fastdp"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			c := testbed.Config{Hosts: 3}
			if mode == "sleeve" {
				c.Flags = []string{"--no-fastdp"}
			}
			l := &requestLab{bindingLab: &bindingLab{Lab: harness.Up(t, c), t: t}, hostOf: make(map[neighbour.MAC]int)}
			if mode == "fastdp" {
				for _, p := range [][2]int{{1, 2}, {1, 3}, {2, 3}} {
					harness.FastdpBetween(t, l.Lab, p[0], p[1])
				}
			}
			var want []string
			for host := 1; host <= 3; host++ {
				a := harness.AddContainer(t, l.Lab, host, "w")[0].Addr()
				want = append(want, fmt.Sprintf("port [%s] h%d", a, host))
				l.witness = append(l.witness, harness.At(host, "w"))
			}
			a := harness.AddContainer(t, l.Lab, 1, "a", "net:default", "fd01::1/64")
			b := harness.AddContainer(t, l.Lab, 2, "b", "net:default", "fd01::2/64")
			exposed := netip.MustParseAddr(strings.TrimSpace(harness.Weft(t, l.Lab, 3, "expose")))
			want = append(want, fmt.Sprintf("port [%s fd01::1] h1", a[0].Addr()), fmt.Sprintf("port [%s fd01::2] h2", b[0].Addr()), fmt.Sprintf("host [%s] h3", exposed))
			l.want("all is attached", []int{1, 2, 3}, want...)
			l.asksAt(harness.At(1, "a"), netdev.IfaceName)
			l.asksAt(harness.At(2, "b"), netdev.IfaceName)
			l.asksAt(harness.At(3, ""), "weft")

			for _, of := range []int{0, 1} {
				seen := l.crossing(harness.At(1, "a"), func() {
					t.Logf("first ping to %s: %v", b[of].Addr(), l.ping(harness.At(1, "a"), b[of].Addr()))
				})
				seen = append(seen, l.crossing(harness.At(2, "b"), func() { l.ping(harness.At(2, "b"), a[of].Addr()) })...)
				if len(seen) > 0 {
					t.Errorf("to %s, requests crossed links:\n%s", b[of].Addr(), strings.Join(seen, "\n"))
				}
			}
			seen := l.crossing(harness.At(1, "a"), func() { l.ping(harness.At(1, "a"), exposed) })
			if seen = append(seen, l.crossing(harness.At(3, "w"), func() { l.ping(harness.At(3, ""), b[0].Addr()) })...); len(seen) > 0 {
				t.Errorf("for an exposed address and from it, requests crossed links:\n%s", strings.Join(seen, "\n"))
			}
			if n := harness.Report(t, l.Lab, 1).Router.Neighbours; n.Answered < 3 {
				t.Errorf("h1 counts %+v, want an answer for each of three addresses", n)
			}
			if out := harness.Weft(t, l.Lab, 1, "status"); !strings.Contains(out, "stayed on this host, ") {
				t.Errorf("status says\n%s", out)
			}
			// What is not bound is asked for everywhere.
			if seen := l.crossing(harness.At(1, "a"), func() { l.probe(harness.At(1, "a"), netip.MustParseAddr("10.47.255.1")) }); len(seen) == 0 {
				t.Error("the request for an address that nobody has was not seen on other hosts")
			}

			l.duplicates(harness.At(1, "a"), b[0].Addr(), b[1].Addr())
			l.move(mode)
		})
	}
}

func netipMAC(s string) (mac []byte, err error) {
	for _, part := range strings.Split(s, ":") {
		var b byte
		if _, err := fmt.Sscanf(part, "%02x", &b); err != nil {
			return nil, err
		}
		mac = append(mac, b)
	}
	return mac, nil
}

func (l *requestLab) ping(from testbed.Place, to netip.Addr) time.Duration {
	l.t.Helper()
	p, err := testbed.NewPinger(l.Netns(from), to)
	if err != nil {
		l.t.Fatal(err)
	}
	defer p.Close()
	took, err := p.Once(8, harness.Timeout)
	if err != nil {
		l.t.Fatalf("from %s to %s: %v", from, to, err)
	}
	return took
}

// probe asks whether somebody has an IPv4 address, as RFC 5227 says, and returns the MAC addresses that
// answered.
func (l *requestLab) probe(from testbed.Place, to netip.Addr) (answers func() []string) {
	l.t.Helper()
	own, err := netipMAC(l.macInside(from))
	if err != nil {
		l.t.Fatal(err)
	}
	w := harness.OpenWire(l.t, l.Lab, from, netdev.IfaceName)
	var mu sync.Mutex
	var list []string
	stop := w.Capture(func(b []byte) bool {
		if len(b) >= 42 && b[12] == 8 && b[13] == 6 && b[21] == 2 && netip.AddrFrom4([4]byte(b[28:32])) == to {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, fmt.Sprintf("%x", b[22:28]))
		}
		return false
	})
	l.t.Cleanup(func() { stop() })
	frame := slices.Concat(bytes.Repeat([]byte{0xff}, 6), own, []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, 1}, own, make([]byte, 10), to.AsSlice())
	if err := w.Send(frame); err != nil {
		l.t.Fatal(err)
	}
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(list)
	}
}

// duplicates wants a container, and the kernel of its host on the bridge, to find out that addresses are in
// use on another host.
func (l *requestLab) duplicates(from testbed.Place, v4, v6 netip.Addr) {
	l.t.Helper()
	answers := l.probe(from, v4)
	mac := strings.ReplaceAll(l.macInside(harness.At(2, "b")), ":", "")
	harness.Eventually(l.t, "the probe is answered", func() bool { return slices.Contains(answers(), mac) })
	harness.Within(l.t, l.Lab, harness.At(from.Host, ""), func() error {
		link, err := netlink.LinkByName("weft")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(v6.String() + "/64")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, addr); err != nil { // the kernel looks for a duplicate
			return err
		}
		defer func() { _ = netlink.AddrDel(link, addr) }()
		return poll.Until(harness.Timeout, 20*time.Millisecond, func() error {
			list, err := netlink.AddrList(link, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			for _, a := range list {
				if a.IP.Equal(addr.IP) && a.Flags&unix.IFA_F_DADFAILED != 0 {
					return nil
				}
			}
			return errors.New("the kernel has not found the duplicate")
		})
	})
}

// move moves addresses from a container of h2 to one of h3 while a container of h1 sends to them. One
// of them belongs to the range of h2 before.
func (l *requestLab) move(mode string) {
	l.t.Helper()
	fixed := harness.AddContainer(l.t, l.Lab, 2, "old")[0].Addr()
	harness.Weft(l.t, l.Lab, 2, "detach", "--netns", l.Netns(harness.At(2, "old")))
	list := []string{fixed.String() + "/12", "ip:10.99.0.9/24", "fd01::9/64"}
	harness.AddContainer(l.t, l.Lab, 1, "asking", "net:default", "ip:10.99.0.1/24", "fd01::8/64")
	attach := func(host int, name string) {
		l.t.Helper()
		if err := l.AddNamespace(harness.At(host, name)); err != nil && !errors.Is(err, os.ErrExist) {
			l.t.Fatal(err)
		}
		harness.Weft(l.t, l.Lab, host, slices.Concat([]string{"attach"}, list, []string{"--netns", l.Netns(harness.At(host, name))})...)
	}
	attach(2, "old")
	addrs := []netip.Addr{fixed, netip.MustParseAddr("10.99.0.9"), netip.MustParseAddr("fd01::9")}
	// Until h1 hears of the second attachment it answers requests with the MAC address of the first one.
	for _, a := range addrs {
		l.reached(mode, a, time.Now())
	}
	harness.Weft(l.t, l.Lab, 2, "detach", "--netns", l.Netns(harness.At(2, "old")))
	attach(3, "new")
	attached := time.Now()
	for _, a := range addrs {
		l.reached(mode, a, attached)
	}
}

// reached wants the container asking to reach an address within a second after it was attached.
func (l *requestLab) reached(mode string, a netip.Addr, attached time.Time) {
	l.t.Helper()
	p, err := testbed.NewPinger(l.Netns(harness.At(1, "asking")), a)
	if err != nil {
		l.t.Fatal(err)
	}
	defer p.Close()
	err = poll.Until(harness.Timeout, time.Millisecond, func() error {
		_, err := p.Once(8, 50*time.Millisecond)
		return err
	})
	took := time.Since(attached)
	if err != nil || took > time.Second+harness.Slack {
		l.t.Errorf("%s is reached at its new host after %v: %v", a, took, err)
	}
	l.t.Logf("%s: %s is reached at its new host after %v", mode, a, took)
}
