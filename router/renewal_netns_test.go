package router_test

import (
	"bytes"
	"context"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// TestRenewalsUnderLoad has two hosts agree on keys again and again, as often as
// possible, while datagrams go both ways and then streams. No datagram is
// lost, late or out of order.
func TestRenewalsUnderLoad(t *testing.T) {
	hosts := newHosts(t, 2, options{mtu: 1376, underlayMTU: 1500})
	a, b := hosts[0], hosts[1]
	for i, h := range hosts {
		echo(t, h, hosts[1-i], addr(i).Addr(), addr(1-i).Addr(), 1000)
		h.pin(hosts[1-i], addr(1-i).Addr())
		h.settle(1500 - 71)
	}
	check := noDrops(t, hosts)

	// The end with the lower name is asked by the other for new keys.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	renew := wire.Control{Type: wire.Renew}
	ask := seal.SessionTag([32]byte{}).Tagged(renew.Append(nil))
	wg.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				a.HandleControl(b.name, bytes.Clone(ask))
			case <-ctx.Done():
				return
			}
		}
	})

	flows := []*flow{newFlow(t, a, b, addr(0).Addr(), addr(1).Addr()), newFlow(t, b, a, addr(1).Addr(), addr(0).Addr())}
	until := func(rounds int32, f func()) {
		for end := a.agreed.Load() + rounds; a.agreed.Load() < end; {
			f()
		}
	}
	until(2, func() {
		var errs [2]error
		var both sync.WaitGroup
		for i, f := range flows {
			both.Go(func() {
				for range 10 {
					if errs[i] = f.whole(); errs[i] != nil {
						return
					}
				}
			})
		}
		both.Wait()
		for i, err := range errs {
			if err != nil {
				t.Fatalf("flow %d: %v; %+v", i, err, hosts[1-i].Status())
			}
		}
	})
	until(2, func() { bulk(t, a, b, addr(1).Addr(), 8<<20) })
	t.Logf("%d datagrams, %d rounds of keys", flows[0].next+flows[1].next, a.agreed.Load())
	check()
}
