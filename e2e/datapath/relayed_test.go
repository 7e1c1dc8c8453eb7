package datapath

import (
	"strings"
	"testing"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// With a password, hosts without a direct link seal unicast frames for each other: the
// relay forwards them and reads nothing. They agree on keys again after a restart.
func TestRelayedFramesAreSealedEndToEnd(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3})
	flags := []string{"--password", "password of the lab", "--no-discovery"}
	launch := func(host int, peers ...string) {
		t.Helper()
		harness.Launch(t, lab, host, append(flags, peers...)...)
	}
	launch(2)
	launch(1, testbed.Addr4(2).String())
	launch(3, testbed.Addr4(2).String())
	harness.Eventually(t, "h1 reaches h3 over h2", func() bool {
		return strings.Contains(harness.Weft(t, lab, 1, "status", "connections"), "=> over")
	})
	sealed := func(host int, to string) func() bool {
		return func() bool {
			for _, p := range harness.Report(t, lab, host).Router.Relayed {
				if p.NickName == to {
					return p.ViaNickName == "h2" && p.Sealed
				}
			}
			return false
		}
	}
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	b := harness.AddContainer(t, lab, 3, "b")[0].Addr()
	wait := capture(t, lab, isLastWord)
	s := harness.StartStream(t, lab, harness.At(1, "a"), harness.At(3, "b"), b)
	s.Flows(t)
	if !sealed(1, "h3")() || !sealed(3, "h1")() {
		t.Errorf("frames flow and are not sealed: %s", harness.Weft(t, lab, 1, "status", "connections"))
	}
	if out := harness.Weft(t, lab, 1, "status", "connections"); !strings.Contains(out, "sealed end to end") {
		t.Errorf("status connections: %s", out)
	}
	checkSealed(t, lab, wait, a, b)
	for _, host := range []int{1, 3} {
		if err := lab.Kill(host); err != nil {
			t.Fatal(err)
		}
		launch(host, testbed.Addr4(2).String())
		s.Flows(t)
	}
	s.Whole(t)
	for _, p := range harness.Report(t, lab, 2).Router.Fastdp.Peers {
		if p.RelayedPackets != 0 {
			t.Errorf("the kernel of the relay forwarded %d frames to %s", p.RelayedPackets, p.NickName)
		}
	}
}
