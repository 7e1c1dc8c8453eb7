package server

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/dns/forward"
	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/dns/zone"
	"github.com/weft-net/weft/mesh/peer"
)

// forwardTimeout is the timeout of forwards in these tests.
const forwardTimeout = time.Hour

// newServer returns a Server for the names, each written "name address", and the address where it
// listens.
func newServer(t testing.TB, list ...string) (*Server, netip.AddrPort) {
	t.Helper()
	id := peer.Cheap{ID: peer.Key{1}}
	st := names.New(names.Config{Self: peer.Name{2, 1}, Signer: id, Verifier: id, Start: time.Unix(1, 0)})
	var in []names.Entry
	for _, l := range list {
		name, addr, _ := strings.Cut(l, " ")
		in = append(in, names.Entry{Name: name, Container: "c", Addr: netip.MustParseAddr(addr), Outside: true})
	}
	if _, err := st.Change(nil, in); err != nil {
		t.Fatal(err)
	}
	s := New(zone.New("weft.internal", 1, st.Table(), nil, rand.Uint64), forward.New(forwardTimeout))
	t.Cleanup(s.Close)
	return s, listen(t, s)
}

// listen makes a Server listen at a loopback port that is free over UDP and TCP.
func listen(t testing.TB, s *Server) netip.AddrPort {
	t.Helper()
	for range 20 {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := pc.LocalAddr().(*net.UDPAddr).AddrPort()
		pc.Close()
		if len(s.Listen([]netip.AddrPort{addr})) == 0 {
			return addr
		}
	}
	t.Fatal("no port is free")
	panic("unreachable")
}

func exchange(t testing.TB, network string, to netip.AddrPort, q *dns.Msg) *dns.Msg {
	t.Helper()
	c := dns.Client{Net: network, Timeout: 30 * time.Second}
	m, _, err := c.Exchange(q, to.String())
	if err != nil {
		t.Fatal(err)
	}
	m.Compress = true // Len must return the size on the wire
	return m
}

func ask(name string, typ uint16) *dns.Msg { return new(dns.Msg).SetQuestion(name, typ) }

func TestUDPAndTCP(t *testing.T) {
	_, addr := newServer(t, "web.weft.internal 10.32.0.1")
	for _, network := range []string{"udp", "tcp"} {
		m := exchange(t, network, addr, ask("web.weft.internal.", dns.TypeA))
		if len(m.Answer) != 1 || !m.RecursionAvailable || m.IsEdns0() != nil {
			t.Errorf("over %s: %v", network, m)
		}
	}
}

// Answers respect the size that the client accepts, with and without EDNS.
func TestAnswerSizes(t *testing.T) {
	const many = 200
	var list []string
	for i := range many {
		list = append(list, fmt.Sprintf("web.weft.internal 10.32.0.%d", i+1))
	}
	_, addr := newServer(t, list...)
	plain := exchange(t, "udp", addr, ask("web.weft.internal.", dns.TypeA))
	if !plain.Truncated || plain.Len() > dns.MinMsgSize || len(plain.Answer) == 0 {
		t.Errorf("without EDNS: %d bytes, truncated %v, %d addresses", plain.Len(), plain.Truncated, len(plain.Answer))
	}
	big := ask("web.weft.internal.", dns.TypeA)
	big.SetEdns0(1232, true)
	m := exchange(t, "udp", addr, big)
	if !m.Truncated || m.Len() > 1232 || len(m.Answer) <= len(plain.Answer) || m.IsEdns0() == nil || !m.IsEdns0().Do() {
		t.Errorf("with EDNS: %d bytes, truncated %v, %d addresses", m.Len(), m.Truncated, len(m.Answer))
	}
	big = ask("web.weft.internal.", dns.TypeA)
	big.SetEdns0(65000, false)
	if m = exchange(t, "udp", addr, big); !m.Truncated || m.Len() > maxUDP {
		t.Errorf("with EDNS of 65000: %d bytes, truncated %v, %d addresses", m.Len(), m.Truncated, len(m.Answer))
	}
	if m = exchange(t, "tcp", addr, ask("web.weft.internal.", dns.TypeA)); m.Truncated || len(m.Answer) != many {
		t.Errorf("over TCP: truncated %v, %d addresses", m.Truncated, len(m.Answer))
	}
}

func TestMalformedQueries(t *testing.T) {
	s, addr := newServer(t)
	version := ask("web.weft.internal.", dns.TypeA)
	version.SetEdns0(1232, false)
	version.IsEdns0().SetVersion(1)
	two := ask("web.weft.internal.", dns.TypeA)
	two.Question = append(two.Question, two.Question[0])
	update := ask("weft.internal.", dns.TypeSOA)
	update.Opcode = dns.OpcodeUpdate
	notify := ask("weft.internal.", dns.TypeSOA)
	notify.Opcode = dns.OpcodeNotify
	for what, c := range map[string]struct {
		query *dns.Msg
		rcode int
	}{
		"EDNS version": {version, dns.RcodeBadVers}, "two questions": {two, dns.RcodeFormatError},
		"update": {update, dns.RcodeNotImplemented}, "notify": {notify, dns.RcodeNotImplemented},
		"transfer": {ask("example.com.", dns.TypeAXFR), dns.RcodeRefused}, "no upstream": {ask("example.com.", dns.TypeA), dns.RcodeServerFailure},
	} {
		if m := exchange(t, "udp", addr, c.query); m.Rcode != c.rcode {
			t.Errorf("%s: %s", what, dns.RcodeToString[m.Rcode])
		}
	}
	answer := new(dns.Msg).SetReply(ask("web.weft.internal.", dns.TypeA))
	b, err := answer.Pack()
	if err != nil {
		t.Fatal(err)
	}
	if query, answer := (&socket{Server: s}).parse(b); query != nil || answer != nil {
		t.Error("the server answered an answer")
	}
	// Bytes that are not a DNS message must not stop the server.
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, b := range []string{"", "x", strings.Repeat("\xff", 60), "\x00\x01\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01"} {
		conn.Write([]byte(b))
	}
	exchange(t, "udp", addr, ask("web.weft.internal.", dns.TypeA))
	if got := fmt.Sprint(s.Counts()); !strings.Contains(got, "{A nxdomain 1}") || !strings.Contains(got, "{A servfail 1}") {
		t.Errorf("counts: %v", got)
	}
}

func TestListenChangesAddresses(t *testing.T) {
	s, first := newServer(t, "web.weft.internal 10.32.0.1")
	second := listen(t, s)
	exchange(t, "tcp", second, ask("web.weft.internal.", dns.TypeA))
	if got := fmt.Sprint(s.Addrs()); got != fmt.Sprintf("[%s]", second) {
		t.Errorf("listens at %v, want %s", got, second)
	}
	// The port is free again, but another process may take it first.
	pc, err := net.ListenPacket("udp", first.String())
	for range 20 {
		if err == nil {
			break
		}
		first, second = second, listen(t, s)
		pc, err = net.ListenPacket("udp", first.String())
	}
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	failed := s.Listen([]netip.AddrPort{first, second})
	if err := failed[first]; len(failed) != 1 || err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("an address in use: %v", failed)
	}
	exchange(t, "udp", second, ask("web.weft.internal.", dns.TypeA))
	if failed := s.Listen([]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53")}); len(failed) != 1 {
		t.Errorf("an address of another host: %v", failed)
	}
	if got := s.Addrs(); len(got) != 0 {
		t.Errorf("still listens at %v", got)
	}
	s.Close()
	s.Close()
	if failed := s.Listen([]netip.AddrPort{second}); len(failed) != 0 || len(s.Addrs()) != 0 {
		t.Errorf("a closed server listens: %v", failed)
	}
}

func TestCloseEndsForwards(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s, addr := newServer(t)
	s.forward.SetServers([]netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort()})
	conn, err := net.Dial("udp", addr.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	b, _ := ask("example.com.", dns.TypeA).Pack()
	conn.Write(b)
	if _, _, err := silent.ReadFrom(make([]byte, 512)); err != nil { // the query is being forwarded now
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() { s.Close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Fatal("Close waits for a forward")
	}
}

func BenchmarkQuery(b *testing.B) {
	s, _ := newServer(b, "web.weft.internal 10.32.0.1")
	k := &socket{Server: s}
	q, err := ask("web.weft.internal.", dns.TypeA).Pack()
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, maxUDP)
	b.ReportAllocs()
	for b.Loop() {
		_, m := k.parse(q)
		if _, err := m.PackBuffer(buf); err != nil {
			b.Fatal(err)
		}
	}
}

// A container that opens more connections than its share loses its own oldest ones. The
// connections of others stay.
func TestOneClientCannotTakeAllConnections(t *testing.T) {
	_, addr := newServer(t, "web.weft.internal 10.32.0.1")
	dial := func(from string) *dns.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.Dial("tcp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return &dns.Conn{Conn: c}
	}
	other := dial("127.0.0.9")
	first := dial("127.0.0.66")
	for range maxConns {
		dial("127.0.0.66")
	}
	first.SetDeadline(time.Now().Add(idleTimeout / 2))
	if _, err := first.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the oldest connection of that client: %v", err)
	}
	if err := other.WriteMsg(ask("web.weft.internal.", dns.TypeA)); err != nil {
		t.Fatal(err)
	}
	if m, err := other.ReadMsg(); err != nil || len(m.Answer) != 1 {
		t.Errorf("another client gets %v, %v", m, err)
	}
}
