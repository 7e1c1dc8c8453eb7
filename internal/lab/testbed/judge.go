package testbed

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// JudgeTable is the name of the table that Judge makes.
const JudgeTable = "lab-judge"

// judged are the table of the bridge family, and its chain, of Judge.
func judged() (*nftables.Table, *nftables.Chain) {
	t := &nftables.Table{Name: JudgeTable, Family: nftables.TableFamilyBridge}
	return t, &nftables.Chain{
		Name: "forward", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: &beforeBridgeNetfilter,
	}
}

// Judge has a rule see each frame that crosses a bridge of the namespace that the
// calling thread is in, as firewalls and policies do. It counts them, for Judged.
func Judge() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("judge bridged frames: open netlink: %w", err)
	}
	t, chain := judged()
	c.AddTable(t)
	c.AddChain(chain)
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{&expr.Counter{}}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("judge bridged frames: add table bridge %s: %w", JudgeTable, err)
	}
	return nil
}

// Unjudge takes away what Judge made.
func Unjudge() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("judge bridged frames no more: open netlink: %w", err)
	}
	t, _ := judged()
	c.DelTable(t)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("judge bridged frames no more: delete table bridge %s: %w", JudgeTable, err)
	}
	return nil
}

// Judged returns how many bytes Judge's rule has seen.
func Judged() (n uint64, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("count judged frames: open netlink: %w", err)
	}
	rules, err := c.GetRules(judged())
	if err != nil {
		return 0, fmt.Errorf("count judged frames: list rules of table bridge %s: %w", JudgeTable, err)
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
