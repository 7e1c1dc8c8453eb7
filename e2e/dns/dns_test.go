package dns

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// query asks a DNS server from a place, and returns nil if there is no answer.
func query(t *testing.T, lab *testbed.Lab, from testbed.Place, network string, server netip.Addr, name string, typ uint16) *dns.Msg {
	t.Helper()
	q := new(dns.Msg).SetQuestion(name, typ)
	var conn net.Conn
	err := netdev.Do(lab.Netns(from), func() (err error) {
		conn, err = net.DialTimeout(network, netip.AddrPortFrom(server, 53).String(), harness.Timeout)
		return err
	})
	if err != nil {
		return nil
	}
	defer conn.Close()
	c := dns.Client{Net: network, Timeout: 2 * time.Second}
	m, _, err := c.ExchangeWithConn(q, &dns.Conn{Conn: conn})
	if err != nil {
		return nil
	}
	return m
}

// answers writes the answers of a DNS server on one line, in order; or, if there are
// none, the response code and the owner of the SOA record.
func answers(m *dns.Msg) string {
	if m == nil {
		return "silence"
	}
	var words []string
	for _, rr := range m.Answer {
		switch rr := rr.(type) {
		case *dns.A:
			words = append(words, rr.A.String())
		case *dns.AAAA:
			words = append(words, rr.AAAA.String())
		case *dns.PTR:
			words = append(words, rr.Ptr)
		}
	}
	slices.Sort(words)
	if len(words) == 0 {
		words = append(words, dns.RcodeToString[m.Rcode])
		for _, rr := range m.Ns {
			words = append(words, fmt.Sprintf("SOA %s %d", rr.Header().Name, rr.Header().Ttl))
		}
	}
	return strings.Join(words, " ")
}

// asked wants an answer from a DNS server within timeout.
func asked(t *testing.T, lab *testbed.Lab, from testbed.Place, server netip.Addr, name string, typ uint16, want string) {
	t.Helper()
	got := ""
	defer func() {
		if got != want {
			t.Logf("%s from %s: %q, want %q", name, from, got, want)
		}
	}()
	harness.Eventually(t, "the answer for "+name, func() bool {
		got = answers(query(t, lab, from, "udp", server, name, typ))
		return got == want
	})
}

// addNamed attaches a container under a host name and returns its first address.
func addNamed(t *testing.T, lab *testbed.Lab, host int, container, hostname string) netip.Addr {
	t.Helper()
	a := harness.AddContainer(t, lab, host, container)[0].Addr()
	harness.Weft(t, lab, host, "attach", "--netns", lab.Netns(harness.At(host, container)), "--hostname", hostname)
	return a
}

// exposed gives a host an address of its own and returns it.
func exposed(t *testing.T, lab *testbed.Lab, host int, args ...string) netip.Addr {
	t.Helper()
	out := harness.Weft(t, lab, host, append([]string{"expose"}, args...)...)
	a, err := netip.ParseAddr(strings.TrimSpace(out))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// upExternal makes two hosts, of which the second may name addresses outside the mesh.
func upExternal(t *testing.T) *testbed.Lab {
	t.Helper()
	lab := harness.New(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, append(lab.Peers(2), "--dns-external")...)
	harness.Converge(t, lab)
	return lab
}

// reverse returns the name to ask for the PTR record of an address.
func reverse(t *testing.T, a netip.Addr) string {
	t.Helper()
	name, err := dns.ReverseAddr(a.String())
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// Containers resolve the names of containers on any host.
func TestNamesAcrossHosts(t *testing.T) {
	t.Parallel()
	lab := upExternal(t)
	gateway := exposed(t, lab, 1, "-h", "gw")
	client := harness.At(1, "client")
	harness.AddContainer(t, lab, 1, "client")
	web1, web2 := addNamed(t, lab, 1, "web", "web"), addNamed(t, lab, 2, "web", "WEB.weft.internal")
	db := addNamed(t, lab, 2, "db", "db.prod.weft.internal")
	ask := func(name string, typ uint16, want string) {
		t.Helper()
		asked(t, lab, client, gateway, name, typ, want)
	}
	both := []string{web1.String(), web2.String()}
	slices.Sort(both)
	ask("web.weft.internal.", dns.TypeA, strings.Join(both, " "))
	ask("Web.Weft.Internal.", dns.TypeA, strings.Join(both, " "))
	ask("web.", dns.TypeA, strings.Join(both, " "))
	ask("web.weft.internal.", dns.TypeAAAA, "NOERROR SOA weft.internal. 1")
	ask("web.weft.internal.", dns.TypeTXT, "NOERROR SOA weft.internal. 1")
	ask("none.weft.internal.", dns.TypeA, "NXDOMAIN SOA weft.internal. 1")
	ask("db.prod.weft.internal.", dns.TypeA, db.String())
	ask("prod.weft.internal.", dns.TypeA, "NOERROR SOA weft.internal. 1")
	ask("gw.weft.internal.", dns.TypeA, gateway.String())
	ask(reverse(t, db), dns.TypePTR, "db.prod.weft.internal.")
	// The container that resolved a name reaches its address.
	harness.Reach(t, lab, client, db)

	// Names for addresses outside the mesh, and IPv6.
	harness.Weft(t, lab, 2, "dns-add", "192.0.2.7", "2001:db8::7", "-h", "old.weft.internal")
	ask("old.weft.internal.", dns.TypeA, "192.0.2.7")
	ask("old.weft.internal.", dns.TypeAAAA, "2001:db8::7")
	ask(reverse(t, netip.MustParseAddr("192.0.2.7")), dns.TypePTR, "old.weft.internal.")
	if out := harness.Weft(t, lab, 1, "dns-lookup", "old.weft.internal"); out != "192.0.2.7\n2001:db8::7\n" {
		t.Errorf("dns-lookup: %q", out)
	}
	if out := harness.Weft(t, lab, 1, "dns-lookup", db.String()); out != "db.prod.weft.internal.\n" {
		t.Errorf("dns-lookup of an address: %q", out)
	}
	status := harness.Weft(t, lab, 1, "status", "dns")
	for _, want := range []string{"old", "db.prod", "weft:extern", "weft:expose", "netns:", "(h2)"} {
		if !strings.Contains(status, want) {
			t.Errorf("status dns lacks %s:\n%s", want, status)
		}
	}
	router := harness.Report(t, lab, 1).Router
	if !slices.ContainsFunc(router.Queues, func(q api.Queue) bool { return q.Name == "names" && q.Depth > 0 && q.Depth < q.Limit }) {
		t.Errorf("the report does not say how much memory names take: %+v", router.Queues)
	}
	if n, ok := router.MeshRefused["names-forged"]; !ok || n != 0 {
		t.Errorf("the report does not count forged names: %v", router.MeshRefused)
	}
	harness.Weft(t, lab, 2, "dns-remove", "192.0.2.7", "-h", "old")
	ask("old.weft.internal.", dns.TypeA, "NOERROR SOA weft.internal. 1")
	harness.Weft(t, lab, 2, "dns-remove", "-h", "old")
	ask("old.weft.internal.", dns.TypeAAAA, "NXDOMAIN SOA weft.internal. 1")

	// More names of a container: they disappear when it does, and not before.
	path := lab.Netns(harness.At(2, "db"))
	harness.Weft(t, lab, 2, "dns-add", path, "-h", "db2")
	ask("db2.weft.internal.", dns.TypeA, db.String())
	if code, out := harness.Try(t, lab, 2, "dns-add", path, "-h", "db.example.com"); code != cmd.ExitUsage || !strings.Contains(out, "not in the domain") {
		t.Errorf("a name in another domain: exit code %d, %q", code, out)
	}
	if err := netdev.DeleteNS(filepath.Base(path)); err != nil {
		t.Fatal(err)
	}
	ask("db.prod.weft.internal.", dns.TypeA, "NXDOMAIN SOA weft.internal. 1")
	ask("db2.weft.internal.", dns.TypeA, "NXDOMAIN SOA weft.internal. 1")
	ask(reverse(t, db), dns.TypePTR, "NXDOMAIN SOA "+strings.Join(strings.Split(reverse(t, db), ".")[2:], ".")+" 1")
	harness.Weft(t, lab, 2, "detach", "--netns", lab.Netns(harness.At(2, "web")))
	ask("web.weft.internal.", dns.TypeA, web1.String())
}

// A name with many addresses is answered over UDP and TCP.
func TestLargeAnswers(t *testing.T) {
	t.Parallel()
	lab := upExternal(t)
	server := exposed(t, lab, 1)
	harness.AddContainer(t, lab, 1, "client")
	const many = 150
	args := []string{"dns-add"}
	for i := range many {
		args = append(args, fmt.Sprintf("198.51.100.%d", i+1))
	}
	harness.Weft(t, lab, 2, append(args, "-h", "many")...)
	harness.Eventually(t, "all addresses over TCP", func() bool {
		m := query(t, lab, harness.At(1, "client"), "tcp", server, "many.weft.internal.", dns.TypeA)
		return m != nil && len(m.Answer) == many && !m.Truncated
	})
	harness.Eventually(t, "some addresses over UDP, and that there are more", func() bool {
		m := query(t, lab, harness.At(1, "client"), "udp", server, "many.weft.internal.", dns.TypeA)
		return m != nil && m.Truncated && len(m.Answer) > 0
	})
}

// Names of a dead host disappear within 10 s and return with it, whether its router was
// killed or cannot be reached.
func TestNamesOfADeadHost(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	server := exposed(t, lab, 1)
	harness.AddContainer(t, lab, 1, "client")
	web := addNamed(t, lab, 3, "web", "web")
	const name = "web.weft.internal."
	ask := func(want string) {
		t.Helper()
		asked(t, lab, harness.At(1, "client"), server, name, dns.TypeA, want)
	}
	const promised = 10 * time.Second
	vanishes := func(how string, do func()) {
		t.Helper()
		ask(web.String())
		start := time.Now()
		do()
		ask("NXDOMAIN SOA weft.internal. 1")
		took := time.Since(start)
		t.Logf("%s: its names were gone after %v", how, took.Round(time.Millisecond))
		if took > promised+harness.Slack {
			t.Errorf("%s: names were answered for %v, want at most %v", how, took, promised)
		}
	}
	vanishes("killed", func() {
		if err := lab.Kill(3); err != nil {
			t.Fatal(err)
		}
	})
	harness.Launch(t, lab, 3, lab.Peers(3)...)
	ask(web.String())
	vanishes("cut off", func() {
		harness.Both(t, lab, [2]int{1, 3}, lab.Cut)
		harness.Both(t, lab, [2]int{2, 3}, lab.Cut)
	})
	// Changes from the meantime are known when it returns.
	harness.Weft(t, lab, 3, "dns-add", lab.Netns(harness.At(3, "web")), "-h", "web2")
	harness.Both(t, lab, [2]int{1, 3}, lab.Heal)
	harness.Both(t, lab, [2]int{2, 3}, lab.Heal)
	ask(web.String())
	asked(t, lab, harness.At(1, "client"), server, "web2.weft.internal.", dns.TypeA, web.String())
	vanishes("stopped", func() { harness.Weft(t, lab, 3, "stop") })
}

// A host without DNS passes on the names of others and announces none.
func TestHostWithoutDNS(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 3, Topology: testbed.Line, Password: "password of the lab"})
	harness.Launch(t, lab, 1)
	harness.Launch(t, lab, 2, append(lab.Peers(2), "--no-dns")...)
	harness.Launch(t, lab, 3, lab.Peers(3)...)
	harness.Converge(t, lab)
	server := exposed(t, lab, 1)
	harness.AddContainer(t, lab, 1, "client")
	web := addNamed(t, lab, 3, "web", "web")
	asked(t, lab, harness.At(1, "client"), server, "web.weft.internal.", dns.TypeA, web.String())
	silent := exposed(t, lab, 2)
	harness.Reach(t, lab, harness.At(1, "client"), silent)
	if got := answers(query(t, lab, harness.At(1, "client"), "udp", silent, "web.weft.internal.", dns.TypeA)); got != "silence" {
		t.Errorf("the host without DNS answers %s", got)
	}
	for _, args := range [][]string{{"dns-add", "192.0.2.1", "-h", "x"}, {"dns-remove", "-h", "x"}, {"dns-lookup", "x"}, {"expose", "-h", "x"}} {
		if code, out := harness.Try(t, lab, 2, args...); code != cmd.ExitFailed || !strings.Contains(out, "--no-dns") {
			t.Errorf("%v: exit code %d, %q", args, code, out)
		}
	}
	if out := harness.Weft(t, lab, 2, "status", "dns"); !strings.Contains(out, "dns is off") {
		t.Errorf("status dns: %q", out)
	}
	if out := harness.Weft(t, lab, 2, "dns-args"); out != "" {
		t.Errorf("dns-args: %q", out)
	}
}

// upstream is a name server in the network of a host, port 53.
type upstream struct {
	asked, tcp atomic.Int64
}

// startUpstream answers every A question with addr; over UDP it says that the
// answer is too large for names that begin with big.
func startUpstream(t *testing.T, lab *testbed.Lab, host int, addr string) *upstream {
	t.Helper()
	u := new(upstream)
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		u.asked.Add(1)
		m := new(dns.Msg).SetReply(q)
		udp := w.RemoteAddr().Network() == "udp"
		if !udp {
			u.tcp.Add(1)
		}
		if m.Truncated = udp && strings.HasPrefix(q.Question[0].Name, "big."); !m.Truncated {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}, A: net.ParseIP(addr)}}
		}
		w.WriteMsg(m)
	})
	var servers []*dns.Server
	err := netdev.Do(lab.Netns(harness.At(host, "")), func() error {
		where := netip.AddrPortFrom(testbed.Addr4(host), 53).String()
		pc, err := net.ListenPacket("udp", where)
		if err != nil {
			return err
		}
		l, err := net.Listen("tcp", where)
		servers = []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range servers {
		started, done := make(chan struct{}), make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go func() { defer close(done); s.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { s.Shutdown(); <-done })
	}
	return u
}

// Names outside the domain are forwarded to the host's name servers.
func TestForwardedNames(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	one, two := startUpstream(t, lab, 1, "192.0.2.1"), startUpstream(t, lab, 2, "192.0.2.2")
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	// replace renames another file over the old one, as tools do.
	replace := func(servers ...netip.Addr) {
		t.Helper()
		text := "search example.com\n"
		for _, a := range servers {
			text += fmt.Sprintf("nameserver %s\n", a)
		}
		harness.WriteFile(t, conf+".new", text)
		if err := os.Rename(conf+".new", conf); err != nil {
			t.Fatal(err)
		}
	}
	replace(testbed.Addr4(1))
	harness.Launch(t, lab, 1, "--resolv-conf", conf, "--dns-fallback-timeout", "2s")
	harness.Launch(t, lab, 2, lab.Peers(2)...)
	harness.Converge(t, lab)
	server := exposed(t, lab, 1)
	harness.AddContainer(t, lab, 1, "client")
	client := harness.At(1, "client")
	web := addNamed(t, lab, 2, "web", "web")
	asked(t, lab, client, server, "www.example.com.", dns.TypeA, "192.0.2.1")
	asked(t, lab, client, server, "big.example.com.", dns.TypeA, "192.0.2.1")
	if one.tcp.Load() == 0 {
		t.Error("a truncated answer was not asked for over TCP")
	}
	if out := harness.Weft(t, lab, 1, "dns-lookup", "www.example.com"); !strings.Contains(out, "192.0.2.1\n") {
		t.Errorf("dns-lookup: %q", out)
	}
	before := one.asked.Load()
	asked(t, lab, client, server, "web.weft.internal.", dns.TypeA, web.String())
	if n := one.asked.Load() - before; n != 0 {
		t.Errorf("the upstream was asked %d times for a name of weft's", n)
	}

	// The file changes: first to a server that does not answer, then to one that does.
	replace(testbed.Addr4(99), testbed.Addr4(2))
	asked(t, lab, client, server, "www.example.com.", dns.TypeA, "192.0.2.2")
	harness.Eventually(t, "status names the servers", func() bool {
		return strings.Contains(harness.Weft(t, lab, 1, "status"), testbed.Addr4(2).String())
	})
	// No loop: a file that names weft's own server.
	replace(server)
	asked(t, lab, client, server, "www.example.com.", dns.TypeA, "SERVFAIL")
	before = two.asked.Load()
	asked(t, lab, client, server, "web.weft.internal.", dns.TypeA, web.String())
	if two.asked.Load() != before {
		t.Error("a server that is no longer in the file is asked")
	}
	if !strings.Contains(harness.Weft(t, lab, 1, "report", "-f", "{{json .DNS.Queries}}"), "servfail") {
		t.Error("the failed query was not counted")
	}
}

// The server begins and stops to listen as addresses come and go.
func TestListeningFollowsInterfaces(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1, Password: "password of the lab"})
	web := addNamed(t, lab, 1, "web", "web")
	host := harness.At(1, "")
	if out := harness.Weft(t, lab, 1, "status"); !strings.Contains(out, "there is no interface docker0") {
		t.Errorf("status does not say that docker0 is missing:\n%s", out)
	}
	if code, out := harness.Try(t, lab, 1, "dns-args"); code != cmd.ExitFailed || !strings.Contains(out, "no address to listen on") {
		t.Errorf("dns-args: exit code %d, %q", code, out)
	}
	inHost := func(f func(docker *netlink.Bridge) error) {
		t.Helper()
		docker := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}}
		if err := netdev.Do(lab.Netns(host), func() error { return f(docker) }); err != nil {
			t.Fatal(err)
		}
	}
	first, second := netip.MustParseAddr("172.17.0.1"), netip.MustParseAddr("172.18.0.1")
	address := func(a netip.Addr) *netlink.Addr {
		return &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(16, 32)}}
	}
	inHost(func(docker *netlink.Bridge) error {
		if err := netlink.LinkAdd(docker); err != nil {
			return err
		}
		if err := netlink.AddrAdd(docker, address(first)); err != nil {
			return err
		}
		return netlink.LinkSetUp(docker)
	})
	asked(t, lab, host, first, "web.weft.internal.", dns.TypeA, web.String())
	if out := harness.Weft(t, lab, 1, "dns-args", "--name", "x"); out != "--dns=172.17.0.1 --dns-search=weft.internal --hostname=x.weft.internal\n" {
		t.Errorf("dns-args: %q", out)
	}
	inHost(func(*netlink.Bridge) error {
		docker, err := netlink.LinkByName("docker0")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(docker, address(second)); err != nil {
			return err
		}
		return netlink.AddrDel(docker, address(first))
	})
	asked(t, lab, host, second, "web.weft.internal.", dns.TypeA, web.String())
	// A port that it let go is free for others.
	harness.Eventually(t, "docker0's first address is let go", func() bool {
		return !slices.ContainsFunc(harness.Report(t, lab, 1).DNS.Listening[0].Addresses, func(a netip.AddrPort) bool { return a.Addr() == first })
	})
	inHost(func(docker *netlink.Bridge) error { return netlink.LinkDel(docker) })
	harness.Eventually(t, "docker0 is missing again", func() bool {
		return strings.Contains(harness.Weft(t, lab, 1, "status"), "there is no interface docker0")
	})
	// hide and expose change the other address.
	server := exposed(t, lab, 1)
	asked(t, lab, harness.At(1, "web"), server, "web.", dns.TypeA, web.String())
}

// The flags for another domain, TTL and listen address take effect.
func TestFlagsOfDNS(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 1, Password: "password of the lab"})
	harness.Launch(t, lab, 1, "--dns-domain", "Corp.Example.", "--dns-ttl", "30", "--dns-listen-address", "127.0.0.1,eth0")
	web := addNamed(t, lab, 1, "web", "web")
	for _, server := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), testbed.Addr4(1)} {
		asked(t, lab, harness.At(1, ""), server, "web.corp.example.", dns.TypeA, web.String())
	}
	harness.Eventually(t, "an answer that lives for 30 s", func() bool {
		m := query(t, lab, harness.At(1, ""), "udp", testbed.Addr4(1), "web.corp.example.", dns.TypeA)
		return m != nil && len(m.Answer) > 0 && m.Answer[0].Header().Ttl == 30
	})
	if code, out := harness.Try(t, lab, 1, "dns-add", "192.0.2.1", "-h", "x.weft.internal"); code != cmd.ExitUsage {
		t.Errorf("a name outside the domain: exit code %d, %q", code, out)
	}
}

// Names for addresses outside the mesh return with their router, except those that were
// removed before; a reset ends them.
func TestNamesOutsideOutliveTheirRouter(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	harness.Launch(t, lab, 1, "--dns-external")
	harness.Launch(t, lab, 2, lab.Peers(2)...)
	harness.Converge(t, lab)
	known := func(want string) {
		t.Helper()
		harness.Eventually(t, "host 2 knows "+want, func() bool {
			return strings.Join(strings.Fields(harness.Weft(t, lab, 2, "dns-lookup", "db.weft.internal")), " ") == want
		})
	}
	harness.Weft(t, lab, 1, "dns-add", "192.0.2.7", "192.0.2.8", "-h", "db")
	harness.Weft(t, lab, 1, "dns-remove", "192.0.2.8", "-h", "db")
	known("192.0.2.7")
	harness.Weft(t, lab, 1, "stop")
	known("")
	// Without the flag the name stays on record, but is not announced.
	harness.Launch(t, lab, 1, lab.Peers(1)...)
	harness.Converge(t, lab)
	known("")
	harness.Weft(t, lab, 1, "stop")
	harness.Launch(t, lab, 1, append(lab.Peers(1), "--dns-external")...)
	known("192.0.2.7")
	harness.Weft(t, lab, 1, "reset", "--state-dir", lab.StateDir(1))
	known("")
	harness.Launch(t, lab, 1, lab.Peers(1)...)
	harness.Converge(t, lab)
	known("")
}

// A name leads to an address only if the host that says so owns it, or attached it, or was
// told that it may name addresses outside the mesh.
func TestAddressesThatAHostMayName(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	server := exposed(t, lab, 1)
	harness.AddContainer(t, lab, 1, "client")
	ask := func(name, want string) {
		t.Helper()
		asked(t, lab, harness.At(1, "client"), server, name+".weft.internal.", dns.TypeA, want)
	}
	web := addNamed(t, lab, 2, "web", "web")
	path := lab.Netns(harness.At(2, "web"))
	for address, words := range map[string]string{"192.0.2.7": "--dns-external", server.String(): "add the name on the host that has it"} {
		for _, container := range [][]string{nil, {path}} {
			args := append(append([]string{"dns-add", address}, container...), "-h", "other")
			if code, out := harness.Try(t, lab, 2, args...); code != cmd.ExitUsage || !strings.Contains(out, words) {
				t.Errorf("%v: exit code %d, %q", args, code, out)
			}
		}
	}
	// Addresses that were attached or exposed need no flag, also outside the range. One that
	// was claimed belongs to the host that claimed it.
	harness.Weft(t, lab, 2, "attach", "--netns", path, "--hostname", "lan", "192.168.55.1/24")
	harness.Weft(t, lab, 2, "expose", "-h", "gw", "192.168.56.1/24")
	harness.Weft(t, lab, 2, "dns-add", "192.168.55.1", "-h", "alias")
	claimed := server
	for range 77 { // in the space of host 1
		claimed = claimed.Next()
	}
	harness.Weft(t, lab, 2, "attach", "--netns", path, "--hostname", "claimed", claimed.String()+"/12")
	harness.Weft(t, lab, 2, "dns-add", claimed.String(), "-h", "mine")
	ask("gw", "192.168.56.1")
	ask("alias", "192.168.55.1")
	ask("mine", claimed.String())
	ask("web", web.String())
	harness.Weft(t, lab, 2, "stop")
	ask("alias", "NXDOMAIN SOA weft.internal. 1")
	harness.Launch(t, lab, 2, lab.Peers(2)...)
	ask("gw", "192.168.56.1")
	ask("alias", "192.168.55.1")
	ask("mine", claimed.String())
}
