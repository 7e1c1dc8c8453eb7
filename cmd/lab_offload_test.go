package cmd

import (
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

// Peers with and without offloads work together.
func TestPeersWithAndWithoutOffloads(t *testing.T) {
	t.Parallel()
	lab := newLab(t, testbed.Config{Hosts: 3, Topology: testbed.Line})
	const off = "switched off"
	launch(t, lab, 1)
	launch(t, lab, 2, "--no-tap-offload", testbed.Addr4(1).String())
	launch(t, lab, 3, "--no-udp-offload", testbed.Addr4(2).String())
	converge(t, lab)
	for n := 1; n <= 3; n++ {
		got := report(t, lab, n).Router.Offloads
		if (got["tap"] == off) != (n == 2) || (got["udp"] == off) != (n == 3) {
			t.Errorf("h%d has offloads %v", n, got)
		}
	}
	addr := addContainer(t, lab, 3, "c")[0].Addr()
	s := hxServe(t, lab, at(3, "c"), addr)
	for n := 1; n <= 2; n++ {
		addContainer(t, lab, n, "c")
		reach(t, lab, at(n, "c"), addr)
		r, err := s.Measure(t.Context(), lab, at(n, "c"), traffic.Order{Kind: traffic.TCP, Time: 300 * time.Millisecond})
		if err != nil || r.BitsPerSecond == 0 {
			t.Errorf("from h%d: %+v: %v", n, r, err)
		}
	}
}
