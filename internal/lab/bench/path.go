package bench

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/lab"
	"github.com/weft-net/weft/internal/lab/rival"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

// path is a pair of places to measure between.
type path struct {
	name     string
	lab      *testbed.Lab
	from, to testbed.Place
	server   *lab.Server
	pids     []int // of the processes that carry its packets
	// prepare, unless nil, is called before each measurement.
	prepare func(context.Context, *path) error
}

// Measurements without their time, which the run adds.
var (
	oneStream   = traffic.Order{Kind: traffic.TCP, Streams: 1}
	fourStreams = traffic.Order{Kind: traffic.TCP, Streams: 4}
	blast       = traffic.Order{Kind: traffic.UDP, Size: 64}
	roundTrips  = traffic.Order{Kind: traffic.Latency}
	pinnedOne   = traffic.Order{Kind: traffic.PinnedTCP, Streams: 1}
	pinnedFour  = traffic.Order{Kind: traffic.PinnedTCP, Streams: 4}
	oneCPUTrips = traffic.Order{Kind: traffic.Trips}
	connects    = traffic.Order{Kind: traffic.Connect}
)

// makePath makes a network, waits until it works, and starts a server at its far end.
func makePath(ctx context.Context, l *testbed.Lab, name string, network func() (*rival.Network, error)) (p path, err error) {
	n, err := network()
	if err == nil {
		_, err = testbed.Ping(ctx, l.Netns(n.From), n.Addr)
	}
	if err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	// The server ends with the lab, not with ctx.
	s, err := lab.Serve(context.WithoutCancel(ctx), l, n.To, n.Addr)
	if err != nil {
		return p, fmt.Errorf("%s: %w", name, err)
	}
	return path{name: name, lab: l, from: n.From, to: n.To, server: s, pids: n.PIDs}, nil
}

// rawNetwork is the underlay between the hosts.
func rawNetwork(*testbed.Lab) (*rival.Network, error) {
	return &rival.Network{From: testbed.Place{Host: 1}, To: testbed.Place{Host: 2}, Addr: testbed.Addr4(2)}, nil
}

// weftNetwork attaches a container on each host.
func weftNetwork(ctx context.Context, l *testbed.Lab) (*rival.Network, error) {
	n := &rival.Network{From: testbed.Place{Host: 1, Container: "c1"}, To: testbed.Place{Host: 2, Container: "c1"}}
	if err := attachEnds(ctx, l, n); err != nil {
		return nil, err
	}
	for _, p := range []testbed.Place{n.From, n.To} {
		pid, _ := l.RouterPID(p.Host)
		n.PIDs = append(n.PIDs, pid)
	}
	return n, nil
}

// attachEnds attaches a container at each end of a network.
func attachEnds(ctx context.Context, l *testbed.Lab, n *rival.Network) error {
	for _, p := range []testbed.Place{n.From, n.To} {
		var err error
		if n.Addr, err = lab.AddContainer(ctx, l, p); err != nil {
			return err
		}
	}
	return nil
}

// sample takes one measurement.
func (p *path) sample(ctx context.Context, d time.Duration, r run) (s sample, err error) {
	if p.prepare != nil {
		if err := p.prepare(ctx, p); err != nil {
			return s, err
		}
	}
	before, err := p.cpuTime()
	if err != nil {
		return s, err
	}
	g, ctx := errgroup.WithContext(ctx)
	if r.withBulk {
		g.Go(func() error {
			_, err := p.server.Measure(ctx, p.lab, p.from, traffic.Order{Kind: traffic.TCP, Time: d + 2*bulkLead})
			return err
		})
		time.Sleep(bulkLead) // until the stream has reached its full rate
	}
	g.Go(func() (err error) {
		order := r.order
		order.Time = r.stepTime(d)
		s.Result, err = p.server.Measure(ctx, p.lab, p.from, order)
		return err
	})
	if err := g.Wait(); err != nil {
		return s, err
	}
	after, err := p.cpuTime()
	s.cpu, s.time = after-before, d
	s.carried = len(p.pids) > 0
	return s, err
}

// bulkLead is how long a bulk stream runs before and after the measurement beside it.
const bulkLead = 500 * time.Millisecond

// cpuTime returns the CPU time that the path's processes have used.
func (p *path) cpuTime() (sum time.Duration, err error) {
	for _, pid := range p.pids {
		u, err := testbed.Usage(pid)
		if err != nil {
			return 0, err
		}
		sum += u.CPU
	}
	return sum, nil
}
