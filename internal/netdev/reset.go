package netdev

import (
	"errors"
	"slices"
	"strings"
)

// DeleteAll removes all of weft's objects from the calling thread's namespace: the
// bridge, the TAP, the VXLAN and WireGuard devices, the veth pairs of all containers and
// the nftables tables. It continues after an error and returns all errors.
func DeleteAll(bridge, tap string) error {
	h, err := here()
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := h.links()
	errs := []error{err}
	for _, l := range links {
		name := l.Attrs().Name
		if name == tap || name == bridge && l.Type() == "bridge" ||
			strings.HasPrefix(name, HostPrefix) && slices.Contains([]string{"veth", "vxlan", "wireguard"}, l.Type()) {
			errs = append(errs, h.delete(l))
		}
	}
	errs = append(errs, deleteTables())
	return errors.Join(errs...)
}
