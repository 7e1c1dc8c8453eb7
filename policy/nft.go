package policy

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	vnetlink "github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/policy/rules"
)

// prefix is the prefix of the names of this package's chains and sets.
const prefix = netdev.PolicyPrefix

// nft implements kernel with the nftables and the connection tracking of one network namespace.
type nft struct {
	ns       netns.NsHandle
	bridge   string
	logRules logRules
}

func (k *nft) close() error { return k.ns.Close() }

func (k *nft) setLogRules(l logRules) { k.logRules = l }

func (k *nft) watch(ctx context.Context, changed func()) error {
	var w *netdev.Watch
	if err := netdev.DoIn(k.ns, func() (err error) { w, err = netdev.NewWatch(); return err }); err != nil {
		return err
	}
	defer w.Close()
	return w.Rules(ctx, changed)
}

func (k *nft) showBridged() error {
	return netdev.DoIn(k.ns, func() error { return netdev.ShowBridged(k.bridge) })
}

func (k *nft) ports() (ports map[netip.Addr]uint32, err error) {
	err = netdev.DoIn(k.ns, func() (err error) {
		ports, err = netdev.PortAddrs(k.bridge)
		return err
	})
	return ports, err
}

func (k *nft) hostAddrs() (map[netip.Addr]bool, error) {
	hostAddrs := make(map[netip.Addr]bool)
	err := netdev.DoIn(k.ns, func() error {
		addrs, err := netdev.Dump(func() ([]vnetlink.Addr, error) { return vnetlink.AddrList(nil, vnetlink.FAMILY_ALL) })
		for _, a := range addrs {
			if addr, ok := netip.AddrFromSlice(a.IP); ok {
				hostAddrs[addr.Unmap()] = true
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	return hostAddrs, nil
}

func (k *nft) connections() (connections, error) {
	var c *conntrack.Conn
	if err := netdev.DoIn(k.ns, func() (err error) { c, err = conntrack.Dial(nil); return err }); err != nil {
		return nil, fmt.Errorf("open connection tracking: %w", err)
	}
	if err := c.SetReadBuffer(bufferSize); err != nil {
		c.Close()
		return nil, fmt.Errorf("open connection tracking: %w", err)
	}
	return c, nil
}

// transaction is one transaction of nftables.
type transaction struct {
	*nftables.Conn
	logRules logRules
}

// bufferSize is the size in bytes of the socket buffers, for the messages of a transaction and for
// the replies that queue up while it is sent. The kernel allocates only the part that is used.
const bufferSize = 64 << 20

// begin opens a transaction. The caller ends it with CloseLasting.
func (k *nft) begin() (transaction, error) {
	buffers := func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(bufferSize), c.SetWriteBuffer(bufferSize))
	}
	var c *nftables.Conn
	if err := netdev.DoIn(k.ns, func() (err error) {
		c, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(buffers))
		return err
	}); err != nil {
		return transaction{}, fmt.Errorf("open nftables: %w", err)
	}
	return transaction{c, k.logRules}, nil
}

// dial opens a netfilter socket.
func (k *nft) dial() (c *netlink.Conn, err error) {
	err = netdev.DoIn(k.ns, func() (err error) { c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); return err })
	return c, err
}

func (k *nft) apply(c rules.Change, from, to hooks) error {
	t, err := k.begin()
	if err != nil {
		return err
	}
	defer t.CloseLasting()
	t.AddTable(inetTable)
	if err := t.change(c); err != nil {
		return err
	}
	if to == hooked && from == unhooked {
		t.AddTable(bridgeTable)
		t.addHooks()
	}
	if from == hooked && to == unhooked {
		for _, h := range inetHooks() {
			t.FlushChain(h.chain(inetTable))
		}
		for _, h := range inetHooks() {
			t.DelChain(h.chain(inetTable))
		}
		t.DelTable(bridgeTable)
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("change rules of table %s: %w", inetTable.Name, err)
	}
	return nil
}

func (k *nft) replace(r *rules.Rules, h hooks) error {
	t, err := k.begin()
	if err != nil {
		return err
	}
	defer t.CloseLasting()
	if err := t.removeAll(); err != nil {
		return err
	}
	if len(r.Sets) > 0 {
		var whole rules.Change
		for _, s := range r.Sets {
			whole.NewSets = append(whole.NewSets, s)
		}
		for _, ch := range r.Chains {
			whole.Chains = append(whole.Chains, ch)
		}
		t.AddTable(inetTable)
		if err := t.change(whole); err != nil {
			return err
		}
	}
	if h == hooked {
		t.AddTable(bridgeTable)
		t.addHooks()
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("replace the policies' rules of table %s: %w", inetTable.Name, err)
	}
	return nil
}

// change adds a change to the transaction. Its order ensures that every reference has a target:
// rules may jump to any of the new chains, and maps may contain any of them.
func (t transaction) change(c rules.Change) error {
	for _, ch := range c.Chains {
		t.AddChain(&nftables.Chain{Name: ch.Name, Table: inetTable})
		t.FlushChain(&nftables.Chain{Name: ch.Name, Table: inetTable})
	}
	for _, s := range c.NewSets {
		if err := t.AddSet(kernelSet(s), nil); err != nil {
			return fmt.Errorf("add set %s: %w", s.Name, err)
		}
		if err := t.elements(s, t.SetAddElements, slices.Concat(elementsOf(s, s.Entries()), rangesOf(s.Ranges))); err != nil {
			return err
		}
	}
	for _, ch := range c.Chains {
		for _, r := range ch.Rules {
			if r.Action != rules.Log || t.logRules == written {
				t.addRule(inetTable, ch.Name, compile(r), comment(r.String()+" # "+r.Comment))
			}
		}
	}
	for _, e := range c.Edits {
		if err := t.elements(e.Set, t.SetDeleteElements, elementsOf(e.Set, e.Drop)); err != nil {
			return err
		}
		if err := t.elements(e.Set, t.SetAddElements, elementsOf(e.Set, e.Add)); err != nil {
			return err
		}
	}
	for _, name := range c.RemovedChains {
		t.FlushChain(&nftables.Chain{Name: name, Table: inetTable})
	}
	for _, name := range c.RemovedChains {
		t.DelChain(&nftables.Chain{Name: name, Table: inetTable})
	}
	for _, s := range c.RemovedSets {
		t.DelSet(kernelSet(s))
	}
	return nil
}

func (t transaction) addHooks() {
	add := func(table *nftables.Table, hooks []hook) {
		for _, h := range hooks {
			ch := t.AddChain(h.chain(table))
			for i, x := range h.rules {
				t.addRule(table, ch.Name, x, comment(fmt.Sprintf("%s %d", h.name, i)))
			}
		}
	}
	add(inetTable, inetHooks())
	add(bridgeTable, bridgeHooks())
}

func (h hook) chain(table *nftables.Table) *nftables.Chain {
	ch := &nftables.Chain{Name: h.name, Table: table}
	if h.hook != nil {
		ch.Type, ch.Hooknum, ch.Priority = nftables.ChainTypeFilter, h.hook, h.priority
	}
	return ch
}

func (t transaction) addRule(table *nftables.Table, chain string, x []expr.Any, comment string) {
	t.AddRule(&nftables.Rule{
		Table: table, Chain: &nftables.Chain{Name: chain, Table: table}, Exprs: x,
		UserData: userdata.AppendString(nil, userdata.TypeComment, comment),
	})
}

// removeAll adds the removal of everything that exists to the transaction. Maps are emptied first:
// for older kernels a chain is still in use while a map that refers to it is being removed.
func (t transaction) removeAll() error {
	chains, sets, err := t.present()
	if err != nil {
		return err
	}
	bridged, err := t.ListTablesOfFamily(nftables.TableFamilyBridge)
	if err != nil {
		return fmt.Errorf("list tables: %w", err)
	}
	for _, ch := range chains {
		t.FlushChain(ch)
	}
	for _, s := range sets {
		s.Table = inetTable
		if s.IsMap {
			t.FlushSet(s)
		}
		t.DelSet(s)
	}
	for _, ch := range chains {
		t.DelChain(ch)
	}
	for _, table := range bridged {
		if table.Name == bridgeTable.Name {
			t.DelTable(bridgeTable)
		}
	}
	return nil
}

// present lists the chains and sets of this package that are in the kernel.
func (t transaction) present() (chains []*nftables.Chain, sets []*nftables.Set, err error) {
	all, err := t.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nil, fmt.Errorf("list chains: %w", err)
	}
	for _, ch := range all {
		if ch.Table.Name == inetTable.Name && strings.HasPrefix(ch.Name, prefix) {
			chains = append(chains, ch)
		}
	}
	tables, err := t.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, nil, fmt.Errorf("list tables: %w", err)
	}
	if !slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == inetTable.Name }) {
		return chains, nil, nil
	}
	present, err := t.GetSets(inetTable)
	if err != nil {
		return nil, nil, fmt.Errorf("list sets of table %s: %w", inetTable.Name, err)
	}
	for _, s := range present {
		if strings.HasPrefix(s.Name, prefix) {
			sets = append(sets, s)
		}
	}
	return chains, sets, nil
}

// comment returns the comment of a rule: words for people, and a hash of the rule. The hash
// reveals changes that other programs made.
func comment(text string) string {
	h := fnv.New64a()
	h.Write([]byte(text))
	_, words, _ := strings.Cut(text, " # ")
	const limit = 100 // the kernel allows 255 bytes
	return strings.TrimSpace(fmt.Sprintf("%.*s %016x", limit, words, h.Sum64()))
}
