package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/rival"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

// The paths of the table sleeve.
const (
	pathRaw       = "raw veth"
	pathVXLAN     = "kernel VXLAN"
	pathWireGuard = "wireguard-go"
	pathNebula    = "nebula"
	pathWeft      = "weft sleeve"
)

// PathNames lists the paths of the table sleeve, in the order of its columns.
var PathNames = []string{pathRaw, pathVXLAN, pathWireGuard, pathNebula, pathWeft}

// idleMetric is the CPU time of an idle router. Its bound is maxIdle.
var idleMetric = metric{name: "idle with 50 links", unit: "% of a core", lowerIsBetter: true}

// sleeveTable compares sleeve to other overlays in user space.
var sleeveTable = table{paths: PathNames, runs: append(slices.Clone(sleeveRuns), run{metrics: []metric{idleMetric}})}

const maxIdle = 1.0 // percent of a core

var sleeveRuns = []run{
	{order: oneStream, metrics: []metric{
		{name: "TCP, 1 stream", unit: "Gb/s", must: 1.5, aim: 3, value: gigabits},
		{name: "CPU of both routers", unit: "s/GB", lowerIsBetter: true, must: 0.7, aim: 0.4, value: cpuPerGigabyte},
	}},
	{order: fourStreams, metrics: []metric{{name: "TCP, 4 streams", unit: "Gb/s", must: 1.5, aim: 3, value: gigabits}}},
	{order: blast, metrics: []metric{{name: "UDP, 64 bytes, blast", unit: "kpkt/s", must: 1.2, aim: 2, value: kilopackets}}},
	{order: traffic.Order{Kind: traffic.SustainedUDP, Size: 64}, steps: 8, metrics: []metric{
		{name: "UDP, 64 bytes, < 1 % lost", unit: "kpkt/s", must: 1.2, aim: 2, value: kilopackets},
	}},
	{order: roundTrips, metrics: []metric{
		{name: "round trip, idle, median", unit: "us", lowerIsBetter: true, must: 1, aim: 0.7, value: medianTrip},
		{name: "round trip, idle, 99th", unit: "us", lowerIsBetter: true, must: 1, aim: 0.7, value: p99Trip},
	}},
	{order: roundTrips, withBulk: true, metrics: []metric{
		{name: "round trip, beside bulk, median", unit: "us", lowerIsBetter: true, must: 1, aim: 0.7, value: medianTrip},
		{name: "round trip, beside bulk, 99th", unit: "us", lowerIsBetter: true, must: 1, aim: 0.7, value: p99Trip},
	}},
}

// sleeve measures the table sleeve: all networks between the same two hosts, and an idle router.
func (b *bench) sleeve(ctx context.Context, runs []run, got results) error {
	if slices.ContainsFunc(runs, func(r run) bool { return r.order.Kind != "" }) {
		if err := b.sleeveNetworks(ctx, runs, got); err != nil {
			return err
		}
	}
	if b.Only.MatchString(idleMetric.name) && slices.Contains(b.Paths, pathWeft) {
		return b.idle(ctx, got)
	}
	return nil
}

const benchPassword = "a password for the bench"

// sleeveNetworks measures all networks between the same two hosts, in turn.
func (b *bench) sleeveNetworks(ctx context.Context, runs []run, got results) (err error) {
	l, err := b.up(ctx, "", testbed.Config{Hosts: 2, Topology: testbed.Full, Password: benchPassword})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, testbed.Down(l.Name)) }()
	paths, err := b.makePaths(ctx, l)
	if err != nil {
		return err
	}
	if err := b.rounds(ctx, paths, slices.DeleteFunc(slices.Clone(runs), func(r run) bool { return r.order.Kind == "" }), got); err != nil {
		return err
	}
	if !slices.Contains(b.Paths, pathWeft) {
		return nil
	}
	limit, err := estimateLimit(got)
	if err != nil {
		return err
	}
	printLimit(b.out, limit, got)
	return b.printRouters(ctx, l)
}

// printRouters prints which offloads were on and how much memory the routers used.
func (b *bench) printRouters(ctx context.Context, l *testbed.Lab) error {
	for n := 1; n <= l.Hosts; n++ {
		r, err := api.NewClient(l.Socket(n)).Report(ctx)
		if err != nil {
			return err
		}
		var offloads []string
		for _, what := range []string{"tap", "udp"} {
			offloads = append(offloads, what+": "+r.Router.Offloads[what])
		}
		pid, _ := l.RouterPID(n)
		use, err := testbed.Usage(pid)
		if err != nil {
			return err
		}
		fmt.Fprintf(b.out, "weft on h%d: offloads %s; %d MB resident after the load\n", n, strings.Join(offloads, ", "), use.Resident>>20)
	}
	return nil
}

// makePaths makes the networks and starts a server at the far end of each.
func (b *bench) makePaths(ctx context.Context, l *testbed.Lab) ([]path, error) {
	ctx, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	makers := map[string]func() (*rival.Network, error){
		pathRaw:   func() (*rival.Network, error) { return rawNetwork(l) },
		pathVXLAN: func() (*rival.Network, error) { return rival.VXLAN(l) },
		pathWeft:  func() (*rival.Network, error) { return weftNetwork(ctx, l) },
	}
	if b.Rivals != "" {
		makers[pathWireGuard] = func() (*rival.Network, error) { return rival.WireGuard(ctx, l, b.Rivals) }
		makers[pathNebula] = func() (*rival.Network, error) { return rival.Nebula(ctx, l, b.Rivals) }
	}
	var paths []path
	for _, name := range PathNames {
		if makers[name] == nil || !slices.Contains(b.Paths, name) {
			continue
		}
		p, err := makePath(ctx, l, name, makers[name])
		if err != nil {
			return nil, err
		}
		paths = append(paths, p)
	}
	return paths, nil
}
