package daemon

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/proxy"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/rotation"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/plan"
)

const (
	maxNickname = 64 // bytes
	// maxSocketPath: sun_path of struct sockaddr_un has 108 bytes, and ends with a
	// zero byte.
	maxSocketPath = 107
	maxTTL        = 1<<31 - 1 // seconds; RFC 2181, 8
)

// Check fills in the settings that follow from others, and returns an error that
// names the first setting that is wrong by its flag of weft launch. Run needs a
// configuration that Check has accepted.
func (c *Config) Check() error {
	if err := c.complete(); err != nil {
		return err
	}
	for _, check := range []func() error{
		c.checkPeers, c.checkNumbers, c.checkRanges, c.checkPlaces, c.checkDNS, c.Docker.check,
	} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (c *Config) complete() (err error) {
	if c.Mesh.Nickname == "" {
		if c.Mesh.Nickname, err = os.Hostname(); err != nil {
			return fmt.Errorf("find the hostname, for --nickname: %w", err)
		}
	}
	if c.MTU == AutoMTU {
		if c.MTU, err = c.autoMTU(); err != nil {
			return fmt.Errorf("--mtu auto: %w", err)
		}
	}
	if !c.DefaultSubnet.IsValid() {
		c.DefaultSubnet = c.Range
	}
	if len(c.DNS.Listen) == 0 {
		c.DNS.Listen = []dns.Listen{{Interface: dns.DockerBridge, Port: dns.Port}, {Interface: c.Bridge, Port: dns.Port}}
	}
	return nil
}

// autoMTU returns what is left of the MTU of the underlay.
func (c *Config) autoMTU() (int, error) {
	_, mtu, err := netdev.DefaultInterface()
	if err != nil {
		return 0, err
	}
	return mtu - c.overhead(), nil
}

// overhead returns the largest overhead that packets of containers may have, in bytes.
func (c *Config) overhead() (most int) {
	outer := netip.IPv4Unspecified()
	if c.Host.Is6() {
		outer = c.Host
	}
	if len(c.Passwords) > 0 {
		return plan.EncryptedOverhead(outer)
	}
	lists := append([]fastpath.EncapsTo{{Encaps: c.Fast.Encaps, NoVXLAN: c.NoVXLAN}}, c.Fast.EncapsTo...)
	for _, l := range lists {
		switch encaps := l.Encaps.List(); {
		case !l.NoVXLAN || c.Fast.Off || c.Fast.NoExpress || len(encaps) == 0:
			return plan.Overhead(outer)
		case slices.Contains(encaps, plan.IPIP):
			most = plan.IPIPOverhead
		}
	}
	return most
}

func (c *Config) checkPeers() error {
	for _, p := range c.Peers {
		if err := api.CheckTarget(p); err != nil {
			return err
		}
	}
	if n := c.Mesh.Nickname; len(n) > maxNickname || strings.ContainsFunc(n, func(r rune) bool { return r <= ' ' || r == 0x7f || r == '\ufffd' }) {
		return fmt.Errorf("--nickname %q: want up to %d characters without blanks", n, maxNickname)
	}
	return CheckPasswords(c.Passwords)
}

// CheckPasswords returns an error if a router cannot have these passwords.
func CheckPasswords(list []string) error {
	if len(list) > mesh.MaxPasswords {
		return fmt.Errorf("%d passwords, at most %d", len(list), mesh.MaxPasswords)
	}
	for _, p := range list {
		switch {
		case len(p) < session.MinPassword:
			return fmt.Errorf("a password has fewer than %d bytes; choose a longer one", session.MinPassword)
		case len(p) > rotation.MaxText:
			return fmt.Errorf("a password has more than %d bytes", rotation.MaxText)
		}
	}
	return nil
}

func (c *Config) checkNumbers() error {
	m := c.Mesh
	switch {
	case c.Port < 1 || c.Port > 65533:
		return fmt.Errorf("--port %d: want 1 to 65533, as the next two are used too", c.Port)
	case m.ConnLimit < 0:
		return fmt.Errorf("--conn-limit %d: want a number of sessions, or 0 for no limit", m.ConnLimit)
	case c.MTU < 576 || c.MTU > 65000:
		return fmt.Errorf("--mtu %d: want 576 to 65000 bytes", c.MTU)
	case c.MTU < 1280 && c.Range6.IsValid():
		return fmt.Errorf("--mtu %d: IPv6 needs at least 1280 bytes", c.MTU)
	case m.ProtocolMax > 0 && m.ProtocolMax < m.ProtocolMin:
		return fmt.Errorf("--protocol-min %d --protocol-max %d: --protocol-max must not be less than --protocol-min", m.ProtocolMin, m.ProtocolMax)
	}
	return nil
}

func (c *Config) checkRanges() error {
	for _, r := range []struct {
		flag  string
		value netip.Prefix
	}{{"--ipalloc-range", c.Range}, {"--ipalloc-default-subnet", c.DefaultSubnet}, {"--ipalloc-range6", c.Range6}} {
		if err := CheckRange(r.value); err != nil {
			return fmt.Errorf("%s %w", r.flag, err)
		}
	}
	switch {
	case c.Range.IsValid() && !c.Range.Addr().Is4():
		return fmt.Errorf("--ipalloc-range %s: want an IPv4 range; the IPv6 one is --ipalloc-range6", c.Range)
	case c.DefaultSubnet.IsValid() && !c.Range.IsValid():
		return errors.New("--ipalloc-default-subnet requires --ipalloc-range")
	case c.DefaultSubnet.IsValid() && !c.DefaultSubnet.Overlaps(c.Range):
		return fmt.Errorf("--ipalloc-default-subnet %s: it has no address of the range %s", c.DefaultSubnet, c.Range)
	case c.Range6.IsValid() && !c.Range6.Addr().Is6():
		return fmt.Errorf("--ipalloc-range6 %s: want an IPv6 range", c.Range6)
	}
	return nil
}

// CheckRange returns an error that names the range, unless addresses can be given
// from it. The zero Prefix is no range, and right.
func CheckRange(p netip.Prefix) error {
	switch m := p.Masked(); {
	case !p.IsValid():
		return nil
	case p.Addr().Is4In6():
		return fmt.Errorf("%q: want a range like %s", p, DefaultRange)
	case m != p:
		return fmt.Errorf("%s: bits are set beyond /%d; did you mean %s?", p, p.Bits(), m)
	case p.Addr().BitLen()-p.Bits() < 2:
		return fmt.Errorf("%s: too small; want at least 4 addresses", p)
	}
	return nil
}

func (c *Config) checkPlaces() error {
	if !netdev.IsInterfaceName(c.Bridge) {
		return fmt.Errorf("--bridge %q: want up to 15 letters, digits, dots, hyphens and underscores", c.Bridge)
	}
	if strings.HasPrefix(c.Bridge, netdev.HostPrefix) {
		return fmt.Errorf("--bridge %s: names that begin with %s are for the bridge's ports", c.Bridge, netdev.HostPrefix)
	}
	if err := checkSocket("--socket", c.Socket); err != nil {
		return err
	}
	if !strings.HasPrefix(c.StateDir, "/") {
		return fmt.Errorf("--state-dir %q: want an absolute path", c.StateDir)
	}
	for i, s := range c.StatusHosts {
		host, port, err := api.SplitTarget(s)
		if err != nil || port != 0 {
			return fmt.Errorf("--status-host %q: want a name or an address, without a port", s)
		}
		c.StatusHosts[i] = strings.TrimSuffix(host, ".")
	}
	if c.StatusAddr == "" {
		return nil
	}
	host, port, err := net.SplitHostPort(c.StatusAddr)
	n, perr := strconv.Atoi(port)
	if _, aerr := netip.ParseAddr(host); err != nil || perr != nil || n < 0 || n > 65535 || (host != "" && aerr != nil) {
		return fmt.Errorf("--status-addr %q: want ADDRESS:PORT, or \"\" for none", c.StatusAddr)
	}
	return nil
}

func checkSocket(flag, path string) error {
	if !strings.HasPrefix(path, "/") || len(path) > maxSocketPath {
		return fmt.Errorf("%s %q: want an absolute path of up to %d characters", flag, path, maxSocketPath)
	}
	return nil
}

func (c *Config) checkDNS() error {
	d := &c.DNS
	switch {
	case d.TTL > maxTTL:
		return fmt.Errorf("--dns-ttl %d: want seconds, 0 to %d", d.TTL, maxTTL)
	case d.Timeout < 100*time.Millisecond || d.Timeout > time.Minute:
		return fmt.Errorf("--dns-fallback-timeout %s: want 100ms to 1m", d.Timeout)
	case !strings.HasPrefix(d.ResolvConf, "/"):
		return fmt.Errorf("--resolv-conf %q: want an absolute path", d.ResolvConf)
	}
	return nil
}

func (c *DockerConfig) check() error {
	if c.Host == "" {
		return nil
	}
	if _, err := docker.NewClient(c.Host); err != nil {
		return fmt.Errorf("--docker-api: %w", err)
	}
	if !c.Driver {
		return nil
	}
	if err := checkSocket("--plugin-socket", c.DriverSocket); err != nil {
		return err
	}
	if !c.Proxy {
		return nil
	}
	for _, addr := range c.ProxyListen {
		if err := proxy.CheckListen(addr, c.ProxyTLS); err != nil {
			return fmt.Errorf("-H %w", err)
		}
	}
	return c.ProxyTLS.Check()
}
