package cluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// pki is one certificate authority for the whole cluster, with the files of its
// certificates and keys.
type pki struct {
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newPKI(dir string) (*pki, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	p := &pki{dir: dir}
	var err error
	if p.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	der, err := p.sign(template("authority"), &p.key.PublicKey)
	if err != nil {
		return nil, err
	}
	if p.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return p, writePEM(p.file("authority.crt"), "CERTIFICATE", der)
}

func (p *pki) file(name string) string { return filepath.Join(p.dir, name) }

func template(name string, groups ...string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // crypto/rand does not fail
	}
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name, Organization: groups},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
}

// sign signs a certificate. The first one is that of the authority itself.
func (p *pki) sign(t *x509.Certificate, key crypto.PublicKey) ([]byte, error) {
	above := p.cert
	if above == nil {
		t.IsCA, t.KeyUsage, above = true, x509.KeyUsageCertSign, t
	}
	return x509.CreateCertificate(rand.Reader, t, above, key, p.key)
}

// issue makes a key and a certificate and writes NAME.crt and NAME.key.
func (p *pki) issue(name string, t *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := p.sign(t, &key.PublicKey)
	if err != nil {
		return err
	}
	if err := writePEM(p.file(name+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writeKey(p.file(name+".key"), key)
}

// server issues a certificate for a server.
func (p *pki) server(name string, names []string, addrs ...net.IP) error {
	t := template(name)
	t.DNSNames, t.IPAddresses = names, addrs
	return p.issue(name, t)
}

// user issues a certificate for a client and returns the path of its kubeconfig.
func (p *pki) user(file, api, name string, groups ...string) (string, error) {
	if err := p.issue(file, template(name, groups...)); err != nil {
		return "", err
	}
	path := p.file(file + ".kubeconfig")
	return path, os.WriteFile(path, fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters: [{name: it, cluster: {server: %q, certificate-authority: %q}}]
users: [{name: it, user: {client-certificate: %q, client-key: %q}}]
contexts: [{name: it, context: {cluster: it, user: it}}]
current-context: it
`, api, p.file("authority.crt"), p.file(file+".crt"), p.file(file+".key")), 0o600)
}

// accounts writes the key that signs tokens of service accounts.
func (p *pki) accounts() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return err
	}
	if err := writePEM(p.file("accounts.pub"), "PUBLIC KEY", public); err != nil {
		return err
	}
	return writeKey(p.file("accounts.key"), key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return writePEM(path, "EC PRIVATE KEY", der)
}

func writePEM(path, kind string, der []byte) error {
	return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
}
