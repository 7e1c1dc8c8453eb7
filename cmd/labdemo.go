package cmd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

const (
	demoContainer = "c1"
	demoSend      = 2 * time.Second
	pingTimeout   = 10 * time.Second
)

func (l *labApp) demo() *cobra.Command {
	var k labConfig
	c := &cobra.Command{
		Use:   "demo [flags] [-- LAUNCH-FLAGS...]",
		Short: "Show a mesh at work, from up to down",
		Long: `Make a lab, put one container on each host, let each ping each other, measure the
throughput between two, show the status and remove everything. Exit code 0 only
if all of it worked.`,
		RunE: func(c *cobra.Command, args []string) error {
			before, launch, _ := splitDash(c, args)
			if err := noArgs(c, before); err != nil {
				return err
			}
			if !c.Flags().Changed("name") {
				// Does not disturb a lab of the user's, nor another demo.
				l.name = fmt.Sprintf("demo%d", os.Getpid())
			}
			config, err := k.config(l.name, launch)
			if err != nil {
				return err
			}
			return runDemo(c.Context(), config, l.stdout)
		},
	}
	k.register(c.Flags())
	if f := c.Flags().Lookup("password"); f != nil {
		f.DefValue = "a password for the demo"
		k.password = f.DefValue
	}
	return c
}

func runDemo(ctx context.Context, config testbed.Config, w io.Writer) (err error) {
	var lab *testbed.Lab
	if err := step(w, fmt.Sprintf("launch %d routers, one in each host, and let them find each other", config.Hosts), func() (err error) {
		lab, err = labUp(ctx, config)
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
			ctx, cancel := context.WithTimeout(ctx, labTimeout)
			ps, err := lab.AddContainer(ctx, testbed.Place{Host: n, Container: demoContainer}, nil)
			cancel()
			if err != nil {
				return err
			}
			if addrs[n], err = addrOf(ps); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	if err := pingMatrix(ctx, lab, addrs, w); err != nil {
		return err
	}
	if config.Hosts > 1 {
		if err := demoThroughput(ctx, lab, addrs[config.Hosts], w); err != nil {
			return err
		}
	}
	return demoStatus(ctx, lab, w)
}

// pingMatrix pings from each container to each, and prints the round trips.
func pingMatrix(ctx context.Context, lab *testbed.Lab, addrs []netip.Addr, w io.Writer) error {
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
			rtt, err := testbed.Ping(timeout, lab.Netns(testbed.Place{Host: from, Container: demoContainer}), addrs[to])
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

func demoThroughput(ctx context.Context, lab *testbed.Lab, to netip.Addr, w io.Writer) error {
	server, err := startTraffic(ctx, lab, testbed.Place{Host: lab.Hosts, Container: demoContainer}, to)
	if err != nil {
		return err
	}
	defer server.stop()
	from := testbed.Place{Host: 1, Container: demoContainer}
	r, err := server.measure(ctx, lab, from, demoSend, "--kind", trafficTCP)
	if err != nil {
		return err
	}
	if r.BitsPerSecond <= 0 {
		return errors.New("no data got from container to container")
	}
	fmt.Fprintf(w, "throughput of one TCP stream from h1 to h%d: %.2f Gb/s\n", lab.Hosts, r.BitsPerSecond/1e9)
	return nil
}

func demoStatus(ctx context.Context, lab *testbed.Lab, w io.Writer) error {
	r, err := api.NewClient(lab.Socket(1)).Report(ctx)
	if err != nil {
		return err
	}
	for _, view := range []string{"", "connections"} {
		fmt.Fprintf(w, "\nh1# weft status %s\n", view)
		if err := r.Text(w, view); err != nil {
			return err
		}
	}
	fmt.Fprintln(w)
	return nil
}
