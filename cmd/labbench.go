package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/testbed"
)

// benchPath is a pair of places to measure between.
type benchPath struct {
	name   string
	from   testbed.Place
	server *trafficServer
}

// benchTest is one row of the table.
type benchTest struct {
	name, unit string
	args       []string
	value      func(trafficResult) float64
	smaller    bool // is better
}

var benchTests = []benchTest{
	{"TCP, 1 stream", "Gb/s", []string{"--kind", trafficTCP, "--streams", "1"}, func(r trafficResult) float64 { return r.BitsPerSecond / 1e9 }, false},
	{"TCP, 4 streams", "Gb/s", []string{"--kind", trafficTCP, "--streams", "4"}, func(r trafficResult) float64 { return r.BitsPerSecond / 1e9 }, false},
	{"UDP, 64 bytes", "kpkt/s", []string{"--kind", trafficUDP, "--size", "64"}, func(r trafficResult) float64 { return r.PacketsPerSecond / 1e3 }, false},
	{"round trip, median", "us", []string{"--kind", trafficLatency}, func(r trafficResult) float64 { return float64(r.Median) / 1e3 }, true},
	{"round trip, 99th", "us", []string{"--kind", trafficLatency}, func(r trafficResult) float64 { return float64(r.P99) / 1e3 }, true},
}

func (l *labApp) bench() *cobra.Command {
	var rounds int
	var d time.Duration
	c := &cobra.Command{
		Use:    "bench [flags] [-- LAUNCH-FLAGS...]",
		Short:  "Measure the mesh against the bare underlay",
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			if rounds < 1 || d <= 0 {
				return usagef("%s: want at least one round and a time", c.CommandPath())
			}
			if !c.Flags().Changed("name") {
				l.name = fmt.Sprintf("bench%d", os.Getpid())
			}
			k := labConfig{hosts: 2, topology: string(testbed.Full), password: "a password for the bench", underlayMTU: 1500}
			config, err := k.config(l.name, launch)
			if err != nil {
				return err
			}
			return runBench(c.Context(), config, rounds, d, l.stdout)
		},
	}
	c.Flags().IntVar(&rounds, "rounds", 5, "rounds, of which the medians count")
	c.Flags().DurationVar(&d, "time", 2*time.Second, "time for each measurement")
	return c
}

func runBench(ctx context.Context, config testbed.Config, rounds int, d time.Duration, w io.Writer) (err error) {
	lab, err := labUp(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, testbed.Down(config.Name)) }()
	paths, err := benchPaths(ctx, lab)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "%s\n%d rounds of %v, in turns; medians\n\n", machine(), rounds, d)
	results := make(map[string][]float64) // by path and test
	for round := range rounds {
		for i := range paths {
			// Who comes first changes, so that neither has the warmer machine.
			p := paths[(i+round)%len(paths)]
			for _, t := range benchTests {
				r, err := p.server.measure(ctx, lab, p.from, d, t.args...)
				if err != nil {
					return err
				}
				results[p.name+t.name] = append(results[p.name+t.name], t.value(r))
			}
		}
	}
	printBench(w, paths, results)
	return nil
}

// benchPaths starts a server at the end of the underlay and one behind the
// switch.
func benchPaths(ctx context.Context, lab *testbed.Lab) ([]benchPath, error) {
	ctx, cancel := context.WithTimeout(ctx, labPatience)
	defer cancel()
	near, far := testbed.Place{Host: 1, Container: "c1"}, testbed.Place{Host: 2, Container: "c1"}
	var to netip.Addr
	for _, p := range []testbed.Place{near, far} {
		ps, err := lab.AddContainer(ctx, p, nil)
		if err != nil {
			return nil, err
		}
		if to, err = addrOf(ps); err != nil {
			return nil, err
		}
	}
	if _, err := testbed.Ping(ctx, lab.Netns(near), to); err != nil {
		return nil, err
	}
	// The servers end with the lab, so they are not bound to ctx.
	raw, err := startTraffic(context.WithoutCancel(ctx), lab, testbed.Place{Host: 2}, testbed.Addr4(2))
	if err != nil {
		return nil, err
	}
	mesh, err := startTraffic(context.WithoutCancel(ctx), lab, far, to)
	if err != nil {
		return nil, err
	}
	return []benchPath{{"raw veth", testbed.Place{Host: 1}, raw}, {"sleeve", near, mesh}}, nil
}

func printBench(w io.Writer, paths []benchPath, results map[string][]float64) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprintf(tw, "\tunit\t%s\t%s\tratio\t\n", paths[0].name, paths[1].name)
	for _, t := range benchTests {
		a, b := median(results[paths[0].name+t.name]), median(results[paths[1].name+t.name])
		note := ""
		if t.smaller {
			note = " (less is better)"
		}
		fmt.Fprintf(tw, "%s%s\t%s\t%.2f\t%.2f\t%.3f\t\n", t.name, note, t.unit, a, b, b/a)
	}
	tw.Flush()
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
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
