package rules

import (
	"maps"
	"net/netip"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/policy/model"
)

// Compile compiles a snapshot. ports has the interface index of the bridge port behind each
// address of a local pod.
func Compile(s model.Snapshot, ports map[netip.Addr]uint32) *Rules {
	c := New(model.Load(s))
	c.SetPorts(ports)
	c.Change()
	return c.Rules()
}

// Compiler keeps the rules of a cluster that changes. Make one with New.
type Compiler struct {
	cluster *model.Cluster
	ledger  ledger

	isolated map[netip.Addr]isolation
	pods     map[string]*podChain    // by name
	policies map[side]*policyChain   // those that apply to a local pod
	tiers    map[string]*tierChain   // by name
	denials  map[string]*denialChain // by name
	sources  map[string]*source      // by kind and contents
	ports    map[netip.Addr]uint32

	staleAddrs    map[netip.Addr]bool
	stalePolicies map[model.Key]bool
}

// portsMaps are the names of the maps of ports, by direction.
var portsMaps = [2]string{model.Ingress: IngressPortsMap, model.Egress: EgressPortsMap}

// New makes a compiler for a cluster. From then on the cluster must be changed through the
// compiler only.
func New(cluster *model.Cluster) *Compiler {
	c := &Compiler{
		cluster:       cluster,
		ledger:        newLedger(),
		isolated:      make(map[netip.Addr]isolation),
		pods:          make(map[string]*podChain),
		policies:      make(map[side]*policyChain),
		tiers:         make(map[string]*tierChain),
		denials:       make(map[string]*denialChain),
		sources:       make(map[string]*source),
		staleAddrs:    make(map[netip.Addr]bool),
		stalePolicies: make(map[model.Key]bool),
	}
	for _, f := range []Family{IPv4, IPv6} {
		c.ledger.addSet(&Set{Name: f.Name(IngressMap), Kind: AddrChains, Family: f})
		c.ledger.addSet(&Set{Name: f.Name(EgressMap), Kind: AddrChains, Family: f})
		c.ledger.addSet(&Set{Name: f.Name(IsolatedSet), Kind: Addrs, Family: f})
		c.ledger.addSet(&Set{Name: f.Name(SelfSet), Kind: AddrPairs, Family: f})
	}
	for _, name := range portsMaps {
		c.ledger.addSet(&Set{Name: name, Kind: IfindexChain})
	}
	for a := range cluster.Addrs {
		c.staleAddrs[a] = true
	}
	return c
}

// Cluster returns the cluster. The caller must not change it.
func (c *Compiler) Cluster() *model.Cluster { return c.cluster }

// Rules returns the rules as of the last Change. They are valid until the next Change; the caller
// must not change them.
func (c *Compiler) Rules() *Rules { return &c.ledger.Rules }

// Isolates reports whether any pod of the node is isolated, as of the last Change.
func (c *Compiler) Isolates() bool { return len(c.isolated) > 0 }

// Explain returns the direction in which a chain denies flows, and the policies that make it do
// so: the policies that isolate the chain's pods, or the cluster policy. It returns no policies if
// there is no such chain.
func (c *Compiler) Explain(chain string) (model.Direction, []model.Key) {
	if d := c.denials[chain]; d != nil {
		return d.Direction, []model.Key{d.Key}
	}
	pc := c.pods[chain]
	if pc == nil {
		return model.Ingress, nil
	}
	keys := make([]model.Key, len(pc.policies))
	for i, s := range pc.policies {
		keys[i] = s.Key
	}
	return pc.direction, keys
}

// SetPod replaces a pod, or deletes it if pod is nil.
func (c *Compiler) SetPod(key model.Key, pod *model.Pod) {
	for _, a := range c.cluster.SetPod(key, pod) {
		c.staleAddrs[a] = true
	}
}

// SetNamespace sets the labels of a namespace.
func (c *Compiler) SetNamespace(name string, l labels.Set) {
	if have := c.cluster.NamespaceLabels(name); have != nil && maps.Equal(have, l) {
		return
	}
	c.cluster.SetNamespace(name, l)
	c.touchNamespace(name)
}

// DeleteNamespace forgets the labels of a namespace.
func (c *Compiler) DeleteNamespace(name string) {
	c.cluster.DeleteNamespace(name)
	c.touchNamespace(name)
}

// SetPolicy replaces a policy, or deletes it if p is nil.
func (c *Compiler) SetPolicy(key model.Key, p *model.Policy) {
	c.cluster.SetPolicy(key, p)
	c.stalePolicies[key] = true
	for _, pod := range c.cluster.PodsOf(key.Namespace) {
		if c.cluster.Local(pod) {
			c.touchPod(pod)
		}
	}
}

// SetPorts sets the bridge ports behind the addresses of local pods.
func (c *Compiler) SetPorts(ports map[netip.Addr]uint32) {
	for a, port := range ports {
		if c.ports[a] != port {
			c.staleAddrs[a] = true
		}
	}
	for a := range c.ports {
		if _, ok := ports[a]; !ok {
			c.staleAddrs[a] = true
		}
	}
	c.ports = maps.Clone(ports)
}

func (c *Compiler) touchNamespace(name string) {
	for _, pod := range c.cluster.PodsOf(name) {
		c.touchPod(pod)
	}
}

func (c *Compiler) touchPod(pod *model.Pod) {
	for _, a := range pod.Addrs {
		c.staleAddrs[a] = true
	}
}

// Change compiles the changes since the last call and returns the change for the kernel.
func (c *Compiler) Change() Change {
	for key := range c.stalePolicies {
		for _, d := range []model.Direction{model.Ingress, model.Egress} {
			if chain := c.policies[side{key, d}]; chain != nil {
				chain.stale = true
			}
		}
	}
	for a := range c.staleAddrs {
		c.updateAddr(a)
	}
	c.setPortVerdicts()
	c.sweepPods()
	for s, chain := range c.policies {
		if chain.stale {
			c.build(s, chain)
		}
	}
	for _, chain := range c.tiers {
		if chain.stale {
			c.buildTier(chain)
		}
	}
	c.refresh()
	c.sweepSources()
	c.sweepDenials()
	clear(c.staleAddrs)
	clear(c.stalePolicies)
	return c.ledger.change()
}

// refresh updates the sets that existed before this Change.
func (c *Compiler) refresh() {
	var all []*source
	for _, s := range c.sources {
		if !s.current {
			all = append(all, s)
		}
		s.current = false
	}
	for a := range c.staleAddrs {
		owner := c.cluster.Owner(a)
		for _, s := range all {
			s.refresh(a, owner)
		}
	}
}
