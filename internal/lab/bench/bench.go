// Package bench measures weft and other overlay networks in a lab, and prints tables that
// compare them.
//
// All networks of a table exist at the same time and are measured in turn, so that other load
// on the machine affects all of them. A table shows the medians over all rounds, and for each
// row the ratio of weft's value to the best of the networks that it is compared with.
package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// minTime is the shortest useful measurement.
const minTime = 100 * time.Millisecond

// setupTimeout bounds each step of making the networks.
const setupTimeout = 60 * time.Second

// Config configures a benchmark.
type Config struct {
	Name   string // of the labs; each table appends a letter
	Rounds int
	Time   time.Duration // of each measurement
	// Rivals is the directory with the programs of other overlays; "" omits those.
	Rivals string
	Only   *regexp.Regexp // matches the names of the rows to measure
	Paths  []string       // columns of the table sleeve, from PathNames
	Launch []string       // flags of weft launch, already checked
	Tables []string       // from TableNames
	// Record, unless nil, gets every value as a line of Go's benchmark format, for
	// benchstat.
	Record io.Writer
}

// Names of the tables.
const (
	tableSleeve = "sleeve"
	tableFast   = "fast"
	tableDNS    = "dns"
)

var tables = map[string]*table{tableSleeve: &sleeveTable, tableFast: &fastTable, tableDNS: &dnsTable}

// TableNames lists all tables, in the order in which they are measured.
var TableNames = []string{tableSleeve, tableFast, tableDNS}

// DefaultTables are the tables that need no program that takes long to build.
var DefaultTables = []string{tableSleeve, tableFast}

// Check returns an error of one line if c is invalid.
func (c *Config) Check() error {
	if c.Rounds < 1 || c.Time < minTime {
		return fmt.Errorf("%d rounds of %v: want at least one round and %v", c.Rounds, c.Time, minTime)
	}
	if len(c.Paths) == 0 {
		return fmt.Errorf("--paths is empty: want some of %s", strings.Join(PathNames, ", "))
	}
	for _, p := range c.Paths {
		if !slices.Contains(PathNames, p) {
			return fmt.Errorf("--paths %q: want some of %s", p, strings.Join(PathNames, ", "))
		}
	}
	if len(c.Tables) == 0 {
		return fmt.Errorf("--tables is empty: want some of %s", strings.Join(TableNames, ", "))
	}
	rows := 0
	for _, name := range c.Tables {
		t := tables[name]
		if t == nil {
			return fmt.Errorf("--tables %q: want some of %s", name, strings.Join(TableNames, ", "))
		}
		rows += len(c.selected(t.runs))
	}
	if rows == 0 {
		return fmt.Errorf("--only %q matches no row of a table", strings.TrimPrefix(c.Only.String(), "(?i)"))
	}
	return nil
}

// NeedsRivals reports whether a column is that of another overlay, whose program must be
// built first.
func NeedsRivals(path string) bool { return path == pathWireGuard || path == pathNebula }

// bench is one run of the benchmarks.
type bench struct {
	Config
	out      io.Writer // tables
	progress io.Writer
}

// Run measures the tables and prints them to out. It reports each finished round to progress.
// C has passed Check.
func Run(ctx context.Context, c Config, out, progress io.Writer) error {
	b := &bench{Config: c, out: out, progress: progress}
	fmt.Fprintf(out, "%s\n%d rounds of %v each, in turn; medians\n\n", machine(), c.Rounds, c.Time)
	for _, t := range []struct {
		name    string
		measure func(context.Context, []run, results) error
	}{{tableSleeve, b.sleeve}, {tableFast, b.fast}, {tableDNS, b.dns}} {
		runs := c.selected(tables[t.name].runs)
		if len(runs) == 0 || !slices.Contains(c.Tables, t.name) {
			continue
		}
		got := make(results)
		if err := t.measure(ctx, runs, got); err != nil {
			return err
		}
		tables[t.name].print(out, got)
		fmt.Fprintln(out)
		if c.Record != nil {
			if err := tables[t.name].record(c.Record, t.name, got); err != nil {
				return fmt.Errorf("record table %s: %w", t.name, err)
			}
		}
	}
	return nil
}

// selected returns the runs that give at least one selected row.
func (c *Config) selected(all []run) []run {
	var runs []run
	for _, r := range all {
		if slices.ContainsFunc(r.metrics, func(m metric) bool { return c.Only.MatchString(m.name) }) {
			runs = append(runs, r)
		}
	}
	return runs
}

// up makes a lab for one table. The suffix distinguishes the labs of one benchmark.
func (b *bench) up(ctx context.Context, suffix string, c testbed.Config, flags ...string) (*testbed.Lab, error) {
	c.Name, c.UnderlayMTU, c.Flags = b.Name+suffix, 1500, slices.Concat(flags, b.Launch)
	if err := c.Check(); err != nil {
		return nil, err
	}
	return lab.Up(ctx, c)
}

// rounds makes all runs on each of their paths, in turn.
func (b *bench) rounds(ctx context.Context, paths []path, runs []run, got results) error {
	for round := range b.Rounds {
		for i := range paths {
			// The order rotates, so that no path always has the warmer machine.
			p := paths[(i+round)%len(paths)]
			for _, r := range runs {
				if r.on != nil && !slices.Contains(r.on, p.name) {
					continue
				}
				s, err := p.sample(ctx, b.Time, r)
				if err != nil {
					return fmt.Errorf("%s: %w", p.name, err)
				}
				for _, m := range r.metrics {
					if v, ok := m.value(s); ok && b.Only.MatchString(m.name) {
						got.add(m.name, p.name, v)
					}
				}
			}
			fmt.Fprintf(b.progress, "round %d of %d: %s\n", round+1, b.Rounds, p.name)
		}
	}
	return nil
}

// machine describes the hardware and kernel of this machine.
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
