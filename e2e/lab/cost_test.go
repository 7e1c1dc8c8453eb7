package lab

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

const (
	// costVariable lists how many hosts the labs of BenchmarkHosts have, instead of costHosts.
	costVariable = "WEFT_LAB_COST"
	costHosts    = "10 20 40 60"
	// maxUpTime is how long a lab of up to 60 hosts may take to come up on two cores.
	maxUpTime = 2 * time.Minute
	// costNoise is by what factor the cost of a session may grow from one lab to the next
	// larger one because the measurement is not exact.
	costNoise = 1.1
)

// BenchmarkHosts measures what it costs to bring up labs of more and more hosts: the time until
// every host has a session and a link with every other one, and has given an address to a
// container, and the CPU time of all routers until then. Hosts that all know each other need a
// session for each two, so it fails if the CPU time grows faster than the number of sessions, or
// if a lab takes longer than maxUpTime.
func BenchmarkHosts(b *testing.B) {
	exe := harness.Shipped(b)
	list := os.Getenv(costVariable)
	if list == "" {
		list = costHosts
	}
	var before float64 // CPU seconds for each session
	for field := range strings.FieldsSeq(list) {
		hosts, err := strconv.Atoi(field)
		if err != nil {
			b.Fatalf("%s: %v", costVariable, err)
		}
		ok := b.Run(fmt.Sprintf("hosts=%d", hosts), func(b *testing.B) {
			var cpu, wall time.Duration
			for range b.N {
				c, w := bringUp(b, exe, hosts)
				cpu, wall = cpu+c, wall+w
			}
			cpu, wall = cpu/time.Duration(b.N), wall/time.Duration(b.N)
			sessions := hosts * (hosts - 1) / 2
			each := cpu.Seconds() / float64(sessions)
			b.ReportMetric(float64(sessions), "sessions")
			b.ReportMetric(wall.Seconds(), "s")
			b.ReportMetric(cpu.Seconds(), "CPU-s")
			b.ReportMetric(1000*each, "CPU-ms/session")
			b.ReportMetric(0, "ns/op")
			if wall > maxUpTime && hosts <= 60 {
				b.Errorf("a lab of %d hosts took %v to come up, want %v", hosts, wall.Round(time.Second), maxUpTime)
			}
			if before > 0 && each > before*costNoise {
				b.Errorf("with %d hosts a session costs %.1f ms of CPU time, and with fewer hosts %.1f ms", hosts, 1000*each, 1000*before)
			}
			before = each
		})
		if !ok {
			return
		}
	}
}

// bringUp makes a lab and returns the CPU time of all routers and the time until it was complete.
func bringUp(b *testing.B, exe string, hosts int) (cpu, wall time.Duration) {
	b.Helper()
	begun := time.Now()
	l := harness.New(b, testbed.Config{Hosts: hosts})
	l.Exe = exe
	ctx, cancel := context.WithTimeout(b.Context(), 3*maxUpTime)
	defer cancel()
	if err := l.Up(ctx); err != nil {
		b.Fatal(err)
	}
	for h := 1; h <= hosts; h++ {
		for !linked(ctx, b, l, h) {
			select {
			case <-ctx.Done():
				b.Fatalf("h%d has no link to some other host", h)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	for h := 1; h <= hosts; h++ {
		if _, err := l.AddContainer(ctx, harness.At(h, "c"), nil); err != nil {
			b.Fatal(err)
		}
	}
	wall = time.Since(begun)
	for h := 1; h <= hosts; h++ {
		pid, _ := l.RouterPID(h)
		u, err := testbed.Usage(pid)
		if err != nil {
			b.Fatal(err)
		}
		cpu += u.CPU
	}
	if err := testbed.Down(l.Name); err != nil {
		b.Fatal(err)
	}
	return cpu, wall
}

// linked reports whether a host has a session and a link with each other one.
func linked(ctx context.Context, b *testing.B, l *testbed.Lab, host int) bool {
	b.Helper()
	r, err := api.NewClient(l.Socket(host)).Report(ctx)
	if err != nil {
		b.Fatal(err)
	}
	to := make(map[string]bool)
	for _, c := range r.Router.Connections {
		if c.State == api.StateEstablished && c.Kind != "" {
			to[c.Name] = true
		}
	}
	return len(to) == l.Hosts-1
}
