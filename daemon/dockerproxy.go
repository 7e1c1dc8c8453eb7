package daemon

import (
	"context"
	"net/netip"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/docker/proxy"
)

// serveProxy serves Docker's API with weft in it until ctx ends. What can not be
// served is told, and keeps nothing else from running.
func (d *daemon) serveProxy(ctx context.Context, g *errgroup.Group) {
	if d.config.Proxy == nil || d.engine == nil || d.engine.drivers == nil {
		return
	}
	log := d.log.With("part", "proxy")
	c := *d.config.Proxy
	c.Host, c.Subnet, c.Log = d.config.DockerHost, d.engine.drivers.subnet, log
	c.DNS = func() (netip.Addr, string, bool) {
		server, domain := d.names.Server(), d.names.Domain()
		return server, domain, server.IsValid() && domain != ""
	}
	p, err := proxy.New(c)
	if err != nil {
		d.warn("there is no proxy of docker: " + err.Error())
		return
	}
	d.engine.proxy = p
	for _, addr := range d.config.ProxyListen {
		l, err := proxy.Listen(addr, d.config.ProxyTLS, c.Host)
		if err != nil {
			d.warn("there is no proxy of docker on " + addr + ": " + err.Error())
			continue
		}
		if path, unix := strings.CutPrefix(addr, "unix://"); unix {
			d.engine.share = append(d.engine.share, path)
		}
		d.engine.proxies = append(d.engine.proxies, addr)
		g.Go(func() error {
			if err := p.Serve(ctx, l); err != nil {
				log.Error("the proxy of docker ended", "error", err)
			}
			return nil
		})
	}
}
