package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
)

// Policies enforces NetworkPolicies on this Node. Its methods except Run are called one at a time,
// once Run was called, and do not wait for the kernel. Objects are shared: they must not be
// changed.
type Policies interface {
	SetPod(*corev1.Pod)
	DeletePod(namespace, name string)
	SetNamespace(*corev1.Namespace)
	DeleteNamespace(name string)
	SetPolicy(*networkingv1.NetworkPolicy)
	DeletePolicy(namespace, name string)
	SetClusterPolicy(*v1alpha2.ClusterNetworkPolicy)
	DeleteClusterPolicy(name string)
	// Synced is called once, when all existing objects were reported. Until then the policies that
	// an earlier run enforced must stay in force.
	Synced()
	// Enforced returns the reason why policies are not enforced, nil if they are. It may be called
	// at any time.
	Enforced() error
	// Run enforces policies until ctx ends, and leaves them in force.
	Run(ctx context.Context) error
}

// watched is a kind of objects that Policies needs.
type watched struct {
	informer cache.SharedIndexInformer
	set      func(any)
	remove   func(namespace, name string)
	absent   func() bool // reports that the cluster does not have the kind; nil: it always has
}

// feed reports all objects to p until ctx ends. cluster lists the cluster policies; if it is nil,
// they are ignored.
func feed(ctx context.Context, f informers.SharedInformerFactory, cluster cache.ListerWatcher, p Policies, log *slog.Logger) error {
	pods := f.Core().V1().Pods().Informer()
	if err := pods.SetTransform(stripPod); err != nil {
		return fmt.Errorf("watch Pods: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var helpers sync.WaitGroup
	defer helpers.Wait()
	defer cancel()
	events := make(chan func())
	send := func(event func()) {
		select {
		case events <- event:
		case <-ctx.Done():
		}
	}
	kinds := []watched{
		{f.Core().V1().Namespaces().Informer(), func(o any) { p.SetNamespace(o.(*corev1.Namespace)) }, func(_, name string) { p.DeleteNamespace(name) }, nil},
		{pods, func(o any) { p.SetPod(o.(*corev1.Pod)) }, p.DeletePod, nil},
		{f.Networking().V1().NetworkPolicies().Informer(), func(o any) { p.SetPolicy(o.(*networkingv1.NetworkPolicy)) }, p.DeletePolicy, nil},
	}
	if cluster != nil {
		kind, watchWhenDefined := clusterPolicies(cluster, p)
		kinds = append(kinds, kind)
		helpers.Go(func() { watchWhenDefined(ctx, log) })
	}
	var synced []cache.InformerSynced
	for _, w := range kinds {
		r, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { send(func() { w.set(o) }) },
			UpdateFunc: func(_, o any) { send(func() { w.set(o) }) },
			DeleteFunc: func(o any) {
				if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(o); err == nil {
					namespace, name, _ := cache.SplitMetaNamespaceKey(key) // cannot fail: the key was made from the two
					send(func() { w.remove(namespace, name) })
				}
			},
		})
		if err != nil {
			return fmt.Errorf("watch objects for policies: %w", err)
		}
		synced = append(synced, func() bool { return r.HasSynced() || w.absent != nil && w.absent() })
	}
	f.Start(ctx.Done())
	helpers.Go(func() {
		if cache.WaitForCacheSync(ctx.Done(), synced...) {
			send(p.Synced)
		}
	})
	for {
		select {
		case event := <-events:
			event()
		case <-ctx.Done():
			return nil
		}
	}
}

// stripPod returns a copy of a Pod without the fields that policies ignore, to save memory.
func stripPod(o any) (any, error) {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	stripped := &corev1.Pod{Status: corev1.PodStatus{Phase: pod.Status.Phase, PodIP: pod.Status.PodIP, PodIPs: pod.Status.PodIPs}}
	stripped.Name, stripped.Namespace, stripped.UID, stripped.ResourceVersion = pod.Name, pod.Namespace, pod.UID, pod.ResourceVersion
	stripped.Labels, stripped.DeletionTimestamp, stripped.CreationTimestamp = pod.Labels, pod.DeletionTimestamp, pod.CreationTimestamp
	if uid, ok := pod.Annotations[corev1.MirrorPodAnnotationKey]; ok {
		stripped.Annotations = map[string]string{corev1.MirrorPodAnnotationKey: uid}
	}
	stripped.Spec.NodeName, stripped.Spec.HostNetwork = pod.Spec.NodeName, pod.Spec.HostNetwork
	stripped.Spec.Containers, stripped.Spec.InitContainers = withPorts(pod.Spec.Containers), withPorts(pod.Spec.InitContainers)
	return stripped, nil
}

// withPorts returns the containers that have ports, without their other fields.
func withPorts(containers []corev1.Container) (with []corev1.Container) {
	for _, c := range containers {
		if len(c.Ports) > 0 {
			with = append(with, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return with
}
