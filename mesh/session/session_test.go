package session

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

func config(t testing.TB, psk ...PSK) *Config {
	t.Helper()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	static, err := NewStatic(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &Config{Self: id.Name, Nickname: "n-" + id.Name.String(), Instance: 5, Port: 6783, Signer: id,
		Verifier: peer.Ed25519{}, Static: static, Min: ProtocolMin, Max: ProtocolMax,
		Check: func(*Hello, bool) *Refusal { return nil }, Random: rand.Reader}
	if len(psk) > 0 {
		c.Offer = psk[0]
	}
	c.Accept = append([]PSK{c.Offer}, psk...)
	return c
}

// pair returns the two ends of a TCP connection over loopback.
func pair(t testing.TB) (dialled, accepted net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if dialled, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dialled.Close(); accepted.Close() })
	return dialled, accepted
}

type result struct {
	*Conn
	err error
}

// handshakeBoth runs both sides of a handshake and returns their results.
func handshakeBoth(t testing.TB, dial, accept *Config) (d, a result) {
	t.Helper()
	nd, na := pair(t)
	done := make(chan result)
	go func() {
		c, err := Accept(na, accept)
		if err != nil {
			na.Close()
		}
		done <- result{c, err}
	}()
	d.Conn, d.err = Dial(nd, dial)
	if d.err != nil {
		nd.Close()
	}
	return d, <-done
}

func TestBothEndsAgree(t *testing.T) {
	psk, err := DerivePSK("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	for name, edit := range map[string]func(d, a *Config){
		"no password": func(d, a *Config) {},
		"password":    func(d, a *Config) { d.Offer, a.Accept = psk, []PSK{{}, psk} },
		"no aes":      func(d, a *Config) { a.NoAES = true },
	} {
		t.Run(name, func(t *testing.T) {
			dc, ac := config(t), config(t)
			edit(dc, ac)
			d, a := handshakeBoth(t, dc, ac)
			if d.err != nil || a.err != nil {
				t.Fatal(d.err, a.err)
			}
			if d.Secret != a.Secret || d.Secret == [32]byte{} || d.ID != a.ID || d.Cipher != a.Cipher || d.Version != a.Version {
				t.Error("the two ends have different sessions")
			}
			if name == "no aes" && d.Cipher != "ChaCha20-Poly1305" {
				t.Errorf("cipher %s", d.Cipher)
			}
			if d.Peer.Name != ac.Self || a.Peer.Name != dc.Self || a.Peer.Nickname != dc.Nickname || a.Peer.Instance != 5 ||
				a.Peer.Port != 6783 || a.Peer.Key != dc.Signer.Key() {
				t.Errorf("hellos %+v and %+v", d.Peer, a.Peer)
			}
			if d.Peer.Seen.String() != d.LocalAddr().String() {
				t.Errorf("seen as %s from %s", d.Peer.Seen, d.LocalAddr())
			}
			big := bytes.Repeat([]byte("x"), MaxRecord)
			for _, msg := range [][]byte{nil, []byte("hello"), big} {
				if err := d.WriteRecord(msg); err != nil {
					t.Fatal(err)
				}
				got, err := a.ReadRecord()
				if err != nil || !bytes.Equal(got, msg) {
					t.Fatalf("%d bytes arrive as %d, %v", len(msg), len(got), err)
				}
			}
			if err := d.WriteRecord(append(big, 1)); err == nil {
				t.Error("a record above the limit is sent")
			}
		})
	}
}

func TestBothSidesGetTheReasonOfARefusal(t *testing.T) {
	psk := func(b byte) PSK { return PSK{b} }
	for _, c := range []struct {
		name string
		edit func(d, a *Config)
		code Code
		say  string
	}{
		{"passwords differ", func(d, a *Config) { d.Offer, a.Accept = psk(1), []PSK{psk(2)} }, CodePassword, "passwords differ"},
		{"one has none", func(d, a *Config) { a.Accept = []PSK{psk(2)} }, CodePassword, "only one of the two peers has one"},
		{"versions", func(d, a *Config) { d.Min, d.Max = 2, 3 }, CodeVersion, "no protocol version in common"},
		{"responder says no", func(d, a *Config) {
			a.Check = func(*Hello, bool) *Refusal { return &Refusal{Code: CodeLimit, Reason: "200 of 200 connections"} }
		}, CodeLimit, "200 of 200 connections"},
		{"dialler says no", func(d, a *Config) {
			d.Check = func(*Hello, bool) *Refusal { return &Refusal{Code: CodeCollision, Reason: "that name is mine"} }
		}, CodeCollision, "that name is mine"},
		{"forged hello", func(d, a *Config) {
			other := config(t)
			d.Signer = forger{d.Signer, other.Signer}
		}, CodeOther, "did not sign this handshake"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dc, ac := config(t), config(t)
			c.edit(dc, ac)
			d, a := handshakeBoth(t, dc, ac)
			for side, err := range map[string]error{"dialler": d.err, "responder": a.err} {
				var r *Refusal
				if !errors.As(err, &r) || r.Code != c.code || !strings.Contains(err.Error(), c.say) {
					t.Errorf("%s: %v", side, err)
				}
			}
		})
	}
}

// forger shows one key and signs with another.
type forger struct{ show, sign peer.Signer }

func (f forger) Key() peer.Key                          { return f.show.Key() }
func (f forger) Sign(d string, b []byte) peer.Signature { return f.sign.Sign(d, b) }

func TestOtherProtocolIsReported(t *testing.T) {
	nd, na := pair(t)
	go func() {
		io.WriteString(nd, "GET / HTTP/1.1\r\n\r\n")
		io.Copy(io.Discard, nd)
	}()
	if _, err := Accept(na, config(t)); err == nil || !strings.Contains(err.Error(), "another protocol") {
		t.Error(err)
	}
}

// The responder sends neither message 2 nor its identity to a dialler that does not prove a
// password.
func TestResponderIsSilentBeforeTheProof(t *testing.T) {
	nd, na := pair(t)
	ac := config(t, PSK{9})
	ac.Accept = []PSK{{9}}
	go func() {
		Accept(na, ac)
		na.Close()
	}()
	dc := config(t, PSK{8})
	tee := teeConn{nd, new(bytes.Buffer)}
	if _, err := Dial(tee, dc); err == nil {
		t.Fatal("accepted")
	}
	if tee.read.Len() < preambleLen {
		t.Fatal("nothing was received")
	}
	if bytes.Contains(tee.read.Bytes(), ac.Self[:]) {
		t.Error("the responder sent its name")
	}
}

type teeConn struct {
	net.Conn
	read *bytes.Buffer
}

func (c teeConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read.Write(b[:n])
	return n, err
}

func TestTamperedRecordEndsTheSession(t *testing.T) {
	d, a := handshakeBoth(t, config(t), config(t))
	if d.err != nil || a.err != nil {
		t.Fatal(d.err, a.err)
	}
	d.nc.Write([]byte{0, 20})
	d.nc.Write(make([]byte, 20))
	if _, err := a.ReadRecord(); err == nil {
		t.Error("a forged record is accepted")
	}
}

func TestShortPasswordIsRefused(t *testing.T) {
	if _, err := DerivePSK("short"); err == nil {
		t.Error("a record above the limit is accepted")
	}
}

func FuzzHello(f *testing.F) {
	c := config(f)
	h := Hello{Name: c.Self, Nickname: "x", Port: 1}
	f.Add(h.append(nil, c.Signer, []byte("static")))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHello(b, anyone{}, []byte("static"))
		if err != nil {
			return
		}
		again, err := parseHello(h.append(nil, c.Signer, []byte("static")), anyone{}, []byte("static"))
		if err == nil {
			again.Key = h.Key
		}
		if len(h.Nickname) <= maxNickname && (err != nil || *again != *h) {
			t.Fatalf("%+v comes back as %+v, %v", h, again, err)
		}
	})
}

type anyone struct{}

func (anyone) Verify(peer.Key, string, []byte, peer.Signature) bool { return true }

// FuzzAccept runs the responder on arbitrary bytes.
func FuzzAccept(f *testing.F) {
	f.Add([]byte("WEFT\x01\x01\x01\x00\x00\x30"))
	f.Add([]byte("WEFT\x01\x01\x01\x00\xff\xff\x02\x01x"))
	cfg := config(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := Accept(&script{in: bytes.NewReader(b)}, cfg); err == nil {
			t.Fatalf("a session from %x: %+v", b, c)
		}
	})
}

// script is a connection whose far end has sent everything.
type script struct {
	net.TCPConn
	in *bytes.Reader
}

func (s *script) Read(b []byte) (int, error)  { return s.in.Read(b) }
func (s *script) Write(b []byte) (int, error) { return len(b), nil }
func (s *script) RemoteAddr() net.Addr        { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }
func (s *script) Close() error                { return nil }

func (s *script) SetDeadline(time.Time) error { return nil }
