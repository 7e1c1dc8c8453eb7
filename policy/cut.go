package policy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// cutter ends live connections that policies no longer allow. It leaves allowed connections alone:
// a connection to a Service would lose its address translation.
type cutter struct {
	engine *Engine
	wake   chan struct{} // capacity 1
}

// recheckAfter is the time between the first and the second check after a change. A packet that
// the old rules let pass may become a connection just after the first check.
const recheckAfter = time.Second

// cutsLogged is the number of cut connections that get a log line of their own.
const cutsLogged = 20

func newCutter(e *Engine) *cutter { return &cutter{e, make(chan struct{}, 1)} }

// request makes run check all connections soon. It does not block.
func (c *cutter) request() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run checks connections on request until ctx ends. Requests that arrive during a check are merged
// into one.
func (c *cutter) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		}
		for _, wait := range []time.Duration{0, recheckAfter} {
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
			if err := c.cut(ctx); err != nil && ctx.Err() == nil {
				c.engine.metrics.errors.Inc()
				c.engine.log.Warn("could not cut connections that policies no longer allow", "err", err)
			}
		}
	}
}

// cut checks all connections once.
func (c *cutter) cut(ctx context.Context) error {
	conn, err := c.engine.kernel.connections()
	if err != nil {
		return err
	}
	defer conn.Close()
	flows, err := conn.Dump(nil)
	if err != nil {
		return fmt.Errorf("list tracked connections: %w", err)
	}
	hostAddrs, err := c.engine.kernel.hostAddrs()
	if err != nil {
		return err
	}
	done := 0
	var errs []error
	// In batches, so that the engine's goroutine is never blocked for long.
	for part := range slices.Chunk(flows, 1000) {
		var denied []conntrack.Flow
		err := c.engine.ask(ctx, func(compiler *rules.Compiler) { denied = forbidden(compiler.Cluster(), part, hostAddrs) })
		if err != nil {
			return err
		}
		for _, f := range denied {
			flow := flowOf(f)
			if err := conn.Delete(f); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("cut connection %s to %s: %w", flow.Src, endpoint(flow.Dst, flow.Port), err))
				continue
			}
			if done++; done <= cutsLogged {
				c.engine.log.Info("connection cut: policies no longer allow it",
					"src", endpoint(flow.Src, f.TupleOrig.Proto.SourcePort), "dst", endpoint(flow.Dst, flow.Port), "protocol", flow.Protocol)
			}
		}
	}
	if done > cutsLogged {
		c.engine.log.Info("more connections cut: policies no longer allow them", "connections", done-cutsLogged)
	}
	return errors.Join(errs...)
}

// forbidden returns the connections that the policies of this node's pods deny.
func forbidden(cluster *model.Cluster, flows []conntrack.Flow, hostAddrs map[netip.Addr]bool) []conntrack.Flow {
	var all []conntrack.Flow
	for _, f := range flows {
		flow := flowOf(f)
		denied := func(d model.Direction) bool {
			j := cluster.Judge(flow, d)
			return cluster.Local(j.Pod) && !j.Allowed()
		}
		if !hostAddrs[flow.Src] && (denied(model.Egress) || denied(model.Ingress)) {
			all = append(all, f)
		}
	}
	return all
}

// flowOf returns a connection as the rules saw its first packet: with the translated destination,
// which is the source of the replies, and the original source.
func flowOf(f conntrack.Flow) model.Flow {
	return model.Flow{
		Src:      f.TupleOrig.IP.SourceAddress.Unmap(),
		Dst:      f.TupleReply.IP.SourceAddress.Unmap(),
		Protocol: model.Protocol(f.TupleOrig.Proto.Protocol),
		Port:     f.TupleReply.Proto.SourcePort,
	}
}
