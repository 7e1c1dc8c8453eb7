package repair

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
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
	// reused is for a container whose address another one had until a moment ago. Its announcement
	// is lost where a router is away or a link is cut, and repeated after 1, 3, 7 and 15 s.
	reused = 25 * time.Second
)

// firstAnswer names the longest time until a new container answered.
const firstAnswer = "a new container, until its first answer"

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
	{"put an earlier copy of the state of hA back", 0, (*chaos).rollBack, (*chaos).launch},
	{"lose a state file of hA", 0, (*chaos).loseFile, (*chaos).launch},
	{"truncate a state file of hA", 0, (*chaos).truncateFile, (*chaos).launch},
	{"step the clock", relayed, (*chaos).stepClock, nil},
}

// stateFiles may be lost or damaged: the others of the mesh and the kernel know enough. A host
// that loses identity.key is another host from then on, which is no accident but a new member.
var stateFiles = []string{"weft.db", "ipam.db"}

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
	begun   time.Time
	lab     *testbed.Lab
	rng     *rand.Rand // of the present stroke
	flows   []*flow
	strange atomic.Pointer[string] // an answer of the wrong container, the first one
	copies  []string               // of the state of each host, "" if there is none yet

	living  map[netip.Addr]testbed.Place // containers by address
	servers map[netip.Addr]func()        // that end their servers
	extra   []netip.Addr                 // of them those that churn made, the oldest first
	count   int                          // of containers that churn made so far

	longest map[string]time.Duration // interruption, by accident and whose flow it was
}

// flow asks the container of another host for its name, every 20 ms.
type flow struct {
	from, to int
	last     atomic.Int64 // when the last answer came, in ns
	gap      atomic.Int64 // the longest time between two answers, in ns
}

// of reports whether a flow begins or ends at a host.
func (f *flow) of(host int) bool { return f.from == host || f.to == host }

const namePort = 7070

func (c *chaos) place(host int) testbed.Place { return harness.At(host, "c") }

// answerNames runs a server in a container that answers each request with its text and the name
// of the container, until the server is ended.
func (c *chaos) answerNames(p testbed.Place, addr netip.Addr) {
	var conn *net.UDPConn
	harness.Within(c.t, c.lab, p, func() (err error) {
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
			_, _ = conn.WriteToUDPAddrPort(fmt.Appendf(b[:n:n], " %v", p), from)
		}
	})
	c.living[addr] = p
	c.servers[addr] = func() { conn.Close(); wg.Wait() }
}

// stopServers ends all servers.
func (c *chaos) stopServers() {
	for _, stop := range c.servers {
		stop()
	}
}

// startFlow asks until the end of the test.
func (c *chaos) startFlow(from, to int, addr netip.Addr) {
	f := &flow{from: from, to: to}
	f.last.Store(c.now())
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
			if !strings.HasPrefix(answer, fmt.Sprintf("%d-", from)) || !strings.HasSuffix(answer, fmt.Sprintf(" %v", c.place(to))) {
				s := fmt.Sprintf("h%d asked the container of h%d, and got %q", from, to, answer)
				c.strange.CompareAndSwap(nil, &s)
				continue
			}
			now := c.now()
			if gap := now - f.last.Swap(now); gap > f.gap.Load() {
				f.gap.Store(gap)
			}
		}
	})
	c.t.Cleanup(func() { cancel(); conn.Close(); wg.Wait() })
	c.flows = append(c.flows, f)
}

// now is the time since the test began, in ns. Steps of the clock do not change it.
func (c *chaos) now() int64 { return int64(time.Since(c.begun)) }

// flowAgain wants an answer in each flow that of chooses, within a time from now.
func (c *chaos) flowAgain(what string, within time.Duration, of func(*flow) bool) {
	c.t.Helper()
	since := c.now()
	for _, f := range c.flows {
		if !of(f) {
			continue
		}
		harness.Eventually(c.t, fmt.Sprintf("%s: the flow from h%d to h%d", what, f.from, f.to), func() bool { return f.last.Load() > since })
		if took := time.Duration(f.last.Load() - since); took > within+harness.Slack {
			c.t.Errorf("%s: the flow from h%d to h%d was interrupted for %v, want %v", what, f.from, f.to, took, within)
		}
	}
}

// interrupted wants that no flow that of chooses was interrupted for longer than within, since
// the present accident began.
func (c *chaos) interrupted(what, whose string, within time.Duration, of func(*flow) bool) {
	c.t.Helper()
	for _, f := range c.flows {
		if !of(f) {
			continue
		}
		gap := time.Duration(max(f.gap.Load(), c.now()-f.last.Load()))
		c.longest[whose] = max(c.longest[whose], gap)
		if within > 0 && gap > within+harness.Slack {
			c.t.Errorf("%s: the flow from h%d to h%d was interrupted for %v, want %v", what, f.from, f.to, gap, within)
		}
	}
}

func (c *chaos) launch(host, _ int) error {
	if c.copies[host] == "" {
		if err := c.copyState(host); err != nil {
			return err
		}
	}
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

// rollBack ends the router of a host and replaces its state by a copy that was made earlier, as
// someone who restores a backup does. The present state is the next copy.
func (c *chaos) rollBack(host, _ int) error {
	if err := c.lab.Kill(host); err != nil {
		return err
	}
	old := c.copies[host]
	if err := c.copyState(host); err != nil || old == "" {
		c.t.Log("  not done, as there is no copy yet")
		return err
	}
	dir := c.lab.StateDir(host)
	if err := emptyFolder(dir); err != nil {
		return err
	}
	return errors.Join(copyFolder(old, dir), os.RemoveAll(old))
}

// copyState makes a copy of the state of a host whose router does not run.
func (c *chaos) copyState(host int) error {
	c.copies[host] = c.t.TempDir()
	return copyFolder(c.lab.StateDir(host), c.copies[host])
}

// emptyFolder removes what a folder contains: it is the root of a file system.
func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(dir, e.Name())))
	}
	return err
}

// copyFolder copies what a folder contains to another one, which exists and is empty.
func copyFolder(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil || path == from {
			return err
		}
		dest := filepath.Join(to, strings.TrimPrefix(path, from))
		if e.IsDir() {
			return os.Mkdir(dest, 0o700)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(dest, b, 0o600)
	})
}

// stateFile ends the router of a host and chooses one of its state files.
func (c *chaos) stateFile(host int) (string, error) {
	name := stateFiles[c.rng.IntN(len(stateFiles))]
	c.t.Logf("  %s", name)
	return filepath.Join(c.lab.StateDir(host), name), c.lab.Kill(host)
}

func (c *chaos) loseFile(host, _ int) error {
	path, err := c.stateFile(host)
	if err != nil {
		return err
	}
	return os.Remove(path)
}

func (c *chaos) truncateFile(host, _ int) error {
	path, err := c.stateFile(host)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, c.rng.Int64N(info.Size()))
}

// stepClock moves the clock of the machine by up to a day, to and fro. Namespaces share that
// clock, so it needs a machine of its own.
func (c *chaos) stepClock(_, _ int) error {
	step := time.Duration(c.rng.Int64N(int64(48*time.Hour))) - 24*time.Hour
	if !nstest.OwnMachine() {
		c.t.Log("  not done, as others use the clock of this machine too")
		return nil
	}
	c.t.Logf("  by %v", step)
	return nstest.StepClock(step)
}

// strike lets an accident happen, and end, and wants the flows back.
func (c *chaos) strike(s stroke) {
	c.t.Helper()
	a := accidents[s.accident]
	c.t.Logf("%v", s)
	c.rng = rand.New(rand.NewPCG(s.seed, 0))
	mine := func(f *flow) bool { return f.of(s.host) }
	others := func(f *flow) bool { return !f.of(s.host) }
	for _, f := range c.flows {
		f.gap.Store(0)
	}
	if err := a.begin(c, s.host, s.other); err != nil {
		c.t.Fatalf("%v: %v", s, err)
	}
	begun := time.Now()
	if a.within > 0 {
		c.flowAgain(s.String(), a.within, mine)
	}
	c.churn()
	for time.Since(begun) < s.lasts {
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
	c.interrupted(s.String(), a.name, a.within, mine)
	c.interrupted(s.String()+": others", "others", relayed, others) // nobody else is hurt
	c.churn()
	c.check()
	c.ask("after: " + s.String())
}

// ask wants each container that churn made to answer with its own name. Its address may have been
// that of another one before.
func (c *chaos) ask(what string) {
	c.t.Helper()
	for _, addr := range c.extra {
		p := c.living[addr]
		from := 1 + p.Host%c.lab.Hosts
		var conn *net.UDPConn
		harness.Within(c.t, c.lab, c.place(from), func() (err error) {
			conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, namePort)))
			return err
		})
		want, b := fmt.Sprintf("ask %v", p), make([]byte, 64)
		begun := time.Now()
		err := poll.Until(reused+harness.Slack, 50*time.Millisecond, func() error {
			if _, err := conn.Write([]byte("ask")); err != nil {
				return err // the neighbour is not known yet
			}
			if err := conn.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				return err
			}
			n, err := conn.Read(b)
			if err == nil && string(b[:n]) != want {
				c.t.Fatalf("%s: h%d asked %v, which %v has, and got %q", what, from, addr, p, b[:n])
			}
			return err
		})
		conn.Close()
		if err != nil {
			c.t.Errorf("%s: h%d asks %v, which has %v: %v", what, from, p, addr, err)
		}
		c.longest[firstAnswer] = max(c.longest[firstAnswer], time.Since(begun))
	}
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
			c.answerNames(p, a.Addr())
			c.extra = append(c.extra, a.Addr())
		}
	}
	if len(c.extra) <= c.lab.Hosts {
		return
	}
	oldest := c.extra[0]
	c.extra = c.extra[1:]
	c.servers[oldest]()
	if err := c.lab.RemoveContainer(ctx, c.living[oldest]); err != nil {
		c.t.Logf("  detach %v: %v", c.living[oldest], err) // it is gone, and the router will see that
	}
	delete(c.living, oldest)
	delete(c.servers, oldest)
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

// agree wants all hosts to agree on who owns which addresses at the end, and each living container
// to have an address that its own host owns and lists, and that its interface has.
func (c *chaos) agree() {
	c.t.Helper()
	var first []api.RingEntry
	harness.Eventually(c.t, "all hosts have the same ring", func() bool {
		first = nil
		for h := 1; h <= c.lab.Hosts; h++ {
			ring := harness.Report(c.t, c.lab, h).IPAM.Entries
			if first == nil {
				first = ring
			}
			if len(ring) == 0 || !slices.EqualFunc(first, ring, func(a, b api.RingEntry) bool { return a.Token == b.Token && a.Peer == b.Peer }) {
				return false
			}
		}
		return true
	})
	// A record that came back with old state, of a container that is gone, stays until the router
	// has missed its port for half a minute.
	if err := poll.Until(2*harness.Timeout, time.Second, c.listed); err != nil {
		c.t.Error(err)
	}
	for h := 1; h <= c.lab.Hosts; h++ {
		r := harness.Report(c.t, c.lab, h)
		for a, p := range c.living {
			if p.Host != h {
				continue
			}
			if owner := ownerOf(first, a); owner != r.Router.Name {
				c.t.Errorf("%v has %v, which belongs to %s and not to its host %s", p, a, owner, r.Router.Name)
			}
			harness.Within(c.t, c.lab, p, func() error {
				addrs, err := netlink.AddrList(nil, netlink.FAMILY_V4)
				if !slices.ContainsFunc(addrs, func(has netlink.Addr) bool { return has.IP.Equal(a.AsSlice()) }) {
					c.t.Errorf("%v has lost %v from its interface, and has %v", p, a, addrs)
				}
				return err
			})
		}
	}
}

// listed returns an error unless each living container is listed once, by its own host.
func (c *chaos) listed() error {
	for h := 1; h <= c.lab.Hosts; h++ {
		times := make(map[netip.Addr]int)
		for _, a := range harness.Report(c.t, c.lab, h).Attachments {
			for _, p := range a.Addresses {
				times[p.Addr()]++
			}
		}
		for a, p := range c.living {
			if p.Host == h && times[a] != 1 {
				return fmt.Errorf("h%d lists %v of %v %d times", h, a, p, times[a])
			}
		}
	}
	return nil
}

// ownerOf returns the peer that owns an address.
func ownerOf(ring []api.RingEntry, a netip.Addr) (peer string) {
	if len(ring) > 0 {
		peer = ring[len(ring)-1].Peer // before the first token is the rest of the last range
	}
	for _, e := range ring {
		if e.Token.Compare(a) <= 0 {
			peer = e.Peer
		}
	}
	return peer
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
	c := &chaos{
		t: t, begun: time.Now(), copies: make([]string, hosts+1), longest: make(map[string]time.Duration),
		living: make(map[netip.Addr]testbed.Place), servers: make(map[netip.Addr]func()),
	}
	t.Cleanup(c.stopServers)
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
		c.answerNames(c.place(h), addrs[h])
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
	c.agree()
	t.Logf("%d accidents, %d containers", rounds, c.count)
	for _, whose := range slices.Sorted(maps.Keys(c.longest)) {
		t.Logf("longest interruption: %v: %s", c.longest[whose].Round(time.Millisecond), whose)
	}
}
