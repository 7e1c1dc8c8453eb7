package repair

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/seed"
)

// chaosVariable is how long TestChaos goes on, with eight hosts; a shorter run has four.
const chaosVariable = "WEFT_CHAOS"

// Times that the accidents of chaos may interrupt a flow.
const (
	// relayed is for a link that breaks while the others work, and for what is repaired.
	relayed = time.Second
	// restarted is from the end of an accident of a host, when its router runs and nothing is
	// cut, to the last flow of the host: sessions are dialled again with a back-off.
	restarted = 20 * time.Second
)

// accident is something bad that happens to the host hA, or to its link with hB, and ends.
type accident struct {
	name string
	// within is how long flows of the host may be interrupted after begin, 0 until end.
	within time.Duration
	begin  func(c *chaos, host, other int) error
	end    func(c *chaos, host, other int) error // nil: it has no end
}

// accidents are chosen from by number, so the order is part of what a seed means.
var accidents = []accident{
	{"kill the router of hA", 0, func(c *chaos, h, _ int) error { return c.lab.Kill(h) }, (*chaos).launch},
	{"stop the router of hA", 0, (*chaos).stop, (*chaos).launch},
	{"kill the router of hA and launch it at once", 0, func(c *chaos, h, o int) error {
		if err := c.lab.Kill(h); err != nil {
			return err
		}
		return c.launch(h, o)
	}, nil},
	{"cut the link of hA and hB", relayed, func(c *chaos, h, o int) error { return c.cut(c.lab.Cut, [2]int{h, o}, [2]int{o, h}) }, func(c *chaos, h, o int) error {
		return c.cut(c.lab.Heal, [2]int{h, o}, [2]int{o, h})
	}},
	{"cut the way from hA to hB", relayed, func(c *chaos, h, o int) error { return c.cut(c.lab.Cut, [2]int{h, o}) }, func(c *chaos, h, o int) error {
		return c.cut(c.lab.Heal, [2]int{h, o})
	}},
	{"cut hA from all others", 0, func(c *chaos, h, _ int) error { return c.cut(c.lab.Cut, c.linksOf(h)...) }, func(c *chaos, h, _ int) error {
		return c.cut(c.lab.Heal, c.linksOf(h)...)
	}},
	{"fill the disk of hA", relayed, (*chaos).fill, func(c *chaos, h, _ int) error { return os.Remove(c.filler(h)) }},
	{"damage an object of hA", relayed, (*chaos).damage, nil},
	{"let the underlay of hA drop packets of more than 1400 bytes", relayed, func(c *chaos, h, _ int) error { return c.lab.Narrow(h, 1400) }, func(c *chaos, h, _ int) error {
		return c.lab.Narrow(h, 1500)
	}},
	{"give hA another address", 0, func(c *chaos, h, _ int) error { return c.move(h, 1, 0) }, func(c *chaos, h, _ int) error { return c.move(h, 0, 1) }},
}

// stroke is one accident of a plan: what happens, to whom, and for how long. The numbers are
// reduced to what there is.
type stroke struct {
	accident, host, other int
	lasts                 time.Duration
	seed                  uint64 // of what the accident chooses itself
}

// nextStroke draws a stroke for a lab.
func nextStroke(rng *rand.Rand, hosts int) stroke {
	s := stroke{accident: rng.IntN(len(accidents)), host: 1 + rng.IntN(hosts), lasts: time.Duration(rng.IntN(4000)) * time.Millisecond, seed: rng.Uint64()}
	s.other = 1 + (s.host+rng.IntN(hosts-1))%hosts
	return s
}

func (s stroke) String() string {
	name := strings.NewReplacer("hA", fmt.Sprint("h", s.host), "hB", fmt.Sprint("h", s.other)).Replace(accidents[s.accident].name)
	return fmt.Sprintf("%s, for %v", name, s.lasts)
}

// chaos is a lab to which accidents happen.
type chaos struct {
	t       *testing.T
	lab     *testbed.Lab
	rng     *rand.Rand // of the present stroke
	flows   []*flow
	strange atomic.Pointer[string] // an answer of the wrong container, the first one

	living map[netip.Addr]testbed.Place // containers by address
	extra  []netip.Addr                 // of them those that churn made, the oldest first
	count  int                          // of containers that churn made so far
}

// flow asks the container of another host for its name, every 20 ms.
type flow struct {
	from, to int
	last     atomic.Int64 // when the last answer came, in ns
}

const namePort = 7070

func (c *chaos) place(host int) testbed.Place { return harness.At(host, "c") }

// answerNames runs a server of names in the container of a host until the end of the test.
func (c *chaos) answerNames(host int, addr netip.Addr) {
	var conn *net.UDPConn
	harness.Within(c.t, c.lab, c.place(host), func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, namePort)))
		return err
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		b := make([]byte, 64)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			// A full queue or a missing neighbour is no end.
			_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(b[:n:n], " h%d", host), from)
		}
	})
	c.t.Cleanup(func() { conn.Close(); wg.Wait() })
}

// startFlow asks until the end of the test.
func (c *chaos) startFlow(from, to int, addr netip.Addr) {
	f := &flow{from: from, to: to}
	f.last.Store(time.Now().UnixNano())
	var conn *net.UDPConn
	harness.Within(c.t, c.lab, c.place(from), func() (err error) {
		conn, err = net.ListenUDP("udp", nil)
		return err
	})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for n := 0; ctx.Err() == nil; n++ {
			_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%d-%d", from, n), netip.AddrPortFrom(addr, namePort))
			<-tick.C
		}
	})
	wg.Go(func() {
		b := make([]byte, 64)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			answer := string(b[:n])
			if !strings.HasPrefix(answer, fmt.Sprintf("%d-", from)) || !strings.HasSuffix(answer, fmt.Sprintf(" h%d", to)) {
				s := fmt.Sprintf("h%d asked the container of h%d, and got %q", from, to, answer)
				c.strange.CompareAndSwap(nil, &s)
				continue
			}
			f.last.Store(time.Now().UnixNano())
		}
	})
	c.t.Cleanup(func() { cancel(); conn.Close(); wg.Wait() })
	c.flows = append(c.flows, f)
}

// flowAgain wants an answer in each flow that of chooses, within a time from now.
func (c *chaos) flowAgain(what string, within time.Duration, of func(*flow) bool) {
	c.t.Helper()
	since := time.Now()
	for _, f := range c.flows {
		if !of(f) {
			continue
		}
		harness.Eventually(c.t, fmt.Sprintf("%s: the flow from h%d to h%d", what, f.from, f.to), func() bool {
			return f.last.Load() > since.UnixNano()
		})
		if took := time.Unix(0, f.last.Load()).Sub(since); took > within+harness.Slack {
			c.t.Errorf("%s: the flow from h%d to h%d was interrupted for %v, want %v", what, f.from, f.to, took, within)
		}
	}
}

func (c *chaos) launch(host, _ int) error {
	ctx, cancel := context.WithTimeout(c.t.Context(), harness.StepTimeout)
	defer cancel()
	return c.lab.Launch(ctx, host, c.lab.Peers(host)...)
}

func (c *chaos) stop(host, _ int) error {
	if code, out := harness.Try(c.t, c.lab, host, "stop"); code != 0 {
		return fmt.Errorf("weft stop: exit code %d: %s", code, out)
	}
	return nil
}

func (c *chaos) cut(change func(a, b int, way testbed.Way) error, ways ...[2]int) error {
	for _, w := range ways {
		if err := change(w[0], w[1], testbed.Packets); err != nil {
			return err
		}
	}
	return nil
}

// linksOf returns both ways between a host and each other.
func (c *chaos) linksOf(host int) (ways [][2]int) {
	for o := 1; o <= c.lab.Hosts; o++ {
		if o != host {
			ways = append(ways, [2]int{host, o}, [2]int{o, host})
		}
	}
	return ways
}

// The state of each host is on a file system of this size, in bytes.
const diskSize = 24 << 20

func (c *chaos) filler(host int) string { return filepath.Join(c.lab.StateDir(host), "filler") }

// fill writes a file until the disk is full.
func (c *chaos) fill(host, _ int) error {
	f, err := os.Create(c.filler(host))
	if err != nil {
		return err
	}
	defer f.Close()
	for b := make([]byte, 1<<16); ; {
		if _, err := f.Write(b); err != nil {
			return nil // that is what this is for
		}
	}
}

// damage does one of the things that TestRepairs has. It is done to routers that run, so it
// may find nothing to damage.
func (c *chaos) damage(host, _ int) error {
	all := append(common(), fast(filepath.Join(filepath.Dir(c.lab.Socket(host)), "bpf"))...)
	d := all[c.rng.IntN(len(all))]
	c.t.Logf("  %s", d.name)
	if err := netdev.Do(c.lab.Netns(harness.At(host, "")), d.do); err != nil {
		c.t.Logf("  %s: %v", d.name, err)
	}
	return nil
}

// move replaces an address of a host by another one: number 0 is the usual one.
func (c *chaos) move(host, to, from int) error {
	addr := func(i int) *netlink.Addr {
		a := testbed.Addr4(host).As4()
		a[3] += byte(100 * i)
		return &netlink.Addr{IPNet: &net.IPNet{IP: a[:], Mask: net.CIDRMask(24, 32)}}
	}
	return netdev.Do(c.lab.Netns(harness.At(host, "")), func() error {
		l, err := netlink.LinkByName(testbed.HostInterface)
		if err != nil {
			return err
		}
		if err := netlink.AddrDel(l, addr(from)); err != nil {
			return err
		}
		return netlink.AddrAdd(l, addr(to))
	})
}

// strike lets an accident happen, and end, and wants the flows back.
func (c *chaos) strike(s stroke) {
	c.t.Helper()
	a := accidents[s.accident]
	c.t.Logf("%v", s)
	c.rng = rand.New(rand.NewPCG(s.seed, 0))
	if err := a.begin(c, s.host, s.other); err != nil {
		c.t.Fatalf("%v: %v", s, err)
	}
	begun := time.Now()
	if a.within > 0 {
		c.flowAgain(s.String(), a.within, func(f *flow) bool { return f.from == s.host || f.to == s.host })
	}
	c.churn()
	for time.Since(begun) < s.lasts {
		// Nobody else is hurt meanwhile.
		c.flowAgain(s.String()+": others", relayed, func(f *flow) bool { return f.from != s.host && f.to != s.host })
		c.check()
		wait := time.NewTimer(100 * time.Millisecond)
		<-wait.C
	}
	if a.end != nil {
		if err := a.end(c, s.host, s.other); err != nil {
			c.t.Fatalf("end of: %v: %v", s, err)
		}
	}
	c.flowAgain("after: "+s.String(), restarted, func(*flow) bool { return true })
	c.churn()
	c.check()
}

// churn attaches a container to a host and detaches an older one. Either may fail where an
// accident happens.
func (c *chaos) churn() {
	ctx, cancel := context.WithTimeout(c.t.Context(), harness.Slack)
	defer cancel()
	c.count++
	p := harness.At(1+c.count%c.lab.Hosts, fmt.Sprintf("x%d", c.count))
	if got, err := c.lab.AddContainer(ctx, p, nil); err != nil {
		c.t.Logf("  attach %v: %v", p, err)
	} else {
		for _, a := range got {
			if other, twice := c.living[a.Addr()]; twice {
				c.t.Fatalf("%v has the address %v, which %v has", p, a.Addr(), other)
			}
			c.living[a.Addr()] = p
			c.extra = append(c.extra, a.Addr())
		}
	}
	if len(c.extra) <= c.lab.Hosts {
		return
	}
	oldest := c.extra[0]
	c.extra = c.extra[1:]
	if err := c.lab.RemoveContainer(ctx, c.living[oldest]); err != nil {
		c.t.Logf("  detach %v: %v", c.living[oldest], err) // it is gone, and the router will see that
	}
	delete(c.living, oldest)
}

// check wants what must be true at any moment, of the hosts whose routers answer: each living
// container has its addresses, and no answer came from the wrong container.
func (c *chaos) check() {
	c.t.Helper()
	if s := c.strange.Load(); s != nil {
		c.t.Fatal(*s)
	}
	for h := 1; h <= c.lab.Hosts; h++ {
		ctx, cancel := context.WithTimeout(c.t.Context(), time.Second)
		list, err := api.NewClient(c.lab.Socket(h)).Attachments(ctx)
		cancel()
		if err != nil {
			continue
		}
		var has []netip.Addr
		for _, a := range list {
			for _, p := range a.Addresses {
				has = append(has, p.Addr())
			}
		}
		for a, p := range c.living {
			if p.Host == h && !slices.Contains(has, a) {
				c.t.Errorf("h%d does not know any more that %v has %v: %v", h, p, a, has)
			}
			if p.Host != h && slices.Contains(has, a) {
				c.t.Errorf("h%d says that it has %v, which %v has", h, a, p)
			}
		}
	}
}

// TestChaos lets accidents happen to the hosts of a mesh that carries traffic and attaches
// containers: one after the other, chosen by a seed. No address is given twice, none is lost, no
// frame reaches another container, and flows come back in time.
func TestChaos(t *testing.T) {
	length, hosts := 5*time.Second, 4
	if v := os.Getenv(chaosVariable); v != "" {
		var err error
		if length, err = time.ParseDuration(v); err != nil {
			t.Fatalf("%s: %v", chaosVariable, err)
		}
		hosts = 8
	} else {
		t.Parallel()
	}
	rng := seed.Rand(t)
	c := &chaos{t: t, living: make(map[netip.Addr]testbed.Place)}
	c.lab = harness.New(t, testbed.Config{Hosts: hosts})
	for h := 1; h <= hosts; h++ {
		dir := c.lab.StateDir(h)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("weft", dir, "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", diskSize)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(t.Context(), harness.ConvergeTimeout)
	defer cancel()
	if err := c.lab.Up(ctx); err != nil {
		t.Fatal(err)
	}
	addrs := make([]netip.Addr, hosts+1)
	for h := 1; h <= hosts; h++ {
		addrs[h] = harness.AddContainer(t, c.lab, h, "c")[0].Addr()
		c.living[addrs[h]] = c.place(h)
		c.answerNames(h, addrs[h])
	}
	for h := 1; h <= hosts; h++ {
		for _, step := range []int{1, hosts / 2} {
			to := 1 + (h+step-1)%hosts
			c.startFlow(h, to, addrs[to])
		}
	}
	c.flowAgain("at first", restarted, func(*flow) bool { return true })
	rounds := 0
	for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); rounds++ {
		c.strike(nextStroke(rng, hosts))
	}
	t.Logf("%d accidents, %d containers", rounds, c.count)
}
