package ipam

import "net/netip"

// Set is the Allocators of a router, one for each address range: at most one for
// IPv4 and one for IPv6.
type Set []*Allocator

// For returns the Allocator for the family of a, nil if there is none.
func (s Set) For(a netip.Addr) *Allocator {
	for _, al := range s {
		if al.core.cfg.Range.Addr().BitLen() == a.BitLen() {
			return al
		}
	}
	return nil
}

// Lookup returns the addresses of owner of all families, IPv4 first.
func (s Set) Lookup(owner string) (out []netip.Prefix) {
	for _, al := range s.byFamily() {
		out = append(out, al.Lookup(owner)...)
	}
	return out
}

// ReleaseAll frees the addresses of owner of all families and returns them.
func (s Set) ReleaseAll(owner string) (out []netip.Prefix) {
	for _, al := range s.byFamily() {
		out = append(out, al.ReleaseAll(owner)...)
	}
	return out
}

func (s Set) byFamily() (out []*Allocator) {
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		if al := s.For(a); al != nil {
			out = append(out, al)
		}
	}
	return out
}
