package netdev_test

import (
	"context"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/weft-net/weft/internal/netdev/nstest"
)

// Site, "What is exposed": rules that others remove are there again at once.
func TestWatchTellsOfRules(t *testing.T) {
	host := nstest.New(t, "host")
	w := newWatch(t, host)
	ctx, cancel := context.WithCancel(t.Context())
	told, ended := make(chan struct{}, 1), make(chan error, 1)
	go func() {
		ended <- w.Rules(ctx, func() {
			select {
			case told <- struct{}{}:
			default:
			}
		})
	}()
	change := func(f func(*nftables.Conn)) {
		t.Helper()
		do(t, host, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			f(c)
			return c.Flush()
		})
	}
	table := &nftables.Table{Name: "others", Family: nftables.TableFamilyINet}
	// Until it listens nothing is told.
	listens := time.After(timeout)
	for heard := false; !heard; {
		change(func(c *nftables.Conn) { c.AddTable(table) })
		change(func(c *nftables.Conn) { c.DelTable(table) })
		select {
		case <-told:
			heard = true
		case <-listens:
			t.Fatal("nothing is told")
		default:
		}
	}
	for _, f := range []func(*nftables.Conn){
		func(c *nftables.Conn) { c.AddTable(table) },
		func(c *nftables.Conn) { c.FlushRuleset() },
	} {
		change(f)
		select {
		case <-told:
		case <-time.After(timeout):
			t.Fatal("nothing is told of a table that came or was flushed")
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
