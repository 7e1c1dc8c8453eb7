package datapath

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// Site, "When the router is away": no packet of an established flow is lost while the router of one of three
// hosts ends, is away and is launched again, neither from nor to that host nor between the
// others.
func TestRestartLosesNothing(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		flags    []string
		filtered bool // rules see bridged frames
		password string
		hosts    int              // 3 if 0
		topology testbed.Topology // Full if empty
	}{
		"express":      {},
		"bridged":      {filtered: true},
		"device":       {flags: []string{"--no-express"}},
		"over a relay": {topology: testbed.Line},                    // h2
		"WireGuard":    {password: "password of the lab", hosts: 2}, // in a small virtual machine
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.password != "" && !harness.HasWireGuard(t) {
				nstest.Lacks(t, "WireGuard")
			}
			lab := harness.Up(t, testbed.Config{Hosts: cmp.Or(c.hosts, 3), Flags: c.flags, Topology: c.topology, Password: c.password})
			if c.filtered {
				for h := 1; h <= lab.Hosts; h++ {
					harness.Within(t, lab, harness.At(h, ""), testbed.FilterBridged)
				}
			}
			f := startFlows(t, lab)
			sealed := func() {}
			if c.password != "" {
				sealed = wantSealed(t, lab, f.a, f.b)
			}
			for _, restart := range []func(){
				func() { // supervised: it is back before its peers have noticed
					f.kill(2)
					f.launch(2)
				},
				func() { // for another version, by systemd
					f.terminate(2)
					f.launch(2)
				},
				func() { // by hand
					harness.Weft(t, lab, 1, "stop")
					harness.Eventually(t, "h2 has noticed", func() bool { return len(harness.Report(t, lab, 2).Router.UnicastRoutes) == lab.Hosts-2 })
					f.beat()
					if out := harness.Weft(t, lab, 2, "status", "connections"); !strings.Contains(out, "its router is away, fastdp goes on for ") {
						t.Errorf("status connections: %s", out)
					}
					f.launch(1)
				},
			} {
				restart()
				f.beat()
			}
			f.whole()
			sealed()
		})
	}
}

// flows are flows between the containers of two or three hosts: a on h1, b on h2 and c on h3.
type flows struct {
	t      *testing.T
	lab    *testbed.Lab
	a, b   netip.Addr
	all    []*harness.Exchange
	stream *harness.Stream         // of TCP, from a to b
	pings  func() (sent, lost int) // ends the pings from a to b
	full   uint64                  // packets that the kernel had dropped before as a queue was full
}

// startFlows makes the containers and begins the flows, which use the fast datapath.
func startFlows(t *testing.T, lab *testbed.Lab) *flows {
	t.Helper()
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	f := &flows{t: t, lab: lab, a: a, b: b}
	f.fast()
	f.stream = harness.StartStream(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)
	f.stream.Flows(t)
	// By now each host has learned where the others' addresses are.
	f.all = []*harness.Exchange{harness.StartExchange(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)}
	if lab.Hosts > 2 {
		harness.AddContainer(t, lab, 3, "c")
		for to, addr := range map[testbed.Place]netip.Addr{harness.At(2, "b"): b, harness.At(1, "a"): a} {
			f.all = append(f.all, harness.StartExchange(t, lab, harness.At(3, "c"), to, addr))
		}
	}
	f.full = nstest.Overflows(t)
	f.pings = startPings(t, lab, harness.At(1, "a"), b)
	f.beat()
	return f
}

// startPings pings every 10 ms. end returns how many requests were sent, and how many of them were
// not answered.
func startPings(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr) (end func() (sent, lost int)) {
	t.Helper()
	p, err := testbed.NewPinger(lab.Netns(from), to)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var pinging sync.WaitGroup
	var sent, lost int
	pinging.Go(func() { sent, lost, err = p.Steady(ctx, 56, pingEvery, harness.Slack) })
	stop := func() { cancel(); pinging.Wait() }
	t.Cleanup(func() { stop(); p.Close() })
	return func() (int, int) {
		t.Helper()
		stop()
		if err != nil {
			t.Errorf("ping from %s: %v", from, err)
		}
		return sent, lost
	}
}

func (f *flows) fast() {
	f.t.Helper()
	for _, link := range [][2]int{{1, 2}, {2, 3}, {1, 3}} {
		if max(link[0], link[1]) <= f.lab.Hosts && (f.lab.Topology == testbed.Full || link != [2]int{1, 3}) {
			harness.FastdpBetween(f.t, f.lab, link[0], link[1])
		}
	}
}

func (f *flows) kill(h int) {
	f.t.Helper()
	if err := f.lab.Kill(h); err != nil {
		f.t.Fatal(err)
	}
}

// terminate ends the router of a host as systemd does.
func (f *flows) terminate(h int) {
	f.t.Helper()
	pid, ok := f.lab.RouterPID(h)
	if !ok {
		f.t.Fatalf("the router of h%d does not run", h)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		f.t.Fatal(err)
	}
	harness.Eventually(f.t, "the router ends", func() bool { _, ok := f.lab.RouterPID(h); return !ok })
}

func (f *flows) launch(h int) {
	f.t.Helper()
	harness.Launch(f.t, f.lab, h, f.lab.Peers(h)...)
	harness.Converge(f.t, f.lab)
	f.fast()
}

// beat waits until all flows continue.
func (f *flows) beat() {
	f.t.Helper()
	f.stream.Flows(f.t)
	for _, x := range f.all {
		x.Beats(f.t)
	}
}

// whole ends the flows and wants that none lost anything.
func (f *flows) whole() {
	f.t.Helper()
	f.stream.Flows(f.t)
	f.stream.Whole(f.t)
	for _, x := range f.all {
		x.Whole(f.t)
	}
	sent, lost := f.pings()
	f.t.Logf("%d of %d pings lost", lost, sent)
	if lost > 0 && nstest.Overflows(f.t) == f.full {
		f.t.Errorf("%d of %d pings lost", lost, sent)
	}
}

// Site, "When the router is away": the kernel carries nothing any more to and from a host that
// is banned while no router runs there.
func TestBanCutsAHostWithoutRouterOff(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3})
	harness.AddContainer(t, lab, 1, "a")
	b := harness.AddContainer(t, lab, 3, "b")[0].Addr()
	harness.FastdpBetween(t, lab, 1, 3)
	x := harness.StartExchange(t, lab, harness.At(1, "a"), harness.At(3, "b"), b)
	x.Beats(t)
	if err := lab.Kill(3); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "h1 has noticed", func() bool { return len(harness.Report(t, lab, 1).Router.UnicastRoutes) == 1 })
	x.Beats(t)
	var second sync.WaitGroup // it takes two operators
	second.Go(func() { harness.Try(t, lab, 2, "ban", "h3") })
	harness.Weft(t, lab, 1, "ban", "h3")
	second.Wait()
	p, err := testbed.NewPinger(lab.Netns(harness.At(1, "a")), b)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	harness.Eventually(t, "pings from h1 are not answered", func() bool { _, err := p.Once(100, time.Second); return err != nil })
	_, there, _ := x.Lost(t)
	if len(there) == 0 {
		t.Error("h1 still sends")
	}
}

// Site, "When the router is away": without the fast datapath, frames from and to a host whose
// router is replaced are lost for less than a second, and no others.
func TestRestartOfSleeveIsShort(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Flags: []string{"--no-fastdp"}})
	a := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 3, "c")
	others := harness.StartExchange(t, lab, harness.At(3, "c"), harness.At(1, "a"), a)
	x := harness.StartExchange(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)
	x.Beats(t)
	if err := lab.Kill(2); err != nil {
		t.Fatal(err)
	}
	launched := time.Now()
	harness.Launch(t, lab, 2, lab.Peers(2)...)
	ready := time.Since(launched)
	x.Beats(t)
	_, there, back := x.Lost(t)
	all := append(there, back...)
	slices.Sort(all)
	if len(all) == 0 {
		t.Fatal("nothing was lost: the frames did not go over sleeve")
	}
	lost := all[len(all)-1] - all[0]
	t.Logf("frames were lost for %v, of which the launch took %v", lost, ready)
	// Where the launch takes long, all that follows does.
	if lost > 2*ready+time.Second+harness.Slack {
		t.Errorf("frames were lost for %v", lost)
	}
	others.Whole(t)
}

// A container that is attached while the router of its host is replaced waits for the next
// router.
func TestAttachWaitsForTheNextRouter(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	if err := lab.AddNamespace(harness.At(1, "a")); err != nil {
		t.Fatal(err)
	}
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	attached := make(chan string, 1)
	go func() {
		_, out := harness.Try(t, lab, 1, "attach", "--netns", lab.Netns(harness.At(1, "a")))
		attached <- strings.TrimSpace(out)
	}()
	harness.Launch(t, lab, 1, testbed.Addr4(2).String())
	if out := <-attached; !netip.MustParsePrefix("10.32.0.0/12").Contains(parseAddr(out)) {
		t.Fatalf("attach: %s", out)
	}
	harness.Reach(t, lab, harness.At(1, "a"), b)
}

// parseAddr returns the zero Addr for what is no address.
func parseAddr(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

// A host that others connect to, and that has no targets, starts again. Its router connects to the
// peers of its last run, so frames of sleeve pass at once, and not when the others try again.
// Here they never do: h2 was told to forget its target, and connects to no others.
func TestRouterWithoutTargetsConnectsToThePeersOfItsLastRun(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 2, Flags: []string{"--no-fastdp"}})
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, "--no-discovery", testbed.Addr4(1).String())
	harness.Converge(t, lab)
	harness.AddContainer(t, lab, 1, "a")
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.Weft(t, lab, 2, "forget", testbed.Addr4(1).String())
	x := harness.StartExchange(t, lab, harness.At(1, "a"), harness.At(2, "b"), b)
	for name, restart := range map[string]func(){
		"after a crash": func() {
			if err := lab.Kill(1); err != nil {
				t.Fatal(err)
			}
			harness.Launch(t, lab, 1)
		},
		"after a stop": func() {
			harness.Weft(t, lab, 1, "stop")
			harness.Launch(t, lab, 1, "--resume")
		},
	} {
		restart()
		x.Beats(t)
		if c := harness.Link(t, lab, 1, "h2"); !c.Outbound {
			t.Errorf("%s h2 has connected: %+v", name, c)
		}
	}
	_, there, back := x.Lost(t)
	t.Logf("of datagrams sent every 10 ms, %d were lost over two restarts", len(there)+len(back))
}
