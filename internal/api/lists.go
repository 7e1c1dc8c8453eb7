package api

import (
	"slices"
	"strings"
)

// Lists is a set of the lists of a Report that may be long: their lengths are the choice of
// other peers, and of those who lie too. A report without them is small however large the
// mesh claims to be.
type Lists uint8

// The lists.
const (
	ListPeers    Lists = 1 << iota // Router.Peers
	ListRelayed                    // Router.Relayed
	ListRoutes                     // Router.UnicastRoutes, Router.BroadcastRoutes
	ListMACs                       // Router.MACs
	ListRing                       // Entries of IPAM and IPAM6
	ListNames                      // DNS.Entries
	ListBindings                   // Bindings.Entries
	ListGroups                     // Multicast.Groups

	NoLists  Lists = 0
	AllLists       = ListPeers | ListRelayed | ListRoutes | ListMACs | ListRing | ListNames | ListBindings | ListGroups
)

// listNames are the lists in a request, in order of their bits.
var listNames = []string{"peers", "relayed", "routes", "macs", "ring", "names", "bindings", "groups"}

// Has reports whether a list is in the set.
func (l Lists) Has(list Lists) bool { return l&list != 0 }

// String returns the names of the lists, separated by commas.
func (l Lists) String() string {
	var names []string
	for i, n := range listNames {
		if l.Has(1 << i) {
			names = append(names, n)
		}
	}
	return strings.Join(names, ",")
}

// parseLists parses what String returns.
func parseLists(s string) (l Lists, err error) {
	if s == "" {
		return NoLists, nil
	}
	for name := range strings.SplitSeq(s, ",") {
		i := slices.Index(listNames, name)
		if i < 0 {
			return NoLists, Errorf(Usage, "a report has no list %q; it has %s", name, strings.Join(listNames, ", "))
		}
		l |= 1 << i
	}
	return l, nil
}
