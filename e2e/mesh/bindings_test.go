package mesh

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
)

// bindingTime is how long a change of a binding may take until all hosts know it.
const bindingTime = 2 * time.Second

// bindingLab looks at the bindings that hosts know.
type bindingLab struct {
	*testbed.Lab
	t       *testing.T
	slowest time.Duration
}

// on returns the bindings that a host knows, each as kind, addresses and peer, in order.
func (l *bindingLab) on(host int) (list []string) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), harness.StepTimeout)
	defer cancel()
	r, err := api.NewClient(l.Socket(host)).Summary(ctx, api.ListBindings)
	if err != nil {
		l.t.Fatal(err)
	}
	for _, b := range r.Bindings.Entries {
		text := fmt.Sprintf("%s %v %s", b.Kind, b.Addresses, b.NickName)
		if b.Refused != "" {
			text += ": " + b.Refused
		}
		list = append(list, text)
	}
	slices.Sort(list)
	return list
}

// want wants hosts to know just these bindings soon.
func (l *bindingLab) want(what string, hosts []int, want ...string) {
	l.t.Helper()
	slices.Sort(want)
	start := time.Now()
	for _, host := range hosts {
		var got []string
		err := poll.Until(harness.Timeout, 20*time.Millisecond, poll.True(func() bool {
			got = l.on(host)
			return slices.Equal(got, want)
		}))
		if err != nil {
			l.t.Fatalf("%s: h%d knows\n%s\nwant\n%s", what, host, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	took := time.Since(start)
	if l.slowest = max(l.slowest, took); took > bindingTime+harness.Slack {
		l.t.Errorf("%s: all hosts knew it after %v, want %v", what, took, bindingTime)
	}
}

// macInside returns the MAC address of a container.
func (l *bindingLab) macInside(p testbed.Place) (mac string) {
	l.t.Helper()
	harness.Within(l.t, l.Lab, p, func() error {
		link, err := netlink.LinkByName(netdev.IfaceName)
		if err == nil {
			mac = link.Attrs().HardwareAddr.String()
		}
		return err
	})
	return mac
}

// All hosts know which addresses weft gave on which host, and forget them with the container and
// with the host. A router that starts again announces the same.
func TestBindings(t *testing.T) {
	t.Parallel()
	l := &bindingLab{Lab: harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"}), t: t}
	all := []int{1, 2, 3}
	l.want("nothing is attached", all)
	a := harness.AddContainer(t, l.Lab, 1, "a", "net:default", "fd01::1/64")
	first := fmt.Sprintf("port [%s fd01::1] h1", a[0].Addr())
	l.want("a container", all, first)
	b := harness.AddContainer(t, l.Lab, 2, "b")[0].Addr()
	second := fmt.Sprintf("port [%s] h2", b)
	l.want("another container", all, first, second)

	// It is found by its addresses and by its peer.
	mac := l.macInside(harness.At(2, "b"))
	for _, of := range []string{mac, b.String(), "h2"} {
		if out := harness.Weft(t, l.Lab, 3, "status", "bindings", of); !strings.HasPrefix(out, mac+"  port  "+b.String()+"  ") || strings.Count(out, "\n") != 1 {
			t.Errorf("status bindings %s: %q", of, out)
		}
	}
	if code, out := harness.Try(t, l.Lab, 3, "status", "bindings", "10.99.99.99"); code == 0 {
		t.Errorf("status bindings of an address that nobody has: %q", out)
	}

	// An address more, one less, and the host itself.
	more := netip.MustParseAddr("10.40.0.9")
	harness.Weft(t, l.Lab, 2, "attach", more.String()+"/24", "--netns", l.Netns(harness.At(2, "b")))
	l.want("an address more", all, first, fmt.Sprintf("port [%s] h2", joined(b, more)))
	harness.Weft(t, l.Lab, 2, "detach", more.String()+"/24", "--netns", l.Netns(harness.At(2, "b")))
	l.want("an address less", all, first, second)
	exposed := netip.MustParseAddr(strings.TrimSpace(harness.Weft(t, l.Lab, 3, "expose")))
	host := fmt.Sprintf("host [%s] h3", exposed)
	l.want("a host that is exposed", all, first, second, host)
	if out := harness.Weft(t, l.Lab, 1, "status", "bindings", exposed.String()); !strings.HasPrefix(out, harness.Report(t, l.Lab, 3).Router.Name+"  host") {
		t.Errorf("the MAC address of a bridge is not the name of its peer: %q", out)
	}

	// A router that is replaced, or killed, announces the same.
	harness.Weft(t, l.Lab, 1, "stop")
	l.want("the router of h1 is away", []int{2, 3}, second, host)
	harness.Launch(t, l.Lab, 1, l.Peers(1)...)
	harness.Converge(t, l.Lab) // others may dial it seconds later
	l.want("the router of h1 is back", all, first, second, host)
	if err := l.Kill(3); err != nil {
		t.Fatal(err)
	}
	l.want("the router of h3 is killed", []int{1, 2}, first, second)
	harness.Weft(t, l.Lab, 2, "detach", "--netns", l.Netns(harness.At(2, "b")))
	l.want("a container is detached", []int{1, 2}, first)
	harness.Launch(t, l.Lab, 3, l.Peers(3)...)
	harness.Converge(t, l.Lab) // others may dial it seconds later
	l.want("the router of h3 is back", all, first, host)
	harness.Weft(t, l.Lab, 3, "hide")
	l.want("the host is hidden", all, first)

	// A container that takes the MAC address of another one takes nothing.
	harness.AddContainer(t, l.Lab, 2, "thief")
	mine := l.macInside(harness.At(1, "a"))
	harness.Within(t, l.Lab, harness.At(2, "thief"), func() error {
		link, err := netlink.LinkByName(netdev.IfaceName)
		if err != nil {
			return err
		}
		hw, err := net.ParseMAC(mine)
		if err != nil {
			return err
		}
		return netlink.LinkSetHardwareAddr(link, hw)
	})
	harness.Eventually(t, "the thief is not bound", func() bool { return slices.Equal(l.on(3), []string{first}) })
	if err := l.RemoveContainer(t.Context(), harness.At(1, "a")); err != nil {
		t.Fatal(err)
	}
	l.want("the container is gone", all)
	t.Logf("the slowest change was known everywhere after %v", l.slowest.Round(time.Millisecond))
}

// joined writes addresses in order, with blanks.
func joined(as ...netip.Addr) string {
	slices.SortFunc(as, netip.Addr.Compare)
	return strings.Trim(fmt.Sprint(as), "[]")
}
