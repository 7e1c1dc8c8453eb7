package rules

import (
	"net/netip"

	"github.com/weft-net/weft/policy/model"
)

// Names of the sets that the chains on the hooks use. Except for the maps of ports there are two
// of each, for IPv4 and IPv6: see Family.Name.
const (
	IngressMap      = "policy-ingress"
	EgressMap       = "policy-egress"
	IsolatedSet     = "policy-isolated"
	SelfSet         = "policy-self"
	IngressPortsMap = "policy-ports-in"
	EgressPortsMap  = "policy-ports-out"
)

// Family is a version of IP, or both versions.
type Family int

// The families.
const (
	Both Family = 0
	IPv4 Family = 4
	IPv6 Family = 6
)

// Name returns the name of a set for one family.
func (f Family) Name(set string) string {
	if f == IPv6 {
		return set + "-6"
	}
	return set + "-4"
}

func familyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Kind is the type of a set's elements.
type Kind int

// The kinds of sets. The comments name the fields of an Element that each kind uses.
const (
	Addrs        Kind = iota // Addr
	AddrPairs                // Addr . Addr
	AddrPorts                // Addr . Port
	ProtoPorts               // Protocol . Port
	AddrChains               // Addr : Chain
	IfindexChain             // Ifindex : Chain
	Ranges                   // none; Set.Ranges
)

// Element is a member of a set.
type Element struct {
	Addr     netip.Addr
	Ifindex  uint32
	Port     uint16
	Protocol model.Protocol
}

// Range is a range of addresses, both ends inclusive.
type Range struct{ From, To netip.Addr }

// Set is a set or a map in the kernel.
type Set struct {
	Name     string
	Kind     Kind
	Family   Family             // of the addresses
	Elements map[Element]string // the chain that a map refers to; "" in a set
	Ranges   []Range            // disjoint and sorted
}

// Action is the action of a Rule for packets that it matches.
type Action int

// The actions.
const (
	Accept Action = iota
	Jump          // to Rule.Chain
	Log           // log a limited number of packets, with the name of the chain
	Drop
	Return // to the chain that jumped here
)

// Rule matches packets by all fields that are set.
type Rule struct {
	Family   Family
	Far      model.Direction // the end that Peers is about: the source for Ingress, the destination for Egress
	Peers    string          // name of the set of the far end's addresses
	Protocol model.Protocol
	From, To uint16 // destination ports, both inclusive; any if both are 0
	Ports    string // name of the set of protocols and destination ports
	Named    string // name of the set of destination addresses and ports
	Action   Action
	Chain    string
	Comment  string
}

// Chain is a list of rules that a map or another chain refers to.
type Chain struct {
	Name  string
	Rules []Rule
}

// Rules is all chains and sets for a node's kernel, except for the chains on the hooks.
type Rules struct {
	Sets   map[string]*Set
	Chains map[string]*Chain
}

// Entry is an element of a set with the chain that a map refers it to.
type Entry struct {
	Element
	Chain string
}

// Edit is the change of a set that already exists. Drops come first: a map element that gets
// another chain is in both.
type Edit struct {
	Set       *Set
	Drop, Add []Entry
}

// Change is a change for one transaction, in the order of the fields.
type Change struct {
	NewSets       []*Set   // with all their elements
	Chains        []*Chain // new, or with new rules
	Edits         []Edit
	RemovedChains []string
	RemovedSets   []*Set
}

// Empty reports whether there is nothing to change.
func (c Change) Empty() bool {
	return len(c.NewSets)+len(c.Chains)+len(c.Edits)+len(c.RemovedChains)+len(c.RemovedSets) == 0
}
