// Package zone answers DNS questions about the names in a table.
//
// A Zone is queried first. It answers the questions that it is authoritative for, and reports for
// all others that they must be forwarded:
//
//	question                                      answer
//	name in the domain, A or AAAA                 its addresses of that family, in random order
//	name in the domain that has none of the type  NOERROR without an answer, SOA
//	no such name in the domain                    NXDOMAIN, SOA
//	PTR of an address with names                  its names
//	PTR of one without, in an address range       NXDOMAIN, SOA of the reverse zone
//	one label, A or AAAA, a name in the domain    as if the domain were appended
//	anything else                                 forward
//
// If other names end with a name (prod, if db.prod exists), that name exists without records of
// its own (RFC 8020). So do the parent domains of reverse names inside an address range, because
// resolvers with query name minimisation ask for them (RFC 9156).
//
// A Zone is immutable and safe for concurrent use; make one with New. Nothing here opens a socket,
// reads a clock or logs.
package zone

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Table is an index of names, in lower case without a trailing dot, and addresses.
type Table interface {
	// Lookup appends the addresses of a name to dst. known reports whether the name exists, which
	// is also true if other names end with it.
	Lookup(dst []netip.Addr, name string) (addrs []netip.Addr, known bool)
	// LookupBytes is Lookup for a name that the caller may reuse after the call.
	LookupBytes(dst []netip.Addr, name []byte) (addrs []netip.Addr, known bool)
	// Reverse returns the names of an address. The caller owns the slice.
	Reverse(a netip.Addr) []string
}

// Zone answers from a table.
type Zone struct {
	domain string // with a leading and a trailing dot
	table  Table
	ttl    uint32
	ranges []netip.Prefix
	random func() uint64
}

// New returns a Zone for the domain, which is canonical: in lower case, without a trailing dot.
// ttl, in seconds, applies to all answers, including negative ones. The Zone is authoritative for
// the reverse names of all addresses in ranges. random returns 64 random bits for the order of
// records; it is called concurrently.
func New(domain string, ttl uint32, table Table, ranges []netip.Prefix, random func() uint64) *Zone {
	return &Zone{domain: "." + domain + ".", table: table, ttl: ttl, ranges: ranges, random: random}
}

// Answer returns the answer to a query, without the parts that depend on the transport (EDNS,
// truncation). It returns false if the query must be forwarded. The query must have exactly one
// question.
func (z *Zone) Answer(query *dns.Msg) (*dns.Msg, bool) {
	q := &query.Question[0]
	if q.Qclass != dns.ClassINET && q.Qclass != dns.ClassANY {
		return nil, false
	}
	name := strings.ToLower(q.Name)
	switch {
	case len(name) >= len(z.domain) && strings.HasSuffix(name, z.domain), name == z.domain[1:]:
		return z.forward(query, name), true
	case strings.HasSuffix(name, reverse4) || strings.HasSuffix(name, reverse6):
		return z.reverse(query, name)
	}
	return z.unqualified(query, name)
}

// forward answers for a name in the domain.
func (z *Zone) forward(query *dns.Msg, name string) *dns.Msg {
	apex := name == z.domain[1:]
	var buf [8]netip.Addr
	addrs, known := z.table.Lookup(buf[:0], name[:len(name)-1])
	if !known && !apex {
		return z.negative(query, dns.RcodeNameError, z.domain[1:])
	}
	m := z.reply(query)
	switch q := query.Question[0]; q.Qtype {
	case dns.TypeAXFR, dns.TypeIXFR:
		m.Rcode = dns.RcodeRefused
		return m
	case dns.TypeSOA:
		if apex {
			m.Answer = append(m.Answer, z.soa(z.domain[1:]))
		}
	default:
		m.Answer = z.records(q, addrs)
	}
	if len(m.Answer) == 0 {
		return z.negative(query, dns.RcodeSuccess, z.domain[1:])
	}
	return m
}

// records returns records of the addresses that have the requested type, in random order, so that
// clients which use the first address share the load.
func (z *Zone) records(q dns.Question, addrs []netip.Addr) []dns.RR {
	wants := func(a netip.Addr) bool {
		return q.Qtype == dns.TypeANY || q.Qtype == dns.TypeA && a.Is4() || q.Qtype == dns.TypeAAAA && a.Is6()
	}
	rrs := make([]dns.RR, 0, len(addrs))
	for _, a := range addrs {
		switch {
		case !wants(a):
		case a.Is4():
			rrs = append(rrs, &dns.A{Hdr: z.header(q.Name, dns.TypeA), A: a.AsSlice()})
		default:
			rrs = append(rrs, &dns.AAAA{Hdr: z.header(q.Name, dns.TypeAAAA), AAAA: a.AsSlice()})
		}
	}
	shuffle(rrs, z.random)
	return rrs
}

// shuffle puts s into random order. rand.Shuffle would need a source for each goroutine, or a
// function that escapes to the heap. The bias of the modulo is below 2^-50 for the maximum number
// of records of a name.
func shuffle[T any](s []T, random func() uint64) {
	for i := len(s) - 1; i > 0; i-- {
		j := int(random() % uint64(i+1))
		s[i], s[j] = s[j], s[i]
	}
}

// unqualified answers for a name of one label, which clients without a search domain send. If the
// domain has no such name, the query must be forwarded.
func (z *Zone) unqualified(query *dns.Msg, name string) (*dns.Msg, bool) {
	q := query.Question[0]
	if q.Qtype != dns.TypeA && q.Qtype != dns.TypeAAAA || strings.IndexByte(name, '.') != len(name)-1 || len(name) < 2 {
		return nil, false
	}
	addrs, _ := z.table.Lookup(nil, name+z.domain[1:len(z.domain)-1])
	if len(addrs) == 0 {
		return nil, false
	}
	m := z.reply(query)
	if m.Answer = z.records(q, addrs); len(m.Answer) == 0 {
		return z.negative(query, dns.RcodeSuccess, z.domain[1:]), true
	}
	return m, true
}

const (
	reverse4 = ".in-addr.arpa."
	reverse6 = ".ip6.arpa."
)

// reverse answers for a name that stands for an address or for a prefix of one.
func (z *Zone) reverse(query *dns.Msg, name string) (*dns.Msg, bool) {
	p, ok := parseReverse(name)
	if !ok {
		return nil, false
	}
	zone := z.reverseZone(p)
	q := query.Question[0]
	var names []string
	if p.IsSingleIP() {
		names = z.table.Reverse(p.Addr())
	}
	if len(names) == 0 && zone == "" {
		return nil, false
	}
	m := z.reply(query)
	switch {
	case q.Qtype == dns.TypeSOA && zone == name:
		m.Answer = append(m.Answer, z.soa(zone))
		return m, true
	case len(names) > 0 && (q.Qtype == dns.TypePTR || q.Qtype == dns.TypeANY):
		slices.Sort(names)
		for _, n := range names {
			m.Answer = append(m.Answer, &dns.PTR{Hdr: z.header(q.Name, dns.TypePTR), Ptr: n + "."})
		}
		return m, true
	}
	rcode := dns.RcodeSuccess
	if len(names) == 0 && p.IsSingleIP() {
		rcode = dns.RcodeNameError
	}
	if zone == "" {
		zone = name
	}
	return z.negative(query, rcode, zone), true
}

// reverseZone returns the name of the reverse zone that contains p, or "" if no range contains it.
// If a range ends within a label, each value of that label is a zone.
func (z *Zone) reverseZone(p netip.Prefix) string {
	for _, r := range z.ranges {
		if r.Overlaps(p) && p.Bits() >= r.Bits() {
			perLabel := labelBits(p.Addr())
			return reverseName(p.Addr(), (r.Bits()+perLabel-1)/perLabel)
		}
	}
	return ""
}

// labelBits returns the number of address bits in one label of a reverse name.
func labelBits(a netip.Addr) int {
	if a.Is4() {
		return 8
	}
	return 4
}

// reverseName returns the reverse name of the first labels of an address.
func reverseName(a netip.Addr, labels int) string {
	var b strings.Builder
	bytes := a.AsSlice()
	for i := labels - 1; i >= 0; i-- {
		if a.Is4() {
			b.WriteString(strconv.Itoa(int(bytes[i])))
		} else {
			b.WriteByte("0123456789abcdef"[bytes[i/2]>>(4*(1-i%2))&15])
		}
		if i > 0 {
			b.WriteByte('.')
		}
	}
	if a.Is4() {
		return b.String() + reverse4
	}
	return b.String() + reverse6
}

// parseReverse returns the prefix for which a reverse name, in lower case, stands.
func parseReverse(name string) (netip.Prefix, bool) {
	var bytes [16]byte
	if labels, ok := strings.CutSuffix(name, reverse4); ok {
		n := 0
		for label := range reversed(labels) {
			v, err := strconv.ParseUint(label, 10, 8)
			if err != nil || n == 4 || len(label) > 1 && label[0] == '0' {
				return netip.Prefix{}, false
			}
			bytes[n] = byte(v)
			n++
		}
		return netip.PrefixFrom(netip.AddrFrom4([4]byte(bytes[:4])), 8*n), true
	}
	n := 0
	for label := range reversed(strings.TrimSuffix(name, reverse6)) {
		v, err := strconv.ParseUint(label, 16, 4)
		if err != nil || n == 32 || len(label) != 1 {
			return netip.Prefix{}, false
		}
		bytes[n/2] |= byte(v) << (4 * (1 - n%2))
		n++
	}
	return netip.PrefixFrom(netip.AddrFrom16(bytes), 4*n), true
}

// reversed yields the labels of a name from the last to the first.
func reversed(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for {
			i := strings.LastIndexByte(name, '.')
			if !yield(name[i+1:]) || i < 0 {
				return
			}
			name = name[:i]
		}
	}
}

func (z *Zone) reply(query *dns.Msg) *dns.Msg {
	m := new(dns.Msg).SetReply(query)
	m.Authoritative = true
	return m
}

// negative returns an answer that the name does not exist (NXDOMAIN) or has no records of the type
// (NOERROR). The SOA limits caching of the answer to the TTL (RFC 2308).
func (z *Zone) negative(query *dns.Msg, rcode int, zone string) *dns.Msg {
	m := z.reply(query)
	m.Rcode = rcode
	m.Ns = append(m.Ns, z.soa(zone))
	return m
}

// soa returns the SOA record of a zone. There are no secondary servers, so the serial is constant.
func (z *Zone) soa(zone string) *dns.SOA {
	return &dns.SOA{
		Hdr: z.header(zone, dns.TypeSOA), Ns: "dns" + z.domain, Mbox: "hostmaster" + z.domain,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: z.ttl,
	}
}

func (z *Zone) header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: z.ttl}
}
