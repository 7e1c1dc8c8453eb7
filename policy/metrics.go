package policy

import (
	"fmt"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weft-net/weft/policy/model"
)

// metrics has the names of weave-npc's metrics, with weft in place of weave.
type metrics struct {
	blocked    *prometheus.CounterVec
	errors     prometheus.Counter
	unreported prometheus.Counter

	ports map[string]bool // the ports that have a counter; used by the engine's goroutine only
}

// portsCounted limits the number of destination ports that have a counter. A port scan of a pod
// would otherwise make one for each port.
const portsCounted = 1000

func newMetrics() *metrics {
	return &metrics{
		blocked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weft_npc_blocked_connections_total",
			Help: "Flows that policies denied. Bursts may be undercounted. The port is \"other\" after 1000 different ports.",
		}, []string{"protocol", "dport"}),
		errors: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_npc_policy_enforcement_errors",
			Help: "Errors while reading policies, writing their rules to the kernel and checking them there.",
		}),
		unreported: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "weft_npc_denials_untold_total",
			Help: "Denied flows that were not logged because there were too many.",
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

// denied counts a denied flow.
func (m *metrics) denied(f model.Flow) {
	port := strconv.Itoa(int(f.Port))
	if !m.ports[port] && len(m.ports) >= portsCounted {
		port = "other"
	} else {
		m.ports[port] = true
	}
	m.blocked.WithLabelValues(f.Protocol.String(), port).Inc()
}
