package rules

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/policy/model"
)

// Compile compiles a snapshot. Ports gives the ifindex of the bridge's port by
// which a local pod is reached.
func Compile(s model.Snapshot, ports map[netip.Addr]uint32) *Rules {
	c := New(model.Load(s))
	c.SetPorts(ports)
	c.Change()
	return c.Rules()
}

// Compiler keeps the rules of a cluster that changes.
type Compiler struct {
	cluster *model.Cluster
	ledger  ledger

	isolated map[netip.Addr]isolation
	pods     map[string]*podChain  // by name
	policies map[side]*policyChain // those that apply to a local pod
	sources  map[string]*source    // by what they are made of
	ports    map[netip.Addr]uint32

	staleAddrs    map[netip.Addr]bool
	stalePolicies map[model.Key]bool
}

// isolation is what is known to the kernel of an isolated pod's address.
type isolation struct {
	chains [2]string // by direction, "" if it is not isolated
	port   uint32
}

// podChain serves the pods that are under the same policies.
type podChain struct {
	policies []side
	refs     int
}

// side is a policy in one direction.
type side struct {
	model.Key
	model.Direction
}

// policyChain is the rules of a policy in one direction.
type policyChain struct {
	name  string
	uses  []*source
	refs  int
	stale bool
}

// portsMaps are the maps of ports by direction.
var portsMaps = [2]string{model.Ingress: IngressPortsMap, model.Egress: EgressPortsMap}

// New compiles for a cluster, which must change by the compiler only from now on.
func New(cluster *model.Cluster) *Compiler {
	c := &Compiler{
		cluster:       cluster,
		ledger:        newLedger(),
		isolated:      make(map[netip.Addr]isolation),
		pods:          make(map[string]*podChain),
		policies:      make(map[side]*policyChain),
		sources:       make(map[string]*source),
		staleAddrs:    make(map[netip.Addr]bool),
		stalePolicies: make(map[model.Key]bool),
	}
	for _, f := range []Family{IPv4, IPv6} {
		c.ledger.addSet(&Set{Name: f.Name(IngressMap), Kind: AddrChains, Family: f})
		c.ledger.addSet(&Set{Name: f.Name(EgressMap), Kind: AddrChains, Family: f})
		c.ledger.addSet(&Set{Name: f.Name(IsolatedSet), Kind: Addrs, Family: f})
		c.ledger.addSet(&Set{Name: f.Name(SelfSet), Kind: Selves, Family: f})
	}
	for _, name := range portsMaps {
		c.ledger.addSet(&Set{Name: name, Kind: IfindexChain})
	}
	for a := range cluster.Addrs {
		c.staleAddrs[a] = true
	}
	return c
}

// Cluster returns the cluster, to look at.
func (c *Compiler) Cluster() *model.Cluster { return c.cluster }

// Rules returns the rules as of the last Change, to look at until the next.
func (c *Compiler) Rules() *Rules { return &c.ledger.Rules }

// Isolates tells whether any pod of the node is isolated, as of the last Change.
func (c *Compiler) Isolates() bool { return len(c.isolated) > 0 }

// Explain returns the direction that a pod's chain judges and the policies that
// isolate the pods that are led to it; none if there is no such chain.
func (c *Compiler) Explain(chain string) (model.Direction, []model.Key) {
	pc := c.pods[chain]
	if pc == nil {
		return model.Ingress, nil
	}
	keys := make([]model.Key, len(pc.policies))
	for i, s := range pc.policies {
		keys[i] = s.Key
	}
	return pc.policies[0].Direction, keys
}

// SetPod replaces a pod, nil if it is gone.
func (c *Compiler) SetPod(key model.Key, pod *model.Pod) {
	for _, a := range c.cluster.SetPod(key, pod) {
		c.staleAddrs[a] = true
	}
}

// SetNamespace gives a namespace its labels.
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

// SetPolicy replaces a policy, nil if it is gone.
func (c *Compiler) SetPolicy(key model.Key, p *model.Policy) {
	c.cluster.SetPolicy(key, p)
	c.stalePolicies[key] = true
	for _, pod := range c.cluster.PodsOf(key.Namespace) {
		if c.cluster.Local(pod) {
			c.touchPod(pod)
		}
	}
}

// SetPorts says by which ports of the bridge local pods are reached.
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

// Change compiles what changed and returns what the kernel has to change.
func (c *Compiler) Change() Change {
	for key := range c.stalePolicies {
		for _, d := range []model.Direction{model.Ingress, model.Egress} {
			if chain := c.policies[side{key, d}]; chain != nil {
				chain.stale = true
			}
		}
	}
	for a := range c.staleAddrs {
		c.isolate(a)
	}
	c.leadPorts()
	c.sweepPods()
	for s, chain := range c.policies {
		if chain.stale {
			c.build(s, chain)
		}
	}
	c.refresh()
	c.sweepSources()
	clear(c.staleAddrs)
	clear(c.stalePolicies)
	return c.ledger.change()
}

// refresh brings the sets that were there before up to date.
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

// isolate leads what goes to and comes from an address to the chains of the
// policies that its pod is under.
func (c *Compiler) isolate(a netip.Addr) {
	had := c.isolated[a]
	var now isolation
	if owner := c.cluster.Owner(a); c.cluster.Local(owner) {
		now.chains[model.Ingress] = c.acquire(owner, model.Ingress)
		now.chains[model.Egress] = c.acquire(owner, model.Egress)
		if now.chains != [2]string{} {
			now.port = c.ports[a]
		}
	}
	for _, name := range had.chains {
		if name != "" {
			c.pods[name].refs--
		}
	}
	f, e := familyOf(a), Element{Addr: a}
	c.lead(f.Name(IngressMap), e, now.chains[model.Ingress])
	c.lead(f.Name(EgressMap), e, now.chains[model.Egress])
	if had != now && had.port != 0 {
		for _, name := range portsMaps {
			c.ledger.drop(name, Element{Ifindex: had.port})
		}
	}
	if now.chains == [2]string{} {
		delete(c.isolated, a)
		c.ledger.drop(f.Name(IsolatedSet), e)
		c.ledger.drop(f.Name(SelfSet), e)
		return
	}
	c.isolated[a] = now
	c.ledger.put(f.Name(IsolatedSet), e, "")
	c.ledger.put(f.Name(SelfSet), e, "")
}

// leadPorts leads what leaves by isolated pods' ports, after all that is not so
// any more was dropped: addresses of one pod share a port, and ports are used
// again.
func (c *Compiler) leadPorts() {
	for _, i := range c.isolated {
		for d, name := range portsMaps {
			if i.port != 0 && i.chains[d] != "" {
				c.ledger.put(name, Element{Ifindex: i.port}, i.chains[d])
			}
		}
	}
}

// lead makes a map give a chain, or nothing.
func (c *Compiler) lead(set string, e Element, chain string) {
	if chain == "" {
		c.ledger.drop(set, e)
		return
	}
	c.ledger.put(set, e, chain)
}

// acquire returns the name of the chain for pods like this one, "" if no policy
// isolates it.
func (c *Compiler) acquire(pod *model.Pod, d model.Direction) string {
	applying := c.cluster.Applying(pod, d)
	if len(applying) == 0 {
		return ""
	}
	sides := make([]side, len(applying))
	for i, p := range applying {
		sides[i] = side{p.Key, d}
	}
	name := podChainName(sides)
	chain := c.pods[name]
	if chain == nil {
		chain = &podChain{policies: sides}
		c.pods[name] = chain
		rules := make([]Rule, 0, len(sides)+2)
		for _, s := range sides {
			rules = append(rules, Rule{Action: Jump, Chain: c.policy(s).name, Comment: s.Key.String()})
		}
		c.ledger.setChain(name, append(rules, Rule{Action: Log, Chain: name}, Rule{Action: Drop}))
	}
	chain.refs++
	return name
}

// policy takes a reference to a policy's chain.
func (c *Compiler) policy(s side) *policyChain {
	chain := c.policies[s]
	if chain == nil {
		chain = &policyChain{name: s.chainName(), stale: true}
		c.policies[s] = chain
	}
	chain.refs++
	return chain
}

// sweepPods removes chains that no address leads to. That nothing leads to a
// chain is known only when all addresses have been looked at.
func (c *Compiler) sweepPods() {
	for name, chain := range c.pods {
		if chain.refs > 0 {
			continue
		}
		delete(c.pods, name)
		c.ledger.removeChain(name)
		for _, s := range chain.policies {
			c.policies[s].refs--
		}
	}
	for s, chain := range c.policies {
		if chain.refs > 0 {
			continue
		}
		release(chain.uses)
		delete(c.policies, s)
		c.ledger.removeChain(chain.name)
	}
}

func (c *Compiler) sweepSources() {
	for key, s := range c.sources {
		if s.refs > 0 {
			continue
		}
		delete(c.sources, key)
		for _, name := range s.names {
			c.ledger.removeSet(name)
		}
	}
}

func release(uses []*source) {
	for _, s := range uses {
		s.refs--
	}
}

// build makes the rules of a policy's chain.
func (c *Compiler) build(s side, chain *policyChain) {
	b := builder{c: c, far: s.Direction}
	if p := c.cluster.Policy(s.Key); p != nil {
		for i := range p.Rules[s.Direction] {
			b.comment = fmt.Sprintf("%s %s[%d]", s.Key, s.Direction, i)
			b.rule(&p.Rules[s.Direction][i])
		}
	}
	release(chain.uses)
	chain.uses, chain.stale = b.uses, false
	c.ledger.setChain(chain.name, b.rules)
}

// builder makes the rules of one policy.
type builder struct {
	c       *Compiler
	far     model.Direction
	comment string
	uses    []*source
	rules   []Rule
}

// rule adds a rule for each way in which peers and ports can be matched.
func (b *builder) rule(r *model.Rule) {
	peers := []Rule{{}}
	if !r.AnyPeer {
		peers = b.peers(r.Peers)
	}
	for _, peer := range peers {
		peer.Far, peer.Action, peer.Comment = b.far, Accept, b.comment
		if r.AnyPort {
			b.rules = append(b.rules, peer)
			continue
		}
		b.ports(peer, r.Ports)
	}
}

// peers returns rules that match one of a list of peers.
func (b *builder) peers(peers []model.Peer) []Rule {
	var rules []Rule
	if s := b.c.podsSource(peers); s != nil {
		b.use(s)
		for i, f := range []Family{IPv4, IPv6} {
			rules = append(rules, Rule{Family: f, Peers: s.names[i]})
		}
	}
	for _, f := range []Family{IPv4, IPv6} {
		if s := b.c.blocksSource(peers, f); s != nil {
			b.use(s)
			rules = append(rules, Rule{Family: f, Peers: s.names[0]})
		}
	}
	return rules
}

// ports adds a rule for each way in which one of a list of ports can be matched.
func (b *builder) ports(base Rule, ports []model.Port) {
	exact, ranges := splitPorts(ports)
	if len(exact) > 0 {
		s := b.c.portsSource(exact)
		b.use(s)
		r := base
		r.Ports = s.names[0]
		b.rules = append(b.rules, r)
	}
	for _, p := range ranges {
		r := base
		r.Protocol = p.Protocol
		if p.From > 0 || p.To < 65535 {
			r.From, r.To = p.From, p.To
		}
		b.rules = append(b.rules, r)
	}
	for _, p := range ports {
		if p.Name == "" {
			continue
		}
		s := b.c.namedSource(p)
		b.use(s)
		for i, f := range []Family{IPv4, IPv6} {
			if base.Family != Both && base.Family != f {
				continue
			}
			r := base
			r.Family, r.Protocol, r.Named = f, p.Protocol, s.names[i]
			b.rules = append(b.rules, r)
		}
	}
}

func (b *builder) use(s *source) {
	s.refs++
	b.uses = append(b.uses, s)
}

// splitPorts joins what overlaps and parts it into single ports, if there are
// several, and ranges.
func splitPorts(ports []model.Port) (exact []Element, ranges []model.Port) {
	var sorted []model.Port
	for _, p := range ports {
		if p.Name == "" {
			sorted = append(sorted, p)
		}
	}
	slices.SortFunc(sorted, func(a, b model.Port) int {
		if a.Protocol != b.Protocol {
			return int(a.Protocol) - int(b.Protocol)
		}
		return int(a.From) - int(b.From)
	})
	for _, p := range sorted {
		if n := len(ranges); n > 0 && ranges[n-1].Protocol == p.Protocol && int(p.From) <= int(ranges[n-1].To)+1 {
			ranges[n-1].To = max(ranges[n-1].To, p.To)
			continue
		}
		ranges = append(ranges, p)
	}
	single := func(p model.Port) bool { return p.From == p.To }
	for _, p := range ranges {
		if single(p) {
			exact = append(exact, Element{Protocol: p.Protocol, Port: p.From})
		}
	}
	if len(exact) < 2 {
		return nil, ranges
	}
	return exact, slices.DeleteFunc(ranges, single)
}

func podChainName(sides []side) string {
	names := make([]string, len(sides))
	for i, s := range sides {
		names[i] = s.Key.String()
	}
	return "policy-pod-" + way(sides[0].Direction) + "-" + hash(strings.Join(names, " "))
}

func (s side) chainName() string { return "policy-" + way(s.Direction) + "-" + hash(s.Key.String()) }

func way(d model.Direction) string {
	if d == model.Egress {
		return "out"
	}
	return "in"
}
