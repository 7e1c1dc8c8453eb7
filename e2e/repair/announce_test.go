package repair

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
)

// A container gets the address of another one while its host has no way to another host, so
// the announcement does not arrive there. A container there that believes in the old MAC
// address reaches the new container soon after the way is back. Its kernel would not ask again
// for minutes.
func TestAnnouncementIsRepeated(t *testing.T) {
	t.Parallel()
	for _, addr := range []string{"192.168.200.77/24", "fd00:99::77/64"} {
		p := netip.MustParsePrefix(addr)
		t.Run(addr, func(t *testing.T) {
			t.Parallel()
			lab := harness.Up(t, testbed.Config{Hosts: 2})
			asking := harness.At(2, "asking")
			harness.AddContainer(t, lab, 2, "asking", "ip:"+netip.PrefixFrom(p.Addr().Next(), p.Bits()).String())
			harness.AddContainer(t, lab, 1, "old", "ip:"+addr)
			harness.Within(t, lab, asking, func() error {
				family := "ipv4"
				if p.Addr().Is6() {
					family = "ipv6"
				}
				return os.WriteFile("/proc/sys/net/"+family+"/neigh/"+netdev.IfaceName+"/base_reachable_time_ms", []byte("600000"), 0)
			})
			harness.Reach(t, lab, asking, p.Addr())
			harness.Both(t, lab, [2]int{1, 2}, lab.Cut)
			ctx, cancel := context.WithTimeout(t.Context(), harness.StepTimeout)
			defer cancel()
			if err := lab.RemoveContainer(ctx, harness.At(1, "old")); err != nil {
				t.Fatal(err)
			}
			harness.AddContainer(t, lab, 1, "new", "ip:"+addr)
			ping, err := testbed.NewPinger(lab.Netns(asking), p.Addr())
			if err != nil {
				t.Fatal(err)
			}
			defer ping.Close()
			harness.Both(t, lab, [2]int{1, 2}, lab.Heal)
			if err := poll.Until(20*time.Second+harness.Slack, 100*time.Millisecond, func() error {
				_, err := ping.Once(8, time.Second)
				return err
			}); err != nil {
				t.Errorf("the container that has the address now: %v", err)
			}
		})
	}
}
