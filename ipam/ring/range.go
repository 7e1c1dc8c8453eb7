package ring

import (
	"encoding/binary"
	"net/netip"
)

// EncodeRange returns an address range in 18 bytes, as the digests of allocators begin with
// it: an address of 16 bytes, of IPv4 in its IPv6 form, and the length of that prefix.
func EncodeRange(p netip.Prefix) []byte {
	a := p.Addr().As16()
	return binary.BigEndian.AppendUint16(a[:], uint16(p.Bits()+128-p.Addr().BitLen()))
}
