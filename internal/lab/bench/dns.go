package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/miekg/dns"

	weftdns "github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/rival"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/lab/traffic"
	"github.com/weft-net/weft/internal/netdev"
)

// The servers of the table dns.
const (
	pathWeftDNS = "weft"
	pathCoreDNS = "CoreDNS, hosts"
)

// dnsRun sends queries to a server from several sockets.
type dnsRun struct {
	sockets                int
	load                   traffic.Load // of each socket
	rate, median, p99, cpu *metric      // nil if not needed
}

// dnsMetric returns a row that compares weft to CoreDNS.
func dnsMetric(name, unit string, less bool, must, aim float64) metric {
	return metric{name: name, unit: unit, lowerIsBetter: less, must: must, aim: aim, ours: pathWeftDNS, against: []string{pathCoreDNS}}
}

var dnsMetrics = []metric{
	dnsMetric("DNS, 64 at once", "kquery/s", false, 0.9, 1.2),
	dnsMetric("DNS, 64 at once, median", "us", true, 1.1, 1),
	dnsMetric("DNS, 64 at once, 99th", "us", true, 1, 0.9),
	dnsMetric("DNS, 20,000 a second, median", "us", true, 1.1, 1),
	dnsMetric("DNS, 20,000 a second, 99th", "us", true, 1, 0.9),
	dnsMetric("DNS, CPU of the server", "us/query", true, 1, 0.8),
}

// dnsTable compares service discovery to CoreDNS. Both serve the same names.
var dnsTable = table{
	paths: []string{pathWeftDNS, pathCoreDNS},
	runs:  []run{{metrics: dnsMetrics}},
}

var dnsRuns = []dnsRun{
	{sockets: 1, load: traffic.Load{Window: 64}, rate: &dnsMetrics[0], median: &dnsMetrics[1], p99: &dnsMetrics[2], cpu: &dnsMetrics[5]},
	{sockets: 1, load: traffic.Load{Window: 64, PerSecond: 20000}, median: &dnsMetrics[3], p99: &dnsMetrics[4]},
}

// dnsNames is the number of names, each with one address.
const dnsNames = 1000

// dnsBench measures two servers on one host, with the same names, from another host.
type dnsBench struct {
	*bench
	lab     *testbed.Lab
	servers map[string]netip.AddrPort
	pids    map[string]int
	paths   []string // of the running servers
	queries [][]byte // one for each name
}

// dns measures the table dns.
func (b *bench) dns(ctx context.Context, _ []run, got results) (err error) {
	const otherPort = 5300
	first := testbed.Addr4(1)
	l, err := b.up(ctx, "n", testbed.Config{Hosts: 2, Topology: testbed.Full, Password: benchPassword}, "--dns-listen-address", first.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, testbed.Down(l.Name)) }()
	d := &dnsBench{bench: b, lab: l, pids: make(map[string]int), servers: map[string]netip.AddrPort{
		pathWeftDNS: netip.AddrPortFrom(first, weftdns.Port), pathCoreDNS: netip.AddrPortFrom(first, otherPort),
	}}
	if err := d.start(ctx); err != nil {
		return err
	}
	for round := range b.Rounds {
		for i := range d.paths {
			path := d.paths[(i+round)%len(d.paths)]
			for _, r := range dnsRuns {
				if err := d.run(ctx, path, r, got); err != nil {
					return err
				}
			}
			fmt.Fprintf(b.progress, "round %d of %d: %s\n", round+1, b.Rounds, path)
		}
	}
	return nil
}

// start adds the names to the servers and waits until they answer.
func (b *dnsBench) start(ctx context.Context) error {
	hosts, err := b.makeNames()
	if err != nil {
		return err
	}
	client := api.NewClient(b.lab.Socket(2)) // not the host of the server, so names must replicate
	for name, a := range hosts {
		if err := client.AddName(ctx, api.NameRequest{Hostname: name, Addresses: []netip.Addr{a}}); err != nil {
			return err
		}
	}
	answers := func(path string) func() bool {
		return func() bool { // each name once
			_, err := b.ask(ctx, path, dnsRun{sockets: 1, load: traffic.Load{Window: 16}}, minTime)
			return err == nil
		}
	}
	timeout, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	b.paths = []string{pathWeftDNS}
	b.pids[pathWeftDNS], _ = b.lab.RouterPID(1)
	if b.Rivals != "" {
		b.pids[pathCoreDNS], err = rival.CoreDNS(timeout, b.lab, b.Rivals, b.servers[pathCoreDNS], hosts, weftdns.DefaultTTL, answers(pathCoreDNS))
		if err != nil {
			return err
		}
		b.paths = append(b.paths, pathCoreDNS)
	}
	for !answers(pathWeftDNS)() {
		if err := sleep(timeout, pollInterval); err != nil {
			return fmt.Errorf("wait for the names to arrive: %w", err)
		}
	}
	return nil
}

// makeNames makes the names and the queries for them.
func (b *dnsBench) makeNames() (hosts map[string]netip.Addr, err error) {
	hosts = make(map[string]netip.Addr)
	for i := range dnsNames {
		name := fmt.Sprintf("name%d.%s", i, weftdns.DefaultDomain)
		hosts[name] = netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		q, err := new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA).Pack()
		if err != nil {
			return nil, fmt.Errorf("make DNS queries: %w", err)
		}
		b.queries = append(b.queries, q)
	}
	return hosts, nil
}

// run makes one run with a server and adds the needed values to the results.
func (b *dnsBench) run(ctx context.Context, path string, r dnsRun, got results) error {
	before, err := testbed.Usage(b.pids[path])
	if err != nil {
		return err
	}
	a, err := b.ask(ctx, path, r, b.Time)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	after, err := testbed.Usage(b.pids[path])
	if err != nil {
		return err
	}
	cpu := (after.CPU - before.CPU).Seconds() * 1e6 / (a.PerSecond * b.Time.Seconds())
	if a.Lost > 0 {
		fmt.Fprintf(b.progress, "%s: %d queries were not answered\n", path, a.Lost)
	}
	for _, v := range []struct {
		m     *metric
		value float64
	}{{r.rate, a.PerSecond / 1e3}, {r.median, float64(a.Median) / 1e3}, {r.p99, float64(a.P99) / 1e3}, {r.cpu, cpu}} {
		if v.m != nil && b.Only.MatchString(v.m.name) {
			got.add(v.m.name, path, v.value)
		}
	}
	return nil
}

// pollInterval is how often start checks whether the servers answer.
const pollInterval = 50 * time.Millisecond

// ask sends queries from the second host.
func (b *dnsBench) ask(ctx context.Context, path string, r dnsRun, d time.Duration) (traffic.Answers, error) {
	server := b.servers[path]
	var socks []*net.UDPConn
	defer func() {
		for _, s := range socks {
			s.Close()
		}
	}()
	err := netdev.Do(b.lab.Netns(testbed.Place{Host: 2}), func() error {
		for range r.sockets {
			s, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(server))
			if err != nil {
				return err
			}
			socks = append(socks, s)
		}
		return nil
	})
	if err != nil {
		return traffic.Answers{}, fmt.Errorf("ask %s: %w", server, err)
	}
	return traffic.Queries(ctx, socks, r.load, b.queries, d)
}
