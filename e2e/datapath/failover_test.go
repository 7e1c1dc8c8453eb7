package datapath

import (
	"context"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// cutsVariable is how often TestRelayTakesOver cuts each link in each mode. If it is set,
// nothing may be lost for more than lostTime; else the test allows for a busy machine.
const cutsVariable = "WEFT_CUTS"

// lostTime is how long frames may be lost after a link broke while a relay is at hand.
const lostTime = time.Second

// pingEvery is the interval of the pings that measure it.
const pingEvery = 10 * time.Millisecond

// mode is a way of frames between containers.
type mode struct {
	name  string
	lab   testbed.Config
	setUp func() error // in the namespace of each host; may be nil
	is    func(t *testing.T, lab *testbed.Lab) bool
}

// modes are all modes that this kernel has.
func modes(t *testing.T) []mode {
	all := slices.Clone(everywhere)
	if harness.HasWireGuard(t) {
		all = append(all, tunnel)
	}
	return all
}

var tunnel = mode{"tunnel", testbed.Config{Password: "password of the lab"}, nil, func(t *testing.T, lab *testbed.Lab) bool {
	a, b := harness.Link(t, lab, 1, "h2"), harness.Link(t, lab, 2, "h1")
	return a.Kind == "fastdp" && a.Encrypted && b.Kind == "fastdp" && b.Encrypted
}}

var everywhere = []mode{
	{"sleeve", testbed.Config{Flags: []string{"--no-fastdp"}}, nil, func(t *testing.T, lab *testbed.Lab) bool {
		return harness.Link(t, lab, 1, "h2").Kind == "sleeve" && harness.Link(t, lab, 2, "h1").Kind == "sleeve"
	}},
	{"express", testbed.Config{}, nil, func(t *testing.T, lab *testbed.Lab) bool {
		return harness.Link(t, lab, 1, "h2").Express && harness.Link(t, lab, 2, "h1").Express
	}},
	{"bridged", testbed.Config{}, testbed.FilterBridged, func(t *testing.T, lab *testbed.Lab) bool {
		return strings.Contains(harness.Link(t, lab, 1, "h2").Info, testbed.FilterTable) && strings.Contains(harness.Link(t, lab, 2, "h1").Info, testbed.FilterTable)
	}},
	{"device", testbed.Config{Flags: []string{"--no-express"}}, nil, func(t *testing.T, lab *testbed.Lab) bool {
		return harness.Link(t, lab, 1, "h2").Kind == "fastdp" && harness.Link(t, lab, 2, "h1").Kind == "fastdp"
	}},
}

// up makes hosts whose containers a, on h1, and b, on h2, use the mode.
func (m mode) up(t *testing.T, hosts int) (lab *testbed.Lab, b netip.Addr) {
	t.Helper()
	c := m.lab
	c.Hosts = hosts
	lab = harness.Up(t, c)
	b = harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	if m.setUp != nil {
		for h := 1; h <= hosts; h++ {
			harness.Within(t, lab, harness.At(h, ""), m.setUp)
		}
	}
	harness.Eventually(t, "frames use the mode "+m.name, func() bool { return m.is(t, lab) })
	return lab, b
}

// steady pings from a to an address while change runs, and returns for how long requests
// were lost.
func steady(t *testing.T, lab *testbed.Lab, to netip.Addr, change func()) time.Duration {
	t.Helper()
	p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), to)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	ctx, stop := context.WithCancel(t.Context())
	var pinging sync.WaitGroup
	var sent, lost int
	pinging.Go(func() { sent, lost, err = p.Steady(ctx, 8, pingEvery, time.Second) })
	change()
	stop()
	pinging.Wait()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d of %d requests lost", lost, sent)
	return time.Duration(lost) * pingEvery
}

// A link between two of three hosts is cut, in both directions or in one. Frames use the
// third host as a relay, and later the link again.
func TestRelayTakesOver(t *testing.T) {
	runs, limit := 1, lostTime+harness.Slack/2
	if s := os.Getenv(cutsVariable); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("%s: %v", cutsVariable, err)
		}
		runs, limit = n, lostTime
	} else {
		t.Parallel()
	}
	for _, m := range modes(t) {
		t.Run(m.name, func(t *testing.T) {
			if runs == 1 {
				t.Parallel()
			}
			lab, b := m.up(t, 3)
			harness.Reach(t, lab, harness.At(1, "a"), b)
			for run := range runs {
				cut := [][2]int{{1, 2}, {2, 1}}
				if run%2 == 1 {
					cut = cut[run/2%2:][:1]
				}
				lost := steady(t, lab, b, func() {
					// Links that carry frames are watched closely, once the routers know.
					begun := time.Now()
					harness.Eventually(t, "the link is used for a while", func() bool { return m.is(t, lab) && time.Since(begun) > 2*time.Second })
					t.Logf("cut at %s", time.Now().Format("15:04:05.000")) // to be compared with the logs of the routers
					for _, c := range cut {
						if err := lab.Cut(c[0], c[1], testbed.Packets); err != nil {
							t.Fatal(err)
						}
					}
					harness.Eventually(t, "the link is lost", func() bool {
						return harness.Link(t, lab, 1, "h2").Kind == "" && harness.Link(t, lab, 2, "h1").Kind == ""
					})
					harness.Reach(t, lab, harness.At(1, "a"), b)
				})
				if lost > limit {
					t.Errorf("cut %v: requests were lost for %v, want at most %v", cut, lost, limit)
				}
				harness.Both(t, lab, [2]int{1, 2}, lab.Heal)
				harness.Eventually(t, "the link is used again", func() bool {
					return harness.Link(t, lab, 1, "h2").Kind != "" && harness.Link(t, lab, 2, "h1").Kind != ""
				})
			}
		})
	}
}

// The underlay begins to drop large packets, as if a tunnel came into the path, while a
// connection uses it. Nobody says so. The connection goes on, and both ends know the MTU.
func TestPathNarrowsInUse(t *testing.T) {
	t.Parallel()
	const narrow, limit = 1300, 10 * time.Second
	for _, m := range modes(t) {
		t.Run(m.name, func(t *testing.T) {
			t.Parallel()
			lab, b := m.up(t, 2)
			s := harness.StartStream(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)
			s.Flows(t)
			if err := lab.Narrow(2, narrow); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			harness.Eventually(t, "both ends know", func() bool {
				for h := 1; h <= 2; h++ {
					k := harness.Link(t, lab, h, harness.At(3-h, "").String())
					if k.Kind != "sleeve" || k.MTU >= narrow || k.MTU == 0 {
						return false
					}
				}
				return true
			})
			found := time.Since(begun)
			s.Flows(t)
			t.Logf("found after %v, the connection continued after %v", found, time.Since(begun))
			if found > limit+harness.Slack {
				t.Errorf("the smaller MTU was found after %v, want %v", found, limit)
			}
			s.Whole(t)
		})
	}
}

// A router hangs, and the kernel of its host does not. Frames use the fast datapath, before
// and after the other router ends the session.
func TestFastDatapathOutlivesAHungRouter(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	harness.FastdpBetween(t, lab, 1, 2)
	harness.Reach(t, lab, harness.At(1, "a"), b)
	lost := steady(t, lab, b, func() {
		pid, ok := lab.RouterPID(2)
		if !ok {
			t.Fatal("the router of h2 does not run")
		}
		if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		defer unix.Kill(pid, unix.SIGCONT)
		harness.Eventually(t, "h1 notices", func() bool { return harness.Link(t, lab, 1, "h2").Kind == "" })
		harness.Reach(t, lab, harness.At(1, "a"), b)
	})
	if limit := harness.Slack / 2; lost > limit {
		t.Errorf("requests were lost for %v, want at most %v", lost, limit)
	}
	harness.FastdpBetween(t, lab, 1, 2)
}
