package session

import (
	"bufio"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/flynn/noise"
	"github.com/weft-net/weft/mesh/peer"
	"golang.org/x/crypto/hkdf"
	"golang.org/x/sys/cpu"
)

// Timeout bounds a whole handshake.
const Timeout = 10 * time.Second

// Config configures the handshakes of a peer. It is read-only.
type Config struct {
	Self     peer.Name
	Nickname string
	Instance uint64
	Port     uint16
	Signer   peer.Signer
	Verifier peer.Verifier
	// Static is the X25519 key of this process.
	Static noise.DHKey
	// Offer is the key with which this peer dials. Accept are the keys that it accepts
	// from a dialler, including Offer.
	Offer  PSK
	Accept []PSK
	// Min and Max are the protocol versions spoken.
	Min, Max uint8
	// Check returns a refusal if this peer does not want the session, else nil.
	Check func(h *Hello, dialled bool) *Refusal
	// FirstTimeout bounds how long a responder waits for the dialler's preamble, and
	// ProofTimeout how long after that for its proof; 0 for Timeout. Proved is called once
	// the responder has the proof, unless it is nil.
	FirstTimeout, ProofTimeout time.Duration
	Proved                     func()
	// NoAES disables AES-GCM at this end.
	NoAES bool
	// Random is the source of ephemeral keys.
	Random io.Reader
}

// NewStatic returns a new X25519 key for Config.Static.
func NewStatic(random io.Reader) (noise.DHKey, error) { return noise.DH25519.GenerateKeypair(random) }

// hasAES reports whether the CPU has instructions that make AES-GCM the faster cipher.
var hasAES = cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL || cpu.S390X.HasAESGCM

// Dial makes a session over nc, which this peer has dialled. On error the
// caller closes nc.
func Dial(nc net.Conn, cfg *Config) (*Conn, error) { return handshake(nc, cfg, true) }

// Accept makes a session over nc, which the far end has dialled. On error the
// caller closes nc.
func Accept(nc net.Conn, cfg *Config) (*Conn, error) { return handshake(nc, cfg, false) }

type handshaker struct {
	nc       net.Conn
	cfg      *Config
	dialled  bool
	prologue []byte
	psk      PSK // that both ends use
	hs       *noise.HandshakeState
}

func handshake(nc net.Conn, cfg *Config, dialled bool) (*Conn, error) {
	first := Timeout
	if !dialled && cfg.FirstTimeout > 0 {
		first = cfg.FirstTimeout
	}
	if err := nc.SetDeadline(time.Now().Add(first)); err != nil {
		return nil, fmt.Errorf("handshake with %s: %w", nc.RemoteAddr(), err)
	}
	s := &handshaker{nc: nc, cfg: cfg, dialled: dialled}
	c, err := s.run()
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("the far end closed the connection during the handshake: it is not a weft router, or it refused without a reason")
		}
		return nil, fmt.Errorf("handshake with %s: %w", nc.RemoteAddr(), err)
	}
	if err := nc.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("handshake with %s: %w", nc.RemoteAddr(), err)
	}
	return c, nil
}

func (s *handshaker) run() (*Conn, error) {
	suite, version, err := s.preambles()
	if err != nil {
		return nil, err
	}
	s.hs, err = noise.NewHandshakeState(noise.Config{
		CipherSuite:           suite,
		Random:                s.cfg.Random,
		Pattern:               noise.HandshakeXX,
		Initiator:             s.dialled,
		Prologue:              s.prologue,
		PresharedKey:          s.cfg.Offer[:],
		PresharedKeyPlacement: 3,
		StaticKeypair:         s.cfg.Static,
	})
	if err != nil {
		return nil, err
	}
	var hello []byte // the far end's
	var cs1, cs2 *noise.CipherState
	if s.dialled {
		hello, cs1, cs2, err = s.initiate()
	} else {
		hello, cs1, cs2, err = s.respond()
	}
	if err != nil {
		return nil, err
	}
	c := &Conn{nc: s.nc, r: bufio.NewReader(s.nc), out: cs1, in: cs2, Dialled: s.dialled, Version: version, Cipher: suiteName(suite), Password: s.psk}
	if !s.dialled {
		c.out, c.in = cs2, cs1
	}
	binding := Binding(s.hs.ChannelBinding())
	c.ID = binary.BigEndian.Uint64(binding[:])
	return c, s.verdicts(c, hello, binding)
}

// preambles exchanges the preambles and chooses the cipher and the version.
func (s *handshaker) preambles() (noise.CipherSuite, uint8, error) {
	mine := append([]byte(magic), s.cfg.Min, s.cfg.Max, 0, 0)
	if hasAES && !s.cfg.NoAES {
		mine[6] = cipherAES
	}
	theirs := make([]byte, preambleLen)
	// The dialler starts, so that a stranger who only connects learns nothing.
	if s.dialled {
		if _, err := s.nc.Write(mine); err != nil {
			return nil, 0, err
		}
	}
	if _, err := io.ReadFull(s.nc, theirs); err != nil {
		return nil, 0, err
	}
	if string(theirs[:4]) != magic {
		return nil, 0, fmt.Errorf("it speaks another protocol: it sent %q, want %q", printable(theirs[:4]), magic)
	}
	if !s.dialled {
		if _, err := s.nc.Write(mine); err != nil {
			return nil, 0, err
		}
		s.prologue = append(theirs, mine...)
	} else {
		s.prologue = append(mine, theirs...)
	}
	version := min(s.cfg.Max, theirs[5])
	if version < s.cfg.Min || version < theirs[4] {
		return nil, 0, &Refusal{Code: CodeVersion, Reason: fmt.Sprintf(
			"no protocol version in common: this peer speaks %d to %d, the other %d to %d",
			s.cfg.Min, s.cfg.Max, theirs[4], theirs[5])}
	}
	if s.prologue[6]&s.prologue[6+preambleLen]&cipherAES != 0 {
		return noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256), version, nil
	}
	return noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashSHA256), version, nil
}

func suiteName(s noise.CipherSuite) string {
	if string(s.Name()) == string(noise.NewCipherSuite(noise.DH25519, noise.CipherAESGCM, noise.HashSHA256).Name()) {
		return "AES-256-GCM"
	}
	return "ChaCha20-Poly1305"
}

func (s *handshaker) hello() []byte {
	h := Hello{Name: s.cfg.Self, Instance: s.cfg.Instance, Clock: time.Now(), Port: s.cfg.Port, Nickname: s.cfg.Nickname}
	if a, ok := s.nc.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		h.Seen = netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	return h.append(nil, s.cfg.Signer, s.cfg.Static.Public)
}

func (s *handshaker) initiate() (hello []byte, cs1, cs2 *noise.CipherState, err error) {
	s.psk = s.cfg.Offer
	msg, _, _, err := s.hs.WriteMessage(nil, nil)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := s.send(append(msg, s.cfg.Offer.proof(s.prologue, msg)...)); err != nil {
		return nil, nil, nil, err
	}
	in, err := s.receive()
	if err != nil {
		return nil, nil, nil, err
	}
	hello, _, _, err = s.hs.ReadMessage(nil, in)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("message 2: %w", err)
	}
	msg, cs1, cs2, err = s.hs.WriteMessage(nil, s.hello())
	if err != nil {
		return nil, nil, nil, err
	}
	return hello, cs1, cs2, s.send(msg)
}

var errPassword = &Refusal{Code: CodePassword, Reason: "the passwords differ, or only one of the two peers has one"}

func (s *handshaker) respond() (hello []byte, cs1, cs2 *noise.CipherState, err error) {
	if s.cfg.ProofTimeout > 0 {
		if err := s.nc.SetDeadline(time.Now().Add(s.cfg.ProofTimeout)); err != nil {
			return nil, nil, nil, err
		}
	}
	in, err := s.receive()
	if err != nil {
		return nil, nil, nil, err
	}
	if len(in) < proofLen {
		return nil, nil, nil, fmt.Errorf("message 1 of %d bytes is cut short", len(in))
	}
	msg1, proof := in[:len(in)-proofLen], in[len(in)-proofLen:]
	psk := s.accepted(msg1, proof)
	if psk == nil {
		s.refuse(errPassword)
		return nil, nil, nil, errPassword
	}
	if err := s.nc.SetDeadline(time.Now().Add(Timeout)); err != nil {
		return nil, nil, nil, err
	}
	if s.cfg.Proved != nil {
		s.cfg.Proved()
	}
	s.psk = *psk
	if err := s.hs.SetPresharedKey(psk[:]); err != nil {
		return nil, nil, nil, err
	}
	if _, _, _, err := s.hs.ReadMessage(nil, msg1); err != nil {
		return nil, nil, nil, fmt.Errorf("message 1: %w", err)
	}
	msg, _, _, err := s.hs.WriteMessage(nil, s.hello())
	if err != nil {
		return nil, nil, nil, err
	}
	if err := s.send(msg); err != nil {
		return nil, nil, nil, err
	}
	if in, err = s.receive(); err != nil {
		return nil, nil, nil, err
	}
	hello, cs1, cs2, err = s.hs.ReadMessage(nil, in)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("message 3: %w", err)
	}
	return hello, cs1, cs2, nil
}

// accepted returns the key for which the proof is valid, nil if there is none.
func (s *handshaker) accepted(msg1, proof []byte) *PSK {
	for i := range s.cfg.Accept {
		if k := &s.cfg.Accept[i]; hmac.Equal(proof, k.proof(s.prologue, msg1)) {
			return k
		}
	}
	return nil
}

func (s *handshaker) send(msg []byte) error {
	b := binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg)))
	_, err := s.nc.Write(append(b, msg...))
	return err
}

func (s *handshaker) refuse(r *Refusal) { _, _ = s.nc.Write(appendRefusal(nil, r)) }

// maxHandshakeMessage is larger than any hello.
const maxHandshakeMessage = 1024

func (s *handshaker) receive() ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(s.nc, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint16(head[:])
	if n == refusalTag {
		r, err := readRefusal(s.nc)
		if err != nil {
			return nil, err
		}
		return nil, r
	}
	if n > maxHandshakeMessage {
		return nil, fmt.Errorf("handshake message of %d bytes, at most %d", n, maxHandshakeMessage)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(s.nc, b)
	return b, err
}

const verdictSeed = 32

// verdicts checks the hello of the far end, sends the verdict, and reads the verdict of
// the far end. The secret is derived from the two seeds.
func (s *handshaker) verdicts(c *Conn, hello []byte, binding Binding) error {
	var mine *Refusal
	h, err := parseHello(hello, s.cfg.Verifier, s.hs.PeerStatic())
	if err != nil {
		mine = &Refusal{Code: CodeOther, Reason: err.Error()}
	} else {
		h.Nickname = printable([]byte(h.Nickname))
		if a, ok := s.nc.RemoteAddr().(*net.TCPAddr); ok {
			h.From = a.AddrPort().Addr().Unmap().WithZone("")
		}
		h.Binding = binding
		c.Peer = *h
		mine = s.cfg.Check(h, s.dialled)
	}
	out := make([]byte, 2+verdictSeed)
	if _, err := io.ReadFull(s.cfg.Random, out[2:]); err != nil {
		return err
	}
	seed := [2][]byte{out[2:], nil}
	if mine != nil {
		mine.Peer, mine.Binding = h, binding
		out[1] = byte(mine.Code)
		out = append(out, byte(len(mine.Proof)))
		out = append(append(out, mine.Proof...), mine.Reason...)
	}
	if err := c.WriteRecord(out); err != nil {
		return err
	}
	in, err := c.ReadRecord()
	switch {
	case mine != nil:
		return mine
	case err != nil:
		return err
	case len(in) < 2+verdictSeed || in[0] != 0:
		return errors.New("a record that is not a verdict")
	case Code(in[1]) != CodeOK:
		proof, reason := splitProof(in[2+verdictSeed:])
		return &Refusal{Code: Code(in[1]), Reason: printable(reason), ByPeer: true, Peer: h, Proof: proof, Binding: binding}
	}
	seed[1] = in[2 : 2+verdictSeed]
	if !s.dialled {
		seed[0], seed[1] = seed[1], seed[0]
	}
	kdf := hkdf.New(sha256.New, append(append([]byte{}, seed[0]...), seed[1]...), binding[:], []byte("weft session secret"))
	_, err = io.ReadFull(kdf, c.Secret[:])
	return err
}

// splitProof returns the two last fields of a verdict, both nil if it is cut short.
func splitProof(b []byte) (proof, reason []byte) {
	if len(b) == 0 || len(b)-1 < int(b[0]) {
		return nil, nil
	}
	return b[1 : 1+b[0]], b[1+b[0]:]
}
