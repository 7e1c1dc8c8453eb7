package kube

import (
	"bytes"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/mesh/peer"
)

// member is a line of the ConfigMap weft-peers.
type member struct {
	peer peer.Name
	node nodeID
}

// key returns the peer's name without colons, which keys of a ConfigMap may not contain.
func (m member) key() string { return strings.ReplaceAll(m.peer.String(), ":", "-") }

func (m member) value() string { return m.node.name + " " + m.node.uid }

// parseMember parses a line. Names of Nodes contain no spaces.
func parseMember(key, value string) (member, bool) {
	p, err := peer.ParseName(strings.ReplaceAll(key, "-", ":"))
	name, uid, hasUID := strings.Cut(value, " ")
	m := member{p, nodeID{name, uid}}
	return m, err == nil && hasUID && name != "" && uid != "" && m.key() == key
}

// parseMembers parses all lines and sorts the members by peer. It skips invalid lines.
func parseMembers(lines map[string]string) (list []member) {
	for key, value := range lines {
		if m, ok := parseMember(key, value); ok {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b member) int { return bytes.Compare(a.peer[:], b.peer[:]) })
	return list
}

// departed returns the members whose Node no longer exists, except for self. A Node that was
// created again under its old name is another Node. If its disk is an empty one, the peer is dead.
// Else its agent writes the line again, and until then its router is not removed if it can be
// reached.
func departed(self peer.Name, members []member, nodes []*corev1.Node) []member {
	exists := make(map[nodeID]bool, len(nodes))
	for _, n := range nodes {
		exists[idOf(n)] = true
	}
	return slices.DeleteFunc(slices.Clone(members), func(m member) bool { return m.peer == self || exists[m.node] })
}
