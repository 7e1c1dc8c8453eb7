package zone

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/mesh/peer"
)

var ranges = []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12"), netip.MustParsePrefix("fd00:1::/33")}

// newZone returns a Zone with names, each written "name address".
func newZone(t testing.TB, list ...string) *Zone {
	id := peer.Cheap{ID: peer.Key{1}}
	s := names.New(names.Config{Self: peer.Name{2, 1}, Signer: id, Verifier: id, Start: time.Unix(1, 0)})
	for _, l := range list {
		name, addr, _ := strings.Cut(l, " ")
		if _, err := s.Change(nil, []names.Entry{{Name: name, Container: "c", Addr: netip.MustParseAddr(addr), Outside: true}}); err != nil {
			t.Fatal(err)
		}
	}
	return New("weft.internal", 1, s.Table(), ranges, rand.Uint64)
}

func ask(name string, typ uint16) *dns.Msg {
	m := new(dns.Msg)
	m.SetQuestion(name, typ)
	return m
}

// show formats an answer on one line, with its records sorted.
func show(m *dns.Msg, ok bool) string {
	if !ok {
		return "forward"
	}
	s := []string{}
	for _, rr := range m.Answer {
		s = append(s, strings.Join(strings.Fields(rr.String()), " "))
	}
	slices.Sort(s)
	for _, rr := range m.Ns {
		s = append(s, fmt.Sprintf("[%s %d SOA %d]", rr.Header().Name, rr.Header().Ttl, rr.(*dns.SOA).Minttl))
	}
	if !m.Authoritative || !m.Response {
		s = append(s, "not authoritative")
	}
	return dns.RcodeToString[m.Rcode] + " " + strings.Join(s, ", ")
}

// The cases follow the table in the package comment.
func TestAnswers(t *testing.T) {
	z := newZone(t, "web.weft.internal 10.32.0.1", "web.weft.internal 10.32.0.2", "db.prod.weft.internal fd00:1::5",
		"old.weft.internal 192.0.2.7", "both.weft.internal 10.32.0.1", "other.example.com 10.32.0.9")
	const soa, soa10, soa6 = "[weft.internal. 1 SOA 1]", "[32.10.in-addr.arpa. 1 SOA 1]", "[0.1.0.0.0.0.0.d.f.ip6.arpa. 1 SOA 1]"
	for _, c := range []struct {
		name string
		typ  uint16
		want string
	}{
		{"web.weft.internal.", dns.TypeA, "NOERROR web.weft.internal. 1 IN A 10.32.0.1, web.weft.internal. 1 IN A 10.32.0.2"},
		{"WEB.Weft.INTERNAL.", dns.TypeA, "NOERROR WEB.Weft.INTERNAL. 1 IN A 10.32.0.1, WEB.Weft.INTERNAL. 1 IN A 10.32.0.2"},
		{"web.weft.internal.", dns.TypeAAAA, "NOERROR " + soa},
		{"web.weft.internal.", dns.TypeTXT, "NOERROR " + soa},
		{"db.prod.weft.internal.", dns.TypeAAAA, "NOERROR db.prod.weft.internal. 1 IN AAAA fd00:1::5"},
		{"prod.weft.internal.", dns.TypeA, "NOERROR " + soa},
		{"x.prod.weft.internal.", dns.TypeA, "NXDOMAIN " + soa},
		{"none.weft.internal.", dns.TypeA, "NXDOMAIN " + soa},
		{"weft.internal.", dns.TypeA, "NOERROR " + soa},
		{"weft.internal.", dns.TypeSOA, "NOERROR weft.internal. 1 IN SOA dns.weft.internal. hostmaster.weft.internal. 1 3600 600 86400 1"},
		{"weft.internal.", dns.TypeAXFR, "REFUSED "},
		{"web.", dns.TypeA, "NOERROR web. 1 IN A 10.32.0.1, web. 1 IN A 10.32.0.2"},
		{"Web.", dns.TypeAAAA, "NOERROR " + soa},
		{"none.", dns.TypeA, "forward"},
		{"com.", dns.TypeNS, "forward"},
		{".", dns.TypeNS, "forward"},
		{".", dns.TypeA, "forward"},
		{"example.com.", dns.TypeA, "forward"},
		{"other.example.com.", dns.TypeA, "forward"}, // not in this domain
		{"notweft.internal.", dns.TypeA, "forward"},
		{"internal.", dns.TypeA, "forward"},
		{"1.0.32.10.in-addr.arpa.", dns.TypePTR, "NOERROR 1.0.32.10.in-addr.arpa. 1 IN PTR both.weft.internal., 1.0.32.10.in-addr.arpa. 1 IN PTR web.weft.internal."},
		{"1.0.32.10.IN-ADDR.arpa.", dns.TypeA, "NOERROR " + soa10},
		{"9.9.32.10.in-addr.arpa.", dns.TypePTR, "NXDOMAIN " + soa10},
		{"9.47.10.in-addr.arpa.", dns.TypeNS, "NOERROR [47.10.in-addr.arpa. 1 SOA 1]"},
		{"32.10.in-addr.arpa.", dns.TypeSOA, "NOERROR 32.10.in-addr.arpa. 1 IN SOA dns.weft.internal. hostmaster.weft.internal. 1 3600 600 86400 1"},
		{"10.in-addr.arpa.", dns.TypeNS, "forward"},
		{"1.0.48.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{"in-addr.arpa.", dns.TypeNS, "forward"},
		{"7.2.0.192.in-addr.arpa.", dns.TypePTR, "NOERROR 7.2.0.192.in-addr.arpa. 1 IN PTR old.weft.internal."},
		{"7.2.0.192.in-addr.arpa.", dns.TypeTXT, "NOERROR [7.2.0.192.in-addr.arpa. 1 SOA 1]"},
		{"01.0.32.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{"x.1.0.32.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{"1.1.1.0.32.10.in-addr.arpa.", dns.TypePTR, "forward"},
		{"5." + strings.Repeat("0.", 23) + "1.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "NOERROR " +
			"5." + strings.Repeat("0.", 23) + "1.0.0.0.0.0.d.f.ip6.arpa. 1 IN PTR db.prod.weft.internal."},
		{"6." + strings.Repeat("0.", 23) + "1.0.0.0.0.0.d.f.ip6.arpa.", dns.TypePTR, "NXDOMAIN " + soa6},
	} {
		if got := show(z.Answer(ask(c.name, c.typ))); got != c.want {
			t.Errorf("%s %s:\n got %s\nwant %s", c.name, dns.TypeToString[c.typ], got, c.want)
		}
	}
}

// The addresses of a name are in random order.
func TestOrderIsRandom(t *testing.T) {
	var list []string
	for i := range 4 {
		list = append(list, fmt.Sprintf("web.weft.internal 10.32.0.%d", i+1))
	}
	z := newZone(t, list...)
	first := make(map[string]int)
	const queries = 400
	for range queries {
		m, _ := z.Answer(ask("web.weft.internal.", dns.TypeA))
		first[m.Answer[0].(*dns.A).A.String()]++
	}
	for a, n := range first {
		if n < queries/4/3 {
			t.Errorf("%s came first %d times in %d", a, n, queries)
		}
	}
	if len(first) != 4 {
		t.Errorf("%d of 4 addresses ever came first", len(first))
	}
}

func FuzzAnswer(f *testing.F) {
	z := newZone(f, "web.weft.internal 10.32.0.1", "db.prod.weft.internal fd00:1::5")
	for _, n := range []string{"web.weft.internal.", "1.0.32.10.in-addr.arpa.", ".ip6.arpa.", "web.", ".", "a..b."} {
		b, err := ask(n, dns.TypeA).Pack()
		if err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q := new(dns.Msg)
		if q.Unpack(b) != nil || len(q.Question) != 1 {
			return
		}
		m, ok := z.Answer(q)
		if !ok {
			return
		}
		out, err := m.Pack()
		if err != nil {
			t.Fatalf("the answer to %s cannot be packed: %v", q.Question[0].String(), err)
		}
		if err := new(dns.Msg).Unpack(out); err != nil {
			t.Fatalf("the answer to %s cannot be read: %v", q.Question[0].String(), err)
		}
	})
}

func FuzzReverse(f *testing.F) {
	f.Add("1.0.32.10.in-addr.arpa.")
	f.Add("d.f.ip6.arpa.")
	f.Fuzz(func(t *testing.T, s string) {
		if !strings.HasSuffix(s, reverse4) && !strings.HasSuffix(s, reverse6) {
			return
		}
		p, ok := parseReverse(s)
		if !ok {
			return
		}
		if got := reverseName(p.Addr(), p.Bits()/labelBits(p.Addr())); got != s && got != strings.ToLower(s) {
			t.Fatalf("%q is read as %s, which is %q", s, p, got)
		}
	})
}

func BenchmarkAnswer(b *testing.B) {
	z := newZone(b, "web.weft.internal 10.32.0.1")
	q := ask("web.weft.internal.", dns.TypeA)
	b.ReportAllocs()
	for b.Loop() {
		z.Answer(q)
	}
}
