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
)

const (
	// configMapName is the ConfigMap with the members.
	configMapName = "weft-peers"
	// lookEvery is how often everything is compared when nothing happened, and
	// retryEvery when something failed or is waited for.
	lookEvery  = 10 * time.Second
	retryEvery = 2 * time.Second
	// callTimeout bounds a call of the API server or the router.
	callTimeout = 10 * time.Second
)

// Agent follows the API server for the router of one Node.
type Agent struct {
	Settings *Settings
	Client   kubernetes.Interface
	Router   Router
	Plugin   *Plugin
	Policies Policies // nil: none are enforced
	// ClusterPolicies lists the ClusterNetworkPolicies; nil: they are not enforced.
	ClusterPolicies cache.ListerWatcher
	Log             *slog.Logger
	// Health is where probes are answered, and Metrics of policies if there are any;
	// empty for nowhere.
	Health  string
	Metrics http.Handler
	// Recorded is told the UID of this Node, before the router is known by it.
	Recorded func(uid string) error

	health   health
	nodes    corelisters.NodeLister
	wake     chan struct{} // something has changed
	gone     chan struct{} // a Node has gone, or may have
	told     []string      // targets that the router has, nil: not known
	exposed  bool
	enrolled atomic.Pointer[member] // the line that the ConfigMap has of this Node; nil: not known
}

// Run follows until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	a.health.router, a.wake, a.gone = a.Router, make(chan struct{}, 1), make(chan struct{}, 1)
	a.health.wait("the router is starting")
	g, ctx := errgroup.WithContext(ctx)
	if a.Health != "" {
		g.Go(func() error { return a.health.serve(ctx, a.Health, a.Metrics) })
	}
	all := informers.NewSharedInformerFactory(a.Client, 0)
	a.nodes = all.Core().V1().Nodes().Lister()
	if _, err := all.Core().V1().Nodes().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { wake(a.wake) },
		DeleteFunc: func(any) { wake(a.wake); wake(a.gone) },
		UpdateFunc: func(old, now any) {
			before, after := old.(*corev1.Node), now.(*corev1.Node)
			if matters(before, after) {
				wake(a.wake)
			}
			if idOf(before) != idOf(after) {
				wake(a.gone)
			}
		},
	}); err != nil {
		return fmt.Errorf("watch Nodes: %w", err)
	}
	all.Start(ctx.Done())
	if a.Policies != nil {
		g.Go(func() error { return a.Policies.Run(ctx) })
		g.Go(func() error { return feed(ctx, all, a.ClusterPolicies, a.Policies, a.Log) })
	}
	g.Go(func() error {
		all.WaitForCacheSync(ctx.Done())
		wake(a.gone) // while nobody looked
		g.Go(func() error { a.reclaimLoop(ctx); return nil })
		a.loop(ctx)
		return nil
	})
	return g.Wait()
}

// matters reports whether an update says something new: kubelets report that they
// live in their Node's status.
func matters(before, after *corev1.Node) bool {
	return idOf(before) != idOf(after) || addressOf(before) != addressOf(after) || isUp(before) != isUp(after)
}

// wake has who waits for c look at everything again soon.
func wake(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

func (a *Agent) loop(ctx context.Context) {
	wrong := newFaults(a.Log)
	for ctx.Err() == nil {
		again := lookEvery
		if !a.step(ctx, wrong) {
			again = retryEvery
		}
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-time.After(again):
		}
	}
}

// step brings everything in line and reports whether it all is.
func (a *Agent) step(ctx context.Context, wrong *faults) bool {
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"connect the router to the Nodes", a.connect},
		{"say which peer is on this Node", a.enrol},
		{"have the router give addresses", a.prime},
		{"enforce policies", a.enforce},
		{"install the CNI plugin", a.install},
		{"mark the network of the Node as available", a.mark},
	} {
		if err := s.do(ctx); err != nil {
			if ctx.Err() == nil {
				a.health.wait(s.name + ": " + wrong.say(s.name, err))
			}
			return false
		}
		wrong.over(s.name)
	}
	if a.health.wait("") {
		a.Log.Info("pods have a network on this Node")
	}
	return true
}
