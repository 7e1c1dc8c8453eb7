package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
)

const (
	demoContainer = "c1"
	demoSend      = 2 * time.Second
	pingTimeout   = 10 * time.Second
)

// Demo makes a lab with one container on each host, pings between all containers, measures
// the throughput between two, shows the status and removes everything. It prints each step
// to w, and returns nil only if all steps succeeded.
func Demo(ctx context.Context, config testbed.Config, w io.Writer) (err error) {
	var l *testbed.Lab
	if err := step(w, fmt.Sprintf("launch %d routers, one on each host, and wait until they are connected", config.Hosts), func() (err error) {
		l, err = Up(ctx, config)
		return err
	}); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, step(w, "take the lab down", func() error { return testbed.Down(config.Name) }))
	}()
	addrs := make([]netip.Addr, config.Hosts+1) // by host
	if err := step(w, "attach a container on each host", func() error {
		for n := 1; n <= config.Hosts; n++ {
			ctx, cancel := context.WithTimeout(ctx, Timeout)
			a, err := AddContainer(ctx, l, testbed.Place{Host: n, Container: demoContainer})
			cancel()
			if err != nil {
				return err
			}
			addrs[n] = a
		}
		return nil
	}); err != nil {
		return err
	}
	if err := pingMatrix(ctx, l, addrs, w); err != nil {
		return err
	}
	if config.Hosts > 1 {
		if err := demoThroughput(ctx, l, addrs[config.Hosts], w); err != nil {
			return err
		}
	}
	return demoStatus(ctx, l, w)
}

// pingMatrix pings between all containers and prints the round-trip times.
func pingMatrix(ctx context.Context, l *testbed.Lab, addrs []netip.Addr, w io.Writer) error {
	fmt.Fprintf(w, "ping from each container to each other, round trip in ms:\n%8s", "")
	for n := 1; n < len(addrs); n++ {
		fmt.Fprintf(w, "%8s", testbed.Place{Host: n})
	}
	fmt.Fprintln(w)
	var lost []string
	for from := 1; from < len(addrs); from++ {
		fmt.Fprintf(w, "%8s", testbed.Place{Host: from})
		for to := 1; to < len(addrs); to++ {
			if from == to {
				fmt.Fprintf(w, "%8s", "-")
				continue
			}
			timeout, cancel := context.WithTimeout(ctx, pingTimeout)
			rtt, err := testbed.Ping(timeout, l.Netns(testbed.Place{Host: from, Container: demoContainer}), addrs[to])
			cancel()
			if err != nil {
				lost = append(lost, fmt.Sprintf("%s to %s: %v", testbed.Place{Host: from}, testbed.Place{Host: to}, err))
				fmt.Fprintf(w, "%8s", "lost")
				continue
			}
			fmt.Fprintf(w, "%8.2f", float64(rtt.Microseconds())/1000)
		}
		fmt.Fprintln(w)
	}
	if len(lost) > 0 {
		return errors.New(strings.Join(lost, "; "))
	}
	return nil
}

func demoThroughput(ctx context.Context, l *testbed.Lab, to netip.Addr, w io.Writer) error {
	server, err := Serve(ctx, l, testbed.Place{Host: l.Hosts, Container: demoContainer}, to)
	if err != nil {
		return err
	}
	defer server.Stop()
	from := testbed.Place{Host: 1, Container: demoContainer}
	r, err := server.Measure(ctx, l, from, traffic.Order{Kind: traffic.TCP, Time: demoSend})
	if err != nil {
		return err
	}
	if r.BitsPerSecond <= 0 {
		return errors.New("no data arrived at the other container")
	}
	fmt.Fprintf(w, "throughput of one TCP stream from h1 to h%d: %.2f Gb/s\n", l.Hosts, r.BitsPerSecond/1e9)
	return nil
}

func demoStatus(ctx context.Context, l *testbed.Lab, w io.Writer) error {
	for _, view := range []string{"", "connections"} {
		fmt.Fprintf(w, "\nh1# weft status %s\n", view)
		if err := api.NewClient(l.Socket(1)).StatusText(ctx, view, w); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	return nil
}

// step prints the name of a step, runs it, and prints how long it took.
func step(w io.Writer, what string, f func() error) error {
	start := time.Now()
	fmt.Fprintf(w, "%s ... ", what)
	if err := f(); err != nil {
		fmt.Fprintln(w, "failed")
		return fmt.Errorf("%s: %w", what, err)
	}
	fmt.Fprintf(w, "done in %.1f s\n", time.Since(start).Seconds())
	return nil
}
