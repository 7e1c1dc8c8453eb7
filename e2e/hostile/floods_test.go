package hostile

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// floodTime is how long each flood lasts: long enough for a session to time out.
const floodTime = 5 * time.Second

// floodLabs is how many labs share the floods. Each floods its hosts with one after the
// other, while they still have what the ones before brought.
const floodLabs = 2

// Whatever a member or a stranger floods five honest hosts with, traffic, attaches and
// status go on, no router uses much memory, no session between honest hosts ends, and nobody
// takes addresses. Only weft as it ships can be measured: the race detector costs time and
// memory.
func TestFloodsDoNoHarm(t *testing.T) {
	nstest.RequireRoot(t)
	exe := harness.Shipped(t)
	for i := range floodLabs {
		t.Run("lab", func(t *testing.T) {
			t.Parallel()
			l := harness.New(t, testbed.Config{Hosts: 6, Password: password})
			l.Exe = exe
			s, err := lab.NewSiege(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			for k, f := range hostile.Floods {
				if k%floodLabs == i {
					t.Run(f.Name, func(t *testing.T) { flood(t, s, f) })
				}
			}
		})
	}
}

func flood(t *testing.T, s *lab.Siege, f *hostile.Flood) {
	d, err := s.Run(t.Context(), f.Name, floodTime)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d messages; %d of %d pings lost; attach %v, status %v; %d MB; %.2f CPUs; %.1f %% of the addresses given",
		d.Sent, d.Lost, d.Pings, d.Attach, d.Status, d.Memory>>20, d.CPU, 100*d.Given)
	for _, limit := range d.Broken(f.MaxGiven, harness.Slack) {
		t.Error(limit)
	}
}

// While a member makes up a topology the whole report is tens of megabytes. The commands
// that need a part of it stay fast, and what they ask for stays small.
func TestSmallReportsOfAMadeUpTopology(t *testing.T) {
	t.Parallel()
	l := harness.New(t, testbed.Config{Hosts: 4, Password: password})
	l.Exe = harness.Shipped(t)
	s, err := lab.NewSiege(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := s.Flood(ctx, "topology")
		ended <- err
	}()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	harness.Eventually(t, "h1 knows a thousand made-up peers", func() bool { return summary(t, l, 1, api.NoLists).Omitted["Peers"] > 1000 })
	for _, args := range [][]string{{"status"}, {"status", "connections"}, {"status", "ipam"}, {"dns-args"}, {"env"}, {"doctor"}} {
		start := time.Now()
		// The test binary is slower than weft as it ships: it has the race detector.
		harness.Try(t, l, 1, args...)
		if took := time.Since(start); took > lab.MaxStatus+harness.Slack {
			t.Errorf("weft %s took %v", strings.Join(args, " "), took)
		}
	}
	start := time.Now()
	small, err := json.Marshal(summary(t, l, 1, api.NoLists))
	if took := time.Since(start); err != nil || len(small) > 100<<10 || took > lab.MaxStatus+harness.Slack {
		t.Errorf("a summary has %d bytes and took %v: %v", len(small), took, err)
	}
	whole := 0
	// A busy machine may not send all of it before the router gives up.
	for range 5 {
		if code, out := harness.Try(t, l, 1, "report"); code == cmd.ExitOK {
			whole = max(whole, len(out))
		}
	}
	if whole < 1<<20 {
		t.Errorf("the whole report has %d bytes: the topology is not large", whole)
	}
	pid, _ := l.RouterPID(1)
	use, err := testbed.Usage(pid)
	if err != nil || use.Resident > lab.MaxMemory {
		t.Errorf("the router uses %d MB: %v", use.Resident>>20, err)
	}
	t.Logf("a summary has %d bytes, a report %d; the router uses %d MB", len(small), whole, use.Resident>>20)
}
