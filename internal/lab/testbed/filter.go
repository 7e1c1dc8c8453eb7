package testbed

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// FilterTable is the name of the table of FilterBridged.
const FilterTable = "lab-filter"

// filterTable returns the table of FilterBridged, of the bridge family, and its chain.
func filterTable() (*nftables.Table, *nftables.Chain) {
	t := &nftables.Table{Name: FilterTable, Family: nftables.TableFamilyBridge}
	return t, &nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: &beforeBridgeNetfilter,
	}
}

// FilterBridged adds a rule to the calling thread's network namespace that sees each
// bridged frame, as rules of firewalls and policies do. The rule counts frames for
// FilteredBytes.
func FilterBridged() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("filter bridged frames: open netlink: %w", err)
	}
	t, chain := filterTable()
	c.AddTable(t)
	c.AddChain(chain)
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("filter bridged frames: add table bridge %s: %w", FilterTable, err)
	}
	return nil
}

// UnfilterBridged removes the rule of FilterBridged.
func UnfilterBridged() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("stop filtering bridged frames: open netlink: %w", err)
	}
	t, _ := filterTable()
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("stop filtering bridged frames: delete table bridge %s: %w", FilterTable, err)
	}
	return nil
}

// FilteredBytes returns how many bytes the rule of FilterBridged has seen.
func FilteredBytes() (n uint64, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("count filtered frames: open netlink: %w", err)
	}
	rules, err := c.GetRules(filterTable())
	if err != nil {
		return 0, fmt.Errorf("count filtered frames: list rules of table bridge %s: %w", FilterTable, err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if count, ok := e.(*expr.Counter); ok {
				n += count.Bytes
			}
		}
	}
	return n, nil
}
