package netdev

import (
	"errors"
	"slices"
	"strings"
)

// DeleteAll removes everything that weft may have left in the calling thread's
// namespace: the bridge, the TAP, the VXLAN device and WireGuard's, the host's ends of all
// containers' veth pairs (and so their other ends) and the nftables tables. It goes on after an
// error and returns them all.
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
