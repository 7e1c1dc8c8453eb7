package member

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// A member's metadata:
//
//	format u8 = 1 | then for each address: length u8 (6 or 18) | IP | port u16
const metaFormat = 1

// appendMeta appends as many of the addresses as fit into limit bytes.
func appendMeta(b []byte, addrs []netip.AddrPort, limit int) []byte {
	b = append(b, metaFormat)
	for _, a := range addrs {
		ip := a.Addr().Unmap().AsSlice()
		if len(b)+1+len(ip)+2 > limit {
			break
		}
		b = append(b, byte(len(ip)+2))
		b = append(b, ip...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	return b
}

// parseMeta parses the bytes that appendMeta appended.
func parseMeta(b []byte) ([]netip.AddrPort, error) {
	if len(b) == 0 {
		return nil, nil
	}
	if b[0] != metaFormat {
		return nil, fmt.Errorf("member metadata of format %d, want %d", b[0], metaFormat)
	}
	var addrs []netip.AddrPort
	for b = b[1:]; len(b) > 0; {
		n := int(b[0])
		if (n != 6 && n != 18) || len(b) < 1+n {
			return nil, fmt.Errorf("member metadata: address of %d bytes in the last %d", n, len(b))
		}
		ip, _ := netip.AddrFromSlice(b[1 : n-1])
		addrs = append(addrs, netip.AddrPortFrom(ip.Unmap(), binary.BigEndian.Uint16(b[n-1:])))
		b = b[1+n:]
	}
	return addrs, nil
}
