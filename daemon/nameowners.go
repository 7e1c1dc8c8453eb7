package daemon

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// addressOwner is the part of an allocator that says which peer owns an address.
type addressOwner interface {
	Range() netip.Prefix
	OwnerOf(a netip.Addr) (peer.Name, bool)
}

// owns reports whether a peer owns an address of the mesh's ranges, as the rings say. While
// there is no ring nobody owns anything.
func owns[O addressOwner](of []O, n peer.Name, a netip.Addr) bool {
	for _, o := range of {
		if o.Range().Contains(a) {
			owner, known := o.OwnerOf(a)
			return known && owner == n
		}
	}
	return false
}

// permit returns the addresses that this host may give a name, and the error of the first
// other one. attached are the addresses of containers of this host, and those exposed.
func permit(ns Names, addrs, attached []netip.Addr) (may []netip.Addr, err error) {
	for _, a := range addrs {
		if !slices.Contains(attached, a) {
			if cause := ns.Check(a); cause != nil {
				err = cmp.Or(err, cause)
				continue
			}
		}
		may = append(may, a)
	}
	return may, err
}
