package rules

import (
	"fmt"
	"strings"

	"github.com/weft-net/weft/policy/model"
)

// tierChain is the chain of the cluster policies that have rules, in one tier and one direction,
// for some pods. All their rules are in one chain, in the order of evaluation, so that the action
// Pass is a return.
type tierChain struct {
	name      string
	direction model.Direction
	policies  []string
	denials   []string // chains of denials that its rules jump to
	uses      []*source
	refs      int
	stale     bool
}

// denialChain is the chain that logs and drops what a cluster policy denies in one direction.
type denialChain struct {
	side
	refs int
}

// SetClusterPolicy replaces a cluster policy, or deletes it if p is nil.
func (c *Compiler) SetClusterPolicy(name string, p *model.ClusterPolicy) {
	c.cluster.SetClusterPolicy(name, p)
	for _, chain := range c.tiers {
		for _, has := range chain.policies {
			chain.stale = chain.stale || has == name
		}
	}
	for a, pod := range c.cluster.Addrs {
		if c.cluster.Local(pod) {
			c.staleAddrs[a] = true
		}
	}
}

// tierFor returns the chain of a tier for a pod and all pods like it, nil if no policy of the tier
// has rules for it.
func (c *Compiler) tierFor(pod *model.Pod, d model.Direction, t model.Tier) *tierChain {
	deciding := c.cluster.Deciding(pod, d, t)
	if len(deciding) == 0 {
		return nil
	}
	names := make([]string, len(deciding))
	for i, p := range deciding {
		names[i] = p.Name
	}
	name := fmt.Sprintf("policy-%s-%s-%s", strings.ToLower(t.String()), inOrOut(d), hash(strings.Join(names, " ")))
	chain := c.tiers[name]
	if chain == nil {
		chain = &tierChain{name: name, direction: d, policies: names, stale: true}
		c.tiers[name] = chain
	}
	return chain
}

// buildTier compiles the chain of a tier.
func (c *Compiler) buildTier(chain *tierChain) {
	b := builder{c: c, far: chain.direction}
	var denials []string
	for _, name := range chain.policies {
		p := c.cluster.ClusterPolicy(name)
		if p == nil {
			continue // the policy was deleted, and no pod uses this chain any more
		}
		for i := range p.Rules[chain.direction] {
			r := &p.Rules[chain.direction][i]
			b.comment = fmt.Sprintf("%s %s[%d]", name, chain.direction, i)
			b.action, b.chain = Accept, ""
			switch r.Action {
			case model.Pass:
				b.action = Return
			case model.Deny:
				b.action, b.chain = Jump, c.acquireDenialChain(side{p.Key(), chain.direction})
				denials = append(denials, b.chain)
			}
			b.rule(&r.Rule)
		}
	}
	c.releaseTier(chain)
	chain.uses, chain.denials, chain.stale = b.uses, denials, false
	c.ledger.setChain(chain.name, b.rules)
}

// acquireDenialChain takes a reference to the chain that logs and drops for a cluster policy, and
// returns its name.
func (c *Compiler) acquireDenialChain(s side) (chain string) {
	chain = "policy-deny-" + inOrOut(s.Direction) + "-" + hash(s.Name)
	if c.denials[chain] == nil {
		c.denials[chain] = &denialChain{side: s}
		c.ledger.setChain(chain, []Rule{{Action: Log, Chain: chain, Comment: s.Name}, {Action: Drop, Comment: s.Name}})
	}
	c.denials[chain].refs++
	return chain
}

// releaseTier releases the references of a tier's chain.
func (c *Compiler) releaseTier(chain *tierChain) {
	release(chain.uses)
	for _, name := range chain.denials {
		c.denials[name].refs--
	}
}

// sweepTiers removes the chains of tiers to which no pod's chain jumps.
func (c *Compiler) sweepTiers() {
	for name, chain := range c.tiers {
		if chain.refs == 0 {
			c.releaseTier(chain)
			delete(c.tiers, name)
			c.ledger.removeChain(name)
		}
	}
}

func (c *Compiler) sweepDenials() {
	for name, d := range c.denials {
		if d.refs == 0 {
			delete(c.denials, name)
			c.ledger.removeChain(name)
		}
	}
}
