package multicast

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/checksum"
)

// QueryLen is the length of the longest query, in bytes.
const QueryLen = headerLen + ip6Len + hopByHopUnits + 28

// robustness and interval are what a querier tells others: RFC 9776, section 8.
const (
	robustness      = 2
	intervalSeconds = 125
)

var (
	allSystems4 = netip.AddrFrom4([4]byte{224, 0, 0, 1})
	allNodes6   = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 1})
	// querySource is the address of the last querier in an election, in which the lowest address wins:
	// a real querier is never silent because of a Snooper. IPv4 has 0.0.0.0 for that.
	querySource = [16]byte{0: 0xfe, 1: 0x80, 8: 0xff, 9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}
)

// Ask is a query that is due. Group is unspecified (0.0.0.0 or ::) if it asks for all groups.
type Ask struct {
	Group netip.Addr
	// Within is the time in which hosts answer.
	Within time.Duration
}

// Append appends the frame of a query from the MAC address src.
func (q Ask) Append(b []byte, src [6]byte) []byte {
	if q.Group.Is4() {
		return q.append4(b, src)
	}
	return q.append6(b, src)
}

func (q Ask) append4(b []byte, src [6]byte) []byte {
	to := q.Group
	if to.IsUnspecified() {
		to = allSystems4
	}
	dst, group := to.As4(), q.Group.As4()
	b = append(append(b, 0x01, 0x00, 0x5e, dst[1]&0x7f, dst[2], dst[3]), src[:]...)
	b = binary.BigEndian.AppendUint16(b, typeIPv4)
	ip := len(b)
	// Precedence of network control, no identification, TTL 1, source 0.0.0.0; router alert of RFC 2113.
	b = append(b, 0x46, 0xc0, 0, 24+12, 0, 0, 0, 0, hopLimit, protoIGMP, 0, 0, 0, 0, 0, 0)
	b = append(append(b, dst[:]...), 0x94, 4, 0, 0)
	binary.BigEndian.PutUint16(b[ip+10:], ^checksum.Sum(b[ip:]))
	igmp := len(b)
	b = append(b, igmpQuery, byte(min(q.Within/(100*time.Millisecond), 127)), 0, 0)
	b = append(append(b, group[:]...), robustness, intervalSeconds, 0, 0)
	binary.BigEndian.PutUint16(b[igmp+2:], ^checksum.Sum(b[igmp:]))
	return b
}

func (q Ask) append6(b []byte, src [6]byte) []byte {
	to := q.Group
	if to.IsUnspecified() {
		to = allNodes6
	}
	dst, group := to.As16(), q.Group.As16()
	b = append(append(b, 0x33, 0x33, dst[12], dst[13], dst[14], dst[15]), src[:]...)
	b = binary.BigEndian.AppendUint16(b, typeIPv6)
	ip := len(b)
	b = append(b, 0x60, 0, 0, 0, 0, hopByHopUnits+28, protoHopByHop, hopLimit)
	b = append(append(b, querySource[:]...), dst[:]...)
	b = append(b, protoICMPv6, 0, 5, 2, 0, 0, 1, 0) // router alert of RFC 2711, and PadN
	mld := len(b)
	b = append(b, mldQuery, 0, 0, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(min(q.Within.Milliseconds(), 1<<15-1)))
	b = append(append(b, 0, 0), group[:]...)
	b = append(b, robustness, intervalSeconds, 0, 0)
	binary.BigEndian.PutUint16(b[mld+2:], ^sumICMPv6(b[ip:ip+ip6Len], b[mld:]))
	return b
}
