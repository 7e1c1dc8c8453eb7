package policy

import (
	"context"
	"net/netip"

	"github.com/ti-mo/conntrack"

	"github.com/weft-net/weft/policy/rules"
)

// hooks states whether packets meet the rules. The chains on netfilter's hooks exist only while a
// pod of this node is isolated, so that other nodes pay nothing.
type hooks bool

const (
	unhooked hooks = false
	hooked   hooks = true
)

// logRules states whether the rules that log are written. The kernel may lack their module.
type logRules bool

const (
	written logRules = false
	omitted logRules = true
)

// hooksFor returns the state of the hooks that the compiler's rules need.
func hooksFor(c *rules.Compiler) hooks {
	if c.Isolates() {
		return hooked
	}
	return unhooked
}

// kernel is the interface of an Engine to the kernel of its node. nft implements it; tests use a
// fake that obeys the same rules. Only Run's goroutine calls it, except for connections, hostAddrs,
// denials and watch, each of which one other goroutine calls.
type kernel interface {
	// apply writes a change and moves the hooks from one state to the other, in one transaction.
	// On error nothing has changed.
	apply(c rules.Change, from, to hooks) error
	// replace makes these the only rules of this package, in one transaction.
	replace(r *rules.Rules, h hooks) error
	// differs describes the first difference between the kernel's rules and these. It returns ""
	// if there is none.
	differs(r *rules.Rules, h hooks) (string, error)
	// generation returns the number of the last nftables transaction of any program.
	generation() (uint32, error)
	// setLogRules makes later calls write or omit the rules that log.
	setLogRules(l logRules)
	// watch calls changed after tables, chains or rules changed, by whatever program, until ctx ends.
	watch(ctx context.Context, changed func()) error
	// showBridged makes the kernel pass bridged packets to the rules.
	showBridged() error
	// ports returns the interface index of the bridge port behind each address.
	ports() (map[netip.Addr]uint32, error)
	// hostAddrs returns the node's own addresses.
	hostAddrs() (map[netip.Addr]bool, error)
	// connections opens the connection tracking table.
	connections() (connections, error)
	// denials calls report for each logged packet, until ctx ends.
	denials(ctx context.Context, report func(denial)) error
	close() error
}

// connections is an open connection tracking table. Close it after use.
type connections interface {
	Dump(*conntrack.DumpOptions) ([]conntrack.Flow, error)
	Delete(conntrack.Flow) error
	Close() error
}
