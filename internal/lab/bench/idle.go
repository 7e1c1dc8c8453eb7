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
	// idleSettle is how long a mesh is left alone before its rest is measured,
	// and idleTime how long that takes: what happens once a minute is in it.
	idleSettle = 30 * time.Second
	idleTime   = time.Minute
)

// idle measures the CPU that a router takes which has nothing to carry: the
// middle of a star, as a full mesh of so many hosts would leave this machine no
// rest.
func (b *bench) idle(ctx context.Context, got results) (err error) {
	fmt.Fprintf(b.progress, "a star of %d hosts, to measure one at rest\n", 1+idleLinks)
	// Without discovery, or each host would try to reach those that it cannot.
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

// wait lets time pass, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
