package policy

import (
	"context"
	"net/netip"

	"github.com/ti-mo/conntrack"

	"github.com/weft-net/weft/policy/rules"
)

// hooks says whether packets meet the rules: the chains on netfilter's hooks exist only
// while a pod of this node is isolated, so that other nodes pay nothing.
type hooks bool

const (
	unhooked hooks = false
	hooked   hooks = true
)

// hooksFor returns the hooks that the compiler's rules need.
func hooksFor(c *rules.Compiler) hooks {
	if c.Isolates() {
		return hooked
	}
	return unhooked
}

// kernel is what an Engine needs of the kernel of its node. nft implements it; tests of
// the engine use a fake that obeys the same rules. Only Run's goroutine calls it, except
// for connections, hostAddrs and denials, which are called from one goroutine each.
type kernel interface {
	// apply makes a change in one transaction, and brings the hooks from one state to
	// another. On error nothing has changed.
	apply(c rules.Change, from, to hooks) error
	// replace makes these the only rules of this package, in one transaction.
	replace(r *rules.Rules, h hooks) error
	// differs says in words how the kernel's rules differ from these, "" if they do not.
	differs(r *rules.Rules, h hooks) (string, error)
	// generation is the number of the last transaction of nftables, whoever made it.
	generation() (uint32, error)
	// muteLog leaves out the rules that log.
	omitLogRules(mute bool)
	// showBridged shows bridged packets to the rules.
	showBridged() error
	// ports returns the ports of the bridge, as interface indexes, by the addresses that
	// are behind them.
	ports() (map[netip.Addr]uint32, error)
	// hostAddrs are the node's own addresses.
	hostAddrs() (map[netip.Addr]bool, error)
	// connections opens connection tracking.
	connections() (connections, error)
	// denials calls report for each logged packet, until ctx ends.
	denials(ctx context.Context, report func(denial)) error
	close() error
}

// connections is connection tracking. Close it after use.
type connections interface {
	Dump(*conntrack.DumpOptions) ([]conntrack.Flow, error)
	Delete(conntrack.Flow) error
	Close() error
}
