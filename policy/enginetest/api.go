package enginetest

import (
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/weft-net/weft/policy/policytest"
)

// API is an HTTP server that answers list and watch requests for the objects of a cluster as an
// API server does. It also has a Node with the name policytest.Node, and no other objects.
type API struct {
	mu       sync.Mutex
	version  int
	objects  policytest.Objects
	changed  chan struct{} // closed by the next change
	modified []*corev1.Pod // the pods that were set; the first has resource version 2
}

// NewAPI returns a server of objects. It may change the objects.
func NewAPI(o policytest.Objects) *API {
	return &API{version: 1, objects: o, changed: make(chan struct{})}
}

// SetPod replaces the pod of the same name.
func (a *API) SetPod(p *corev1.Pod) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	p.ResourceVersion = strconv.Itoa(a.version)
	for i, old := range a.objects.Pods {
		if old.Namespace == p.Namespace && old.Name == p.Name {
			a.objects.Pods[i] = p
		}
	}
	a.modified = append(a.modified, p)
	close(a.changed)
	a.changed = make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	if query.Get("sendInitialEvents") != "" { // the client then falls back to a list
		w.WriteHeader(http.StatusUnprocessableEntity)
		_ = json.NewEncoder(w).Encode(metav1.Status{
			TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
			Reason: metav1.StatusReasonInvalid, Code: http.StatusUnprocessableEntity, Message: "sendInitialEvents is not known",
		})
		return
	}
	dir, resource := r.URL.Path[:strings.LastIndex(r.URL.Path, "/")], r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
	switch {
	case strings.HasSuffix(dir, "/nodes"):
		_ = json.NewEncoder(w).Encode(node())
	case query.Get("watch") != "":
		a.watch(w, r, resource)
	default:
		a.list(w, resource)
	}
}

func node() *corev1.Node {
	n := &corev1.Node{TypeMeta: metav1.TypeMeta{Kind: "Node", APIVersion: "v1"}, ObjectMeta: metav1.ObjectMeta{Name: policytest.Node}}
	n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: policytest.NodeIP}}
	n.Spec.PodCIDR = "10.64.0.0/16"
	return n
}

var listKinds = map[string]string{
	"pods": "PodList", "namespaces": "NamespaceList", "networkpolicies": "NetworkPolicyList", "nodes": "NodeList",
	"services": "ServiceList", "endpoints": "EndpointsList", "endpointslices": "EndpointSliceList",
}

func (a *API) list(w http.ResponseWriter, resource string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	kind, version := listKinds[resource], "v1"
	switch resource {
	case "networkpolicies":
		version = "networking.k8s.io/v1"
	case "endpointslices":
		version = "discovery.k8s.io/v1"
	}
	list := metav1.List{TypeMeta: metav1.TypeMeta{Kind: kind, APIVersion: version}, ListMeta: metav1.ListMeta{ResourceVersion: strconv.Itoa(a.version)}}
	add := func(o runtime.Object) { list.Items = append(list.Items, runtime.RawExtension{Object: o}) }
	switch resource {
	case "pods":
		for _, p := range a.objects.Pods {
			add(p)
		}
	case "namespaces":
		for _, ns := range a.objects.Namespaces {
			add(ns)
		}
	case "networkpolicies":
		for _, p := range a.objects.Policies {
			add(p)
		}
	case "nodes":
		add(node())
	}
	_ = json.NewEncoder(w).Encode(list)
}

// watch streams the pods that are set until the client disconnects.
func (a *API) watch(w http.ResponseWriter, r *http.Request, resource string) {
	since, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	since = max(since, 1)
	w.WriteHeader(http.StatusOK)
	out := http.NewResponseController(w)
	_ = out.Flush()
	for {
		a.mu.Lock()
		news, changed := a.modified[since-1:], a.changed
		since = a.version
		a.mu.Unlock()
		for _, p := range news {
			if resource != "pods" {
				continue
			}
			p := p.DeepCopy()
			p.TypeMeta = metav1.TypeMeta{Kind: "Pod", APIVersion: "v1"}
			event := metav1.WatchEvent{Type: string(watch.Modified), Object: runtime.RawExtension{Object: p}}
			if json.NewEncoder(w).Encode(event) != nil {
				return
			}
		}
		_ = out.Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
	}
}
