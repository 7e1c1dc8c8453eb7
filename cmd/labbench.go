package cmd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/rival"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// minBenchTime is how long a measurement takes at least to mean anything.
const minBenchTime = 100 * time.Millisecond

// The paths of the bench, in the order of the table.
const (
	pathRaw       = "raw veth"
	pathVXLAN     = "kernel VXLAN"
	pathWireGuard = "wireguard-go"
	pathNebula    = "nebula"
	pathWeft      = "weft sleeve"
)

var benchPathNames = []string{pathRaw, pathVXLAN, pathWireGuard, pathNebula, pathWeft}

// benchPath is a pair of places to measure between.
type benchPath struct {
	name     string
	lab      *testbed.Lab
	from, to testbed.Place
	server   *trafficServer
	pids     []int // of the processes that carry its packets
	// before is called before each measurement, if there is one.
	before func(context.Context, *benchPath) error
}

// benchConfig is what the flags of lab bench say.
type benchConfig struct {
	rounds int
	time   time.Duration // of each measurement
	rivals string        // folder of their programs; none are measured if ""
	only   *regexp.Regexp
	paths  []string
	launch []string // flags of weft launch
	tables []string // names of those to measure
}

// The tables of the bench.
const (
	tableSleeve = "sleeve"
	tableFast   = "fast"
	tableDNS    = "dns"
)

var benchTables = map[string]*benchTable{tableSleeve: &sleeveTable, tableFast: &fastTable, tableDNS: &dnsTable}

// tableNames are the tables as they are given, for messages.
var tableNames = strings.Join([]string{tableSleeve, tableFast, tableDNS}, ", ")

func (l *labApp) bench() *cobra.Command {
	var k benchConfig
	var only string
	c := &cobra.Command{
		Use:    "bench [flags] [-- LAUNCH-FLAGS...]",
		Short:  "Measure the mesh, and other overlays next to it",
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			k.launch = launch
			if k.rounds < 1 || k.time < minBenchTime {
				return usagef("%s: %d rounds of %v: want at least one round and %v", c.CommandPath(), k.rounds, k.time, minBenchTime)
			}
			if len(k.paths) == 0 {
				return usagef("%s: --paths is empty: want some of %s", c.CommandPath(), strings.Join(benchPathNames, ", "))
			}
			for _, p := range k.paths {
				if !slices.Contains(benchPathNames, p) {
					return usagef("%s: --paths %q: want some of %s", c.CommandPath(), p, strings.Join(benchPathNames, ", "))
				}
				if (p == pathWireGuard || p == pathNebula) && k.rivals == "" && c.Flags().Changed("paths") {
					return usagef("%s: --paths %q: --rivals must say where its program is", c.CommandPath(), p)
				}
			}
			var err error
			if k.only, err = regexp.Compile("(?i)" + only); err != nil {
				return usagef("%s: --only %q: %v", c.CommandPath(), only, err)
			}
			wanted := 0
			for _, t := range k.tables {
				if benchTables[t] == nil {
					return usagef("%s: --tables %q: want some of %s", c.CommandPath(), t, tableNames)
				}
				wanted += len(k.selected(benchTables[t].runs))
			}
			if len(k.tables) == 0 {
				return usagef("%s: --tables is empty: want some of %s", c.CommandPath(), tableNames)
			}
			if wanted == 0 {
				return usagef("%s: --only %q matches nothing that is measured", c.CommandPath(), only)
			}
			if !c.Flags().Changed("name") {
				l.name = fmt.Sprintf("bench%d", os.Getpid())
			}
			return l.runBench(c.Context(), k)
		},
	}
	c.Flags().IntVar(&k.rounds, "rounds", 5, "rounds, of which the medians count")
	c.Flags().DurationVar(&k.time, "time", 2*time.Second, "time for each measurement")
	c.Flags().StringVar(&k.rivals, "rivals", "", "folder of wireguard, nebula, nebula-cert and coredns, to be measured too")
	c.Flags().StringVar(&only, "only", "", "measure only what this regular expression matches")
	c.Flags().StringSliceVar(&k.tables, "tables", []string{tableSleeve, tableFast}, "what to measure: sleeve against others in user space, the fast datapath against kernel VXLAN, dns against CoreDNS")
	c.Flags().StringSliceVar(&k.paths, "paths", benchPathNames, "paths of the table sleeve, measure only these")
	return c
}

func (l *labApp) runBench(ctx context.Context, k benchConfig) error {
	fmt.Fprintf(l.stdout, "%s\n%d rounds of %v, in turns; medians\n\n", machine(), k.rounds, k.time)
	if slices.Contains(k.tables, tableSleeve) {
		results := make(benchResults)
		if runs := k.selected(benchRuns); len(runs) > 0 {
			if err := l.benchNetworks(ctx, k, runs, results); err != nil {
				return err
			}
		}
		if k.only.MatchString(idleMetric.name) && slices.Contains(k.paths, pathWeft) {
			if err := l.benchIdle(ctx, k, results); err != nil {
				return err
			}
		}
		sleeveTable.print(l.stdout, results)
	}
	if runs := k.selected(fastTable.runs); slices.Contains(k.tables, tableFast) && len(runs) > 0 {
		results := make(benchResults)
		if err := l.benchFast(ctx, k, runs, results); err != nil {
			return err
		}
		fmt.Fprintln(l.stdout)
		fastTable.print(l.stdout, results)
	}
	if len(k.selected(dnsTable.runs)) > 0 && slices.Contains(k.tables, tableDNS) {
		results := make(benchResults)
		if err := l.benchDNS(ctx, k, results); err != nil {
			return err
		}
		fmt.Fprintln(l.stdout)
		dnsTable.print(l.stdout, results)
	}
	return nil
}

// selected returns the runs with a metric that is wanted.
func (k *benchConfig) selected(all []benchRun) []benchRun {
	var runs []benchRun
	for _, r := range all {
		if slices.ContainsFunc(r.metrics, func(m metric) bool { return k.only.MatchString(m.name) }) {
			runs = append(runs, r)
		}
	}
	return runs
}

// benchNetworks measures all networks between the same two hosts, in turns.
func (l *labApp) benchNetworks(ctx context.Context, k benchConfig, runs []benchRun, results benchResults) (err error) {
	c := labConfig{hosts: 2, topology: string(testbed.Full), password: "a password for the bench", underlayMTU: 1500}
	config, err := c.config(l.name, k.launch)
	if err != nil {
		return err
	}
	lab, err := labUp(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, testbed.Down(config.Name)) }()
	paths, err := k.makePaths(ctx, lab)
	if err != nil {
		return err
	}
	if err := l.benchRounds(ctx, k, paths, runs, results); err != nil {
		return err
	}
	if !slices.Contains(k.paths, pathWeft) {
		return nil
	}
	limit, err := estimateLimit(results)
	if err != nil {
		return err
	}
	return errors.Join(l.printRouters(ctx, lab), printLimit(l.stdout, limit, results))
}

// benchRounds makes each run on each of its paths, in turns.
func (l *labApp) benchRounds(ctx context.Context, k benchConfig, paths []benchPath, runs []benchRun, results benchResults) error {
	for round := range k.rounds {
		for i := range paths {
			// Who comes first changes, so that nobody has the warmer machine.
			p := paths[(i+round)%len(paths)]
			for _, r := range runs {
				if r.on != nil && !slices.Contains(r.on, p.name) {
					continue
				}
				s, err := p.sample(ctx, k.time, r)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				for _, m := range r.metrics {
					if v, ok := m.value(s); ok && k.only.MatchString(m.name) {
						results.add(m.name, p.name, v)
					}
				}
			}
			fmt.Fprintf(l.stderr, "round %d of %d: %s\n", round+1, k.rounds, p.name)
		}
	}
	return nil
}

// printRouters says which offloads were on, and what memory the routers took.
func (l *labApp) printRouters(ctx context.Context, lab *testbed.Lab) error {
	for n := 1; n <= lab.Hosts; n++ {
		r, err := api.NewClient(lab.Socket(n)).Report(ctx)
		if err != nil {
			return err
		}
		var words []string
		for _, what := range []string{"tap", "udp"} {
			words = append(words, what+": "+r.Router.Offloads[what])
		}
		pid, _ := lab.RouterPID(n)
		use, err := testbed.Usage(pid)
		if err != nil {
			return err
		}
		fmt.Fprintf(l.stdout, "weft on h%d: offloads %s; %d MB resident after the load\n", n, strings.Join(words, ", "), use.Resident>>20)
	}
	return nil
}

// makePaths makes the networks and starts a server at the far end of each.
func (k *benchConfig) makePaths(ctx context.Context, lab *testbed.Lab) ([]benchPath, error) {
	ctx, cancel := context.WithTimeout(ctx, labTimeout)
	defer cancel()
	makers := map[string]func() (*rival.Network, error){
		pathRaw:   func() (*rival.Network, error) { return rawNetwork(lab) },
		pathVXLAN: func() (*rival.Network, error) { return rival.VXLAN(lab) },
		pathWeft:  func() (*rival.Network, error) { return weftNetwork(ctx, lab) },
	}
	if k.rivals != "" {
		makers[pathWireGuard] = func() (*rival.Network, error) { return rival.WireGuard(ctx, lab, k.rivals) }
		makers[pathNebula] = func() (*rival.Network, error) { return rival.Nebula(ctx, lab, k.rivals) }
	}
	var paths []benchPath
	for _, name := range benchPathNames {
		if makers[name] == nil || !slices.Contains(k.paths, name) {
			continue
		}
		p, err := makePath(ctx, lab, name, makers[name])
		if err != nil {
			return nil, err
		}
		paths = append(paths, p)
	}
	return paths, nil
}

// makePath makes a network, waits until it works, and starts a server at its far
// end.
func makePath(ctx context.Context, lab *testbed.Lab, name string, network func() (*rival.Network, error)) (p benchPath, err error) {
	n, err := network()
	if err == nil {
		_, err = testbed.Ping(ctx, lab.Netns(n.From), n.Addr)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	// The server ends with the lab, so it is not bound to ctx.
	s, err := startTraffic(context.WithoutCancel(ctx), lab, n.To, n.Addr)
	if err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	return benchPath{name: name, lab: lab, from: n.From, to: n.To, server: s, pids: n.PIDs}, nil
}

// rawNetwork is the underlay from host to host.
func rawNetwork(*testbed.Lab) (*rival.Network, error) {
	return &rival.Network{From: testbed.Place{Host: 1}, To: testbed.Place{Host: 2}, Addr: testbed.Addr4(2)}, nil
}

// weftNetwork attaches a container on each host.
func weftNetwork(ctx context.Context, lab *testbed.Lab) (*rival.Network, error) {
	n := &rival.Network{From: testbed.Place{Host: 1, Container: "c1"}, To: testbed.Place{Host: 2, Container: "c1"}}
	if err := attachEnds(ctx, lab, n); err != nil {
		return nil, err
	}
	for _, p := range []testbed.Place{n.From, n.To} {
		pid, _ := lab.RouterPID(p.Host)
		n.PIDs = append(n.PIDs, pid)
	}
	return n, nil
}

// attachEnds attaches a container at each end of a network.
func attachEnds(ctx context.Context, lab *testbed.Lab, n *rival.Network) error {
	for _, p := range []testbed.Place{n.From, n.To} {
		ps, err := lab.AddContainer(ctx, p, nil)
		if err != nil {
			return err
		}
		if n.Addr, err = addrOf(ps); err != nil {
			return err
		}
	}
	return nil
}

// sample makes one measurement.
func (p *benchPath) sample(ctx context.Context, d time.Duration, r benchRun) (s sample, err error) {
	if p.before != nil {
		if err := p.before(ctx, p); err != nil {
			return s, err
		}
	}
	before, err := p.cpu()
	if err != nil {
		return s, err
	}
	g, ctx := errgroup.WithContext(ctx)
	if r.beside {
		g.Go(func() error {
			_, err := p.server.measure(ctx, p.lab, p.from, d+2*besideLead, "--kind", trafficTCP)
			return err
		})
		time.Sleep(besideLead) // until the stream is at full speed
	}
	g.Go(func() (err error) {
		s.trafficResult, err = p.server.measure(ctx, p.lab, p.from, r.each(d), r.args...)
		return err
	})
	if err := g.Wait(); err != nil {
		return s, err
	}
	after, err := p.cpu()
	s.cpu, s.time = after-before, d
	s.carried = len(p.pids) > 0
	return s, err
}

// besideLead is for how long a bulk stream runs before, and after, what is
// measured beside it.
const besideLead = 500 * time.Millisecond

// cpu is the CPU time of the path's processes.
func (p *benchPath) cpu() (sum time.Duration, err error) {
	for _, pid := range p.pids {
		u, err := testbed.Usage(pid)
		if err != nil {
			return 0, err
		}
		sum += u.CPU
	}
	return sum, nil
}

// machine describes this machine in words, without its name.
func machine() string {
	model := "processor of unknown model"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(b), "\n") {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	kernel := "unknown"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	memory := ""
	var s unix.Sysinfo_t
	if unix.Sysinfo(&s) == nil {
		memory = fmt.Sprintf(", %.0f GiB of memory", float64(s.Totalram)*float64(s.Unit)/(1<<30))
	}
	return fmt.Sprintf("%d cores of %s%s, Linux %s, %s", runtime.NumCPU(), model, memory, kernel, runtime.Version())
}
