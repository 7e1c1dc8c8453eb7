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

// ringOwner returns the peer that owns an address as the rings say, the zero Name while there is no
// ring. It is false if the address is in none of the mesh's ranges.
func ringOwner[O addressOwner](of []O, a netip.Addr) (owner peer.Name, inRange bool) {
	for _, o := range of {
		if o.Range().Contains(a) {
			owner, _ = o.OwnerOf(a)
			return owner, true
		}
	}
	return peer.Name{}, false
}

// owns reports whether a peer owns an address of the mesh's ranges.
func owns[O addressOwner](of []O, n peer.Name, a netip.Addr) bool {
	owner, inRange := ringOwner(of, a)
	return inRange && owner == n && !n.IsZero()
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
