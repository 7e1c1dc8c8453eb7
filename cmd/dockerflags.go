package cmd

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/plugin"
	"github.com/weft-net/weft/docker/proxy"
)

// dockerFlags are the flags of weft launch that are about Docker.
type dockerFlags struct {
	fs *pflag.FlagSet

	api          string
	plugin       bool
	pluginSocket string

	proxy                          bool
	listen                         []string
	tls, tlsVerify                 bool
	tlsCA, tlsCert, tlsKey         string
	noDefaultIPAlloc, withoutDNS   bool
	noRewriteHosts, noMulticast    bool
	rewriteInspect                 bool
	hostnameFromLabel              string
	hostnameMatch, hostnameReplace string
}

const (
	// defaultPluginSocket is in the folder that Docker looks for plugins in; the
	// file's name is that of the driver.
	defaultPluginSocket = "/run/docker/plugins/" + plugin.Name + ".sock"
	defaultProxyListen  = "unix:///run/weft/docker.sock"
)

func (f *dockerFlags) register(fs *pflag.FlagSet) {
	f.fs = fs
	fs.StringVar(&f.api, "docker-api", docker.DefaultHost, `where the Docker engine listens, "" for no Docker`)
	fs.BoolVar(&f.plugin, "plugin", true, "be Docker's network and address driver weft, and have the network weft there")
	fs.StringVar(&f.pluginSocket, "plugin-socket", defaultPluginSocket, "where Docker finds the driver")
	fs.BoolVar(&f.proxy, "proxy", true, "serve Docker's API with weft in it; it needs the driver")
	fs.StringArrayVarP(&f.listen, "proxy-listen", "H", []string{defaultProxyListen}, "where the proxy listens, unix:///PATH or tcp://HOST:PORT (repeatable)")
	fs.BoolVar(&f.tls, "tls", false, "the proxy uses TLS over TCP")
	fs.BoolVar(&f.tlsVerify, "tlsverify", false, "the proxy uses TLS over TCP, and its clients have to show a certificate")
	fs.StringVar(&f.tlsCA, "tlscacert", "", "file with the certificates that clients' are signed by")
	fs.StringVar(&f.tlsCert, "tlscert", "", "file with the proxy's certificate")
	fs.StringVar(&f.tlsKey, "tlskey", "", "file with the key of the proxy's certificate")
	fs.BoolVar(&f.noDefaultIPAlloc, "no-default-ipalloc", false, "the proxy leaves containers alone that do not ask by "+proxy.Variable)
	fs.BoolVar(&f.withoutDNS, "without-dns", false, "the proxy leaves the name servers of containers alone")
	fs.BoolVar(&f.noRewriteHosts, "no-rewrite-hosts", false, "the proxy leaves /etc/hosts of containers as Docker makes it")
	fs.BoolVar(&f.noMulticast, "no-multicast-route", false, "the proxy leaves multicast to the containers' other interfaces")
	fs.BoolVar(&f.rewriteInspect, "rewrite-inspect", false, "the proxy shows the address on weft as the container's own")
	fs.StringVar(&f.hostnameFromLabel, "hostname-from-label", "", "the proxy makes hostnames of this label, not of the container's name")
	fs.StringVar(&f.hostnameMatch, "hostname-match", "(.*)", "what of the name the proxy makes hostnames of, a regular expression")
	fs.StringVar(&f.hostnameReplace, "hostname-replacement", "$1", "how it makes them of what matched")
}

func (f *dockerFlags) check(c *daemon.Config) error {
	if f.api == "" {
		return nil
	}
	if _, err := docker.NewClient(f.api); err != nil {
		return fmt.Errorf("--docker-api: %w", err)
	}
	c.DockerHost = f.api
	if !f.plugin {
		if f.proxy && f.fs.Changed("proxy") {
			return errors.New("--proxy needs Docker's driver, so --plugin=false can not go with it")
		}
		return nil
	}
	if !strings.HasPrefix(f.pluginSocket, "/") || len(f.pluginSocket) > maxSocketPath {
		return fmt.Errorf("--plugin-socket %q: want an absolute path of up to %d characters", f.pluginSocket, maxSocketPath)
	}
	c.PluginSocket = f.pluginSocket
	if !f.proxy {
		return nil
	}
	return f.checkProxy(c)
}

func (f *dockerFlags) checkProxy(c *daemon.Config) error {
	if f.tls || f.tlsVerify {
		if f.tlsCert == "" || f.tlsKey == "" {
			return errors.New("--tls and --tlsverify need --tlscert and --tlskey")
		}
		c.ProxyTLS.Cert, c.ProxyTLS.Key = f.tlsCert, f.tlsKey
	}
	if f.tlsVerify {
		if f.tlsCA == "" {
			return errors.New("--tlsverify needs --tlscacert")
		}
		c.ProxyTLS.CA = f.tlsCA
	}
	for _, addr := range f.listen {
		if err := proxy.CheckListen(addr, c.ProxyTLS); err != nil {
			return fmt.Errorf("-H %w", err)
		}
	}
	if err := c.ProxyTLS.Check(); err != nil {
		return err
	}
	match, err := regexp.Compile(f.hostnameMatch)
	if err != nil {
		return fmt.Errorf("--hostname-match: %w", err)
	}
	c.ProxyListen = f.listen
	c.Proxy = &proxy.Config{
		NoDefaultIPAlloc: f.noDefaultIPAlloc, WithoutDNS: f.withoutDNS, NoRewriteHosts: f.noRewriteHosts,
		NoMulticastRoute: f.noMulticast, RewriteInspect: f.rewriteInspect,
		HostnameFromLabel: f.hostnameFromLabel, HostnameMatch: match, HostnameReplacement: f.hostnameReplace,
	}
	return nil
}
