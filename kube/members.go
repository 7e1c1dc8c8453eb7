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

// key is the peer's name as a ConfigMap may have it: no colons.
func (m member) key() string { return strings.ReplaceAll(m.peer.String(), ":", "-") }

func (m member) value() string { return m.node.name + " " + m.node.uid }

// parseMember reads a line. Names of Nodes have no blanks.
func parseMember(key, value string) (member, bool) {
	p, err := peer.ParseName(strings.ReplaceAll(key, "-", ":"))
	name, uid, hasUID := strings.Cut(value, " ")
	m := member{p, nodeID{name, uid}}
	return m, err == nil && hasUID && name != "" && uid != "" && m.key() == key
}

// parseMembers reads all lines, by peer, and leaves out those that say nothing.
func parseMembers(lines map[string]string) (list []member) {
	for key, value := range lines {
		if m, ok := parseMember(key, value); ok {
			list = append(list, m)
		}
	}
	slices.SortFunc(list, func(a, b member) int { return bytes.Compare(a.peer[:], b.peer[:]) })
	return list
}

// departed returns the members whose Node is gone, but for self. A Node that came
// back under its name is another one: what was on its disk has started again.
func departed(self peer.Name, members []member, nodes []*corev1.Node) []member {
	exists := make(map[nodeID]bool, len(nodes))
	for _, n := range nodes {
		exists[idOf(n)] = true
	}
	return slices.DeleteFunc(slices.Clone(members), func(m member) bool { return m.peer == self || exists[m.node] })
}
