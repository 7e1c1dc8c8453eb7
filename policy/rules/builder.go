package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/weft-net/weft/policy/model"
)

// build compiles the chain of a policy.
func (c *Compiler) build(s side, chain *policyChain) {
	b := builder{c: c, far: s.Direction, action: Accept}
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

// builder builds the rules of one chain.
type builder struct {
	c       *Compiler
	far     model.Direction
	action  Action
	chain   string
	comment string
	uses    []*source
	rules   []Rule
}

// rule adds an nftables rule for each combination of a peer set and a port match.
func (b *builder) rule(r *model.Rule) {
	peers := []Rule{{}}
	if !r.AnyPeer {
		peers = b.peers(r.Peers)
	}
	for _, peer := range peers {
		peer.Far, peer.Action, peer.Chain, peer.Comment = b.far, b.action, b.chain, b.comment
		if r.AnyPort {
			b.rules = append(b.rules, peer)
			continue
		}
		b.ports(peer, r.Ports)
	}
}

// peers returns rules that together match any of a list of peers.
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

// ports adds a rule for each port match of a list of ports.
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

// splitPorts merges overlapping ports, and splits the result into single ports, if there are at
// least two, and ranges.
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

func podChainName(d model.Direction, sides []side, tiers []*tierChain) string {
	var names []string
	for _, s := range sides {
		names = append(names, s.Key.String())
	}
	for _, t := range tiers {
		names = append(names, t.name)
	}
	return "policy-pod-" + inOrOut(d) + "-" + hash(strings.Join(names, " "))
}

func (s side) chainName() string {
	return "policy-" + inOrOut(s.Direction) + "-" + hash(s.Key.String())
}

func inOrOut(d model.Direction) string {
	if d == model.Egress {
		return "out"
	}
	return "in"
}
