package mesh

import (
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// In a line of five hosts the ends reach each other over four hops.
func TestLineOfFive(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 5, Topology: testbed.Line, Password: "password of the lab"})
	addr := harness.AddContainer(t, lab, 1, "a", "net:default", "fd01::1/64")
	harness.AddContainer(t, lab, 5, "b", "net:default", "fd01::5/64")
	for _, p := range addr {
		harness.Reach(t, lab, harness.At(5, "b"), p.Addr())
	}
	r := harness.Report(t, lab, 1)
	for _, c := range r.Router.Connections {
		if c.State == api.StateEstablished && c.NickName != "h2" {
			t.Errorf("h1 has a link to %s past its neighbour", c.NickName)
		}
	}
}

// The mesh survives the loss of the one peer that everybody was launched with.
func TestLossOfTheKnownPeer(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	addr := harness.AddContainer(t, lab, 2, "a")[0].Addr()
	harness.AddContainer(t, lab, 3, "b")
	harness.Reach(t, lab, harness.At(3, "b"), addr)
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	harness.Reach(t, lab, harness.At(3, "b"), addr)
	harness.Eventually(t, "h2 has a route to h3 only", func() bool { return len(harness.Report(t, lab, 2).Router.UnicastRoutes) == 1 })
	harness.Reach(t, lab, harness.At(3, "b"), addr)
}

// Two hosts connect if only one of them can open TCP connections to the other.
func TestOneWayDials(t *testing.T) {
	t.Parallel()
	for _, closed := range [][2]int{{1, 2}, {2, 1}} {
		lab := harness.New(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
		if err := lab.Cut(closed[0], closed[1], testbed.Dials); err != nil {
			t.Fatal(err)
		}
		harness.Launch(t, lab, 1, testbed.Addr4(2).String())
		harness.Launch(t, lab, 2, testbed.Addr4(1).String())
		harness.Converge(t, lab)
		addr := harness.AddContainer(t, lab, 1, "a")[0].Addr()
		harness.AddContainer(t, lab, 2, "b")
		harness.Reach(t, lab, harness.At(2, "b"), addr)
	}
}

// One weft connect joins two islands into one mesh.
func TestIslandsAreJoinedByOneConnect(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 4, Password: "password of the lab"})
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, testbed.Addr4(1).String())
	harness.Launch(t, lab, 3)
	harness.Launch(t, lab, 4, testbed.Addr4(3).String())
	harness.Weft(t, lab, 2, "connect", testbed.Addr4(4).String())
	harness.Converge(t, lab)
	addr := harness.AddContainer(t, lab, 1, "a")[0].Addr()
	harness.AddContainer(t, lab, 3, "b")
	harness.Reach(t, lab, harness.At(3, "b"), addr)
}

// refusal wants both hosts to say in their status why they refuse each other.
func refusal(t *testing.T, lab *testbed.Lab, words ...string) {
	t.Helper()
	for _, host := range []int{1, 2} {
		var text strings.Builder
		harness.Eventually(t, "the refusal is in status", func() bool {
			text.Reset()
			r := harness.Report(t, lab, host)
			for _, view := range []string{"", "connections"} {
				if err := r.Text(&text, view); err != nil {
					t.Fatal(err)
				}
			}
			return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(text.String(), w) })
		})
		if n := len(harness.Report(t, lab, host).Router.Peers); n != 1 {
			t.Errorf("h%d knows %d peers, want itself only", host, n)
		}
	}
}

// Peers that cannot work together refuse each other, and both say why.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		h1    []string
		h2    []string
		words []string
	}{
		{"wrong password", nil, []string{"--password", "another password"}, []string{"password"}},
		{"no password", nil, []string{"--password", ""}, []string{"password"}},
		{"protocol version", []string{"--protocol-min", "7", "--protocol-max", "8"}, []string{"--protocol-min", "9", "--protocol-max", "9"}, []string{"version"}},
		{"one name", []string{"--name", "::7"}, []string{"--name", "::7"}, []string{"name"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab := harness.New(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
			harness.Launch(t, lab, 1, c.h1...)
			harness.Launch(t, lab, 2, append(c.h2, testbed.Addr4(1).String())...)
			refusal(t, lab, c.words...)
		})
	}
}

// A router may accept several passwords and offer one, so that the password can be
// changed without an outage.
func TestSecondPasswordIsAccepted(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	harness.WriteFile(t, dir+"/both", "new password\nold password\n")
	lab := harness.New(t, testbed.Config{Hosts: 2})
	harness.Launch(t, lab, 1, "--password-file", dir+"/both")
	harness.Launch(t, lab, 2, "--password", "old password", testbed.Addr4(1).String())
	harness.Converge(t, lab)
}

// outage is the longest time without an answer, and ends when ctx of the
// pinger does.
type outage struct {
	from, to int
	longest  time.Duration
}

// Each link of a mesh of five hosts is cut and healed under constant ping. The loss is
// detected and routed around within a second.
func TestCutAndHealEachLinkUnderPing(t *testing.T) {
	t.Parallel()
	const hosts = 5
	lab := harness.Up(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	addrs := make([]netip.Addr, hosts+1)
	for n := 1; n <= hosts; n++ {
		addrs[n] = harness.AddContainer(t, lab, n, "c")[0].Addr()
	}
	for a := 1; a <= hosts; a++ {
		for b := a + 1; b <= hosts; b++ {
			harness.Reach(t, lab, harness.At(a, "c"), addrs[b])
		}
	}
	// Links that share no host are cut at once: 5 rounds of 2 cover all 10.
	rounds := [][2][2]int{
		{{1, 2}, {3, 4}}, {{1, 3}, {2, 5}}, {{1, 4}, {3, 5}}, {{1, 5}, {2, 4}}, {{2, 3}, {4, 5}},
	}
	const detection = time.Second
	for _, round := range rounds {
		ended := make(chan struct{})
		var wg sync.WaitGroup
		var outages []*outage
		for _, link := range round {
			o := &outage{from: link[0], to: link[1]}
			outages = append(outages, o)
			p, err := testbed.NewPinger(lab.Netns(harness.At(o.from, "c")), addrs[o.to])
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			wg.Go(func() { o.watch(p, ended) })
		}
		for _, link := range round {
			harness.Both(t, lab, link, lab.Cut)
		}
		for _, link := range round {
			// An answer over another host, while the link is still cut.
			other := func(c api.Connection) bool {
				return c.NickName == (testbed.Place{Host: link[1]}).String() && c.State == api.StateEstablished
			}
			harness.Eventually(t, "the loss of a link is noticed", func() bool {
				return !slices.ContainsFunc(harness.Report(t, lab, link[0]).Router.Connections, other)
			})
			harness.Reach(t, lab, harness.At(link[0], "c"), addrs[link[1]])
		}
		for _, link := range round {
			harness.Both(t, lab, link, lab.Heal)
		}
		for _, link := range round {
			harness.Reach(t, lab, harness.At(link[1], "c"), addrs[link[0]])
		}
		close(ended)
		wg.Wait()
		for _, o := range outages {
			t.Logf("link h%d-h%d cut and healed: longest time without an answer %v", o.from, o.to, o.longest.Round(time.Millisecond))
			if o.longest > detection+harness.Slack {
				t.Errorf("link h%d-h%d: no answer for %v, want at most %v", o.from, o.to, o.longest, detection)
			}
		}
	}
}

// watch pings until ended is closed, and records the longest time without an answer.
func (o *outage) watch(p *testbed.Pinger, ended <-chan struct{}) {
	last := time.Now()
	for {
		_, err := p.Once(8, 100*time.Millisecond)
		if err == nil {
			o.longest = max(o.longest, time.Since(last))
			last = time.Now()
		}
		select {
		case <-ended:
			o.longest = max(o.longest, time.Since(last))
			return
		case <-time.After(20 * time.Millisecond):
		}
	}
}
