// Package zone answers DNS questions about the names that a table holds.
//
// A Zone is asked first. It answers what it is the authority for, and says of
// everything else that somebody else has to be asked:
//
//	question                                      answer
//	name in the domain, A or AAAA                 its addresses of that family, in random order
//	name in the domain that has none of the type  NOERROR without an answer, SOA
//	no such name in the domain                    NXDOMAIN, SOA
//	PTR of an address with names                  its names
//	PTR of one without, in an address range       NXDOMAIN, SOA of the reverse zone
//	one label, A or AAAA, a name in the domain    as if the domain were behind it
//	anything else                                 not this zone's
//
// A name that others end with (prod, if there is db.prod) exists without records
// of its own (RFC 8020). So do parts of reverse names inside a range of
// addresses, which resolvers that tell no more than they must ask for (RFC 9156).
//
// A Zone is immutable and safe for concurrent use. Nothing here opens a socket,
// reads a clock or logs.
package zone

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// Table has names, in lower case without a dot at their end, and addresses.
type Table interface {
	// Lookup appends the addresses of a name to dst. Known reports whether there is
	// the name, if only because others end with it.
	Lookup(dst []netip.Addr, name string) (addrs []netip.Addr, known bool)
	// LookupBytes is Lookup for a name that is borrowed.
	LookupBytes(dst []netip.Addr, name []byte) (addrs []netip.Addr, known bool)
	// Reverse returns the names of an address. The callee does not keep them.
	Reverse(a netip.Addr) []string
}

// Zone answers from a table.
type Zone struct {
	domain string // with dots at both ends
	table  Table
	ttl    uint32
	ranges []netip.Prefix
	random func() uint64
}

// New returns a Zone for the domain, which is canonical: in lower case, without
// a dot at its end. TTL, in seconds, is that of all answers, the negative ones
// too. All addresses of ranges are the table's to speak of. Random gives 64 random
// bits for the order of records; it is called concurrently.
func New(domain string, ttl uint32, table Table, ranges []netip.Prefix, random func() uint64) *Zone {
	return &Zone{domain: "." + domain + ".", table: table, ttl: ttl, ranges: ranges, random: random}
}

// Answer returns the answer to a query, without what belongs to its transport
// (EDNS, truncation), or false if somebody else has to be asked. The query must
// have one question.
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

// records makes records of those addresses that are of the type asked for, in
// random order, so that clients that take the first one share the load.
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

// shuffle brings s into a random order. Package rand's Shuffle would need a source of
// its own for each goroutine, or a function that escapes to the heap. The bias of the
// remainder is below 2^-50 for as many records as a name may have.
func shuffle[T any](s []T, random func() uint64) {
	for i := len(s) - 1; i > 0; i-- {
		j := int(random() % uint64(i+1))
		s[i], s[j] = s[j], s[i]
	}
}

// unqualified answers for a name of one label, as clients without a search
// domain ask. Whether there are such names outside is for others to say.
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

// reverse answers for a name that stands for an address or the beginning of
// one.
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

// reverseZone returns the name of the reverse zone that p is in, "" if it is in
// no range. A range that ends inside a label has a zone for each value of it.
func (z *Zone) reverseZone(p netip.Prefix) string {
	for _, r := range z.ranges {
		if r.Overlaps(p) && p.Bits() >= r.Bits() {
			perLabel := labelBits(p.Addr())
			return reverseName(p.Addr(), (r.Bits()+perLabel-1)/perLabel)
		}
	}
	return ""
}

// labelBits is how many bits of an address a label of its reverse name has.
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

// parseReverse reads a reverse name in lower case as the prefix that it stands
// for.
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

// negative says that there is no such name (NXDOMAIN), or none of that type
// (NOERROR). The SOA has it remembered for no longer than an answer is
// (RFC 2308).
func (z *Zone) negative(query *dns.Msg, rcode int, zone string) *dns.Msg {
	m := z.reply(query)
	m.Rcode = rcode
	m.Ns = append(m.Ns, z.soa(zone))
	return m
}

// soa says who answers for a zone. Nobody copies it, so its serial stands.
func (z *Zone) soa(zone string) *dns.SOA {
	return &dns.SOA{
		Hdr: z.header(zone, dns.TypeSOA), Ns: "dns" + z.domain, Mbox: "hostmaster" + z.domain,
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: z.ttl,
	}
}

func (z *Zone) header(name string, typ uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: typ, Class: dns.ClassINET, Ttl: z.ttl}
}
