package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"

	"github.com/weft-net/weft/policy/model"

	"github.com/weft-net/weft/internal/poll"
)

// recorder is Policies that records its calls.
type recorder struct {
	Policies
	mu    sync.Mutex
	words []string
}

func (p *recorder) record(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.words = append(p.words, fmt.Sprintf(format, args...))
}

func (p *recorder) SetPod(o *corev1.Pod)                    { p.record("pod %s", o.Name) }
func (p *recorder) SetNamespace(o *corev1.Namespace)        { p.record("namespace %s", o.Name) }
func (p *recorder) SetPolicy(o *networkingv1.NetworkPolicy) { p.record("policy %s", o.Name) }
func (p *recorder) SetClusterPolicy(o *v1alpha2.ClusterNetworkPolicy) {
	p.record("cluster policy %s", o.Name)
}
func (p *recorder) DeleteClusterPolicy(name string) { p.record("no cluster policy %s", name) }
func (p *recorder) Synced()                         { p.record("synced") }

// await waits for a call, and returns the calls so far.
func (p *recorder) await(t *testing.T, word string) []string {
	t.Helper()
	var words []string
	err := poll.Until(20*time.Second, 10*time.Millisecond, poll.True(func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		words = slices.Clone(p.words)
		return slices.Contains(words, word)
	}))
	if err != nil {
		t.Fatalf("got calls %q, want %q", words, word)
	}
	return words
}

// clusterList is the ClusterNetworkPolicies of a cluster in which the kind may be undefined.
type clusterList struct {
	mu          sync.Mutex
	unreachable bool // the API server does not answer
	defined     bool
	events      *watch.FakeWatcher
}

func (l *clusterList) define() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.defined = true
}

func (l *clusterList) makeReachable() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unreachable = false
}

func (l *clusterList) listerWatcher() cache.ListerWatcher {
	return &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.unreachable {
				return nil, errors.New("connection refused")
			}
			if !l.defined {
				return nil, apierrors.NewNotFound(v1alpha2.Resource("clusternetworkpolicies"), "")
			}
			list := &v1alpha2.ClusterNetworkPolicyList{Items: []v1alpha2.ClusterNetworkPolicy{{ObjectMeta: metav1.ObjectMeta{Name: "guard", ResourceVersion: "1"}}}}
			list.ResourceVersion = "1"
			return list, nil
		},
		WatchFuncWithContext: func(_ context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if o.SendInitialEvents != nil {
				return nil, apierrors.NewBadRequest("a watch does not begin with a list here")
			}
			return l.events, nil
		},
	}
}

func startFeed(t *testing.T, l *clusterList) *recorder {
	t.Helper()
	client := fake.NewClientset(
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "shop"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web"}},
		&networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "deny"}},
	)
	p := &recorder{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- feed(ctx, informers.NewSharedInformerFactory(client, 0), l.listerWatcher(), p, slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return p
}

func TestSyncedFollowsAllObjects(t *testing.T) {
	l := &clusterList{defined: true, events: watch.NewFake()}
	p := startFeed(t, l)
	words := p.await(t, "synced")
	for _, word := range []string{"namespace shop", "pod web", "policy deny", "cluster policy guard"} {
		if !slices.Contains(words, word) {
			t.Errorf("got calls %q before synced, want %q too", words, word)
		}
	}
	l.events.Delete(&v1alpha2.ClusterNetworkPolicy{ObjectMeta: metav1.ObjectMeta{Name: "guard", ResourceVersion: "2"}})
	p.await(t, "no cluster policy guard")
}

// NetworkPolicies do not wait for a kind that is not defined. Once it is defined, its policies are
// reported within seconds.
func TestFeedWithoutClusterPolicyKind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &clusterList{events: watch.NewFake()}
		p := startFeed(t, l)
		p.await(t, "synced")
		time.Sleep(time.Hour)
		l.define()
		defined := time.Now()
		p.await(t, "cluster policy guard")
		if late := time.Since(defined); late > 11*time.Second {
			t.Errorf("reported after %v", late)
		}
	})
}

// An unreachable API server does not end the feed. Once it answers that the kind is not defined,
// NetworkPolicies do not wait for the kind.
func TestFeedAfterUnreachableAPIServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &clusterList{unreachable: true, events: watch.NewFake()}
		p := startFeed(t, l)
		time.Sleep(time.Minute)
		l.makeReachable()
		p.await(t, "synced")
		l.define()
		p.await(t, "cluster policy guard")
	})
}

// The stripped pod has all fields that policies depend on, including the UID that the kubelet
// uses.
func TestStripPodKeepsPolicyFields(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	ports := []corev1.ContainerPort{{Name: "side", ContainerPort: 1}}
	target := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: "web", UID: "of the API server", Labels: map[string]string{"app": "web"},
			Annotations: map[string]string{corev1.MirrorPodAnnotationKey: "of the kubelet", "other": "x"},
		},
		Spec: corev1.PodSpec{
			NodeName:       "self",
			InitContainers: []corev1.Container{{Name: "s", RestartPolicy: &always, Ports: ports}},
			Containers:     []corev1.Container{{Name: "c", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 80}}}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "10.32.0.5", PodIPs: []corev1.PodIP{{IP: "10.32.0.5"}, {IP: "fd00::5"}}},
	}
	want, err := model.PodOf(target)
	if err != nil {
		t.Fatal(err)
	}
	stripped, err := stripPod(target)
	if err != nil {
		t.Fatal(err)
	}
	got, err := model.PodOf(stripped.(*corev1.Pod))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("the stripped pod is read as %+v, %v; want %+v", got, err, want)
	}
	if got.UID != "of the kubelet" {
		t.Errorf("UID %q, want the UID that the kubelet uses for a static pod", got.UID)
	}
}
