package multicast

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/checksum"
)

var (
	epoch   = time.Unix(1_700_000_000, 0)
	sender4 = netip.MustParseAddr("10.32.0.5")
	sender6 = netip.MustParseAddr("fe80::5")
)

// ip4 makes a frame to a group with an IGMP message whose checksum is missing.
func ip4(src, dst netip.Addr, m ...byte) []byte {
	s, d := src.As4(), dst.As4()
	b := append([]byte{1, 0, 0x5e, d[1] & 0x7f, d[2], d[3]}, 2, 0, 0, 0, 0, 5, 8, 0)
	b = append(b, 0x46, 0xc0, 0, byte(24+len(m)), 0, 0, 0, 0, 1, 2, 0, 0)
	b = append(append(append(b, s[:]...), d[:]...), 0x94, 4, 0, 0)
	at := len(b)
	b = append(b, m...)
	binary.BigEndian.PutUint16(b[at+2:], ^checksum.Sum(b[at:]))
	return b
}

func ip6(src, dst netip.Addr, m ...byte) []byte {
	s, d := src.As16(), dst.As16()
	b := append([]byte{0x33, 0x33, d[12], d[13], d[14], d[15]}, 2, 0, 0, 0, 0, 5, 0x86, 0xdd)
	b = append(b, 0x60, 0, 0, 0, 0, byte(8+len(m)), 0, 1)
	b = append(append(b, s[:]...), d[:]...)
	b = append(b, 58, 0, 5, 2, 0, 0, 1, 0)
	at := len(b)
	b = append(b, m...)
	binary.BigEndian.PutUint16(b[at+2:], ^sumICMPv6(b[14:54], b[at:]))
	return b
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// report makes a report of version 3 or MLDv2 of one record.
func report(kind byte, group netip.Addr, sources ...netip.Addr) []byte {
	r := append([]byte{kind, 0, 0, byte(len(sources))}, group.AsSlice()...)
	for _, s := range sources {
		r = append(r, s.AsSlice()...)
	}
	if group.Is4() {
		return ip4(sender4, addr("224.0.0.22"), append([]byte{0x22, 0, 0, 0, 0, 0, 0, 1}, r...)...)
	}
	return ip6(sender6, addr("ff02::16"), append([]byte{143, 0, 0, 0, 0, 0, 0, 1}, r...)...)
}

func join2(group string) []byte  { return oneGroup(0x16, 131, addr(group), addr(group)) }
func leave2(group string) []byte { return oneGroup(0x17, 132, addr(group), netip.Addr{}) }
func query(group string) []byte  { return oneGroup(0x11, 130, addr(group), netip.Addr{}) }

func oneGroup(igmp, mld byte, group, dst netip.Addr) []byte {
	if group.Is4() {
		if !dst.IsValid() {
			dst = addr("224.0.0.2")
		}
		return ip4(sender4, dst, append([]byte{igmp, 0, 0, 0}, group.AsSlice()...)...)
	}
	if !dst.IsValid() {
		dst = addr("ff02::2")
	}
	return ip6(sender6, dst, append([]byte{mld, 0, 0, 0, 0, 0, 0, 0}, group.AsSlice()...)...)
}

func TestParse(t *testing.T) {
	broken := func(b []byte) []byte { b = bytes.Clone(b); b[len(b)-1] ^= 1; return b }
	for name, c := range map[string]struct {
		frame []byte
		kind  Kind
		want  string
	}{
		"version 1":               {oneGroup(0x12, 0, addr("239.1.1.1"), addr("239.1.1.1")), Membership, "+239.1.1.1"},
		"version 2":               {join2("239.1.1.1"), Membership, "+239.1.1.1"},
		"leave":                   {leave2("239.1.1.1"), Membership, "-239.1.1.1"},
		"all sources":             {report(4, addr("239.1.1.1")), Membership, "+239.1.1.1"},
		"still all sources":       {report(2, addr("239.1.1.1")), Membership, "+239.1.1.1"},
		"all but one source":      {report(4, addr("239.1.1.1"), sender4), Membership, "+239.1.1.1"},
		"from a source":           {report(3, addr("232.1.1.1"), sender4), Membership, "+232.1.1.1"},
		"from no source":          {report(3, addr("232.1.1.1")), Membership, "-232.1.1.1"},
		"another source":          {report(5, addr("232.1.1.1"), sender4), Membership, "+232.1.1.1"},
		"a source less":           {report(6, addr("232.1.1.1"), sender4), Membership, "-232.1.1.1"},
		"of link-local scope":     {report(4, addr("224.0.0.251")), Membership, ""},
		"no group":                {report(4, addr("10.0.0.1")), Membership, ""},
		"query":                   {query("0.0.0.0"), Query, ""},
		"query without a source":  {ip4(addr("0.0.0.0"), addr("224.0.0.1"), 0x11, 0, 0, 0, 0, 0, 0, 0), Other, ""},
		"wrong checksum":          {broken(join2("239.1.1.1")), Other, ""},
		"MLD":                     {join2("ff05::1"), Membership, "+ff05::1"},
		"MLD done":                {leave2("ff05::1"), Membership, "-ff05::1"},
		"MLD version 2":           {report(4, addr("ff0e::1")), Membership, "+ff0e::1"},
		"MLD from a source":       {report(3, addr("ff3e::1"), sender6), Membership, "+ff3e::1"},
		"MLD from no source":      {report(3, addr("ff3e::1")), Membership, "-ff3e::1"},
		"solicited node":          {report(4, addr("ff02::1:ff00:5")), Membership, ""},
		"MLD query":               {query("::"), Query, ""},
		"MLD query of a stranger": {ip6(addr("fd00::1"), addr("ff02::1"), append([]byte{130, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 16)...)...), Other, ""},
		"wrong checksum of MLD":   {broken(join2("ff05::1")), Other, ""},
		"advertisement":           {ip4(sender4, addr("224.0.0.106"), 0x30, 20, 0, 0, 0, 0, 0, 0), Routing, ""},
		"data":                    {make([]byte, 60), Other, ""},
	} {
		var got []string
		kind := Parse(c.frame, func(g netip.Addr, wanted bool) {
			got = append(got, map[bool]string{true: "+", false: "-"}[wanted]+g.String())
		})
		if kind != c.kind || strings.Join(got, " ") != c.want {
			t.Errorf("%s: kind %d, %v; want %d, %s", name, kind, got, c.kind, c.want)
		}
	}
}

func TestGroup(t *testing.T) {
	for dst, want := range map[string]bool{
		"239.1.1.1": true, "224.0.1.1": true, "224.0.0.251": false, "224.0.0.1": false, "ff05::1": true, "ff0e::1": true, "ff02::fb": false, "ff01::1": false, "ff12::1": false, "ff15::1": true,
	} {
		a := addr(dst)
		var b []byte
		if a.Is4() {
			b = ip4(sender4, a, 0, 0, 0, 0)
		} else {
			b = ip6(sender6, a, 0, 0, 0, 0)
		}
		if g, ok := Group(b); ok != want || ok && g != a {
			t.Errorf("frame to %s: %v, %v", dst, g, ok)
		}
	}
	for name, b := range map[string][]byte{
		"to one host": append([]byte{2}, join2("239.1.1.1")[1:]...),
		"ARP":         append(append(bytes.Repeat([]byte{0xff}, 6), 2, 0, 0, 0, 0, 5, 8, 6), make([]byte, 46)...),
		"tagged":      append(append(bytes.Clone(join2("239.1.1.1")[:12]), 0x81, 0, 0, 5), join2("239.1.1.1")[12:]...),
		"short":       join2("239.1.1.1")[:20],
	} {
		if g, ok := Group(b); ok {
			t.Errorf("%s: %s", name, g)
		}
	}
}

// Queries are what other hosts understand, and ours are not those of a querier that takes part in
// its election over IPv4.
func TestQueries(t *testing.T) {
	src := [6]byte{2, 0, 0, 0, 0, 9}
	for _, g := range []string{"0.0.0.0", "239.1.2.3", "::", "ff05::1:3"} {
		q := Ask{addr(g), time.Second}
		b := q.Append(nil, src)
		if len(b) > QueryLen {
			t.Errorf("%s: %d bytes, want at most %d", g, len(b), QueryLen)
		}
		if q.Group.Is4() {
			if checksum.Sum(b[14:38]) != 0xffff || checksum.Sum(b[38:]) != 0xffff || netip.AddrFrom4([4]byte(b[42:46])) != q.Group || b[39] != 10 {
				t.Errorf("%s: %x", g, b)
			}
			if Parse(b, nil) != Other {
				t.Errorf("%s: our query counts as that of a querier", g)
			}
			continue
		}
		if Parse(b, nil) != Query || netip.AddrFrom16([16]byte(b[70:86])) != q.Group || binary.BigEndian.Uint16(b[66:]) != 1000 {
			t.Errorf("%s: %x", g, b)
		}
	}
}

// host is a host with a Snooper whose containers answer queries.
type host struct {
	t      *testing.T
	s      *Snooper
	now    time.Time
	wants  map[string]bool // of the containers
	asked  int
	silent bool
}

func newHost(t *testing.T) *host {
	return &host{t: t, s: New(epoch), now: epoch, wants: map[string]bool{}}
}

// run lets time pass.
func (h *host) run(d time.Duration) {
	for end := h.now.Add(d); ; {
		asks, next := h.s.Tick(h.now)
		for _, q := range asks {
			h.asked++
			for g, wanted := range h.wants {
				a := addr(g)
				if wanted && !h.silent && a.Is4() == q.Group.Is4() && (q.Group.IsUnspecified() || q.Group == a) {
					h.s.Hear(h.now, join2(g), true)
				}
			}
		}
		if !next.After(h.now) {
			h.t.Fatal("the next tick is due at once")
		}
		if next.After(end) {
			h.now = end
			return
		}
		h.now = next
	}
}

func (h *host) want(all bool, groups ...string) {
	h.t.Helper()
	var list []netip.Addr
	for _, g := range groups {
		list = append(list, addr(g))
	}
	slices.SortFunc(list, netip.Addr.Compare)
	if w := h.s.Wants(h.now); !w.Equal(Wants{Ready: true, All: all, Groups: list}) {
		h.t.Fatalf("after %v: %+v, want %v, all %v", h.now.Sub(epoch), w, groups, all)
	}
}

func (h *host) join(g string) { h.wants[g] = true; h.s.Hear(h.now, join2(g), true) }
func (h *host) leave(g string) {
	delete(h.wants, g)
	h.s.Hear(h.now, leave2(g), true)
}

// A Snooper learns what containers wanted before it started, and is ready then.
func TestStart(t *testing.T) {
	h := newHost(t)
	h.wants["239.1.1.1"], h.wants["ff05::1"] = true, true
	if w := h.s.Wants(h.now); w.Ready {
		t.Fatal("ready without an answer")
	}
	h.run(readyAfter)
	h.want(false, "239.1.1.1", "ff05::1")
}

func TestGroupsComeAndGo(t *testing.T) {
	h := newHost(t)
	h.run(10 * time.Second)
	h.join("239.1.1.1")
	h.join("239.1.1.2")
	h.join("ff05::1")
	h.want(false, "239.1.1.1", "239.1.1.2", "ff05::1")
	h.leave("239.1.1.1")
	h.run(3 * time.Second)
	h.want(false, "239.1.1.2", "ff05::1")
	// Another container of the host wants it still.
	h.s.Hear(h.now, leave2("239.1.1.2"), true)
	h.run(3 * time.Second)
	h.want(false, "239.1.1.2", "ff05::1")
	h.run(30 * time.Minute)
	h.want(false, "239.1.1.2", "ff05::1")
	// One that ends without a word.
	h.wants = map[string]bool{"ff05::1": true}
	h.run(memberFor + 5*time.Second)
	h.want(false, "ff05::1")
	if perMinute := float64(h.asked) / h.now.Sub(epoch).Minutes(); perMinute > 3 {
		t.Errorf("%.1f queries a minute", perMinute)
	}
}

// A report of another host says nothing about this one.
func TestReportsOfOtherHosts(t *testing.T) {
	h := newHost(t)
	h.run(10 * time.Second)
	h.s.Hear(h.now, join2("239.1.1.1"), false)
	h.want(false)
}

// While there is another querier, only it asks for all groups. What its queries do not confirm is
// asked for all the same, so one that lies ends nothing.
func TestAnotherQuerier(t *testing.T) {
	h := newHost(t)
	h.run(10 * time.Second)
	h.join("239.1.1.1")
	h.join("ff05::1")
	asked := h.asked
	for range 20 { // nobody else sees them
		h.s.Hear(h.now, query("0.0.0.0"), false)
		h.s.Hear(h.now, query("::"), false)
		h.run(time.Minute)
	}
	h.want(false, "239.1.1.1", "ff05::1")
	if more := h.asked - asked; more < 2 || more > 20 {
		t.Errorf("%d queries in addition to those of the other querier", more)
	}
	asked = h.asked
	h.run(otherFor + queryInterval)
	if h.asked < asked+2 {
		t.Error("nobody asks once the other querier is gone")
	}
}

// A host with a multicast router or a querier gets everything.
func TestRouterWantsAll(t *testing.T) {
	h := newHost(t)
	h.run(10 * time.Second)
	h.s.Hear(h.now, query("0.0.0.0"), true)
	h.want(true)
	h.run(routerFor - time.Second)
	h.want(true)
	h.run(2 * time.Second)
	h.want(false)
}

func TestTooManyGroups(t *testing.T) {
	h := newHost(t)
	h.run(10 * time.Second)
	h.silent = true
	for i := range MaxGroups + 100 {
		h.s.Hear(h.now, join2(netip.AddrFrom4([4]byte{239, 1, byte(i >> 8), byte(i)}).String()), true)
	}
	h.want(true)
	if len(h.s.groups) > MaxGroups || h.s.Dropped() != 100 {
		t.Errorf("%d groups, %d dropped", len(h.s.groups), h.s.Dropped())
	}
	before := h.asked
	h.run(2 * memberFor)
	h.want(false)
	if n := h.asked - before; n > lastCount*MaxGroups+10 {
		t.Errorf("%d queries", n)
	}
}

func FuzzParse(f *testing.F) {
	for _, b := range [][]byte{join2("239.1.1.1"), join2("ff05::1"), report(4, addr("239.1.1.1"), sender4), report(6, addr("ff05::1"), sender6), query("0.0.0.0"), query("::")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n := 0
		kind := Parse(b, func(g netip.Addr, _ bool) {
			if n++; !Snooped(g) {
				t.Errorf("group %s", g)
			}
		})
		if kind != Membership && n > 0 || n > len(b) {
			t.Errorf("kind %d with %d groups", kind, n)
		}
		if g, ok := Group(b); ok && !Snooped(g) {
			t.Errorf("frame to %s", g)
		}
	})
}

func TestParseDoesNotAllocate(t *testing.T) {
	frames, n := [][]byte{join2("239.1.1.1"), report(4, addr("ff05::1"))}, 0
	visit := func(netip.Addr, bool) { n++ }
	if a := testing.AllocsPerRun(100, func() {
		for _, b := range frames {
			Parse(b, visit)
			Group(b)
		}
	}); a > 0 {
		t.Errorf("%v allocations", a)
	}
}

// A host that heard a query of version 1, true or false, answers late. It is waited for.
func TestVersion1AnswersLate(t *testing.T) {
	h := newHost(t)
	h.run(10 * time.Second)
	h.silent = true
	h.s.Hear(h.now, join2("239.1.1.1"), true)
	h.s.Hear(h.now, ip4(sender4, addr("224.0.0.1"), 0x11, 0, 0, 0, 0, 0, 0, 0), false)
	h.s.Hear(h.now, leave2("239.1.1.1"), true)
	h.run(9 * time.Second)
	h.want(false, "239.1.1.1")
	h.s.Hear(h.now, oneGroup(0x12, 0, addr("239.1.1.1"), addr("239.1.1.1")), true)
	h.run(time.Minute)
	h.want(false, "239.1.1.1")
	h.s.Hear(h.now, leave2("239.1.1.1"), true)
	h.run(2*oldWait + time.Second)
	h.want(false)
}
