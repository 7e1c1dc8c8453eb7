package fastpath

import (
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// Keeper is what the controller uses of *keeper.Keeper, whose comments are the contract.
type Keeper interface {
	Keep(objects ...keeper.Object) error
	KeepAll(kind owned.Kind, f keeper.Source) error
	Drop(ids ...owned.ID)
	DropAll(kinds ...owned.Kind)
}

// keep declares what the fast path has in the kernel.
func (c *Controller) keep() error {
	if c.cfg.Keeper == nil {
		return nil
	}
	objects := append(c.kernel.Objects(), keeper.Object{
		ID:   owned.ID{Kind: owned.Rules, Name: fmt.Sprintf("that guard UDP %d", c.cfg.Port)},
		Look: func(*netdev.View) ([]string, error) { return c.watch.GuardFaults(c.guarded()) },
		Make: func() error { _, err := c.guard(); return err },
	}, keeper.Object{
		ID:   owned.ID{Kind: owned.Map, Name: "of peers"},
		Look: c.lookAtTables,
		Make: func() error { return c.ask(c.rewriteTables) },
	}, keeper.Object{
		ID:   owned.ID{Kind: owned.OwnRoutes, Name: fmt.Sprintf("for UDP %d", c.cfg.Port)},
		Look: c.lookAtOwnRoutes,
		Make: func() error { return c.ask(func() error { return c.watch.SetOwnRoutes(c.ownRoutes()) }) },
	})
	if c.tunnel != nil {
		objects = append(objects, keeper.Object{
			ID:   owned.ID{Kind: owned.WireGuard, Name: netdev.TunnelName},
			Look: c.lookAtTunnel,
			Make: func() error { return c.ask(c.mendTunnel) },
		})
	}
	for _, o := range objects {
		c.kept = append(c.kept, o.ID)
	}
	if err := c.cfg.Keeper.Keep(objects...); err != nil {
		return err
	}
	return c.cfg.Keeper.KeepAll(owned.Program, c.kernel.Programs)
}

// release gives up what keep declared.
func (c *Controller) release() {
	if c.cfg.Keeper != nil && c.attached {
		c.cfg.Keeper.Drop(c.kept...)
		c.cfg.Keeper.DropAll(owned.Program)
	}
}

// askTimeout bounds how long a round of the keeper waits for the controller's goroutine,
// which may be busy with the kernel. Other objects must not wait for that.
const askTimeout = 200 * time.Millisecond

// ask runs f on the goroutine of Run. If that is busy, or does not run, the object waits.
func (c *Controller) ask(f func() error) error {
	done := make(chan error, 1)
	timeout := time.NewTimer(askTimeout)
	defer timeout.Stop()
	select {
	case c.calls <- func() { done <- f() }:
		return <-done
	case <-c.ended:
	case <-timeout.C:
	}
	return owned.ErrWaits
}

func (c *Controller) lookAtTunnel(*netdev.View) (faults []string, err error) {
	err = c.ask(func() (err error) {
		faults, err = c.tunnel.Faults()
		if err == nil && len(faults) == 0 && c.tunnelErr != nil {
			faults = []string{"it did not work"}
		}
		return err
	})
	return faults, err
}

// lookAtTables compares the maps of peers and neighbours with what this process wrote.
func (c *Controller) lookAtTables(*netdev.View) (faults []string, err error) {
	err = c.ask(func() error {
		wrong, err := c.wrongEntries()
		if n := len(wrong.Peers) + len(wrong.Remotes); n > 0 {
			faults = []string{count.Of(n, "entry is not weft's", "entries are not weft's")}
		}
		return err
	})
	return faults, err
}

// rewriteTables writes the wrong entries of the maps again. It runs on the goroutine of Run.
func (c *Controller) rewriteTables() error {
	wrong, err := c.wrongEntries()
	if err != nil {
		return err
	}
	for id := range wrong.Peers {
		delete(c.installed.Peers, id)
	}
	for a := range wrong.Remotes {
		delete(c.installed.Remotes, a)
	}
	c.stale = true
	c.replan()
	return c.tablesErr
}

// wrongEntries returns what this process wrote and the maps do not have.
func (c *Controller) wrongEntries() (plan.Tables, error) {
	wrong := plan.Tables{Peers: maps.Clone(c.installed.Peers), Remotes: maps.Clone(c.installed.Remotes)}
	err := c.kernel.Peers(func(id uint16, e kernel.PeerEntry) bool {
		if p, ok := wrong.Peers[id]; ok && kernel.EntryOf(p) == e {
			delete(wrong.Peers, id)
		}
		return true
	})
	if err != nil {
		return plan.Tables{}, err
	}
	err = c.kernel.Remotes(func(a netip.Addr, e kernel.Remote) bool {
		if r, ok := wrong.Remotes[a]; ok && kernel.RemoteOf(r) == e {
			delete(wrong.Remotes, a)
		}
		return true
	})
	return wrong, err
}
