package policy

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/policy/rules"
)

// prefix begins the names of all chains and sets that are this package's.
const prefix = netdev.PolicyPrefix

// kernel is the nftables of one network namespace.
type kernel struct {
	ns   netns.NsHandle
	mute bool // without the rules that log, for which the kernel may lack a module
}

// transaction is one change of nftables.
type transaction struct {
	*nftables.Conn
	mute bool
}

// bufferSize is for what a transaction sends and for the answers that wait while
// it is being sent, in bytes. Only what is used costs anything.
const bufferSize = 64 << 20

// begin opens a transaction, which the caller ends by CloseLasting.
func (k kernel) begin() (transaction, error) {
	buffers := func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(bufferSize), c.SetWriteBuffer(bufferSize))
	}
	c, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(int(k.ns)), nftables.WithSockOptions(buffers))
	if err != nil {
		return transaction{}, fmt.Errorf("open nftables: %w", err)
	}
	return transaction{c, k.mute}, nil
}

// apply makes one change; hooked tells whether the chains on the hooks are there
// and hook whether they have to be.
func (k kernel) apply(c rules.Change, hooked, hook bool) error {
	t, err := k.begin()
	if err != nil {
		return err
	}
	defer t.CloseLasting()
	t.AddTable(inetTable)
	if err := t.change(c); err != nil {
		return err
	}
	if hook && !hooked {
		t.AddTable(bridgeTable)
		t.addHooks()
	}
	if hooked && !hook {
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

// replace makes the kernel have these rules and no others of this package, in one
// transaction.
func (k kernel) replace(r *rules.Rules, hook bool) error {
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
	if hook {
		t.AddTable(bridgeTable)
		t.addHooks()
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("replace the policies' rules of table %s: %w", inetTable.Name, err)
	}
	return nil
}

// change brings a change into the transaction, in the order that lets nothing
// name what is not there: chains may jump and maps may lead to any of the new.
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
			if r.Action != rules.Log || !t.mute {
				t.addRule(inetTable, ch.Name, compile(r), tag(r.String()+" # "+r.Comment))
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
	for _, name := range c.GoneChains {
		t.FlushChain(&nftables.Chain{Name: name, Table: inetTable})
	}
	for _, name := range c.GoneChains {
		t.DelChain(&nftables.Chain{Name: name, Table: inetTable})
	}
	for _, s := range c.GoneSets {
		t.DelSet(kernelSet(s))
	}
	return nil
}

func (t transaction) addHooks() {
	add := func(table *nftables.Table, hooks []hook) {
		for _, h := range hooks {
			ch := t.AddChain(h.chain(table))
			for i, x := range h.rules {
				t.addRule(table, ch.Name, x, tag(fmt.Sprintf("%s %d", h.name, i)))
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

func (t transaction) addRule(table *nftables.Table, chain string, x []expr.Any, tag string) {
	t.AddRule(&nftables.Rule{
		Table: table, Chain: &nftables.Chain{Name: chain, Table: table}, Exprs: x,
		UserData: userdata.AppendString(nil, userdata.TypeComment, tag),
	})
}

// removeAll brings the removal of all that is there into the transaction. Maps
// are emptied first: older kernels take a chain for used as long as a map that is
// being removed leads to it.
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

// present lists the chains and sets of this package that the kernel has.
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
	there, err := t.GetSets(inetTable)
	if err != nil {
		return nil, nil, fmt.Errorf("list sets of table %s: %w", inetTable.Name, err)
	}
	for _, s := range there {
		if strings.HasPrefix(s.Name, prefix) {
			sets = append(sets, s)
		}
	}
	return chains, sets, nil
}

// tag is the comment of a rule. It tells what the rule does by a hash, so that
// rules that others changed are known, and begins with words for people.
func tag(text string) string {
	h := fnv.New64a()
	h.Write([]byte(text))
	_, words, _ := strings.Cut(text, " # ")
	const limit = 100 // the kernel takes 255 bytes
	return strings.TrimSpace(fmt.Sprintf("%.*s %016x", limit, words, h.Sum64()))
}

// perMessage is how many elements go in one message, whose list the kernel wants
// to be shorter than 64 KB.
const perMessage = 400

func (t transaction) elements(s *rules.Set, do func(*nftables.Set, []nftables.SetElement) error, all []nftables.SetElement) error {
	for part := range slices.Chunk(all, perMessage) {
		if err := do(kernelSet(s), part); err != nil {
			return fmt.Errorf("change elements of set %s: %w", s.Name, err)
		}
	}
	return nil
}

func kernelSet(s *rules.Set) *nftables.Set {
	set := &nftables.Set{Table: inetTable, Name: s.Name}
	addr := nftables.TypeIPAddr
	if s.Family == rules.IPv6 {
		addr = nftables.TypeIP6Addr
	}
	several := func(types ...nftables.SetDatatype) {
		set.KeyType, set.Concatenation = nftables.MustConcatSetType(types...), true
	}
	switch s.Kind {
	case rules.Addrs:
		set.KeyType = addr
	case rules.Selves:
		several(addr, addr)
	case rules.AddrPorts:
		several(addr, nftables.TypeInetService)
	case rules.ProtoPorts:
		several(nftables.TypeInetProto, nftables.TypeInetService)
	case rules.AddrChains:
		set.KeyType, set.IsMap, set.DataType = addr, true, nftables.TypeVerdict
	case rules.IfindexChain:
		// Not of the type of an interface: it is looked up by a mark.
		set.KeyType, set.IsMap, set.DataType = nftables.TypeMark, true, nftables.TypeVerdict
	case rules.Ranges:
		set.KeyType, set.Interval = addr, true
	}
	return set
}

func elementsOf(s *rules.Set, entries []rules.Entry) []nftables.SetElement {
	all := make([]nftables.SetElement, len(entries))
	for i, e := range entries {
		all[i].Key = key(s.Kind, e.Element)
		if e.Chain != "" {
			all[i].VerdictData = &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.Chain}
		}
	}
	return all
}

// key writes an element as the rules put it together in registers: each field
// begins a register of 4 bytes.
func key(k rules.Kind, e rules.Element) []byte {
	port := append(be16(e.Port), 0, 0)
	switch k {
	case rules.Selves:
		return append(e.Addr.AsSlice(), e.Addr.AsSlice()...)
	case rules.AddrPorts:
		return append(e.Addr.AsSlice(), port...)
	case rules.ProtoPorts:
		return append([]byte{byte(e.Protocol), 0, 0, 0}, port...)
	case rules.IfindexChain:
		return ne32(e.Ifindex)
	}
	return e.Addr.AsSlice()
}

// rangesOf writes ranges as the kernel has them: where one begins, and where it
// has ended.
func rangesOf(ranges []rules.Range) []nftables.SetElement {
	var all []nftables.SetElement
	for _, r := range ranges {
		all = append(all, nftables.SetElement{Key: r.From.AsSlice()})
		if end := r.To.Next(); end.IsValid() {
			all = append(all, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return all
}

// differs tells in words what of the rules is not in the kernel as it should be,
// "" if all is.
func (k kernel) differs(r *rules.Rules, hook bool) (string, error) {
	t, err := k.begin()
	if err != nil {
		return "", err
	}
	defer t.CloseLasting()
	chains, sets, err := t.present()
	if err != nil {
		return "", err
	}
	want := k.wantedTags(r, hook)
	if len(chains) != len(want) {
		return fmt.Sprintf("%d chains instead of %d", len(chains), len(want)), nil
	}
	for _, ch := range chains {
		if diff, err := t.chainDiffers(ch, want[ch.Name]); diff != "" || err != nil {
			return diff, err
		}
	}
	if len(sets) != len(r.Sets) {
		return fmt.Sprintf("%d sets instead of %d", len(sets), len(r.Sets)), nil
	}
	for _, s := range r.Sets {
		if diff, err := t.setDiffers(s); diff != "" || err != nil {
			return diff, err
		}
	}
	if hook {
		return t.bridgeDiffers()
	}
	return "", nil
}

// wantedTags returns the tags of each chain's rules, in order.
func (k kernel) wantedTags(r *rules.Rules, hook bool) map[string][]string {
	want := make(map[string][]string)
	for name, ch := range r.Chains {
		want[name] = nil // a chain without rules is there too
		for _, rule := range ch.Rules {
			if rule.Action != rules.Log || !k.mute {
				want[name] = append(want[name], tag(rule.String()+" # "+rule.Comment))
			}
		}
	}
	if hook {
		for _, h := range inetHooks() {
			want[h.name] = h.tags()
		}
	}
	return want
}

func (h hook) tags() []string {
	tags := make([]string, len(h.rules))
	for i := range h.rules {
		tags[i] = tag(fmt.Sprintf("%s %d", h.name, i))
	}
	return tags
}

func (t transaction) chainDiffers(ch *nftables.Chain, want []string) (string, error) {
	there, err := t.GetRules(ch.Table, ch)
	if err != nil {
		return "", fmt.Errorf("list rules of chain %s: %w", ch.Name, err)
	}
	var have []string
	for _, r := range there {
		words, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		have = append(have, words)
	}
	if !slices.Equal(have, want) {
		return "other rules in chain " + ch.Name, nil
	}
	return "", nil
}

func (t transaction) setDiffers(s *rules.Set) (string, error) {
	there, err := t.GetSetElements(kernelSet(s))
	if errors.Is(err, unix.ENOENT) {
		return "no set " + s.Name, nil
	}
	if err != nil {
		return "", fmt.Errorf("list elements of set %s: %w", s.Name, err)
	}
	have := make(map[string]string, len(there))
	for _, e := range there {
		have[elementKey(e)] = string(leadsTo(e.Val))
	}
	want := slices.Concat(elementsOf(s, s.Entries()), rangesOf(s.Ranges))
	same := len(have) == len(want)
	for _, e := range want {
		chain, ok := have[elementKey(e)]
		same = same && ok && (e.VerdictData == nil || e.VerdictData.Chain == chain)
	}
	if !same {
		return fmt.Sprintf("other elements in set %s", s.Name), nil
	}
	return "", nil
}

func elementKey(e nftables.SetElement) string { return fmt.Sprint(e.Key, e.IntervalEnd) }

// leadsTo returns the chain of a verdict as the kernel writes it, nil if there is
// none.
func leadsTo(verdict []byte) []byte {
	ad, err := netlink.NewAttributeDecoder(verdict)
	if err != nil {
		return nil
	}
	for ad.Next() {
		if ad.Type() == unix.NFTA_VERDICT_CHAIN {
			return bytes.TrimRight(ad.Bytes(), "\x00")
		}
	}
	return nil
}

func (t transaction) bridgeDiffers() (string, error) {
	all, err := t.ListChainsOfTableFamily(nftables.TableFamilyBridge)
	if err != nil {
		return "", fmt.Errorf("list chains of bridges: %w", err)
	}
	for _, h := range bridgeHooks() {
		i := slices.IndexFunc(all, func(ch *nftables.Chain) bool {
			return ch.Table.Name == bridgeTable.Name && ch.Name == h.name
		})
		if i < 0 {
			return "no chain " + h.name, nil
		}
		if diff, err := t.chainDiffers(all[i], h.tags()); diff != "" || err != nil {
			return diff, err
		}
	}
	return "", nil
}
