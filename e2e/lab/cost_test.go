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
// container, and the CPU time of all routers until the links are there, and then until each host
// has its first addresses. Hosts that all know each other need a session for each two, so it fails
// if the CPU time until then grows faster than the number of sessions, or if a lab takes longer
// than maxUpTime.
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
			var all cost
			for range b.N {
				c := bringUp(b, exe, hosts)
				all.links, all.addresses, all.wall = all.links+c.links, all.addresses+c.addresses, all.wall+c.wall
			}
			n := time.Duration(b.N)
			cpu, wall := all.links/n, all.wall/n
			sessions := hosts * (hosts - 1) / 2
			each := cpu.Seconds() / float64(sessions)
			b.ReportMetric(float64(sessions), "sessions")
			b.ReportMetric(wall.Seconds(), "s")
			b.ReportMetric(cpu.Seconds(), "CPU-s")
			b.ReportMetric(1000*each, "CPU-ms/session")
			b.ReportMetric((all.addresses / n).Seconds(), "CPU-s-addresses")
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

// cost is what it costs to bring up a lab.
type cost struct {
	links     time.Duration // CPU time of all routers until all links are there
	addresses time.Duration // likewise from then on until each host has given an address
	wall      time.Duration // until all of that is done
}

// bringUp makes a lab and returns what that cost.
func bringUp(b *testing.B, exe string, hosts int) (c cost) {
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
	c.links = cpuOf(b, l)
	for h := 1; h <= hosts; h++ {
		if _, err := l.AddContainer(ctx, harness.At(h, "c"), nil); err != nil {
			b.Fatal(err)
		}
	}
	c.wall, c.addresses = time.Since(begun), cpuOf(b, l)-c.links
	if err := testbed.Down(l.Name); err != nil {
		b.Fatal(err)
	}
	return c
}

// cpuOf returns the CPU time of all routers of a lab so far.
func cpuOf(b *testing.B, l *testbed.Lab) (cpu time.Duration) {
	b.Helper()
	for h := 1; h <= l.Hosts; h++ {
		pid, _ := l.RouterPID(h)
		u, err := testbed.Usage(pid)
		if err != nil {
			b.Fatal(err)
		}
		cpu += u.CPU
	}
	return cpu
}

// linked reports whether a host has a session and a link with each other one.
func linked(ctx context.Context, b *testing.B, l *testbed.Lab, host int) bool {
	b.Helper()
	r, err := api.NewClient(l.Socket(host)).Summary(ctx, api.NoLists)
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
