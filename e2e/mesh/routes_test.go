package mesh

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// A route that is wider than the range, as those of VPNs and of hosts with BGP, changes
// nothing. One that hides addresses of the default range is refused, with its text and the flag
// that goes on. Where a router ran before, containers may have addresses: it only warns.
func TestRoutesOfTheHost(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 1})
	args := []string{"launch", "--state-dir", lab.StateDir(1), "--password", "password of the lab", "--docker-api", ""}
	add := func(dst string, typ int) {
		harness.Within(t, lab, harness.At(1, ""), func() error {
			_, to, err := net.ParseCIDR(dst)
			if err != nil {
				return err
			}
			r := netlink.Route{Dst: to, Type: typ}
			if typ == unix.RTN_UNICAST {
				l, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				r.LinkIndex, r.Gw = l.Attrs().Index, testbed.Addr4(2).AsSlice()
			}
			return netlink.RouteAdd(&r)
		})
	}
	add("0.0.0.0/1", unix.RTN_UNICAST)
	add("128.0.0.0/1", unix.RTN_UNICAST)
	add("10.0.0.0/8", unix.RTN_BLACKHOLE)
	harness.Weft(t, lab, 1, args...)
	harness.AddContainer(t, lab, 1, "a")
	if w := harness.Report(t, lab, 1).Warnings; len(w) > 0 {
		t.Errorf("warnings with wider routes: %q", w)
	}
	harness.Weft(t, lab, 1, "stop")

	add("10.44.0.0/16", unix.RTN_UNICAST)
	harness.Weft(t, lab, 1, args...)
	const want = "the route 10.44.0.0/16 dev eth0 of this host hides addresses of the range 10.32.0.0/12"
	if w := harness.Report(t, lab, 1).Warnings; len(w) != 1 || !strings.Contains(w[0], want) {
		t.Errorf("warnings with a route that hides addresses: %q", w)
	}
	harness.Weft(t, lab, 1, "reset", "--force", "--state-dir", lab.StateDir(1))
	code, out := harness.Try(t, lab, 1, args...)
	if code != cmd.ExitFailed || !strings.Contains(out, want) || !strings.Contains(out, "--ipalloc-range=10.32.0.0/12") {
		t.Errorf("first launch with a route that hides addresses: exit code %d, %q", code, out)
	}
	if _, out := harness.Try(t, lab, 1, "doctor"); !strings.Contains(out, "the route 10.44.0.0/16 dev eth0 hides addresses") {
		t.Errorf("doctor: %q", out)
	}
	harness.Weft(t, lab, 1, append(args, "--ipalloc-range=10.32.0.0/12")...)
	harness.Weft(t, lab, 1, "reset", "--force", "--state-dir", lab.StateDir(1))
}
