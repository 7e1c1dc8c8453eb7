package datapath

import (
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

// Peers with and without offloads work together.
func TestPeersWithAndWithoutOffloads(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3, Topology: testbed.Line})
	const off = "switched off"
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, "--no-tap-offload", testbed.Addr4(1).String())
	harness.Launch(t, lab, 3, "--no-udp-offload", testbed.Addr4(2).String())
	harness.Converge(t, lab)
	for n := 1; n <= 3; n++ {
		got := harness.Report(t, lab, n).Router.Offloads
		if (got["tap"] == off) != (n == 2) || (got["udp"] == off) != (n == 3) {
			t.Errorf("h%d has offloads %v", n, got)
		}
	}
	addr := harness.AddContainer(t, lab, 3, "c")[0].Addr()
	s := harness.Serve(t, lab, harness.At(3, "c"), addr)
	for n := 1; n <= 2; n++ {
		harness.AddContainer(t, lab, n, "c")
		harness.Reach(t, lab, harness.At(n, "c"), addr)
		r, err := s.Measure(t.Context(), lab, harness.At(n, "c"), traffic.Order{Kind: traffic.TCP, Time: 300 * time.Millisecond})
		if err != nil || r.BitsPerSecond == 0 {
			t.Errorf("from h%d: %+v: %v", n, r, err)
		}
	}
}
