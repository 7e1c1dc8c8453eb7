package kube

import (
	"cmp"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// nodeID identifies a Node, also among Nodes that had the same name one after another.
type nodeID struct{ name, uid string }

func idOf(n *corev1.Node) nodeID { return nodeID{n.Name, string(n.UID)} }

// addressOf returns the address that routers of other Nodes dial: an internal one, else an
// external one. It returns "" if the Node has neither yet.
func addressOf(n *corev1.Node) string {
	for _, kind := range []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeExternalIP} {
		for _, a := range n.Status.Addresses {
			if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == kind && !ip.IsUnspecified() && !ip.IsMulticast() {
				return ip.Unmap().WithZone("").String()
			}
		}
	}
	return ""
}

// Targets returns the addresses of all Nodes except self, sorted.
func Targets(self string, nodes []*corev1.Node) []string {
	var list []string
	for _, n := range nodes {
		if a := addressOf(n); n.Name != self && a != "" {
			list = append(list, a)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// rank returns the number of Nodes whose names sort before self.
func rank(self string, nodes []*corev1.Node) (r int) {
	for _, n := range nodes {
		if cmp.Less(n.Name, self) {
			r++
		}
	}
	return r
}
