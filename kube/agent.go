package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/weft-net/weft/internal/api"
)

const (
	// configMapName is the name of the ConfigMap with the members.
	configMapName = "weft-peers"
	// checkEvery is the interval between checks of everything if nothing happens. retryEvery is
	// the interval after an error.
	checkEvery = 10 * time.Second
	retryEvery = 2 * time.Second
	// callTimeout is the timeout of a call of the API server or the router.
	callTimeout = 10 * time.Second
)

// AgentConfig configures an Agent.
type AgentConfig struct {
	Settings *Settings
	Client   kubernetes.Interface
	Router   Router
	Plugin   *Plugin  // nil: the Node has it already
	Policies Policies // nil: none are enforced
	// ClusterPolicies lists the ClusterNetworkPolicies; nil: they are not enforced.
	ClusterPolicies cache.ListerWatcher
	Log             *slog.Logger
	// Health is the address that answers probes, and Metrics those of policies, nil if
	// there are none. Without an address neither is served.
	Health  string
	Metrics http.Handler
	// HealthHosts are names in the Host header of requests to Health that are answered besides
	// loopback names and the address itself.
	HealthHosts []string
	// RecordUID receives the UID of this Node before the Node's line names the router. It may be
	// nil.
	RecordUID func(uid string) error
}

// Agent follows the API server for the router of one Node. Make it with NewAgent.
type Agent struct {
	// Constant.
	cfg       AgentConfig
	informers informers.SharedInformerFactory
	nodes     corelisters.NodeLister
	wake      chan struct{} // capacity 1: something changed
	nodeGone  chan struct{} // capacity 1: a Node may have been deleted
	health    health

	// Of loop only.
	connectedTargets []string // the targets that the router has; nil if they are unknown
	exposed          bool     // the Node has an address
	notices          *notices
	asked            time.Time // when the router was asked for its warnings
	askedTaken       time.Time // when it was asked for addresses that other Nodes have

	enrolled atomic.Pointer[member] // this Node's line in the ConfigMap; nil if it is unknown
}

// NewAgent returns an agent. It does nothing until Run.
func NewAgent(c AgentConfig) *Agent {
	all := informers.NewSharedInformerFactory(c.Client, 0)
	return &Agent{
		cfg: c, informers: all, nodes: all.Core().V1().Nodes().Lister(), wake: make(chan struct{}, 1), nodeGone: make(chan struct{}, 1),
		health: health{router: c.Router, hosts: c.HealthHosts, notReady: "the router is starting"},
	}
}

// Run keeps the router, the Node and the ConfigMap up to date until ctx ends. Call it once.
func (a *Agent) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	if a.cfg.Health != "" {
		g.Go(func() error { return a.health.serve(ctx, a.cfg.Health, a.cfg.Metrics) })
	}
	if _, err := a.informers.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { wake(a.wake) },
		DeleteFunc: func(any) { wake(a.wake); wake(a.nodeGone) },
		UpdateFunc: func(old, now any) {
			before, after := old.(*corev1.Node), now.(*corev1.Node)
			if relevantChange(before, after) {
				wake(a.wake)
			}
			if idOf(before) != idOf(after) {
				wake(a.nodeGone)
			}
		},
	}); err != nil {
		return fmt.Errorf("watch Nodes: %w", err)
	}
	a.informers.Start(ctx.Done())
	if a.cfg.Policies != nil {
		g.Go(func() error { return a.cfg.Policies.Run(ctx) })
		g.Go(func() error { return feed(ctx, a.informers, a.cfg.ClusterPolicies, a.cfg.Policies, a.cfg.Log) })
	}
	a.health.setReason("the API server has not answered yet")
	g.Go(func() error {
		a.informers.WaitForCacheSync(ctx.Done())
		wake(a.nodeGone) // Nodes may have been deleted while no agent ran here
		g.Go(func() error { a.reclaimLoop(ctx); return nil })
		a.loop(ctx)
		return nil
	})
	return g.Wait()
}

// relevantChange reports whether an update of a Node matters to agents. Most do not: kubelets
// report in their Node's status every few seconds that they are alive.
func relevantChange(before, after *corev1.Node) bool {
	return idOf(before) != idOf(after) || addressOf(before) != addressOf(after) || isUp(before) != isUp(after)
}

// wake makes the goroutine that waits for c check everything soon. It does not block.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (a *Agent) loop(ctx context.Context) {
	errs := newErrorLog(a.cfg.Log)
	a.notices = newNotices(a.cfg.Client, a.cfg.Settings.NodeName)
	defer a.notices.close()
	for ctx.Err() == nil {
		again := checkEvery
		if !a.step(ctx, errs) {
			again = retryEvery
		}
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-time.After(again):
		}
	}
}

// step brings everything up to date. It reports whether it succeeded.
func (a *Agent) step(ctx context.Context, errs *errorLog) bool {
	const endTaken = "end what has an address of another Node"
	if err := a.endTaken(ctx); err == nil {
		errs.succeeded(endTaken)
	} else if ctx.Err() == nil {
		errs.failed(endTaken, err)
	}
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"connect the router to the Nodes", a.connect},
		{"record the peer of this Node", a.enrol},
		{"get addresses from the router", a.prime},
		{"enforce policies", a.enforce},
		{"install the CNI plugin", a.install},
		{"mark the network of the Node as available", a.mark},
	} {
		if err := s.do(ctx); err != nil {
			if ctx.Err() == nil {
				why := s.name + ": " + errs.failed(s.name, err)
				a.health.setReason(why)
				a.notices.notReady(a.about(), why, time.Now())
			}
			return false
		}
		errs.succeeded(s.name)
	}
	if a.health.setReason("") {
		a.cfg.Log.Info("the network for pods is ready on this Node")
	}
	a.notices.ready(a.about())
	a.warn(ctx)
	return true
}

// warn says the router's warnings as Events.
func (a *Agent) warn(ctx context.Context) {
	if time.Since(a.asked) < checkEvery {
		return
	}
	a.asked = time.Now()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if r, err := a.cfg.Router.Summary(ctx, api.NoLists); err == nil {
		a.notices.warn(a.about(), r.Warnings)
	}
}
