package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
)

// Config says what a Proxy does. The zero value of each switch is what weave
// did by default.
type Config struct {
	// Host is where the engine listens, like unix:///var/run/docker.sock.
	Host string
	// Subnet is the default subnet, that of the network weft.
	Subnet netip.Prefix
	// NoDefaultIPAlloc leaves containers alone that do not ask by WEFT_CIDR.
	NoDefaultIPAlloc bool
	// WithoutDNS leaves the name servers of containers alone.
	WithoutDNS bool
	// NoRewriteHosts leaves /etc/hosts as the engine makes it.
	NoRewriteHosts bool
	// NoMulticastRoute leaves multicast to the containers' other interfaces.
	NoMulticastRoute bool
	// RewriteInspect shows the address on weft where those look who know of one.
	RewriteInspect bool
	// HostnameFromLabel names a label whose value, instead of the container's
	// name, its hostname is made of.
	HostnameFromLabel string
	// HostnameMatch and HostnameReplacement make the hostname of that. A nil
	// HostnameMatch takes it as it is.
	HostnameMatch       *regexp.Regexp
	HostnameReplacement string
	// DNS tells the address of the name server for containers and their domain;
	// ok is false while there is none.
	DNS func() (server netip.Addr, domain string, ok bool)
	Log *slog.Logger
}

// Proxy passes requests to an engine. Make it with New.
type Proxy struct {
	Config
	log       *slog.Logger
	proto     string // of Host: unix or tcp
	addr      string
	http      http.Client // for requests that are edited
	networkMu sync.Mutex  // one network is made at a time

	mu     sync.Mutex
	engine *client.Client // nil until it is needed, and after it failed
}

// New returns a Proxy of the engine at c.Host, to which it does not connect.
func New(c Config) (*Proxy, error) {
	u, err := client.ParseHostURL(c.Host)
	if err != nil {
		return nil, fmt.Errorf("docker engine %q: %w", c.Host, err)
	}
	if u.Scheme != "unix" && u.Scheme != "tcp" {
		return nil, fmt.Errorf("docker engine %q: want unix:///PATH or tcp://HOST:PORT", c.Host)
	}
	p := &Proxy{Config: c, log: c.Log, proto: u.Scheme, addr: u.Host}
	p.http.Transport = &http.Transport{
		DisableKeepAlives:  true, // the engine may be another at the next request
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) },
	}
	p.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return p, nil
}

// client returns what the proxy's own questions are asked by. It has agreed on a
// version with the engine, so it is dropped when the engine may be another.
func (p *Proxy) client() (*client.Client, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.engine != nil {
		return p.engine, nil
	}
	c, err := client.New(client.WithHost(p.Host), client.WithUserAgent("weft"))
	if err == nil {
		p.engine = c
	}
	return c, err
}

// Reset has the next question agree on a version again. Call it when an engine
// has started.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.engine != nil {
		p.engine.Close()
		p.engine = nil
	}
}

// dialTimeout bounds how long the engine may take to accept.
const dialTimeout = 10 * time.Second

func (p *Proxy) dial(ctx context.Context) (halfCloser, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, p.proto, p.addr)
	if err != nil {
		return nil, fmt.Errorf("docker does not run on this host: %w", err)
	}
	return c.(halfCloser), nil // TCP or unix
}

// Serve answers clients on l until ctx ends, and closes l and their connections
// then.
func (p *Proxy) Serve(ctx context.Context, l net.Listener) error {
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	var clients sync.WaitGroup
	defer clients.Wait()
	for wait := firstAcceptDelay; ; {
		c, err := l.Accept()
		switch {
		case err == nil:
			wait = firstAcceptDelay
			clients.Go(func() { p.serveConn(ctx, c.(halfCloser)) })
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("docker's proxy on %s: %w", l.Addr(), err)
		}
		// Such as too many open files: that passes.
		p.log.Warn("docker's proxy could not take a client", "address", l.Addr(), "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, maxAcceptDelay)
	}
}

// How long Serve waits after it could not accept, at first and at last.
const (
	firstAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay   = time.Second
)

// version is the beginning of the path of a request that says which version of
// the API it means.
var version = regexp.MustCompile(`^/v[0-9]+(\.[0-9]+)*/`)

// pathOf returns the path of a request without the version of the API.
func pathOf(req *http.Request) string {
	p := path.Clean(req.URL.Path)
	if prefix := version.FindString(p); prefix != "" {
		return p[len(prefix)-1:]
	}
	return p
}

// handlerOf returns what answers a request, nil for those that are passed on.
func (p *Proxy) handlerOf(req *http.Request) handler {
	rest := pathOf(req)
	parts := strings.Split(strings.TrimPrefix(rest, "/"), "/")
	switch {
	case req.Method == http.MethodPost && rest == "/containers/create":
		return p.create
	case req.Method == http.MethodPost && rest == "/networks/create":
		return p.createNetwork
	case len(parts) != 3 || parts[0] != "containers":
		return nil
	case req.Method == http.MethodPost && (parts[2] == "start" || parts[2] == "restart") && !p.NoRewriteHosts:
		return p.start
	case req.Method == http.MethodGet && parts[2] == "json" && p.RewriteInspect:
		return p.inspect
	}
	return nil
}

// containerOf returns the container that a request names.
func containerName(req *http.Request) string {
	rest := pathOf(req)
	return strings.Split(rest, "/")[2]
}
