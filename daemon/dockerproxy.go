package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/docker/proxy"
)

// engineProxy serves the API of the container engine with weft in it.
type engineProxy interface {
	// start listens and serves in goroutines of g that end with ctx.
	start(ctx context.Context, g *errgroup.Group)
	// connected is called when the engine answers after it did not. Host is where it
	// listens.
	connected(host string)
	// addrs are where the proxy listens, and faults say why it does not listen
	// elsewhere. Both are constant after start.
	addrs() []string
	faults() []string
}

// noProxy is the proxy of a router without one, with the reasons if one was wanted.
type noProxy struct{ reasons []string }

var _ engineProxy = noProxy{}

func (noProxy) start(context.Context, *errgroup.Group) {}
func (noProxy) connected(string)                       {}
func (noProxy) addrs() []string                        { return nil }
func (n noProxy) faults() []string                     { return n.reasons }

// dockerProxy serves Docker's API at the places of its configuration.
type dockerProxy struct {
	proxy  *proxy.Proxy
	config DockerConfig
	log    *slog.Logger

	// Constant after start.
	listening []string
	listeners []*proxy.Listener // at the same places
	failed    []string
}

var _ engineProxy = (*dockerProxy)(nil)

func newDockerProxy(c DockerConfig, subnet netip.Prefix, names *dns.Service, log *slog.Logger) engineProxy {
	pc := c.ProxyConfig
	pc.Host, pc.Subnet, pc.Log = c.Host, subnet, log
	pc.DNS = func() (netip.Addr, string, bool) {
		server, domain := names.Server(), names.Domain()
		return server, domain, server.IsValid() && domain != ""
	}
	p, err := proxy.New(pc)
	if err != nil {
		log.Warn("the Docker API proxy cannot start", "err", err)
		return noProxy{[]string{fmt.Sprintf("the Docker API proxy cannot start: %v", err)}}
	}
	return &dockerProxy{proxy: p, config: c, log: log}
}

// start listens at each place. One that fails keeps nothing else from running.
func (p *dockerProxy) start(ctx context.Context, g *errgroup.Group) {
	for _, addr := range p.config.ProxyListen {
		l, err := proxy.Listen(addr, p.config.ProxyTLS, p.config.Host)
		if err != nil {
			p.log.Warn("the Docker API proxy cannot listen", "addr", addr, "err", err)
			p.failed = append(p.failed, fmt.Sprintf("the Docker API proxy cannot listen on %s: %v", addr, err))
			continue
		}
		p.listening, p.listeners = append(p.listening, addr), append(p.listeners, l)
		g.Go(func() error { p.serve(ctx, l); return nil })
	}
}

func (p *dockerProxy) serve(ctx context.Context, l net.Listener) {
	if err := p.proxy.Serve(ctx, l); err != nil {
		p.log.Error("the Docker API proxy ended", "err", err)
	}
}

func (p *dockerProxy) connected(host string) {
	p.proxy.Reset()
	for _, l := range p.listeners {
		// The engine may have made its socket after the proxy made this one.
		if err := l.Share(host); err != nil {
			p.log.Warn("users of docker cannot open the proxy's socket", "err", err)
		}
	}
}

func (p *dockerProxy) addrs() []string { return slices.Clone(p.listening) }

func (p *dockerProxy) faults() []string { return p.failed }
