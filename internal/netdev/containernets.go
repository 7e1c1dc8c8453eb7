package netdev

import (
	"fmt"
	"net/netip"
	"regexp"

	"github.com/vishvananda/netlink"
)

// containerBridge are the names that Docker, Podman and the CNI plugins give to bridges of
// containers.
var containerBridge = regexp.MustCompile(`^(docker0|br-[0-9a-f]{12}|podman\d+|cni\d+|cni-podman\d+)$`)

// ContainerNetworks returns the networks in which containers and pods of this host are,
// whoever attached them: those of container bridges, and routes to single addresses over a
// veth pair. A container bridge is one of the given names, one with a name that Docker,
// Podman or CNI gives, or one whose ports all lead to other namespaces. So a bridge that has
// the host's card, or a virtual machine, is none.
func ContainerNetworks(bridges ...string) (nets []netip.Prefix, err error) {
	wrap := func(err error) error { return fmt.Errorf("list the networks of containers on this host: %w", err) }
	h, err := here()
	if err != nil {
		return nil, wrap(err)
	}
	defer h.Close()
	links, err := h.links()
	if err != nil {
		return nil, wrap(err)
	}
	addrs, err := h.addrs(nil)
	if err != nil {
		return nil, wrap(err)
	}
	pairs := make(map[int]bool)        // veth pairs that lead to another namespace
	ports := make(map[int]int)         // number of pairs, by bridge
	others := make(map[int]bool)       // bridges with other ports
	ofContainers := make(map[int]bool) // bridges
	for _, l := range links {
		a := l.Attrs()
		pair := l.Type() == "veth" && a.NetNsID >= 0
		pairs[a.Index] = pair
		if pair {
			ports[a.MasterIndex]++
		} else {
			others[a.MasterIndex] = true
		}
	}
	named := make(map[string]bool)
	for _, b := range bridges {
		named[b] = true
	}
	for _, l := range links {
		a := l.Attrs()
		if l.Type() == "bridge" {
			ofContainers[a.Index] = named[a.Name] || containerBridge.MatchString(a.Name) || ports[a.Index] > 0 && !others[a.Index]
		}
	}
	for _, a := range addrs {
		if p, ok := fromIPNet(a.IPNet); ok && ofContainers[a.LinkIndex] && !p.Addr().IsLinkLocalUnicast() {
			nets = append(nets, p.Masked())
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.routes(family)
		if err != nil {
			return nil, wrap(err)
		}
		for _, r := range routes {
			if p, ok := fromIPNet(r.Dst); ok && r.Gw == nil && pairs[r.LinkIndex] && p.IsSingleIP() {
				nets = append(nets, p)
			}
		}
	}
	return nets, nil
}
