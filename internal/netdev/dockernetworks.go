package netdev

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// dockerBridge are the names that Docker gives to bridges.
var dockerBridge = regexp.MustCompile(`^(docker0|docker_gwbridge|br-[0-9a-f]{12})$`)

// DockerRules keep the containers of Docker's own networks on this host away from a bridge
// with an exposed address, as Docker keeps its networks from each other. Else the host would
// route between them: a container with two networks would reach the subnets that it is not
// in, and one that is not attached all of them. Packets that were translated, such as those
// for a published port, pass.
//
//	table inet weft {
//	  chain expose-docker { type filter hook forward priority filter
//	    iifname BRIDGE oifname weft ct state new ct status & dnat == 0 drop
//	  }
//	}
type DockerRules struct {
	Bridge string
	// From are the bridges of Docker's networks.
	From []string
}

const dockerChain = "expose-docker"

var dockerChains = []chain{{dockerChain, nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter}}

// DockerRulesOf returns the rules for the networks of Docker in v.
func DockerRulesOf(v *View, bridge string) DockerRules {
	r := DockerRules{Bridge: bridge}
	for name := range v.Links {
		if dockerBridge.MatchString(name) && name != bridge {
			r.From = append(r.From, name)
		}
	}
	slices.Sort(r.From)
	return r
}

// String lists the bridges.
func (r DockerRules) String() string {
	if len(r.From) == 0 {
		return "no network of Docker"
	}
	return strings.Join(r.From, ", ")
}

func (r DockerRules) rules() ruleSet {
	set := ruleSet{chains: dockerChains}
	for _, from := range r.From {
		x := exprs{}.device(expr.MetaKeyIIFNAME, expr.CmpOpEq, from).
			device(expr.MetaKeyOIFNAME, expr.CmpOpEq, r.Bridge).
			state(expr.CtStateBitNEW).untranslated()
		set.rules = append(set.rules, rule{
			dockerChain, fmt.Sprintf("drop new from %s to %s", from, r.Bridge),
			append(x, &expr.Verdict{Kind: expr.VerdictDrop}),
		})
	}
	return set
}

// Faults returns how the kernel's rules differ from the desired ones, in words.
func (r DockerRules) Faults() ([]string, error) { return r.rules().Faults() }

// Ensure writes the rules in one transaction.
func (r DockerRules) Ensure() error { return r.rules().Ensure() }
