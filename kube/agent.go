package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
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
	// callPatience bounds a call of the API server or the router.
	callPatience = 10 * time.Second
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

	health  health
	nodes   corelisters.NodeLister
	members corelisters.ConfigMapNamespaceLister
	wake    chan struct{} // something has changed
	told    []string      // targets that the router has, nil: not known
	exposed bool
}

// Run follows until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	a.health.router, a.wake = a.Router, make(chan struct{}, 1)
	a.health.wait("the router is starting")
	g, ctx := errgroup.WithContext(ctx)
	if a.Health != "" {
		g.Go(func() error { return a.health.serve(ctx, a.Health, a.Metrics) })
	}
	all := informers.NewSharedInformerFactory(a.Client, 0)
	own := informers.NewSharedInformerFactoryWithOptions(a.Client, 0, informers.WithNamespace(a.Settings.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", configMapName).String()
		}))
	a.nodes = all.Core().V1().Nodes().Lister()
	a.members = own.Core().V1().ConfigMaps().Lister().ConfigMaps(a.Settings.Namespace)
	for _, i := range []cache.SharedIndexInformer{all.Core().V1().Nodes().Informer(), own.Core().V1().ConfigMaps().Informer()} {
		if _, err := i.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(any) { a.changed() }, DeleteFunc: func(any) { a.changed() },
			UpdateFunc: func(old, now any) {
				if matters(old, now) {
					a.changed()
				}
			},
		}); err != nil {
			return fmt.Errorf("watch Nodes: %w", err)
		}
	}
	all.Start(ctx.Done())
	own.Start(ctx.Done())
	if a.Policies != nil {
		g.Go(func() error { return a.Policies.Run(ctx) })
		g.Go(func() error { return feed(ctx, all, a.ClusterPolicies, a.Policies, a.Log) })
	}
	g.Go(func() error {
		all.WaitForCacheSync(ctx.Done())
		own.WaitForCacheSync(ctx.Done())
		reclaim := make(chan struct{}, 1)
		g.Go(func() error { a.reclaimLoop(ctx, reclaim); return nil })
		a.loop(ctx, reclaim)
		return nil
	})
	return g.Wait()
}

// matters tells whether an update says something new: kubelets report that they
// live in their Node's status.
func matters(old, now any) bool {
	before, one := old.(*corev1.Node)
	after, two := now.(*corev1.Node)
	return !one || !two || idOf(before) != idOf(after) || addressOf(before) != addressOf(after) || isUp(before) != isUp(after)
}

// changed has everything be looked at again soon.
func (a *Agent) changed() {
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *Agent) loop(ctx context.Context, reclaim chan<- struct{}) {
	wrong := newFaults(a.Log)
	for ctx.Err() == nil {
		again := lookEvery
		if !a.step(ctx, wrong) {
			again = retryEvery
		}
		select {
		case reclaim <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
		case <-a.wake:
		case <-time.After(again):
		}
	}
}

// step brings everything in line and tells whether it all is.
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
