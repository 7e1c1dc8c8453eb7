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

// Config configures a Proxy. The zero value of each switch is Weave's default.
type Config struct {
	// Host is the address of the engine, like unix:///var/run/docker.sock.
	Host string
	// Subnet is the default subnet, that of the network weft.
	Subnet netip.Prefix
	// NoDefaultIPAlloc gives no address to a container without WEFT_CIDR.
	NoDefaultIPAlloc bool
	// WithoutDNS does not change the name servers of containers.
	WithoutDNS bool
	// NoRewriteHosts does not change /etc/hosts of containers.
	NoRewriteHosts bool
	// NoMulticastRoute adds no multicast route over weft's interface.
	NoMulticastRoute bool
	// RewriteInspect makes inspect show the weft address in the fields of the default
	// bridge, for clients that read one address only.
	RewriteInspect bool
	// HostnameFromLabel names a label whose value replaces the container's name as
	// the source of its hostname.
	HostnameFromLabel string
	// HostnameMatch and HostnameReplacement derive the hostname from that source. A
	// nil HostnameMatch takes it unchanged.
	HostnameMatch       *regexp.Regexp
	HostnameReplacement string
	// DNS returns the address of the name server for containers and their domain; ok
	// is false while there is no name server.
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
	engine *client.Client // nil until needed, and after Reset
}

// New returns a Proxy of the engine at c.Host. It does not connect to the engine.
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
		DisableKeepAlives:  true, // the engine may be restarted between requests
		DisableCompression: true,
		DialContext:        func(ctx context.Context, _, _ string) (net.Conn, error) { return p.dial(ctx) },
	}
	p.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return p, nil
}

// client returns the client for the proxy's own requests. It has negotiated an API
// version, so Reset drops it when the engine is restarted.
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

// Reset makes the next request of the proxy negotiate the API version again. Call it
// when an engine has started.
func (p *Proxy) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.engine != nil {
		p.engine.Close()
		p.engine = nil
	}
}

// dialTimeout bounds how long the engine may take to accept a connection.
const dialTimeout = 10 * time.Second

func (p *Proxy) dial(ctx context.Context) (halfCloser, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, p.proto, p.addr)
	if err != nil {
		return nil, fmt.Errorf("docker does not run on this host: %w", err)
	}
	return c.(halfCloser), nil // TCP or unix
}

// Serve answers clients on l until ctx ends. Then it closes l and all connections. A Listener has
// a bounded number of connections; clients that have not sent a request, or have not shown their
// certificate, make room for others.
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
		// A passing condition, such as too many open files.
		p.log.Warn("docker's proxy could not accept a client", "addr", l.Addr(), "err", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, maxAcceptDelay)
	}
}

// Serve waits that long after it could not accept, with exponential back-off.
const (
	firstAcceptDelay = 5 * time.Millisecond
	maxAcceptDelay   = time.Second
)

// version matches the API version at the beginning of a request's path.
var version = regexp.MustCompile(`^/v[0-9]+(\.[0-9]+)*/`)

// pathOf returns the path of a request without the API version.
func pathOf(req *http.Request) string {
	p := path.Clean(req.URL.Path)
	if prefix := version.FindString(p); prefix != "" {
		return p[len(prefix)-1:]
	}
	return p
}

// handlerOf returns the handler of a request, nil if it is relayed unchanged.
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

// containerName returns the container that a request names.
func containerName(req *http.Request) string {
	rest := pathOf(req)
	return strings.Split(rest, "/")[2]
}
