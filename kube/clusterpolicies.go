package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// ListClusterPolicies returns a ListerWatcher of a cluster's ClusterNetworkPolicies.
func ListClusterPolicies(config *rest.Config) (cache.ListerWatcher, error) {
	scheme := runtime.NewScheme()
	if err := v1alpha2.Install(scheme); err != nil {
		return nil, fmt.Errorf("list ClusterNetworkPolicies: %w", err)
	}
	config = rest.CopyConfig(config)
	config.APIPath = "/apis"
	config.GroupVersion = &schema.GroupVersion{Group: v1alpha2.GroupVersion.Group, Version: v1alpha2.GroupVersion.Version}
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	client, err := rest.RESTClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("list ClusterNetworkPolicies: %w", err)
	}
	return cache.NewListWatchFromClient(client, "clusternetworkpolicies", metav1.NamespaceAll, fields.Everything()), nil
}

// kindRetryEvery is the minimum interval between attempts to list a kind that failed; jitter adds
// up to as much again. An informer would back off to a minute, and no policy would be in force for
// that time.
const kindRetryEvery = 5 * time.Second

// clusterPolicies returns the kind of cluster policies. watchWhenDefined runs their informer. As
// long as the API server does not know the kind, there are none; once somebody defines it, the
// policies take effect without a restart.
func clusterPolicies(from cache.ListerWatcher, p Policies) (w watched, watchWhenDefined func(context.Context, *slog.Logger)) {
	var absent atomic.Bool
	i := cache.NewSharedIndexInformer(from, &v1alpha2.ClusterNetworkPolicy{}, 0, nil)
	w = watched{
		i, func(o any) { p.SetClusterPolicy(o.(*v1alpha2.ClusterNetworkPolicy)) },
		func(_, name string) { p.DeleteClusterPolicy(name) }, absent.Load,
	}
	return w, func(ctx context.Context, log *slog.Logger) {
		const what = "list the ClusterNetworkPolicies"
		errs := newErrorLog(log)
		err := awaitKind(ctx, from, func(err error) {
			if apierrors.IsNotFound(err) {
				absent.Store(true)
				err = fmt.Errorf("the cluster does not define the kind in version %s", v1alpha2.GroupVersion)
			}
			errs.failed(what, err)
		})
		if err == nil {
			errs.succeeded(what)
			i.RunWithContext(ctx)
		}
	}
}

// awaitKind returns when the API server lists a kind of objects. It calls onError with each error
// before that: an API server that is unreachable at first may report later that it does not know
// the kind. It fails when ctx ends.
func awaitKind(ctx context.Context, from cache.ListerWatcher, onError func(error)) error {
	list := cache.ToListerWatcherWithContext(from)
	for {
		listCtx, cancel := context.WithTimeout(ctx, callTimeout)
		_, err := list.ListWithContext(listCtx, metav1.ListOptions{Limit: 1})
		cancel()
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		onError(err)
		select {
		case <-time.After(wait.Jitter(kindRetryEvery, 1)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
