package bench

import (
	"slices"
	"strings"
	"testing"
)

func TestVerdict(t *testing.T) {
	more, less := metric{must: 1.5, aim: 3}, metric{lowerIsBetter: true, must: 1, aim: 0.7}
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

// The table compares the median of weft to that of the better of the two other overlays, be it
// the higher or the lower one.
func TestSleeveTable(t *testing.T) {
	results := results{}
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
	wantRows(t, &sleeveTable, results, map[string]string{
		"TCP, 1 stream":            "Gb/s 2.00 1.00 4.00 2.00 1.5 3 must",
		"round trip, idle, median": "us 300 100 150 1.50 1 0.7 MISSED",
		"UDP, 64 bytes, blast":     "kpkt/s - - 250 - 1.2 2 -",
		"idle with 50 links":       "% of a core - - 0.80 - < 1 - must",
	})
}

// Each row compares one path to its own reference, and only measured paths have a column.
func TestFastTable(t *testing.T) {
	results := results{}
	for name, byPath := range map[string]map[string]float64{
		"TCP, 1 stream":             {pathVXLAN: 10, pathExpress: 12, pathBridged: 8},
		"TCP, 1 stream, bridged":    {pathVXLAN: 10, pathExpress: 12, pathBridged: 8},
		"UDP, 10,000 MAC addresses": {pathVXLAN: 100, pathExpress: 200, pathBridged: 90, pathMany: 196},
		"round trip, median":        {pathVXLAN: 40, pathExpress: 39, pathBridged: 41},
		"TCP, 1 stream, one host":   {pathBridge: 20, pathLocal: 30},
		"TCP, 4 streams":            {pathExpress: 12},
	} {
		for path, v := range byPath {
			results.add(name, path, v)
		}
	}
	wantRows(t, &fastTable, results, map[string]string{
		"TCP, 1 stream":             "Gb/s 10.0 12.0 8.00 - - - 1.20 1.05 1.2 aim",
		"TCP, 1 stream, bridged":    "Gb/s 10.0 12.0 8.00 - - - 0.80 0.9 1 MISSED",
		"UDP, 10,000 MAC addresses": "kpkt/s 100 200 90.0 196 - - 0.98 0.97 1 must",
		"round trip, median":        "us 40.0 39.0 41.0 - - - 0.97 0.95 0.9 MISSED",
		"TCP, 1 stream, one host":   "Gb/s - - - - 20.0 30.0 1.50 1 1.3 aim",
		"TCP, 4 streams":            "Gb/s - 12.0 - - - - - 1.1 1.3 -",
	})
}

// Each path of a row is measured by its run and made by one of the labs.
func TestFastTableMeasuresItsReferences(t *testing.T) {
	made := make(map[string]bool)
	for _, lab := range fastLabs {
		for _, n := range lab.networks {
			made[n.path] = true
		}
	}
	for _, r := range fastTable.runs {
		for _, m := range r.metrics {
			for _, path := range append([]string{m.ours}, m.against...) {
				if !slices.Contains(r.on, path) || !made[path] || !slices.Contains(fastTable.paths, path) {
					t.Errorf("%s: %q is not measured", m.name, path)
				}
			}
		}
	}
}

// wantRows checks rows of a table, by name and with single spaces.
func wantRows(t *testing.T, table *table, results results, rows map[string]string) {
	t.Helper()
	var b strings.Builder
	table.print(&b, results)
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

// benchstat parses such lines: a name without spaces, a count, a value and a unit.
func TestRecord(t *testing.T) {
	got := results{}
	got.add("TCP, 1 stream", pathWeft, 3.39)
	got.add("TCP, 1 stream", pathWeft, 3.5)
	got.add(idleMetric.name, pathWeft, 0.8)
	var b strings.Builder
	if err := sleeveTable.record(&b, tableSleeve, got); err != nil {
		t.Fatal(err)
	}
	want := "BenchmarkSleeve/TCP,_1_stream/weft_sleeve 1 3.39 Gb/s\n" +
		"BenchmarkSleeve/TCP,_1_stream/weft_sleeve 1 3.5 Gb/s\n" +
		"BenchmarkSleeve/idle_with_50_links/weft_sleeve 1 0.8 %_of_a_core\n"
	if b.String() != want {
		t.Errorf("recorded\n%s\nwant\n%s", b.String(), want)
	}
}
