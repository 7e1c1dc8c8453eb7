// Package lab implements weft lab: it makes a mesh whose hosts are network namespaces of
// one machine, demonstrates it and measures it.
//
// Package testbed makes the hosts, the containers and the network between them. Only the
// commands of weft lab and tests import these packages.
package lab

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"time"

	"github.com/weft-net/weft/internal/lab/testbed"
)

const (
	// convergeTimeout is how long the routers of a lab may take to find each other.
	// Each host adds hostTimeout, because all hosts share one machine.
	convergeTimeout = 60 * time.Second
	hostTimeout     = 3 * time.Second
	// Timeout bounds every other step of a lab.
	Timeout = 60 * time.Second
)

// Up makes a lab, starts its routers and waits until every host sees all others and has a
// route to each. On error nothing is left.
func Up(ctx context.Context, c testbed.Config) (*testbed.Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab up needs the rights of root; try with sudo")
	}
	l, err := testbed.Create(c)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, convergeTimeout+time.Duration(c.Hosts)*hostTimeout)
	defer cancel()
	if err := l.Up(ctx); err != nil {
		return nil, errors.Join(err, testbed.Down(c.Name))
	}
	return l, nil
}

// AddContainer attaches a container and returns its first address.
func AddContainer(ctx context.Context, l *testbed.Lab, p testbed.Place) (netip.Addr, error) {
	ps, err := l.AddContainer(ctx, p, nil)
	if err != nil {
		return netip.Addr{}, err
	}
	if len(ps) == 0 {
		return netip.Addr{}, errors.New("the router attached a container without an address")
	}
	return ps[0].Addr(), nil
}
