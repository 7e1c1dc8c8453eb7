package cmd

import (
	"strings"
	"testing"
)

func TestVerdictOfABenchmark(t *testing.T) {
	more, less := metric{must: 1.5, aim: 3}, metric{less: true, must: 1, aim: 0.7}
	for _, x := range []struct {
		m     metric
		ratio float64
		want  string
	}{
		{more, 1.49, "MISSED"}, {more, 1.5, "must"}, {more, 3, "aim"},
		{less, 1.01, "MISSED"}, {less, 1, "must"}, {less, 0.7, "aim"},
	} {
		if got := x.m.verdict(x.ratio); got != x.want {
			t.Errorf("a ratio of %g (must %g, aim %g) is %q, want %q", x.ratio, x.m.must, x.m.aim, got, x.want)
		}
	}
}

// TestTableOfABenchmark: weft is held against the better of the two rivals,
// whichever way a number is better, by the median of the rounds.
func TestTableOfABenchmark(t *testing.T) {
	results := benchResults{}
	for _, v := range []float64{1, 9, 4} {
		results.add("TCP, 1 stream", pathWeft, v)
	}
	results.add("TCP, 1 stream", pathWireGuard, 2)
	results.add("TCP, 1 stream", pathNebula, 1)
	results.add("round trip, idle, median", pathWeft, 150)
	results.add("round trip, idle, median", pathWireGuard, 300)
	results.add("round trip, idle, median", pathNebula, 100)
	results.add("UDP, 64 bytes, blast", pathWeft, 250)
	results.add(idleMetric.name, pathWeft, 0.8)
	var b strings.Builder
	sleeveTable.print(&b, results)
	rows := map[string]string{
		"TCP, 1 stream":            "Gb/s 2.00 1.00 4.00 2.00 1.5 3 must",
		"round trip, idle, median": "us 300 100 150 1.50 1 0.7 MISSED",
		"UDP, 64 bytes, blast":     "kpkt/s - - 250 - 1.2 2 -",
		"idle with 50 links":       "% of a core - - 0.80 - < 1 - must",
	}
	for line := range strings.Lines(b.String()) {
		words := strings.Join(strings.Fields(line), " ")
		for name, want := range rows {
			if rest, ok := strings.CutPrefix(words, name+" "); ok {
				delete(rows, name)
				if rest != want {
					t.Errorf("%s: %q, want %q", name, rest, want)
				}
			}
		}
	}
	for name := range rows {
		t.Errorf("no row of %q in\n%s", name, b.String())
	}
}
