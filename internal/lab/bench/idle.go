package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
)

const (
	idleLinks = 50
	// idleSettle is how long a mesh runs before the measurement, and idleTime is the time
	// of the measurement, which includes work that is done once a minute.
	idleSettle = 30 * time.Second
	idleTime   = time.Minute
)

// idle measures the CPU time of a router without traffic. It is the centre of a star, because
// a full mesh of so many hosts would keep this machine busy.
func (b *bench) idle(ctx context.Context, got results) (err error) {
	fmt.Fprintf(b.progress, "a star of %d hosts, to measure an idle router\n", 1+idleLinks)
	// With discovery each host would try to reach those that the topology cuts.
	l, err := b.up(ctx, "", testbed.Config{Hosts: 1 + idleLinks, Topology: testbed.Star, Password: benchPassword}, "--no-discovery")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, testbed.Down(l.Name)) }()
	pid, _ := l.RouterPID(1)
	if err := sleep(ctx, idleSettle); err != nil {
		return err
	}
	before, err := testbed.Usage(pid)
	if err != nil {
		return err
	}
	start := time.Now()
	if err := sleep(ctx, idleTime); err != nil {
		return err
	}
	after, err := testbed.Usage(pid)
	if err != nil {
		return err
	}
	got.add(idleMetric.name, pathWeft, 100*(after.CPU-before.CPU).Seconds()/time.Since(start).Seconds())
	return nil
}

// sleep waits for d, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
