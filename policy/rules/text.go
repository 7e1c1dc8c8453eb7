package rules

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/weft-net/weft/policy/model"
)

// String formats the rules in nft's syntax, approximately.
func (r *Rules) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(r.Sets)) {
		b.WriteString(r.Sets[name].String())
	}
	for _, name := range slices.Sorted(maps.Keys(r.Chains)) {
		fmt.Fprintf(&b, "chain %s {\n", name)
		for _, rule := range r.Chains[name].Rules {
			fmt.Fprintf(&b, "\t%s\n", rule)
		}
		b.WriteString("}\n")
	}
	return b.String()
}

// String formats a set in nft's syntax, approximately.
func (s *Set) String() string {
	var b strings.Builder
	word := "set"
	if s.Kind == AddrChains || s.Kind == IfindexChain {
		word = "map"
	}
	fmt.Fprintf(&b, "%s %s {\n", word, s.Name)
	for _, e := range s.Entries() {
		fmt.Fprintf(&b, "\t%s\n", e.text(s.Kind))
	}
	for _, r := range s.Ranges {
		fmt.Fprintf(&b, "\t%s-%s\n", r.From, r.To)
	}
	b.WriteString("}\n")
	return b.String()
}

// Entries returns the elements, sorted.
func (s *Set) Entries() []Entry {
	entries := make([]Entry, 0, len(s.Elements))
	for e, chain := range s.Elements {
		entries = append(entries, Entry{e, chain})
	}
	slices.SortFunc(entries, compareEntries)
	return entries
}

func compareEntries(a, b Entry) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Ifindex, b.Ifindex),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}

func (e Entry) text(k Kind) string {
	switch k {
	case AddrPairs:
		return fmt.Sprintf("%s . %s", e.Addr, e.Addr)
	case AddrPorts:
		return fmt.Sprintf("%s . %d", e.Addr, e.Port)
	case ProtoPorts:
		return fmt.Sprintf("%s . %d", e.Protocol, e.Port)
	case AddrChains:
		return fmt.Sprintf("%s : goto %s", e.Addr, e.Chain)
	case IfindexChain:
		return fmt.Sprintf("%d : goto %s", e.Ifindex, e.Chain)
	}
	return e.Addr.String()
}

// String formats the rule in nft's syntax, approximately, without its comment.
func (r Rule) String() string {
	var words []string
	add := func(format string, args ...any) { words = append(words, fmt.Sprintf(format, args...)) }
	ip := map[Family]string{Both: "inet", IPv4: "ip", IPv6: "ip6"}[r.Family]
	if r.Peers != "" {
		end := "saddr"
		if r.Far == model.Egress {
			end = "daddr"
		}
		add("%s %s @%s", ip, end, r.Peers)
	}
	if r.Protocol != 0 {
		add("meta l4proto %s", r.Protocol)
	}
	switch {
	case r.From == 0 && r.To == 0:
	case r.From == r.To:
		add("th dport %d", r.From)
	default:
		add("th dport %d-%d", r.From, r.To)
	}
	if r.Ports != "" {
		add("meta l4proto . th dport @%s", r.Ports)
	}
	if r.Named != "" {
		add("%s daddr . th dport @%s", ip, r.Named)
	}
	switch r.Action {
	case Accept:
		add("accept")
	case Jump:
		add("jump %s", r.Chain)
	case Log:
		add("limit rate %d/second burst %d packets log group %d prefix %q", LogRate, LogBurst, LogGroup, r.Chain)
	case Drop:
		add("counter drop")
	case Return:
		add("return")
	}
	return strings.Join(words, " ")
}

// The rate limit of the log of denied packets, per chain, and the NFLOG group.
const (
	LogRate  = 50
	LogBurst = 100
	LogGroup = 86
)
