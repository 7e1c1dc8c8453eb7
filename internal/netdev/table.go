package netdev

import (
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"

	"github.com/weft-net/weft/internal/count"
)

// chain is a chain of weft's table. Each feature has chains of its own and does not
// change those of others.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority *nftables.ChainPriority
}

// rule is a desired rule. Its comment, which the kernel stores with the rule, describes
// the rule completely, so equal comments mean equal rules.
type rule struct {
	chain, comment string
	exprs          []expr.Any
}

// ruleSet is the desired state of some chains of weft's table. Without rules the chains do
// not exist, nor the table if it has no others.
type ruleSet struct {
	chains []chain
	rules  []rule
}

// Faults returns how the kernel's rules differ, in words.
func (s ruleSet) Faults() ([]string, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	have, err := currentRules(c, s.chains)
	if err != nil {
		return nil, fmt.Errorf("list rules of table %s: %w", TableName, err)
	}
	want := s.comments()
	switch {
	case slices.Equal(have, want):
		return nil, nil
	case len(have) == 0:
		return []string{"they are missing"}, nil
	}
	return []string{fmt.Sprintf("they are not those of weft: %d instead of %d, or in another order", len(have), len(want))}, nil
}

// Ensure replaces the rules of the chains, in one transaction. It changes nothing outside
// weft's own table.
func (s ruleSet) Ensure() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	if len(s.rules) == 0 {
		return removeChains(c, s.chains)
	}
	table := c.AddTable(&nftables.Table{Name: TableName, Family: nftables.TableFamilyINet})
	made := make(map[string]*nftables.Chain)
	for _, ch := range s.chains {
		made[ch.name] = c.AddChain(&nftables.Chain{Name: ch.name, Table: table, Type: ch.kind, Hooknum: ch.hook, Priority: ch.priority})
		c.FlushChain(made[ch.name])
	}
	for _, r := range s.rules {
		c.AddRule(&nftables.Rule{
			Table: table, Chain: made[r.chain], Exprs: r.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write %s to table %s: %w", count.Of(len(s.rules), "rule", "rules"), TableName, err)
	}
	return nil
}

// reconcile is Ensure unless the rules are right. It reports whether it had to change them.
func (s ruleSet) reconcile() (rebuilt bool, err error) {
	if faults, err := s.Faults(); err != nil || len(faults) == 0 {
		return false, err
	}
	return true, s.Ensure()
}

// comments returns chain and comment of each rule, in the order of currentRules: chain by
// chain.
func (s ruleSet) comments() []string {
	tags := make([]string, 0, len(s.rules))
	for _, ch := range s.chains {
		for _, r := range s.rules {
			if r.chain == ch.name {
				tags = append(tags, r.chain+" "+r.comment)
			}
		}
	}
	return tags
}

// currentRules returns chain and comment of each rule in the chains, in order.
func currentRules(c *nftables.Conn, chains []chain) ([]string, error) {
	there, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, err
	}
	tags := []string{}
	for _, want := range chains {
		i := slices.IndexFunc(there, func(ch *nftables.Chain) bool {
			return ch.Table.Name == TableName && ch.Name == want.name
		})
		if i < 0 {
			continue
		}
		rules, err := c.GetRules(there[i].Table, there[i])
		if err != nil {
			return nil, err
		}
		for _, r := range rules {
			tag, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			tags = append(tags, want.name+" "+tag)
		}
		if len(rules) == 0 {
			tags = append(tags, want.name+" is empty")
		}
	}
	return tags, nil
}

func removeChains(c *nftables.Conn, chains []chain) error {
	there, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("list chains of table %s: %w", TableName, err)
	}
	var table *nftables.Table
	others := 0
	for _, ch := range there {
		if ch.Table.Name != TableName {
			continue
		}
		table = ch.Table
		if !slices.ContainsFunc(chains, func(ours chain) bool { return ours.name == ch.Name }) {
			others++
			continue
		}
		c.FlushChain(ch)
		c.DelChain(ch)
	}
	if table == nil {
		return nil
	}
	if others == 0 {
		c.DelTable(table)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove chains of table %s: %w", TableName, err)
	}
	return nil
}

// deleteTables deletes weft's tables of all families.
func deleteTables() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, family := range []nftables.TableFamily{nftables.TableFamilyINet, nftables.TableFamilyBridge} {
		tables, err := c.ListTablesOfFamily(family)
		if err != nil {
			return fmt.Errorf("list nftables tables: %w", err)
		}
		for _, t := range tables {
			if t.Name == TableName {
				c.DelTable(t)
			}
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("delete nftables tables %s: %w", TableName, err)
	}
	return nil
}
