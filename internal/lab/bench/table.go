package bench

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/weft-net/weft/internal/lab/traffic"
)

// sample is the result of one measurement of one path.
type sample struct {
	traffic.Result
	time    time.Duration
	cpu     time.Duration // of the processes that carry packets
	carried bool          // there are such processes
}

// metric is a row of a table. Must and aim are the required and the desired ratio of the value
// of path ours to the best value of the paths against; 0 for none.
type metric struct {
	name, unit    string
	lowerIsBetter bool // a lower value is better
	must, aim     float64
	value         func(sample) (float64, bool) // false if the path has none
	ours          string                       // "" for pathWeft
	against       []string                     // nil for the other overlays
}

// run is one measurement, which gives one or more metrics.
type run struct {
	order    traffic.Order // without its time; no measurement if its kind is ""
	withBulk bool          // a bulk stream runs meanwhile
	steps    int           // number of steps that share the time; 0 for 1
	metrics  []metric
	on       []string // paths; all if nil
}

// stepTime returns the time of one step.
func (r *run) stepTime(d time.Duration) time.Duration { return d / time.Duration(max(r.steps, 1)) }

// table is a set of metrics that are measured and printed together.
type table struct {
	paths []string // columns, in order
	runs  []run
}

func gigabits(s sample) (float64, bool)    { return s.BitsPerSecond / 1e9, true }
func kilopackets(s sample) (float64, bool) { return s.PacketsPerSecond / 1e3, true }
func medianTrip(s sample) (float64, bool)  { return float64(s.Median) / 1e3, true }
func p99Trip(s sample) (float64, bool)     { return float64(s.P99) / 1e3, true }

func cpuPerGigabyte(s sample) (float64, bool) {
	gigabytes := s.BitsPerSecond * s.time.Seconds() / 8e9
	return s.cpu.Seconds() / gigabytes, s.carried && gigabytes > 0
}

// results holds the values by metric and path.
type results map[string]map[string][]float64

func (r results) add(metric, path string, v float64) {
	if r[metric] == nil {
		r[metric] = make(map[string][]float64)
	}
	r[metric][path] = append(r[metric][path], v)
}

// median returns the median of a path, or false if it was not measured.
func (r results) median(metric, path string) (float64, bool) {
	if len(r[metric][path]) == 0 {
		return 0, false
	}
	return median(r[metric][path]), true
}

// ratio returns the ratio of the median of path ours to the best median of the paths against;
// false if one of them was not measured.
func (r results) ratio(m *metric) (ratio float64, ok bool) {
	weft, ok := r.median(m.name, cmp.Or(m.ours, pathWeft))
	against := m.against
	if against == nil {
		against = []string{pathWireGuard, pathNebula}
	}
	best := math.NaN()
	for _, path := range against {
		if v, ok := r.median(m.name, path); ok && (math.IsNaN(best) || m.lowerIsBetter && v < best || !m.lowerIsBetter && v > best) {
			best = v
		}
	}
	return weft / best, ok && !math.IsNaN(best)
}

// verdict returns which bound a ratio reaches.
func (m *metric) verdict(ratio float64) string {
	reaches := func(bound float64) bool {
		return m.lowerIsBetter && ratio <= bound || !m.lowerIsBetter && ratio >= bound
	}
	switch {
	case reaches(m.aim):
		return "aim"
	case reaches(m.must):
		return "must"
	}
	return "MISSED"
}

// print writes the table.
func (t *table) print(w io.Writer, results results) {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', tabwriter.AlignRight)
	fmt.Fprint(tw, "\t\t")
	var paths []string
	for _, p := range t.paths {
		for _, byPath := range results {
			if len(byPath[p]) > 0 {
				paths = append(paths, p)
				fmt.Fprintf(tw, "%s\t", p)
				break
			}
		}
	}
	fmt.Fprint(tw, "ratio\tmust\taim\treached\t\n")
	for _, run := range t.runs {
		for _, m := range run.metrics {
			if results[m.name] == nil {
				continue
			}
			fmt.Fprintf(tw, "%s\t%s\t", m.name, m.unit)
			for _, p := range paths {
				if v, ok := results.median(m.name, p); ok {
					fmt.Fprintf(tw, "%s\t", short(v))
				} else {
					fmt.Fprint(tw, "-\t")
				}
			}
			switch ratio, ok := results.ratio(&m); {
			case m.name == idleMetric.name:
				v, _ := results.median(m.name, pathWeft)
				word := "must"
				if v >= maxIdle {
					word = "MISSED"
				}
				fmt.Fprintf(tw, "-\t< %g\t-\t%s\t\n", maxIdle, word)
			case ok:
				fmt.Fprintf(tw, "%.2f\t%g\t%g\t%s\t\n", ratio, m.must, m.aim, m.verdict(ratio))
			default:
				fmt.Fprintf(tw, "-\t%g\t%g\t-\t\n", m.must, m.aim)
			}
		}
	}
	tw.Flush()
}

// record writes all values, one per line, in Go's benchmark format
// (golang.org/design/14313-benchmark-format):
//
//	BenchmarkSleeve/TCP,_1_stream/weft_sleeve 1 3.39 Gb/s
func (t *table) record(w io.Writer, name string, got results) error {
	word := strings.NewReplacer(" ", "_", "/", "-")
	for _, run := range t.runs {
		for _, m := range run.metrics {
			for _, p := range t.paths {
				for _, v := range got[m.name][p] {
					if _, err := fmt.Fprintf(w, "Benchmark%s%s/%s/%s 1 %g %s\n", strings.ToUpper(name[:1]), name[1:],
						word.Replace(m.name), word.Replace(p), v, strings.ReplaceAll(m.unit, " ", "_")); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}

// short formats a value with three significant digits.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func median(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if len(s)%2 == 1 {
		return s[len(s)/2]
	}
	return (s[len(s)/2-1] + s[len(s)/2]) / 2
}
