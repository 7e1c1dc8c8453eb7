package zone

import (
	"encoding/binary"
	"net/netip"

	"github.com/miekg/dns"
)

// Scratch is memory that calls of Quick reuse. Its zero value is ready to use. It must not be used
// concurrently.
type Scratch struct {
	name  []byte
	addrs []netip.Addr
}

// The header of a message, RFC 1035, 4.1.1, and what may follow:
//
//	 0    id        u16
//	 2    flags     u16  QR opcode:4 AA TC RD | RA Z AD CD rcode:4
//	 4    counts    u16  of questions, answers, authorities, additional records
//	12    question  name, type u16, class u16
//	  ..  answer    pointer to offset 12 u16, type u16, class u16, ttl u32, length u16, address
//	  ..  OPT       0, type u16 = 41, UDP size u16, 0, version u8, DO and zeros u16, length u16 (RFC 6891)
const (
	headerLen  = 12
	flagQR     = 1 << 15
	flagAA     = 1 << 10
	flagRD     = 1 << 8
	flagRA     = 1 << 7
	flagCD     = 1 << 4
	maskOpcode = 0xf << 11
	optLen     = 11
	optDo      = 1 << 15
	toQuestion = 0xc000 | headerLen
)

// Quick answers the most frequent questions without allocating: A and AAAA questions for a name in
// the domain that has such addresses, if the answer fits. It appends the answer to dst, with the
// same content as Answer's and in at most maxUDP bytes. If the query has an OPT record, so has the
// answer; it states that the server accepts maxUDP bytes. query is borrowed for the call. If Quick
// returns false, use Answer.
func (z *Zone) Quick(dst, query []byte, maxUDP int, s *Scratch) (answer []byte, qtype uint16, ok bool) {
	q, ok := z.readQuick(query, s)
	if !ok {
		return dst, 0, false
	}
	s.addrs, _ = z.table.LookupBytes(s.addrs[:0], s.name)
	addrs, size := s.addrs[:0], 4
	if q.typ == dns.TypeAAAA {
		size = 16
	}
	for _, a := range s.addrs {
		if a.BitLen() == 8*size {
			addrs = append(addrs, a)
		}
	}
	length := q.end + len(addrs)*(12+size)
	if q.opt {
		length += optLen
	}
	if len(addrs) == 0 || length > min(q.udpSize, maxUDP) {
		return dst, 0, false
	}
	shuffle(addrs, z.random)

	dst = append(dst, query[:q.end]...)
	h := dst[len(dst)-q.end:]
	flags := binary.BigEndian.Uint16(query[2:])&(flagRD|flagCD) | flagQR | flagAA | flagRA
	binary.BigEndian.PutUint16(h[2:], flags)
	binary.BigEndian.PutUint16(h[6:], uint16(len(addrs)))
	binary.BigEndian.PutUint16(h[10:], 0)
	if q.opt {
		h[11] = 1
	}
	for _, a := range addrs {
		dst = binary.BigEndian.AppendUint16(dst, toQuestion)
		dst = binary.BigEndian.AppendUint16(dst, q.typ)
		dst = binary.BigEndian.AppendUint16(dst, dns.ClassINET)
		dst = binary.BigEndian.AppendUint32(dst, z.ttl)
		dst = binary.BigEndian.AppendUint16(dst, uint16(size))
		if b := a.As16(); size == 4 {
			dst = append(dst, b[12:]...)
		} else {
			dst = append(dst, b[:]...)
		}
	}
	if q.opt {
		dst = append(dst, 0)
		dst = binary.BigEndian.AppendUint16(dst, dns.TypeOPT)
		dst = binary.BigEndian.AppendUint16(dst, uint16(maxUDP))
		dst = append(dst, 0, 0)
		dst = binary.BigEndian.AppendUint16(dst, q.do)
		dst = append(dst, 0, 0)
	}
	return dst, q.typ, true
}

// quickQuery is the part of a query that Quick needs.
type quickQuery struct {
	typ     uint16
	end     int // end of the question
	opt     bool
	udpSize int    // size in bytes that the client accepts
	do      uint16 // the DO bit, in its place
}

// readQuick parses an address query for a name in the domain. It stores the name in s, in lower
// case and without a trailing dot.
func (z *Zone) readQuick(b []byte, s *Scratch) (q quickQuery, ok bool) {
	if len(b) < headerLen || binary.BigEndian.Uint16(b[2:])&(flagQR|maskOpcode) != 0 {
		return q, false
	}
	counts := b[4:headerLen]
	if counts[0]|counts[2]|counts[3]|counts[4]|counts[5]|counts[6] != 0 || counts[1] != 1 || counts[7] > 1 {
		return q, false
	}
	s.name = s.name[:0]
	i := headerLen
	for {
		if i >= len(b) {
			return q, false
		}
		n := int(b[i])
		if n == 0 {
			break
		}
		if n > 63 || i+1+n > len(b) {
			return q, false
		}
		for _, c := range b[i+1 : i+1+n] {
			switch {
			case c >= 'A' && c <= 'Z':
				c |= 0x20
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return q, false // the table never has such a name
			}
			s.name = append(s.name, c)
		}
		s.name = append(s.name, '.')
		i += 1 + n
	}
	domain := z.domain[:len(z.domain)-1]
	if len(s.name) > 254 || len(s.name) == 0 {
		return q, false
	}
	s.name = s.name[:len(s.name)-1]
	if len(s.name) <= len(domain) || string(s.name[len(s.name)-len(domain):]) != domain {
		return q, false
	}
	if i++; i+4 > len(b) {
		return q, false
	}
	q.typ, q.end, q.udpSize = binary.BigEndian.Uint16(b[i:]), i+4, dns.MinMsgSize
	if q.typ != dns.TypeA && q.typ != dns.TypeAAAA || binary.BigEndian.Uint16(b[i+2:]) != dns.ClassINET {
		return q, false
	}
	rest := b[q.end:]
	if counts[7] == 0 {
		return q, len(rest) == 0
	}
	// EDNS options of the client need no answer.
	if len(rest) < optLen || rest[0] != 0 || binary.BigEndian.Uint16(rest[1:]) != dns.TypeOPT || rest[5] != 0 || rest[6] != 0 ||
		int(binary.BigEndian.Uint16(rest[9:])) != len(rest)-optLen || len(rest) > optLen {
		return q, false
	}
	q.opt, q.do = true, binary.BigEndian.Uint16(rest[7:])&optDo
	q.udpSize = max(q.udpSize, int(binary.BigEndian.Uint16(rest[3:])))
	return q, true
}
