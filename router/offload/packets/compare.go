package packets

import (
	"bytes"
	"fmt"

	"github.com/weft-net/weft/router/offload"
)

// Flow names the flow of a frame, "" if it is of none.
func Flow(b []byte) string {
	l, ok := offload.Parse(b)
	if !ok {
		return ""
	}
	addrs := b[l.IP+12 : l.IP+20]
	if l.Six {
		addrs = b[l.IP+8 : l.IP+40]
	}
	return fmt.Sprintf("%x %v %d %x %x", b[12:l.IP], l.Six, l.Proto, addrs, b[l.L4:l.L4+4])
}

// Plain brings a frame to what counts: no padding; and with one identification,
// if it cannot be fragmented, in which case that means nothing (RFC 6864,
// section 4.1).
func Plain(b []byte) []byte {
	l, ok := offload.Parse(b)
	if !ok {
		return b
	}
	b = bytes.Clone(b[:l.End])
	if !l.Six && b[l.IP+6]&0x40 != 0 && l.ValidIP(b) {
		b[l.IP+4], b[l.IP+5] = 0, 0
		l.SetLen(b, l.End)
	}
	return b
}
