package rules

import (
	"net/netip"
	"strings"

	"github.com/weft-net/weft/policy/model"
)

// isolation is the state that the rules have for an address of an isolated pod.
type isolation struct {
	chains [2]string // by direction; "" if not isolated in it
	port   uint32
}

// podChain is the chain of all pods to which the same policies apply.
type podChain struct {
	direction model.Direction
	policies  []side
	tiers     []*tierChain
	refs      int
}

// side is a policy in one direction.
type side struct {
	model.Key
	model.Direction
}

// policyChain is the chain of a policy in one direction.
type policyChain struct {
	name  string
	uses  []*source
	refs  int
	stale bool
}

// updateAddr updates the elements of an address: it refers flows from and to the address to the
// chains of the policies that apply to its pod.
func (c *Compiler) updateAddr(a netip.Addr) {
	had := c.isolated[a]
	var now isolation
	if owner := c.cluster.Owner(a); c.cluster.Local(owner) {
		now.chains[model.Ingress] = c.acquirePodChain(owner, model.Ingress)
		now.chains[model.Egress] = c.acquirePodChain(owner, model.Egress)
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
	c.setVerdict(f.Name(IngressMap), e, now.chains[model.Ingress])
	c.setVerdict(f.Name(EgressMap), e, now.chains[model.Egress])
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

// setPortVerdicts adds the elements of isolated pods' bridge ports. It runs after all outdated
// elements were deleted, because the addresses of a pod share a port, and another pod may have got
// the port since.
func (c *Compiler) setPortVerdicts() {
	for _, i := range c.isolated {
		for d, name := range portsMaps {
			if i.port != 0 && i.chains[d] != "" {
				c.ledger.put(name, Element{Ifindex: i.port}, i.chains[d])
			}
		}
	}
}

// setVerdict makes a map refer an element to a chain, or deletes the element if chain is "".
func (c *Compiler) setVerdict(set string, e Element, chain string) {
	if chain == "" {
		c.ledger.drop(set, e)
		return
	}
	c.ledger.put(set, e, chain)
}

// acquirePodChain takes a reference to the chain of pods with the same policies as this one, and
// returns its name. It returns "" if no policy applies to the pod.
func (c *Compiler) acquirePodChain(pod *model.Pod, d model.Direction) string {
	applying := c.cluster.Applying(pod, d)
	sides := make([]side, len(applying))
	for i, p := range applying {
		sides[i] = side{p.Key, d}
	}
	var tiers []*tierChain
	if t := c.tierFor(pod, d, model.Admin); t != nil {
		tiers = append(tiers, t)
	}
	if len(sides) == 0 {
		if t := c.tierFor(pod, d, model.Baseline); t != nil {
			tiers = append(tiers, t)
		}
	}
	if len(sides)+len(tiers) == 0 {
		return ""
	}
	name := podChainName(d, sides, tiers)
	if c.pods[name] == nil {
		c.pods[name] = &podChain{direction: d, policies: sides, tiers: tiers}
		c.ledger.setChain(name, c.podRules(name, c.pods[name]))
	}
	c.pods[name].refs++
	return name
}

// podRules builds the rules of a chain of pods, and takes references to the chains that they jump
// to. A tier is followed by the Policies, which deny the rest, or by the next tier, or by nothing.
func (c *Compiler) podRules(name string, chain *podChain) []Rule {
	var rules []Rule
	for _, t := range chain.tiers {
		t.refs++
		rules = append(rules, Rule{Action: Jump, Chain: t.name, Comment: strings.Join(t.policies, " ")})
	}
	for _, s := range chain.policies {
		rules = append(rules, Rule{Action: Jump, Chain: c.acquirePolicyChain(s).name, Comment: s.Key.String()})
	}
	if len(chain.policies) > 0 {
		rules = append(rules, Rule{Action: Log, Chain: name}, Rule{Action: Drop})
	}
	return rules
}

// acquirePolicyChain takes a reference to a policy's chain.
func (c *Compiler) acquirePolicyChain(s side) *policyChain {
	chain := c.policies[s]
	if chain == nil {
		chain = &policyChain{name: s.chainName(), stale: true}
		c.policies[s] = chain
	}
	chain.refs++
	return chain
}

// sweepPods removes chains that no address refers to. It runs after all addresses were updated,
// because only then the reference counts are final.
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
		for _, t := range chain.tiers {
			t.refs--
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
	c.sweepTiers()
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
