package model

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/labels"
)

// Snapshot is a cluster at one moment, as one node sees it.
type Snapshot struct {
	Node       string
	Namespaces map[string]labels.Set
	Pods       []*Pod
	Policies   []*Policy
	Cluster    []*ClusterPolicy
}

// Cluster is a cluster whose objects can be changed one by one. Make one with NewCluster.
type Cluster struct {
	Node       string
	namespaces map[string]labels.Set
	pods       map[string]map[string]*Pod // by namespace, then name
	policies   map[string]map[string]*Policy
	cluster    map[string]*ClusterPolicy
	claims     map[netip.Addr][]*Pod // the first owns the address
}

// NewCluster returns an empty cluster as a node sees it.
func NewCluster(node string) *Cluster {
	return &Cluster{
		Node:       node,
		namespaces: make(map[string]labels.Set),
		pods:       make(map[string]map[string]*Pod),
		policies:   make(map[string]map[string]*Policy),
		cluster:    make(map[string]*ClusterPolicy),
		claims:     make(map[netip.Addr][]*Pod),
	}
}

// Load returns a new cluster with the objects of a snapshot.
func Load(s Snapshot) *Cluster {
	c := NewCluster(s.Node)
	for name, l := range s.Namespaces {
		c.SetNamespace(name, l)
	}
	for _, p := range s.Pods {
		c.SetPod(p.Key, p)
	}
	for _, p := range s.Policies {
		c.SetPolicy(p.Key, p)
	}
	for _, p := range s.Cluster {
		c.SetClusterPolicy(p.Name, p)
	}
	return c
}

// SetNamespace adds a namespace or replaces its labels.
func (c *Cluster) SetNamespace(name string, l labels.Set) {
	if l == nil {
		l = labels.Set{}
	}
	c.namespaces[name] = l
}

// DeleteNamespace forgets a namespace. Its pods then match no namespace selector, not even an
// empty one.
func (c *Cluster) DeleteNamespace(name string) { delete(c.namespaces, name) }

// SetPod replaces a pod, or deletes it if pod is nil. It returns the addresses that the pod has or
// had.
func (c *Cluster) SetPod(key Key, pod *Pod) []netip.Addr {
	var touched []netip.Addr
	if old := put(c.pods, key, pod); old != nil {
		for _, a := range old.Addrs {
			c.claims[a] = slices.DeleteFunc(c.claims[a], func(p *Pod) bool { return p == old })
			if len(c.claims[a]) == 0 {
				delete(c.claims, a)
			}
			touched = append(touched, a)
		}
	}
	if pod == nil {
		return touched
	}
	for _, a := range pod.Addrs {
		if slices.Contains(c.claims[a], pod) {
			continue
		}
		c.claims[a] = append(c.claims[a], pod)
		slices.SortFunc(c.claims[a], precedence)
		if !slices.Contains(touched, a) {
			touched = append(touched, a)
		}
	}
	return touched
}

// precedence orders pods that claim the same address; the first owns it. Several pods claim it if
// a new pod gets the address while the API server still reports the old pod with it.
func precedence(a, b *Pod) int {
	if a.FromPlugin != b.FromPlugin {
		if a.FromPlugin {
			return -1
		}
		return 1
	}
	if a.Ending != b.Ending {
		if b.Ending {
			return -1
		}
		return 1
	}
	return cmp.Or(cmp.Compare(b.Created, a.Created), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

// SetPolicy replaces a policy, or deletes it if p is nil. It returns the previous policy.
func (c *Cluster) SetPolicy(key Key, p *Policy) (old *Policy) { return put(c.policies, key, p) }

// SetClusterPolicy replaces a cluster policy, or deletes it if p is nil.
func (c *Cluster) SetClusterPolicy(name string, p *ClusterPolicy) {
	if p == nil {
		delete(c.cluster, name)
		return
	}
	c.cluster[name] = p
}

// put stores v under key, or deletes the entry if v is nil. It returns the previous value.
func put[T any](m map[string]map[string]*T, key Key, v *T) (old *T) {
	old = m[key.Namespace][key.Name]
	if v == nil {
		delete(m[key.Namespace], key.Name)
		if len(m[key.Namespace]) == 0 {
			delete(m, key.Namespace)
		}
		return old
	}
	if m[key.Namespace] == nil {
		m[key.Namespace] = make(map[string]*T)
	}
	m[key.Namespace][key.Name] = v
	return old
}

// Owner returns the pod that owns an address, nil if none does.
func (c *Cluster) Owner(a netip.Addr) *Pod {
	if claims := c.claims[a]; len(claims) > 0 {
		return claims[0]
	}
	return nil
}

// Local reports whether a pod runs on the cluster's node.
func (c *Cluster) Local(p *Pod) bool { return p != nil && p.Node == c.Node }

// Addrs yields every address that a pod owns, with its owner.
func (c *Cluster) Addrs(yield func(netip.Addr, *Pod) bool) {
	for a, claims := range c.claims {
		if !yield(a, claims[0]) {
			return
		}
	}
}

// Pod returns a pod by its name, nil if there is none.
func (c *Cluster) Pod(key Key) *Pod { return c.pods[key.Namespace][key.Name] }

// Policy returns a policy by its name, nil if there is none.
func (c *Cluster) Policy(key Key) *Policy { return c.policies[key.Namespace][key.Name] }

// ClusterPolicy returns a cluster policy by its name, nil if there is none.
func (c *Cluster) ClusterPolicy(name string) *ClusterPolicy { return c.cluster[name] }

// PodsOf returns the pods of a namespace in no particular order.
func (c *Cluster) PodsOf(namespace string) []*Pod {
	return slices.Collect(maps.Values(c.pods[namespace]))
}

// NamespaceLabels returns the labels of a namespace, nil if the namespace is unknown.
func (c *Cluster) NamespaceLabels(name string) labels.Set { return c.namespaces[name] }

// Applying returns the policies that isolate a pod in a direction, sorted by name.
func (c *Cluster) Applying(pod *Pod, d Direction) []*Policy {
	var applying []*Policy
	for _, p := range c.policies[pod.Namespace] {
		if p.Isolates[d] && p.Pods.Matches(pod.Labels) {
			applying = append(applying, p)
		}
	}
	slices.SortFunc(applying, func(a, b *Policy) int { return cmp.Compare(a.Name, b.Name) })
	return applying
}

// Deciding returns the policies of a tier that have rules for a pod in a direction, in the order
// of their evaluation.
func (c *Cluster) Deciding(pod *Pod, d Direction, t Tier) []*ClusterPolicy {
	var deciding []*ClusterPolicy
	for _, p := range c.cluster {
		if p.Tier == t && len(p.Rules[d]) > 0 && len(pod.Addrs) > 0 && p.Subject.Matches(pod, c.namespaces[pod.Namespace]) {
			deciding = append(deciding, p)
		}
	}
	slices.SortFunc(deciding, compareCluster)
	return deciding
}
