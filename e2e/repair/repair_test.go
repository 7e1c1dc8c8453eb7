package repair

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/internal/seed"
)

// promised is how long traffic may be interrupted.
const promised = time.Second

// pulse pings every 10 ms, and knows the longest time without an answer.
type pulse struct {
	what    string
	last    atomic.Int64 // when the last answer came, in ns
	longest atomic.Int64 // without an answer, in ns
}

// startPulse pings from a place until the end of the test.
func startPulse(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr) *pulse {
	t.Helper()
	harness.Reach(t, lab, from, to)
	pinger, err := testbed.NewPinger(lab.Netns(from), to)
	if err != nil {
		t.Fatal(err)
	}
	p := &pulse{what: from.String() + " to " + to.String()}
	p.last.Store(time.Now().UnixNano())
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			if _, err := pinger.Once(100, 100*time.Millisecond); err == nil {
				now := time.Now().UnixNano()
				gap := now - p.last.Swap(now)
				if gap > p.longest.Load() {
					p.longest.Store(gap)
				}
			}
			<-tick.C
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait(); pinger.Close() })
	return p
}

// reset forgets the longest gap.
func (p *pulse) reset() { p.longest.Store(0) }

// beats reports whether the last answer is from after a moment.
func (p *pulse) beats(since time.Time) bool { return p.last.Load() > since.UnixNano() }

// bench is a mesh of two hosts. On h1, which the tests damage, the container a and the host
// itself ping the container b of h2.
type bench struct {
	t      *testing.T
	lab    *testbed.Lab
	pulses []*pulse
	stream *harness.Stream // of TCP, from a to b
}

func newBench(t *testing.T, c testbed.Config) *bench {
	t.Helper()
	c.Hosts = 2
	lab := harness.Up(t, c)
	b := harness.AddContainer(t, lab, 2, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a")
	harness.Weft(t, lab, 1, "expose")
	if !slices.Contains(c.Flags, "--no-fastdp") {
		harness.FastdpBetween(t, lab, 1, 2)
	}
	return &bench{
		t: t, lab: lab,
		pulses: []*pulse{startPulse(t, lab, harness.At(1, "a"), b), startPulse(t, lab, harness.At(1, ""), b)},
		stream: harness.StartStream(t, lab, harness.At(1, "a"), harness.At(2, "b"), b),
	}
}

// pins is the folder of the pins of h1.
func (b *bench) pins() string { return filepath.Join(filepath.Dir(b.lab.Socket(1)), "bpf") }

func (b *bench) repairs(kind owned.Kind) uint64 {
	return harness.Report(b.t, b.lab, 1).Kernel.Repairs[string(kind)]
}

// suffer damages an object and wants it repaired and counted, and traffic to flow again
// within the promised time.
func (b *bench) suffer(t *testing.T, d damage) {
	t.Helper()
	for _, p := range b.pulses {
		p.reset()
	}
	before := b.repairs(d.kind)
	harness.Within(t, b.lab, harness.At(1, ""), d.do)
	done := time.Now()
	harness.Eventually(t, d.name+": a repair is counted", func() bool { return b.repairs(d.kind) > before })
	for _, p := range b.pulses {
		since := time.Now()
		harness.Eventually(t, d.name+": "+p.what, func() bool { return p.beats(since) })
		gap := time.Duration(p.longest.Load())
		if gap > promised+harness.Slack {
			t.Errorf("%s: %s was interrupted for %v", d.name, p.what, gap)
		}
		if gap > promised/10 {
			t.Logf("%s: %s was interrupted for %v", d.name, p.what, gap.Round(time.Millisecond))
		}
	}
	t.Logf("%s: %v", d.name, time.Since(done).Round(time.Millisecond))
}

// whole wants no fault at the end, and the connection unharmed.
func (b *bench) whole(t *testing.T) {
	t.Helper()
	b.stream.Flows(t)
	b.stream.Whole(t)
	harness.Eventually(t, "nothing is left to repair", func() bool { return len(harness.Report(t, b.lab, 1).Kernel.Faults) == 0 })
}

// Site, "What weft repairs".
func TestRepairs(t *testing.T) {
	t.Parallel()
	t.Run("fast datapath", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, testbed.Config{})
		for _, d := range append(common(), fast(b.pins())...) {
			b.suffer(t, d)
		}
		b.whole(t)
	})
	t.Run("WireGuard", func(t *testing.T) {
		t.Parallel()
		if !harness.HasWireGuard(t) {
			nstest.Lacks(t, "WireGuard")
		}
		b := newBench(t, testbed.Config{Password: "correct horse battery"})
		for _, d := range append(append(common(), fast(b.pins())...), tunnel()...) {
			b.suffer(t, d)
		}
		b.whole(t)
	})
	t.Run("sleeve", func(t *testing.T) {
		t.Parallel()
		b := newBench(t, testbed.Config{Password: "correct horse battery", Flags: []string{"--no-fastdp"}})
		for _, d := range common() {
			b.suffer(t, d)
		}
		b.whole(t)
	})
}

// TestAnyDamage does up to three things at once to a host, chosen by a seed, again and again
// for some seconds, or for as long as WEFT_SOAK says (10m). Each time traffic comes back, and
// no fault is left.
func TestAnyDamage(t *testing.T) {
	t.Parallel()
	length := 5 * time.Second
	if v := os.Getenv("WEFT_SOAK"); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("WEFT_SOAK: %v", err)
		}
	}
	rng := seed.Rand(t)
	b := newBench(t, testbed.Config{})
	all := append(common(), fast(b.pins())...)
	recent := make(map[string][]time.Time) // damages of objects in the last quiet
	// More than six changes of an object within ten seconds are a fight.
	const most, quiet = 5, 11 * time.Second
	rounds, done := 0, 0
	for end := time.Now().Add(length); time.Now().Before(end); rounds++ {
		for _, p := range b.pulses {
			p.reset()
		}
		var names []string
		for range 1 + rng.IntN(3) {
			d := all[rng.IntN(len(all))]
			now := time.Now()
			free := true
			for _, o := range d.objects {
				recent[o] = slices.DeleteFunc(recent[o], func(t time.Time) bool { return now.Sub(t) > quiet })
				free = free && len(recent[o]) < most
			}
			if !free {
				continue
			}
			// What the damage is for may be gone already.
			if err := netdev.Do(b.lab.Netns(harness.At(1, "")), d.do); err != nil {
				t.Logf("%s: %v", d.name, err)
				continue
			}
			for _, o := range d.objects {
				recent[o] = append(recent[o], now)
			}
			names, done = append(names, d.name), done+1
		}
		what := strings.Join(names, "; ")
		for _, p := range b.pulses {
			since := time.Now()
			harness.Eventually(t, what+": "+p.what, func() bool { return p.beats(since) })
			if gap := time.Duration(p.longest.Load()); gap > promised+harness.Slack {
				t.Errorf("%s: %s was interrupted for %v", what, p.what, gap)
			}
		}
	}
	b.whole(t)
	t.Logf("%d damages in %d rounds, repairs %v", done, rounds, harness.Report(t, b.lab, 1).Kernel.Repairs)
	if done < 3 {
		t.Errorf("only %d damages were done", done)
	}
}

// What cannot be repaired is said in words by status, doctor and the attach that fails.
func TestWhatCannotBeRepairedIsShown(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	harness.Eventually(t, "another interface has the name of the bridge", func() bool {
		harness.Within(t, lab, harness.At(1, ""), takeName)
		return strings.Contains(harness.Weft(t, lab, 1, "status"), "an interface of that name exists and is of type veth")
	})
	code, out := harness.Try(t, lab, 1, "doctor")
	if code == 0 || !strings.Contains(out, "FAIL  router: bridge weft") || !strings.Contains(out, "ip link del weft") {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	if err := lab.AddNamespace(testbed.Place{Host: 1, Container: "c"}); err != nil {
		t.Fatal(err)
	}
	code, out = harness.Try(t, lab, 1, "attach", "--netns", lab.Netns(harness.At(1, "c")))
	if code == 0 || !strings.Contains(out, "no container can be connected now: bridge weft") {
		t.Errorf("attach: exit code %d\n%s", code, out)
	}
	harness.Within(t, lab, harness.At(1, ""), freeName)
	harness.Eventually(t, "the bridge and its port are made, and containers can be connected", func() bool {
		code, _ := harness.Try(t, lab, 1, "attach", "--netns", lab.Netns(harness.At(1, "c")))
		return code == 0
	})
}

// Software that does not leave the bridge alone is named.
func TestFightIsNamed(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	harness.Eventually(t, "status names the fight", func() bool {
		harness.Within(t, lab, harness.At(1, ""), common()[0].do)
		return strings.Contains(harness.Weft(t, lab, 1, "status"), "bridge weft: other software changes it again and again (it is down)")
	})
	if n := harness.Report(t, lab, 1).Kernel.Repairs[string(owned.Bridge)]; n > 8 {
		t.Errorf("%d repairs", n)
	}
}
