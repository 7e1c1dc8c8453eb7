package zone

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/miekg/dns"
)

const testUDP = 1232

// sorted packs a message with its answers sorted, so that two messages can be compared.
func sorted(t testing.TB, m *dns.Msg) []byte {
	t.Helper()
	var low []dns.RR
	for _, rr := range m.Answer {
		i := 0
		for i < len(low) && low[i].String() < rr.String() {
			i++
		}
		low = append(low[:i], append([]dns.RR{rr}, low[i:]...)...)
	}
	m.Answer = low
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkQuick checks that the answer of Quick, if any, equals that of Answer, and reports whether
// there is one.
func checkQuick(t testing.TB, z *Zone, query []byte) (quick bool) {
	t.Helper()
	var s Scratch
	b, qtype, ok := z.Quick([]byte("before"), query, testUDP, &s)
	if !bytes.HasPrefix(b, []byte("before")) {
		t.Fatalf("%x: dst was overwritten", query)
	}
	if !ok {
		return false
	}
	b = b[6:]
	got, q := new(dns.Msg), new(dns.Msg)
	if err := got.Unpack(b); err != nil {
		t.Fatalf("%x: the answer cannot be read: %v", query, err)
	}
	if err := q.Unpack(query); err != nil || len(q.Question) != 1 {
		t.Fatalf("%x: answered, but it is not a query: %v", query, err)
	}
	want, ok := z.Answer(q)
	if !ok || len(want.Answer) == 0 || q.Question[0].Qtype != qtype {
		t.Fatalf("%x: answered, but the zone is not authoritative", query)
	}
	want.RecursionAvailable = true
	size := dns.MinMsgSize
	if opt := q.IsEdns0(); opt != nil {
		want.SetEdns0(testUDP, opt.Do())
		size = max(size, int(opt.UDPSize()))
		if opt.Version() != 0 {
			t.Fatalf("%x: answered EDNS version %d", query, opt.Version())
		}
	}
	if len(b) > min(size, testUDP) {
		t.Fatalf("%x: %d bytes for a client that takes %d", query, len(b), size)
	}
	if g, w := sorted(t, got), sorted(t, want); !bytes.Equal(g, w) {
		t.Fatalf("%x:\ngot  %x\nwant %x", query, g, w)
	}
	return true
}

func edns(m *dns.Msg, size uint16, do bool) *dns.Msg {
	m.SetEdns0(size, do)
	return m
}

var quickNames = []string{
	"web.weft.internal 10.32.0.1", "web.weft.internal 10.32.0.2", "web.weft.internal fd00:1::5", "old.weft.internal 192.0.2.7",
}

func TestQuickAgreesWithAnswer(t *testing.T) {
	z := newZone(t, quickNames...)
	options := edns(ask("web.weft.internal.", dns.TypeA), 1232, false)
	options.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
	version := edns(ask("web.weft.internal.", dns.TypeA), 1232, false)
	version.IsEdns0().SetVersion(1)
	chaos := ask("web.weft.internal.", dns.TypeA)
	chaos.Question[0].Qclass = dns.ClassCHAOS
	status := ask("web.weft.internal.", dns.TypeA)
	status.Opcode = dns.OpcodeStatus
	checking := ask("web.weft.internal.", dns.TypeA)
	checking.CheckingDisabled, checking.RecursionDesired, checking.AuthenticatedData = true, false, true
	for what, c := range map[string]struct {
		query *dns.Msg
		quick bool
	}{
		"A": {ask("web.weft.internal.", dns.TypeA), true}, "AAAA": {ask("WEB.weft.Internal.", dns.TypeAAAA), true},
		"EDNS": {edns(ask("web.weft.internal.", dns.TypeA), 1232, true), true}, "small EDNS": {edns(ask("web.weft.internal.", dns.TypeA), 1, false), true},
		"flags": {checking, true}, "no AAAA": {ask("old.weft.internal.", dns.TypeAAAA), false}, "no name": {ask("none.weft.internal.", dns.TypeA), false},
		"apex": {ask("weft.internal.", dns.TypeA), false}, "outside": {ask("web.example.com.", dns.TypeA), false}, "root": {ask(".", dns.TypeA), false},
		"one label": {ask("web.", dns.TypeA), false}, "TXT": {ask("web.weft.internal.", dns.TypeTXT), false}, "escaped": {ask(`w\.b.weft.internal.`, dns.TypeA), false},
		"options": {options, false}, "version": {version, false}, "class": {chaos, false}, "opcode": {status, false},
		"suffix": {ask("x-weft.internal.", dns.TypeA), false},
	} {
		b, err := c.query.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := checkQuick(t, z, b); got != c.quick {
			t.Errorf("%s: answered quickly: %v", what, got)
		}
		for n := range b {
			if checkQuick(t, z, b[:n]) {
				t.Errorf("%s: answered when cut to %d bytes", what, n)
			}
		}
		if c.quick && checkQuick(t, z, append(b, 0)) {
			t.Errorf("%s: answered with a byte too many", what)
		}
	}
}

func TestQuickDeclinesLargeAnswers(t *testing.T) {
	var list []string
	for i := range 60 {
		list = append(list, "web.weft.internal 10.32.1."+string(rune('1'+i%9))+string(rune('0'+i/9)))
	}
	z := newZone(t, list...)
	for size, want := range map[uint16]bool{0: false, 512: false, 1232: true} {
		m := ask("web.weft.internal.", dns.TypeA)
		if size > 0 {
			edns(m, size, false)
		}
		b, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		if got := checkQuick(t, z, b); got != want {
			t.Errorf("for a client that takes %d bytes: %v", size, got)
		}
	}
}

func TestQuickDoesNotAllocate(t *testing.T) {
	z := newZone(t, quickNames...)
	b, err := edns(ask("Web.weft.internal.", dns.TypeA), 1232, false).Pack()
	if err != nil {
		t.Fatal(err)
	}
	var s Scratch
	buf := make([]byte, 0, testUDP)
	n := testing.AllocsPerRun(100, func() {
		if _, _, ok := z.Quick(buf, b, testUDP, &s); !ok {
			t.Error("not answered")
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a query", n)
	}
}

func FuzzQuick(f *testing.F) {
	z := newZone(f, quickNames...)
	for _, m := range []*dns.Msg{ask("web.weft.internal.", dns.TypeA), edns(ask("web.weft.internal.", dns.TypeAAAA), 1232, true), ask("x.", dns.TypeA)} {
		b, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		binary.BigEndian.PutUint16(b[10:], 1)
		f.Add(append(b, 0xc0, 0x0c))
	}
	f.Fuzz(func(t *testing.T, b []byte) { checkQuick(t, z, b) })
}

func BenchmarkQuick(b *testing.B) {
	z := newZone(b, "web.weft.internal 10.32.0.1")
	q, err := ask("web.weft.internal.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	var s Scratch
	buf := make([]byte, 0, testUDP)
	b.ReportAllocs()
	for b.Loop() {
		z.Quick(buf, q, testUDP, &s)
	}
}
