package daemon

import (
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/netdev"
)

func TestLimitsAreShown(t *testing.T) {
	table := netdev.Limit{Name: "the table of x", Used: 10, Max: 1024, Refused: 7, Advice: "sysctl x"}
	l := newLimits(netdev.ProcSys, "no-such-bridge")
	l.refused = map[string]uint64{table.Name: 7}
	l.read = func() ([]netdev.Limit, error) { return []netdev.Limit{table}, nil }
	now := time.Now()
	want := func(when, words string) {
		t.Helper()
		if got := strings.Join(l.warnings(now), "\n"); words == "" != (got == "") || !strings.Contains(got, words) {
			t.Errorf("%s: %q, want %q", when, got, words)
		}
	}
	want("at first", "")
	table.Used = 1000
	want("nearly full", "the table of x is nearly full (1000 of 1024 entries): sysctl x")
	table.Refused, table.Used = 8, 20
	want("after it was full", " ago, so connections failed: ")
	now = now.Add(keepRefusals)
	want("an hour later", "")
}
