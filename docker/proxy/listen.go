package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"strings"

	"github.com/weft-net/weft/internal/connlimit"
	"github.com/weft-net/weft/internal/hostfile"
)

// TLS configures TLS for clients over TCP.
type TLS struct {
	// Cert and Key are files with the proxy's certificate and its key; empty
	// disables TLS.
	Cert, Key string
	// CA is a file with the certificates of the authorities that must have signed a
	// client's certificate; empty requires no client certificate.
	CA string
}

// CheckListen checks an address to listen on, unix:///PATH or tcp://HOST:PORT.
// Without client certificates only loopback addresses are allowed over TCP.
func CheckListen(addr string, t TLS) error {
	proto, rest, ok := strings.Cut(addr, "://")
	switch {
	case ok && proto == "unix" && strings.HasPrefix(rest, "/"):
		return nil
	case !ok || proto != "tcp":
		return fmt.Errorf("%q: want unix:///PATH or tcp://HOST:PORT", addr)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil || port == "" {
		return fmt.Errorf("%q: want unix:///PATH or tcp://HOST:PORT", addr)
	}
	if ip := net.ParseIP(host); t.CA == "" && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("%q: every client of that address would have the rights of root on this host; require client certificates with --tlsverify", addr)
	}
	return nil
}

// maxConns is the most connections of one listener. Clients that follow logs and events keep
// theirs for long.
const maxConns = 1024

// Listener is where a proxy listens.
type Listener struct {
	net.Listener
	socket *hostfile.Socket // nil: TCP
}

// Listen listens on an address that CheckListen accepts. Engine is the address of
// the engine; a unix socket gets its owner and mode, see Share.
func Listen(addr string, t TLS, engine string) (*Listener, error) {
	proto, rest, _ := strings.Cut(addr, "://")
	if proto == "unix" {
		return listenUnix(rest, engine)
	}
	l, err := net.Listen("tcp", rest)
	if err != nil {
		return nil, fmt.Errorf("docker's proxy: %w", err)
	}
	l = connlimit.New(l, maxConns, 0)
	if t.Cert == "" {
		return &Listener{Listener: l}, nil
	}
	c, err := t.config()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("docker's proxy on %s: %w", addr, err)
	}
	return &Listener{Listener: tls.NewListener(l, c)}, nil
}

func listenUnix(path, engine string) (*Listener, error) {
	s, err := hostfile.Listen(path)
	if err != nil {
		return nil, fmt.Errorf("docker's proxy: %w", err)
	}
	l := &Listener{Listener: connlimit.New(s, maxConns, 0), socket: s}
	if err := l.Share(engine); err != nil {
		l.Close()
		return nil, fmt.Errorf("docker's proxy: %w", err)
	}
	return l, nil
}

// Share gives a unix socket the owner and mode of the engine's socket at host, so that the
// same users may use both. The folders of both stay as they are. It does nothing if either
// is no unix socket or the engine's does not exist.
func (l *Listener) Share(host string) error {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "unix" || l.socket == nil {
		return nil
	}
	if err := l.socket.ShareAs(u.Path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Check reports whether the files can be read and fit together.
func (t TLS) Check() error {
	if t.Cert == "" {
		return nil
	}
	_, err := t.config()
	return err
}

func (t TLS) config() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
	if err != nil {
		return nil, fmt.Errorf("read certificate %s and its key %s: %w", t.Cert, t.Key, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if t.CA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("read the authorities of client certificates: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the authorities of client certificates: %s has no certificate", t.CA)
	}
	return c, nil
}
