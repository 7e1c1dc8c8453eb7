package policy

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/policy/model"
)

// metrics are named as weave-npc's, with its name replaced.
type metrics struct {
	blocked    *prometheus.CounterVec
	errors     prometheus.Counter
	unreported prometheus.Counter

	ports map[string]bool // those that have a counter; the engine's goroutine only
}

// portsCounted is for how many destination ports there are counters. Whoever
// tries all ports of a pod would otherwise make one for each.
const portsCounted = 1000

func newMetrics() *metrics {
	return &metrics{
		blocked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_npc_blocked_connections_total",
			Help: "Flows that policies denied. Of a burst some may be missing; the port is \"other\" once very many ports were tried.",
		}, []string{"protocol", "dport"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_npc_policy_enforcement_errors",
			Help: "Faults in reading policies, and in bringing them to the kernel or keeping them there.",
		}),
		unreported: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_npc_denials_untold_total",
			Help: "Denied flows about which no line was written, as there were too many.",
		}),
		ports: make(map[string]bool),
	}
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.blocked, m.errors, m.unreported} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics of policies: %w", err)
		}
	}
	return nil
}

// denied counts a flow.
func (m *metrics) denied(f model.Flow) {
	port := strconv.Itoa(int(f.Port))
	if !m.ports[port] && len(m.ports) >= portsCounted {
		port = "other"
	} else {
		m.ports[port] = true
	}
	m.blocked.WithLabelValues(f.Protocol.String(), port).Inc()
}
