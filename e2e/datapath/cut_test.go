package datapath

import (
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// A cut of the underlay drops frames that express takes off the interface before netfilter of
// the host sees them, too. Without it nothing shows what a cut costs in that mode.
func TestCutDropsExpress(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	harness.AddContainer(t, lab, 1, "a")
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.FastdpBetween(t, lab, 1, 2)
	p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := harness.Answered(t, p, 8); err != nil {
		t.Fatal(err)
	}
	harness.Both(t, lab, [2]int{1, 2}, lab.Cut)
	for range 5 {
		if _, err := p.Once(8, 100*time.Millisecond); err == nil {
			t.Fatal("a ping passed the cut")
		}
	}
	harness.Both(t, lab, [2]int{1, 2}, lab.Heal)
	harness.Reach(t, lab, harness.At(1, "a"), b)
}
