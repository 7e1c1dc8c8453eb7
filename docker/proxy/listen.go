package proxy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/weft-net/weft/internal/api"
)

// TLS says how clients over TCP are met.
type TLS struct {
	// Cert and Key are files with the proxy's certificate and its key; empty: no
	// TLS.
	Cert, Key string
	// CA is a file with the certificates that clients' must be signed by; empty:
	// clients need none.
	CA string
}

// CheckListen tells what is wrong with an address to listen on, unix:///PATH or
// tcp://HOST:PORT, or returns nil.
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
		return fmt.Errorf("%q: whoever reaches that is root on this host; have clients show a certificate, --tlsverify", addr)
	}
	return nil
}

// Listen listens on such an address. A unix socket gets the owner and mode of
// the engine's, if that is there, so that who may use the one may use the other.
func Listen(addr string, t TLS, engine string) (net.Listener, error) {
	proto, rest, _ := strings.Cut(addr, "://")
	if proto == "unix" {
		return listenUnix(rest, engine)
	}
	l, err := net.Listen("tcp", rest)
	if err != nil {
		return nil, fmt.Errorf("docker's proxy: %w", err)
	}
	if t.Cert == "" {
		return l, nil
	}
	c, err := t.config()
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("docker's proxy on %s: %w", addr, err)
	}
	return tls.NewListener(l, c), nil
}

func listenUnix(path, engine string) (net.Listener, error) {
	l, err := api.ListenUnix(path)
	if err != nil {
		return nil, fmt.Errorf("docker's proxy: %w", err)
	}
	if err := ShareSocket(path, engine); err != nil {
		l.Close()
		return nil, fmt.Errorf("docker's proxy: %w", err)
	}
	return l, nil
}

// Share gives a unix socket the owner and mode of the engine's at host, so that
// users of the one can use the other. One that is not there changes nothing.
func ShareSocket(path, host string) error {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "unix" {
		return nil
	}
	info, err := os.Stat(u.Path)
	if err != nil {
		return nil
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	// Others may pass the folder and not look into it; what else is in there has
	// modes of its own.
	return errors.Join(
		os.Chown(path, int(owner.Uid), int(owner.Gid)),
		os.Chmod(path, info.Mode().Perm()),
		os.Chmod(filepath.Dir(path), 0o711),
	)
}

// Check tells what is wrong with the files, or returns nil.
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
		return nil, fmt.Errorf("read the certificate %s and its key: %w", t.Cert, err)
	}
	c := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	if t.CA == "" {
		return c, nil
	}
	pem, err := os.ReadFile(t.CA)
	if err != nil {
		return nil, fmt.Errorf("read the certificates of clients' authorities: %w", err)
	}
	c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
	if !c.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("read the certificates of clients' authorities: %s has none", t.CA)
	}
	return c, nil
}
