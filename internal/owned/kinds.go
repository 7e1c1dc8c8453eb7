// Package owned decides when weft looks at the objects that it owns in the kernel, and
// when it repairs them. It is a step machine: it uses no clock and no netlink. Package
// keeper drives it.
//
//	          Changed, Due                    Seen: faults
//	+------+ --------------> looked at  --------------------> repaired now
//	| rest |      Seen: none      |                                |
//	+------+ <--------------------+                 Repaired: nil  |  Repaired: error
//	   ^ ^                                                 |       |         |
//	   | +-------------------------------------------------+       |         v
//	   |                    more than maxRepairs in fightWindow    |   tried again after
//	   |                                                   |       |   100 ms, 200 ms ... 5 s
//	   |   right for calmAfter                             v       |
//	   +------------------------------ fight: repaired after 1 s, 2 s ... 30 s
//
// An object is right, or its faults are known in words. A repair that succeeds is reported
// once and counted. An object that other software changes back again and again is in a
// fight: the repairs become rare, and status names the object. A repair that fails is
// shown until it succeeds.
//
// Kinds is the table of everything that weft owns. An object of a kind that is not in it
// cannot be declared.
package owned

import (
	"fmt"
	"slices"
	"time"
)

// Kind is a kind of objects. Its text is the label in metrics.
type Kind string

// Kinds of objects.
const (
	Bridge        Kind = "bridge"
	TAP           Kind = "tap"
	RouterPort    Kind = "router_port"
	VXLAN         Kind = "vxlan"
	WireGuard     Kind = "wireguard"
	OwnRoutes     Kind = "own_routes"
	SpoofGuard    Kind = "spoof_guard"
	ContainerPort Kind = "container_port"
	Address       Kind = "address"
	Rules         Kind = "rules"
	Program       Kind = "program"
	Pin           Kind = "pin"
	Map           Kind = "map"
	Sysctl        Kind = "sysctl"
	Isolation     Kind = "isolation"
	DockerRule    Kind = "docker_rule"
	Firewall      Kind = "firewall"
)

// Events are kinds of changes that the kernel reports, as a set of bits.
type Events uint8

// Changes that the kernel reports.
const (
	Links   Events = 1 << iota // interfaces
	Addrs                      // addresses
	Routes                     // routes
	Traffic                    // queueing disciplines and filters of tc
	Tables                     // nftables
	All     Events = 1<<iota - 1
)

// Info describes a kind.
type Info struct {
	Kind Kind
	// What is the kind in words, in front of a name.
	What string
	// On are the changes after which objects of the kind are looked at. All are looked at
	// every SweepInterval too.
	On Events
	// Polled objects are looked at every PollInterval, because the kernel reports no change.
	Polled bool
	// Gap is the least time between two looks, for objects that are expensive to look at.
	Gap time.Duration
	// Slow: a look or a repair may take seconds, so others do not wait for it.
	Slow bool
	// Vital: while an object of the kind has a fault, no container can be connected.
	Vital bool
}

// Kinds is the table of all kinds, in the order in which objects are repaired: each may
// need those before it.
var Kinds = []Info{
	{Kind: Bridge, What: "bridge", On: Links, Vital: true},
	{Kind: TAP, What: "the router's TAP", On: Links, Vital: true},
	{Kind: RouterPort, What: "the router's port", On: Links, Vital: true},
	{Kind: VXLAN, What: "VXLAN device", On: Links},
	{Kind: WireGuard, What: "WireGuard device", On: Links | Addrs | Routes},
	{Kind: OwnRoutes, What: "routes to other hosts", On: Routes, Gap: time.Second},
	{Kind: Pin, What: "pinned objects of the fast datapath", Polled: true},
	{Kind: Map, What: "table of the fast datapath"},
	{Kind: Program, What: "program at", On: Links | Traffic},
	// Before ContainerPort, which sets a port up.
	{Kind: SpoofGuard, What: "spoof guard of", Polled: true},
	{Kind: ContainerPort, What: "port of a container", On: Links},
	{Kind: Sysctl, What: "sysctl", On: Links, Polled: true},
	{Kind: Address, What: "exposed address", On: Links | Addrs | Routes},
	{Kind: Rules, What: "nftables rules", On: Tables},
	{Kind: Isolation, What: "isolation of exposed addresses from", On: Links | Tables},
	{Kind: DockerRule, What: "rule in Docker's chain", On: Tables, Gap: PollInterval, Slow: true},
	// Not weft's own, but what containers need of it.
	{Kind: Firewall, What: "the host's firewall", On: Tables | Links | Addrs, Gap: PollInterval, Slow: true},
}

// rank returns the place of a kind in Kinds, and -1 for one that is not in it.
func rank(k Kind) int { return slices.IndexFunc(Kinds, func(i Info) bool { return i.Kind == k }) }

// InfoOf returns the description of a kind. It is false for one that is not in Kinds.
func InfoOf(k Kind) (Info, bool) {
	if i := rank(k); i >= 0 {
		return Kinds[i], true
	}
	return Info{}, false
}

// ID names an object.
type ID struct {
	Kind Kind
	Name string
}

// String returns the object in words.
func (id ID) String() string {
	i, _ := InfoOf(id.Kind)
	return fmt.Sprintf("%s %s", i.What, id.Name)
}

// compare orders objects by the order of repair, and then by name.
func compare(a, b ID) int {
	if c := rank(a.Kind) - rank(b.Kind); c != 0 {
		return c
	}
	switch {
	case a.Name < b.Name:
		return -1
	case a.Name > b.Name:
		return 1
	}
	return 0
}
