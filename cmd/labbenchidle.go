package cmd

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
)

const (
	idleLinks = 50
	// idleSettle is how long a mesh is left alone before its rest is measured,
	// and idleTime how long that takes: what happens once a minute is in it.
	idleSettle = 30 * time.Second
	idleTime   = time.Minute
)

// benchIdle measures the CPU that a router takes which has nothing to carry: the
// middle of a star, as a full mesh of so many hosts would leave this machine no
// rest.
func (l *labApp) benchIdle(ctx context.Context, k benchConfig, results benchResults) (err error) {
	c := labConfig{hosts: 1 + idleLinks, topology: string(testbed.Star), password: "a password for the bench", underlayMTU: 1500}
	// Without discovery, or each would try to reach those that it can not.
	config, err := c.config(l.name, append([]string{"--no-discovery"}, k.launch...))
	if err != nil {
		return err
	}
	fmt.Fprintf(l.stderr, "a star of %d hosts, to measure one at rest\n", config.Hosts)
	lab, err := labUp(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, testbed.Down(config.Name)) }()
	pid, _ := lab.RouterPID(1)
	if err := wait(ctx, idleSettle); err != nil {
		return err
	}
	before, err := testbed.Usage(pid)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := wait(ctx, idleTime); err != nil {
		return err
	}
	after, err := testbed.Usage(pid)
	if err != nil {
		return err
	}
	results.add(idleMetric.name, pathWeft, 100*(after.CPU-before.CPU).Seconds()/time.Since(start).Seconds())
	return nil
}

// wait lets time pass, or returns the error of ctx.
func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
