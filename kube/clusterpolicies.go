package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// ListClusterPolicies returns how to list and watch the ClusterNetworkPolicies of a cluster.
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

// clusterPolicies watches the policies of the whole cluster. While the API server says that it
// knows no such kind there are none; whoever defines it later has nothing to restart.
func clusterPolicies(from cache.ListerWatcher, p Policies, log *slog.Logger) (watched, error) {
	var none atomic.Bool
	i := cache.NewSharedIndexInformer(from, &v1alpha2.ClusterNetworkPolicy{}, 0, nil)
	if err := i.SetWatchErrorHandlerWithContext(func(ctx context.Context, r *cache.Reflector, err error) {
		if !apierrors.IsNotFound(err) {
			cache.DefaultWatchErrorHandler(ctx, r, err)
			return
		}
		if !none.Swap(true) {
			log.Warn("there are no ClusterNetworkPolicies: their kind is not defined in the cluster", "version", v1alpha2.GroupVersion.String())
		}
	}); err != nil {
		return watched{}, fmt.Errorf("watch ClusterNetworkPolicies: %w", err)
	}
	return watched{
		i, func(o any) { p.SetClusterPolicy(o.(*v1alpha2.ClusterNetworkPolicy)) },
		func(_, name string) { p.DeleteClusterPolicy(name) }, none.Load,
	}, nil
}
