package policy

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/policy/model"
)

// denial is a packet that the rules dropped and the kernel logged.
type denial struct {
	chain string // the chain of the isolated pod
	flow  model.Flow
	sport uint16
}

// parsePacket reads the addresses, the protocol and the ports of an IP packet, which may be
// truncated. Ports are 0 if the protocol has none or they are cut off.
func parsePacket(b []byte) (f model.Flow, sport uint16, ok bool) {
	if len(b) == 0 {
		return f, 0, false
	}
	var rest []byte
	switch b[0] >> 4 {
	case 4: // RFC 791, section 3.1
		size := int(b[0]&15) * 4
		if size < 20 || len(b) < size {
			return f, 0, false
		}
		f.Src, f.Dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		f.Protocol, rest = model.Protocol(b[9]), b[size:]
		if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			rest = nil // only the first fragment has the ports
		}
	case 6: // RFC 8200, section 3
		if len(b) < 40 {
			return f, 0, false
		}
		f.Src, f.Dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		f.Protocol, rest = skipExtensions(b[6], b[40:])
	default:
		return f, 0, false
	}
	switch f.Protocol {
	case model.TCP, model.UDP, model.SCTP:
		if len(rest) >= 4 {
			sport, f.Port = binary.BigEndian.Uint16(rest), binary.BigEndian.Uint16(rest[2:])
		}
	}
	return f, sport, true
}

// skipExtensions skips the extension headers of RFC 8200, section 4. It returns the upper-layer
// protocol and its header and payload.
func skipExtensions(next byte, b []byte) (model.Protocol, []byte) {
	for {
		size := 0
		switch next {
		case unix.IPPROTO_HOPOPTS, unix.IPPROTO_ROUTING, unix.IPPROTO_DSTOPTS:
			if len(b) < 2 {
				return model.Protocol(next), nil
			}
			size = int(b[1])*8 + 8
		case unix.IPPROTO_FRAGMENT:
			size = 8
		default:
			return model.Protocol(next), b
		}
		if len(b) < size {
			return model.Protocol(next), nil
		}
		if next == unix.IPPROTO_FRAGMENT && binary.BigEndian.Uint16(b[2:])>>3 != 0 {
			return model.Protocol(b[0]), nil
		}
		next, b = b[0], b[size:]
	}
}
