package policy

import (
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/rules"
)

// reporter logs denied flows: each flow once in a while, and a limited number of lines.
type reporter struct {
	log        *slog.Logger
	metrics    *metrics
	lines      *rate.Limiter
	unreported int // suppressed lines since the last one
	// The flows that were logged in the current period and in the previous one.
	recent, older map[denial]bool
	rotated       time.Time
}

const (
	repeatAfter = time.Minute // a flow that keeps retrying is logged once in this time,
	flowsKept   = 4096        // or sooner if so many other flows were denied
	linesEvery  = 100 * time.Millisecond
	linesBurst  = 50
)

func newReporter(log *slog.Logger, m *metrics) *reporter {
	return &reporter{
		log: log, metrics: m,
		lines:  rate.NewLimiter(rate.Every(linesEvery), linesBurst),
		recent: make(map[denial]bool),
	}
}

// report counts a denied flow and logs it, unless the flow was logged recently.
func (r *reporter) report(d denial, c *rules.Compiler, now time.Time) {
	if since := now.Sub(r.rotated); since > repeatAfter || len(r.recent) >= flowsKept {
		r.older, r.recent, r.rotated = r.recent, make(map[denial]bool), now
		if since > 2*repeatAfter {
			r.older = nil
		}
	}
	if r.recent[d] || r.older[d] {
		return
	}
	r.recent[d] = true
	r.metrics.denied(d.flow)
	if !r.lines.AllowN(now, 1) {
		r.unreported++
		r.metrics.unreported.Inc()
		return
	}
	direction, isolating := c.Explain(d.chain)
	attrs := []any{
		"direction", direction,
		"src", endpoint(d.flow.Src, d.sport), "srcPod", podName(c.Cluster(), d.flow.Src),
		"dst", endpoint(d.flow.Dst, d.flow.Port), "dstPod", podName(c.Cluster(), d.flow.Dst),
		"protocol", d.flow.Protocol, "isolatedBy", fmt.Sprint(isolating),
	}
	if r.unreported > 0 {
		attrs = append(attrs, "unreported", r.unreported)
		r.unreported = 0
	}
	r.log.Warn("flow denied by policy", attrs...)
}

// endpoint formats an address and a port; the port is omitted if it is 0.
func endpoint(a netip.Addr, port uint16) string {
	if port == 0 {
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}

// podName returns namespace/name of the pod that owns an address, or "" if there is none.
func podName(c *model.Cluster, a netip.Addr) string {
	if pod := c.Owner(a); pod != nil {
		return pod.Key.String()
	}
	return ""
}
