package datapath

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// With a password the fast datapath is inside WireGuard, even after the router died, and
// the underlay never shows a container's packet.
func TestTunnelCarriesWhatIsNotTrusted(t *testing.T) {
	t.Parallel()
	if !harness.HasWireGuard(t) {
		lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
		harness.Eventually(t, "status says why frames go by sleeve", func() bool {
			k := harness.Link(t, lab, 1, "h2")
			return k.Kind == "sleeve" && strings.Contains(k.Info, "this kernel has no WireGuard")
		})
		return
	}
	lab := harness.New(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	wait := capture(t, lab, isLastWord)
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, testbed.Addr4(1).String())
	harness.Converge(t, lab)
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	s := harness.StartStream(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)
	s.Flows(t)
	harness.FastdpBetween(t, lab, 1, 2)
	if k := harness.Link(t, lab, 1, "h2"); !k.Encrypted || k.Express {
		t.Errorf("%+v", k)
	}
	harness.Eventually(t, "the stream goes by the kernel", func() bool { s.Flows(t); return carried(t, lab, 1, "h2").TxPackets > 10 })
	if err := lab.Kill(2); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "h1 has noticed", func() bool { return len(harness.Report(t, lab, 1).Router.UnicastRoutes) == 0 })
	for range 20 {
		s.Flows(t)
	}
	harness.Launch(t, lab, 2, testbed.Addr4(1).String())
	harness.Converge(t, lab)
	harness.FastdpBetween(t, lab, 1, 2)
	s.Flows(t)
	// Somebody removes the interface: nothing leaves unencrypted meanwhile.
	err := netdev.Do(lab.Netns(harness.At(1, "")), func() error {
		l, err := netlink.LinkByName(netdev.TunnelName)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if err != nil {
		t.Fatal(err)
	}
	// The router makes a new one, with another key.
	harness.FastdpBetween(t, lab, 1, 2)
	tx := carried(t, lab, 1, "h2").TxPackets
	harness.Eventually(t, "the stream goes by the kernel again", func() bool { s.Flows(t); return carried(t, lab, 1, "h2").TxPackets > tx+10 })
	// Nothing leaves unencrypted either when a router without fast datapath takes over.
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	harness.Launch(t, lab, 1, "--no-fastdp", testbed.Addr4(2).String())
	harness.Converge(t, lab)
	s.Flows(t)
	if err := netdev.Do(lab.Netns(harness.At(1, "")), func() error { _, err := netlink.LinkByName(netdev.TunnelName); return err }); err == nil {
		t.Error("the tunnel of an earlier router is left")
	}
	s.Whole(t)
	checkSealed(t, lab, wait, a, b)
}
