package rules

import (
	"net/netip"

	"github.com/weft-net/weft/policy/model"
)

// Names of the sets that the chains on the hooks look up. All but those of ports
// are two, for IPv4 and IPv6: see Family.Name.
const (
	IngressMap      = "policy-ingress"
	EgressMap       = "policy-egress"
	IsolatedSet     = "policy-isolated"
	SelfSet         = "policy-self"
	IngressPortsMap = "policy-ports-in"
	EgressPortsMap  = "policy-ports-out"
)

// Family is a version of IP, or both.
type Family int

// The families.
const (
	Both Family = 0
	IPv4 Family = 4
	IPv6 Family = 6
)

// Name returns the name of a set's part of one family.
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

// Kind says what the elements of a set are.
type Kind int

// The kinds of sets. Of an Element they use what is named here.
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

// Range is addresses, both ends included.
type Range struct{ From, To netip.Addr }

// Set is a set or a map of the kernel.
type Set struct {
	Name     string
	Kind     Kind
	Family   Family             // of the addresses
	Elements map[Element]string // the chain that a map gives; "" in a set
	Ranges   []Range            // apart and in order
}

// Action is what a rule does with what it matches.
type Action int

// The actions.
const (
	Accept Action = iota
	Jump          // to Rule.Chain
	Log           // some packets of many, with the name of the chain
	Drop
	Return // to the chain that jumped here
)

// Rule matches packets by all of its fields that are set.
type Rule struct {
	Family   Family
	Far      model.Direction // which end Peers is about: the source of Ingress, the destination of Egress
	Peers    string          // set that has the far end's address
	Protocol model.Protocol
	From, To uint16 // destination ports, both included; any if both are 0
	Ports    string // set that has protocol and destination port
	Named    string // set that has destination address and port
	Action   Action
	Chain    string
	Comment  string
}

// Chain is a list of rules that a map or another chain leads to.
type Chain struct {
	Name  string
	Rules []Rule
}

// Rules is all that a node's kernel is to hold but for the chains on the hooks.
type Rules struct {
	Sets   map[string]*Set
	Chains map[string]*Chain
}

// Entry is an element with what a map gives for it.
type Entry struct {
	Element
	Chain string
}

// Edit is how a set that was there changes. Drops come first: an element of a map
// that is to give something else is in both.
type Edit struct {
	Set       *Set
	Drop, Add []Entry
}

// Change is what has to happen in one transaction, in the order of the fields.
type Change struct {
	NewSets       []*Set   // with all their elements
	Chains        []*Chain // new, or with new rules
	Edits         []Edit
	RemovedChains []string
	RemovedSets   []*Set
}

// Empty reports whether nothing is to change.
func (c Change) Empty() bool {
	return len(c.NewSets)+len(c.Chains)+len(c.Edits)+len(c.RemovedChains)+len(c.RemovedSets) == 0
}
