package cmd

import (
	"errors"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/docker/proxy"
)

// proxyTLSFlags are the flags of weft launch on TLS of the proxy of Docker's API.
type proxyTLSFlags struct {
	on, verify bool
	files      proxy.TLS
}

// registerDocker defines the flags that are about Docker.
func registerDocker(fs *pflag.FlagSet, c *daemon.DockerConfig, tls *proxyTLSFlags) {
	fs.StringVar(&c.Host, "docker-api", c.Host, `where the Docker engine listens, "" for no Docker`)
	fs.BoolVar(&c.Driver, "plugin", c.Driver, "be Docker's network and address driver weft, and make the network weft there")
	fs.StringVar(&c.DriverSocket, "plugin-socket", c.DriverSocket, "where Docker finds the driver")
	fs.BoolVar(&c.Proxy, "proxy", c.Proxy, "serve Docker's API with weft in it; it needs the driver")
	fs.StringArrayVarP(&c.ProxyListen, "proxy-listen", "H", c.ProxyListen, "where the proxy listens, unix:///PATH or tcp://HOST:PORT (repeatable)")
	fs.BoolVar(&tls.on, "tls", false, "the proxy uses TLS over TCP")
	fs.BoolVar(&tls.verify, "tlsverify", false, "the proxy uses TLS over TCP, and its clients must show a certificate")
	fs.StringVar(&tls.files.CA, "tlscacert", "", "file with the certificates that sign those of clients")
	fs.StringVar(&tls.files.Cert, "tlscert", "", "file with the proxy's certificate")
	fs.StringVar(&tls.files.Key, "tlskey", "", "file with the key of the proxy's certificate")
	p := &c.ProxyConfig
	fs.BoolVar(&p.NoDefaultIPAlloc, "no-default-ipalloc", p.NoDefaultIPAlloc, "the proxy attaches only containers that ask for it with "+proxy.Variable)
	fs.BoolVar(&p.WithoutDNS, "without-dns", p.WithoutDNS, "the proxy does not change the name servers of containers")
	fs.BoolVar(&p.NoRewriteHosts, "no-rewrite-hosts", p.NoRewriteHosts, "the proxy does not change /etc/hosts of containers")
	fs.BoolVar(&p.NoMulticastRoute, "no-multicast-route", p.NoMulticastRoute, "the proxy adds no multicast route through weft")
	fs.BoolVar(&p.RewriteInspect, "rewrite-inspect", p.RewriteInspect, "docker inspect through the proxy shows the container's weft address")
	fs.StringVar(&p.HostnameFromLabel, "hostname-from-label", p.HostnameFromLabel, "the proxy makes hostnames from this label instead of the container's name")
	parsedVar(fs, &p.HostnameMatch, parsePattern, "hostname-match", p.HostnameMatch.String(), "regular expression matched against the container's name to derive its hostname")
	fs.StringVar(&p.HostnameReplacement, "hostname-replacement", p.HostnameReplacement, "replacement text for the match; $1 is the first group")
}

// config returns the TLS of the proxy, the zero TLS for none.
func (f *proxyTLSFlags) config() (t proxy.TLS, err error) {
	switch {
	case !f.on && !f.verify:
		return proxy.TLS{}, nil
	case f.files.Cert == "" || f.files.Key == "":
		return proxy.TLS{}, errors.New("--tls and --tlsverify need --tlscert and --tlskey")
	case f.verify && f.files.CA == "":
		return proxy.TLS{}, errors.New("--tlsverify needs --tlscacert")
	}
	t = f.files
	if !f.verify {
		t.CA = ""
	}
	return t, nil
}
