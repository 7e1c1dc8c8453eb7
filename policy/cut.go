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

// cutter ends live connections that policies do not allow any more. Only those:
// a connection to a Service that is still allowed would lose its translation.
type cutter struct {
	engine *Engine
	wake   chan struct{} // of one place
}

// cutAgainAfter is when a change is looked at once more. A packet that the old
// rules let pass may become a connection just after the first look.
const recheckAfter = time.Second

// cutsTold is how many cut connections are told one by one.
const cutsLogged = 20

func newCutter(e *Engine) *cutter { return &cutter{e, make(chan struct{}, 1)} }

// request has connections looked at soon.
func (c *cutter) request() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run cuts on request. Requests while it is at it are joined.
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
				c.engine.reportFault(err)
			}
		}
	}
}

// cut looks at all connections once.
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
	// In parts, so that the engine is not kept from its other work for long.
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
				c.engine.log.Info("connection cut, as policies do not allow it any more",
					"src", endpoint(flow.Src, f.TupleOrig.Proto.SourcePort), "dst", endpoint(flow.Dst, flow.Port), "protocol", flow.Protocol)
			}
		}
	}
	if done > cutsLogged {
		c.engine.log.Info("more connections cut, as policies do not allow them any more", "connections", done-cutsLogged)
	}
	return errors.Join(errs...)
}

// forbidden returns those of the connections that the policies of pods of this
// node do not allow.
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

// judged returns a connection as the rules saw its first packet: the destination
// is who answers, which translation may have chosen; the source is who asked,
// whatever address was given to it after that.
func flowOf(f conntrack.Flow) model.Flow {
	return model.Flow{
		Src:      f.TupleOrig.IP.SourceAddress.Unmap(),
		Dst:      f.TupleReply.IP.SourceAddress.Unmap(),
		Protocol: model.Protocol(f.TupleOrig.Proto.Protocol),
		Port:     f.TupleReply.Proto.SourcePort,
	}
}
