package multicast

import (
	"encoding/binary"
	"net/netip"

	"github.com/weft-net/weft/internal/checksum"
)

const (
	headerLen = 14 // of Ethernet
	ip4Len    = 20
	ip6Len    = 40

	typeIPv4 = 0x0800
	typeIPv6 = 0x86dd

	protoHopByHop = 0
	protoIGMP     = 2
	protoICMPv6   = 58
	protoPIM      = 103

	igmpQuery     = 0x11
	igmpReport1   = 0x12
	igmpReport2   = 0x16
	igmpLeave     = 0x17
	igmpReport3   = 0x22
	igmpAdvert    = 0x30 // of a multicast router, RFC 4286
	mldQuery      = 130
	mldReport1    = 131
	mldDone       = 132
	mldReport2    = 143
	mldAdvert     = 151 // RFC 4286
	igmpMin       = 8
	mldMin        = 24
	recordFixed   = 4 // of a record, before its group
	recordsAt     = 8
	isInclude     = 1
	isExclude     = 2
	toInclude     = 3
	toExclude     = 4
	allowSources  = 5
	blockSources  = 6
	hopLimit      = 1
	hopByHopUnits = 8
)

// Kind is what a frame is about.
type Kind uint8

// The kinds of frames.
const (
	Other      Kind = iota // data
	Membership             // a report, or that somebody leaves
	Query                  // of a querier that takes part in its election
	Routing                // a multicast router says that it is there
)

// Group returns the group that a frame goes to. It is false for frames to which no group beyond the link
// belongs: those of link-local scope, which every host gets, with a VLAN tag, and of other
// protocols.
func Group(frame []byte) (g netip.Addr, ok bool) {
	if len(frame) < headerLen+ip4Len || frame[0]&1 == 0 {
		return g, false
	}
	switch b := frame[headerLen:]; binary.BigEndian.Uint16(frame[12:]) {
	case typeIPv4:
		if b[0]>>4 != 4 {
			return g, false
		}
		g = netip.AddrFrom4([4]byte(b[16:20]))
	case typeIPv6:
		if len(b) < ip6Len || b[0]>>4 != 6 {
			return g, false
		}
		g = netip.AddrFrom16([16]byte(b[24:40]))
	default:
		return g, false
	}
	return g, Snooped(g)
}

// Snooped reports whether g is a group whose frames go only to hosts that want them: one of more than
// link-local scope.
func Snooped(g netip.Addr) bool {
	if !g.IsMulticast() || g.Is4In6() || g.Zone() != "" {
		return false
	}
	if g.Is4() {
		b := g.As4()
		return b[0] != 224 || b[1] != 0 || b[2] != 0
	}
	return g.As16()[1]&0xf > 2
}

// Parse reads a frame to a group. It calls visit, for a Membership, with each group of more than link-local
// scope that the sender wants, or wants no longer. A message that a querier would ignore
// is Other.
func Parse(frame []byte, visit func(g netip.Addr, wanted bool)) Kind {
	if len(frame) < headerLen+ip4Len || frame[0]&1 == 0 {
		return Other
	}
	switch b := frame[headerLen:]; binary.BigEndian.Uint16(frame[12:]) {
	case typeIPv4:
		return parseIPv4(b, visit)
	case typeIPv6:
		return parseIPv6(b, visit)
	}
	return Other
}

func parseIPv4(b []byte, visit func(netip.Addr, bool)) Kind {
	if b[0]>>4 != 4 || b[9] != protoIGMP && b[9] != protoPIM {
		return Other
	}
	n, total := int(b[0]&0xf)*4, int(binary.BigEndian.Uint16(b[2:]))
	if n < ip4Len || total < n || total > len(b) || binary.BigEndian.Uint16(b[6:])&0x3fff != 0 {
		return Other // malformed, or a fragment
	}
	if b[9] == protoPIM {
		return Routing
	}
	src, m := netip.AddrFrom4([4]byte(b[12:16])), b[n:total]
	if len(m) < igmpMin || b[8] != hopLimit || checksum.Sum(m) != 0xffff {
		return Other
	}
	group := netip.AddrFrom4([4]byte(m[4:8]))
	switch m[0] {
	case igmpQuery:
		if src.IsUnspecified() {
			return Other // of a switch that is no querier, RFC 4541, section 2.1.1
		}
		return Query
	case igmpReport1, igmpReport2, igmpLeave:
		if Snooped(group) {
			visit(group, m[0] != igmpLeave)
		}
		return Membership
	case igmpReport3:
		records(m, 4, visit)
		return Membership
	case igmpAdvert:
		return Routing
	}
	return Other
}

func parseIPv6(b []byte, visit func(netip.Addr, bool)) Kind {
	if len(b) < ip6Len || b[0]>>4 != 6 {
		return Other
	}
	next, n := b[6], int(binary.BigEndian.Uint16(b[4:]))
	if n > len(b)-ip6Len {
		return Other
	}
	ip, m := b[:ip6Len], b[ip6Len:ip6Len+n]
	if next == protoPIM {
		return Routing
	}
	if next != protoHopByHop || len(m) < hopByHopUnits || m[0] != protoICMPv6 {
		return Other // MLD has a router alert
	}
	skip := hopByHopUnits * (1 + int(m[1]))
	if len(m) < skip+igmpMin || ip[7] != hopLimit {
		return Other
	}
	m = m[skip:]
	if sumICMPv6(ip, m) != 0xffff {
		return Other
	}
	switch src := netip.AddrFrom16([16]byte(ip[8:24])); m[0] {
	case mldQuery:
		if len(m) < mldMin || !src.IsLinkLocalUnicast() {
			return Other
		}
		return Query
	case mldReport1, mldDone:
		if len(m) < mldMin {
			return Other
		}
		if g := netip.AddrFrom16([16]byte(m[8:24])); Snooped(g) {
			visit(g, m[0] == mldReport1)
		}
		return Membership
	case mldReport2:
		records(m, 16, visit)
		return Membership
	case mldAdvert:
		return Routing
	}
	return Other
}

// isVersion1 reports whether a frame that Parse says to be of a kind is a query or a report of version 1 of
// IGMP, which has no time for answers (RFC 9776, section 7.1).
func isVersion1(frame []byte, kind Kind) bool {
	if kind != Query && kind != Membership || binary.BigEndian.Uint16(frame[12:]) != typeIPv4 {
		return false
	}
	m := frame[headerLen+int(frame[headerLen]&0xf)*4:]
	return m[0] == igmpReport1 || m[0] == igmpQuery && m[1] == 0
}

// records reads the records of a report, with addresses of n bytes, up to the first that is truncated.
func records(m []byte, n int, visit func(netip.Addr, bool)) {
	count, b := int(binary.BigEndian.Uint16(m[6:])), m[recordsAt:]
	for range count {
		if len(b) < recordFixed+n {
			return
		}
		sources := int(binary.BigEndian.Uint16(b[2:]))
		size := recordFixed + n + sources*n + 4*int(b[1])
		if len(b) < size {
			return
		}
		group, _ := netip.AddrFromSlice(b[recordFixed : recordFixed+n])
		if Snooped(group) {
			switch t := b[0]; {
			case t == isExclude, t == toExclude, (t == isInclude || t == toInclude || t == allowSources) && sources > 0:
				visit(group, true)
			case t == toInclude, t == blockSources:
				visit(group, false)
			}
		}
		b = b[size:]
	}
}

// sumICMPv6 returns the checksum of an ICMPv6 message with the pseudo-header of RFC 8200, section 8.1,
// without inverting it. It is 0xffff if the message has the right one.
func sumICMPv6(ip, m []byte) uint16 {
	s := checksum.Add(checksum.Sum(ip[8:ip6Len]), uint16(len(m)))
	return checksum.Add(checksum.Add(s, protoICMPv6), checksum.Sum(m))
}

// IsControl reports whether a frame to a group may be more to Parse than Other. It is quick.
func IsControl(frame []byte) bool {
	if len(frame) < headerLen+ip4Len || frame[0]&1 == 0 {
		return false
	}
	switch b := frame[headerLen:]; binary.BigEndian.Uint16(frame[12:]) {
	case typeIPv4:
		return b[9] == protoIGMP || b[9] == protoPIM
	case typeIPv6:
		return b[6] == protoHopByHop || b[6] == protoPIM
	}
	return false
}
