package cmd

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/dns/forward"
	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/dns/resolvconf"
)

// dnsFlags are the flags of weft launch on service discovery.
type dnsFlags struct {
	off        bool
	domain     string
	ttl        int
	listen     []string
	timeout    time.Duration
	resolvConf string
}

func (f *dnsFlags) register(fs *pflag.FlagSet) {
	fs.BoolVar(&f.off, "no-dns", false, "answer no DNS queries and register no names on this host")
	fs.StringVar(&f.domain, "dns-domain", dns.DefaultDomain, "domain of the names of containers; the same on all hosts")
	fs.IntVar(&f.ttl, "dns-ttl", dns.DefaultTTL, "seconds for which clients may remember an answer")
	fs.StringSliceVar(&f.listen, "dns-listen-address", nil,
		"addresses or interfaces, with or without :PORT, to answer DNS queries at ("+dns.DockerBridge+" and the bridge)")
	fs.DurationVar(&f.timeout, "dns-fallback-timeout", forward.DefaultTimeout, "time that the host's name servers have to answer")
	fs.StringVar(&f.resolvConf, "resolv-conf", resolvconf.DefaultPath, "file with the host's name servers")
}

func (f *dnsFlags) check(c *daemon.Config) (err error) {
	d := &c.DNS
	d.Off, d.Timeout, d.ResolvConf = f.off, f.timeout, f.resolvConf
	if d.Domain, err = names.Canonical(strings.TrimPrefix(f.domain, ".")); err != nil {
		return fmt.Errorf("--dns-domain: %w", err)
	}
	const maxTTL = 1<<31 - 1 // RFC 2181, 8
	if f.ttl < 0 || f.ttl > maxTTL {
		return fmt.Errorf("--dns-ttl %d: want seconds, 0 to %d", f.ttl, maxTTL)
	}
	d.TTL = uint32(f.ttl)
	if f.timeout < 100*time.Millisecond || f.timeout > time.Minute {
		return fmt.Errorf("--dns-fallback-timeout %s: want 100ms to 1m", f.timeout)
	}
	if !strings.HasPrefix(f.resolvConf, "/") {
		return fmt.Errorf("--resolv-conf %q: want an absolute path", f.resolvConf)
	}
	places := f.listen
	if len(places) == 0 {
		places = []string{dns.DockerBridge, c.Bridge}
	}
	for _, s := range places {
		l, err := dns.ParseListen(s)
		if err != nil {
			return fmt.Errorf("--dns-listen-address: %w", err)
		}
		d.Listen = append(d.Listen, l)
	}
	return nil
}
