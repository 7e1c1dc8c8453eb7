package mesh

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

// These tests use all of the machine's CPU, so they do not run in parallel, and they use
// the program as it ships, because the race detector costs time and memory.

// upShipped makes a lab of shipped routers, each with a container c, and wants
// every container to reach that of h1.
func upShipped(t *testing.T, c testbed.Config) (lab *testbed.Lab, addrs []netip.Addr) {
	t.Helper()
	lab = harness.New(t, c)
	lab.Exe = harness.Shipped(t)
	ctx, cancel := context.WithTimeout(t.Context(), harness.ConvergeTimeout)
	defer cancel()
	if err := lab.Up(ctx); err != nil {
		t.Fatal(err)
	}
	addrs = make([]netip.Addr, c.Hosts+1)
	for n := 1; n <= c.Hosts; n++ {
		addrs[n] = harness.AddContainer(t, lab, n, "c")[0].Addr()
		if n > 1 {
			harness.Reach(t, lab, harness.At(n, "c"), addrs[1])
		}
	}
	return lab, addrs
}

// load is bulk traffic between containers, until stop.
type load struct {
	t       *testing.T
	ctx     context.Context
	lab     *testbed.Lab
	servers []*harness.Server // by host
	wg      sync.WaitGroup
	stop    func()
}

// newLoad starts a server in the container of each host.
func newLoad(t *testing.T, lab *testbed.Lab, addrs []netip.Addr) *load {
	ctx, cancel := context.WithCancel(t.Context())
	l := &load{t: t, ctx: ctx, lab: lab, servers: make([]*harness.Server, len(addrs))}
	l.stop = func() {
		cancel()
		l.wg.Wait()
		for _, s := range l.servers[1:] {
			s.Stop()
		}
	}
	for n := 1; n < len(addrs); n++ {
		l.servers[n] = harness.Serve(t, lab, harness.At(n, "c"), addrs[n])
	}
	return l
}

// send begins to send from one host's container to another's.
func (l *load) send(from, to int, o traffic.Order) {
	o.Time = time.Hour
	l.wg.Go(func() {
		if _, err := l.servers[to].Measure(l.ctx, l.lab, harness.At(from, "c"), o); l.ctx.Err() == nil {
			l.t.Errorf("from h%d to h%d: ended before its time: %v", from, to, err)
		}
	})
}

// bytes is how many bytes of UDP payload the routers have sent to each other.
func (l *load) bytes() (n uint64) {
	for h := 1; h <= l.lab.Hosts; h++ {
		for _, c := range harness.Report(l.t, l.lab, h).Router.Connections {
			n += c.TxBytes
		}
	}
	return n
}

// Bulk traffic does not delay control messages. With all links full, membership does not
// change, and an attach completes within a second; on a slow machine, within ten times
// what it took without load.
func TestFullLinksDelayNoControl(t *testing.T) {
	const hosts = 3
	lab, addrs := upShipped(t, testbed.Config{Hosts: hosts, Password: "password of the lab"})
	before := make([]*api.Report, hosts+1)
	for n := 1; n <= hosts; n++ {
		before[n] = harness.Report(t, lab, n)
	}
	var took []time.Duration
	attach := func() {
		began := time.Now()
		harness.AddContainer(t, lab, 1+len(took)%hosts, fmt.Sprint("new", len(took)))
		took = append(took, time.Since(began))
	}
	for range hosts {
		attach()
	}
	limit := max(time.Second, 10*slices.Max(took))
	quiet := len(took)

	l := newLoad(t, lab, addrs)
	defer l.stop()
	for a := 1; a <= hosts; a++ {
		for b := 1; b <= hosts; b++ {
			if a != b {
				l.send(a, b, traffic.Order{Kind: traffic.TCP, Streams: 2})
			}
		}
	}
	l.send(1, 2, traffic.Order{Kind: traffic.UDP, Size: 1300})

	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	// Longer than the time after which a silent link or member counts as dead.
	const long = 9 * time.Second
	for end := time.Now().Add(long); time.Now().Before(end); <-tick.C {
		for n := 1; n <= hosts; n++ {
			r := harness.Report(t, lab, n).Router
			up := 0
			for _, c := range r.Connections {
				// A link whose heartbeats the load delays may be watched for a second before it is
				// used again; frames take another way meanwhile.
				if c.State == api.StateEstablished || strings.Contains(c.Info, "answers again, watched") || strings.Contains(c.Info, "no answer on UDP") {
					up++
				}
			}
			if len(r.Peers) != hosts || up != hosts-1 || r.TerminationCount != before[n].Router.TerminationCount {
				t.Fatalf("h%d sees %d peers, has %d links, and %d sessions ended: %+v", n, len(r.Peers), up, r.TerminationCount, r.Connections)
			}
		}
		attach()
	}
	took = took[quiet:]
	// One may be slow because of what else this machine does.
	slices.Sort(took)
	if most := took[len(took)*3/4]; most > limit {
		t.Errorf("of %d attaches under load one in four took %v and longer, up to %v; want at most %v", len(took), most, took[len(took)-1], limit)
	}
	t.Logf("%d attaches: median %v, up to %v; %.1f Gb in %v", len(took), took[len(took)/2], took[len(took)-1], float64(l.bytes())*8/1e9, long)
}

// With ten links at full speed a router has less than 64 MB resident.
func TestMemoryOfTenFullLinks(t *testing.T) {
	const links, most = 10, 64_000_000
	lab, addrs := upShipped(t, testbed.Config{Hosts: 1 + links, Topology: testbed.Star, Password: "password of the lab"})
	for n := 1; n <= 1+links; n++ {
		restartPeakMemory(t, lab, n)
	}
	l := newLoad(t, lab, addrs)
	defer l.stop()
	start := l.bytes()
	for n := 2; n <= 1+links; n++ {
		l.send(1, n, traffic.Order{Kind: traffic.TCP})
		l.send(n, 1, traffic.Order{Kind: traffic.TCP})
	}
	harness.Eventually(t, "each link has carried 5 MB each way", func() bool {
		return !slices.ContainsFunc(harness.Report(t, lab, 1).Router.Connections, func(c api.Connection) bool { return min(c.TxBytes, c.RxBytes) < 5e6 })
	})
	for n := 1; n <= 1+links; n++ {
		peak := peakMemory(t, lab, n)
		if peak >= most {
			t.Errorf("the router of h%d had %d kB resident", n, peak/1000)
		}
		t.Logf("the router of h%d had at most %d kB resident", n, peak/1000)
	}
	t.Logf("%.1f Gb went over the links", float64(l.bytes()-start)*8/1e9)
}

// restartPeakMemory makes peakMemory count from now on (proc_pid_clear_refs(5)).
func restartPeakMemory(t *testing.T, lab *testbed.Lab, host int) {
	t.Helper()
	if err := os.WriteFile(procFile(t, lab, host, "clear_refs"), []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
}

// peakMemory is the most memory that the router of a host had resident, in
// bytes: VmHWM of proc_pid_status(5).
func peakMemory(t *testing.T, lab *testbed.Lab, host int) int {
	t.Helper()
	b, err := os.ReadFile(procFile(t, lab, host, "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")))
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatalf("no VmHWM in\n%s", b)
	return 0
}

// procFile is a file in the folder of proc(5) of a host's router.
func procFile(t *testing.T, lab *testbed.Lab, host int, name string) string {
	t.Helper()
	r, err := api.NewClient(lab.Socket(host)).Ready(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("/proc/%d/%s", r.PID, name)
}
