package hostile

import (
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
)

// A container of h2 sends frames with the MAC address of a container of h1, as h2 lets it. A third
// host goes on to send to the right one, which goes on to answer.
func TestSpoofedMACMovesNothing(t *testing.T) {
	for _, c := range []struct {
		what  string
		flags []string
	}{{"sleeve", []string{"--no-fastdp"}}, {"fastdp", nil}} {
		t.Run(c.what, func(t *testing.T) {
			t.Parallel()
			s := newSiege(t, c.flags...)
			if len(c.flags) == 0 {
				s.Flags = append(s.Flags, "--trusted-subnets", "0.0.0.0/0")
			}
			s.launch(t)
			var mac string
			for host := 1; host <= honest; host++ {
				harness.Eventually(t, "the container of h1 is bound", func() bool {
					list := summary(t, s.Lab, host, api.ListBindings).Bindings.Entries
					i := slices.IndexFunc(list, func(b api.Binding) bool { return slices.Contains(b.Addresses, s.addrs[1]) && b.Refused == "" })
					if i >= 0 {
						mac = list[i].MAC
					}
					return i >= 0
				})
			}
			if len(c.flags) == 0 {
				harness.FastdpBetween(t, s.Lab, 1, 3)
				harness.FastdpBetween(t, s.Lab, 1, 2)
				harness.FastdpBetween(t, s.Lab, 2, 3)
			}
			harness.Reach(t, s.Lab, harness.At(3, "c"), s.addrs[1])
			victim, err := net.ParseMAC(mac)
			if err != nil {
				t.Fatal(err)
			}
			harness.AllowSpoof(t, s.Lab, harness.At(2, "c"), true)
			thief := harness.OpenWire(t, s.Lab, harness.At(2, "c"), netdev.IfaceName)
			frame := append(slices.Concat(net.HardwareAddr{255, 255, 255, 255, 255, 255}, victim, []byte{0x88, 0xb5}), make([]byte, 46)...)
			ping, err := testbed.NewPinger(s.Netns(harness.At(3, "c")), s.addrs[1])
			if err != nil {
				t.Fatal(err)
			}
			defer ping.Close()
			ignored := func() uint64 { return summary(t, s.Lab, 3, api.NoLists).Router.MACTable.Elsewhere }
			const count = 20
			lost := 0
			for range count {
				before := ignored()
				if err := thief.Send(frame); err != nil {
					t.Fatal(err)
				}
				if poll.Until(harness.Slack, 5*time.Millisecond, poll.True(func() bool { return ignored() > before })) != nil {
					t.Fatal("h3 did not ignore the source of a frame")
				}
				if _, err := ping.Once(8, time.Second+harness.Slack); err != nil {
					lost++
				}
			}
			if lost > 0 {
				t.Errorf("%d of %d pings are lost", lost, count)
			}
		})
	}
}

// A container of h2 says to all hosts that it has the address of a container of h1, as h2 lets it. A
// container of h3 goes on to send to the right one, and none on other hosts hears of it.
func TestFalseAnnouncementMovesNothing(t *testing.T) {
	t.Parallel()
	s := newSiege(t)
	s.launch(t)
	for host := 1; host <= honest; host++ {
		harness.Eventually(t, "the container of h1 is bound", func() bool {
			return slices.ContainsFunc(summary(t, s.Lab, host, api.ListBindings).Bindings.Entries, func(b api.Binding) bool {
				return slices.Contains(b.Addresses, s.addrs[1]) && b.Refused == ""
			})
		})
	}
	harness.AllowSpoof(t, s.Lab, harness.At(2, "c"), true)
	harness.Reach(t, s.Lab, harness.At(3, "c"), s.addrs[1])
	var thief neighbour.MAC
	harness.Within(t, s.Lab, harness.At(2, "c"), func() error {
		link, err := netlink.LinkByName(netdev.IfaceName)
		if err == nil {
			thief = neighbour.MAC(link.Attrs().HardwareAddr)
		}
		return err
	})
	in, out := harness.OpenWire(t, s.Lab, harness.At(3, "c"), netdev.IfaceName), harness.OpenWire(t, s.Lab, harness.At(2, "c"), netdev.IfaceName)
	stop := in.Capture(func(b []byte) bool {
		m, ok := neighbour.Parse(b)
		return ok && m.From == s.addrs[1] && m.MAC == thief
	})
	ping, err := testbed.NewPinger(s.Netns(harness.At(3, "c")), s.addrs[1])
	if err != nil {
		t.Fatal(err)
	}
	defer ping.Close()
	for range 20 {
		if err := out.Send(neighbour.AppendAnnouncement(nil, s.addrs[1], thief)); err != nil {
			t.Fatal(err)
		}
		if _, err := ping.Once(8, time.Second+harness.Slack); err != nil {
			t.Fatal(err)
		}
	}
	harness.Reach(t, s.Lab, harness.At(2, "c"), s.addrs[3]) // what it sent before has arrived
	if heard := stop(); len(heard) > 0 {
		t.Errorf("the container of h3 heard %d lies", len(heard))
	}
}
