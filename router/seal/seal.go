// Package seal encrypts and authenticates the packets of sleeve. It has the choice of
// the cipher, the keys of one direction of a link, and the counters and replay windows of
// a key.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/sys/cpu"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/replay"
	"github.com/weft-net/weft/router/wire"
)

// Suite is an AEAD with 32-byte keys, 12-byte nonces and 16-byte authentication tags. Numbers
// are append-only: they are bit numbers of Suites.
type Suite uint8

// The suites.
const (
	ChaCha20Poly1305 Suite = 0 // RFC 8439
	AES256GCM        Suite = 1 // NIST SP 800-38D
)

// String returns the name for status.
func (s Suite) String() string {
	switch s {
	case ChaCha20Poly1305:
		return "chacha20-poly1305"
	case AES256GCM:
		return "aes-256-gcm"
	}
	return fmt.Sprintf("suite %d", uint8(s))
}

// Suites is a set: bit 1<<s is set if s is in it.
type Suites uint16

// Has reports whether s is in the set.
func (x Suites) Has(s Suite) bool { return s < 16 && x&(1<<s) != 0 }

// Local returns the suites that are fast on this CPU: always ChaCha20-Poly1305, and
// AES-GCM if the CPU has instructions for it. Without them AES is slow, and its timing
// depends on the key.
func Local() Suites {
	x := Suites(1 << ChaCha20Poly1305)
	if hasAES() {
		x |= 1 << AES256GCM
	}
	return x
}

func hasAES() bool {
	switch runtime.GOARCH {
	case "amd64", "386":
		return cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ && cpu.X86.HasSSE41
	case "arm64":
		return cpu.ARM64.HasAES && cpu.ARM64.HasPMULL
	case "s390x":
		return cpu.S390X.HasAES && cpu.S390X.HasAESGCM
	}
	return false
}

// Choose returns the best suite that both ends have; ok is false if there is none.
func Choose(a, b Suites) (s Suite, ok bool) {
	for _, s := range []Suite{AES256GCM, ChaCha20Poly1305} {
		if a.Has(s) && b.Has(s) {
			return s, true
		}
	}
	return 0, false
}

// Key is the secret of one direction of a link.
type Key [32]byte

// Direction is all that a Key is bound to.
type Direction struct {
	Shared           []byte   // X25519 of the round's ephemeral keys
	Session          [32]byte // secret of the session
	OfferKey, AnsKey [32]byte // the ephemeral public keys
	Sender, Receiver peer.Name
	Index            uint32 // the receiver's
	Suite            Suite
}

// Derive makes the key of a direction: HKDF-SHA256 (RFC 5869) over the shared
// secret and the session's, bound to everything else by the info.
func (d *Direction) Derive() (k Key) {
	secret := append(append([]byte(nil), d.Shared...), d.Session[:]...)
	info := append([]byte("weft sleeve key 1"), byte(d.Suite))
	info = append(info, d.OfferKey[:]...)
	info = append(info, d.AnsKey[:]...)
	info = append(info, d.Sender[:]...)
	info = append(info, d.Receiver[:]...)
	info = binary.BigEndian.AppendUint32(info, d.Index)
	out, err := hkdf.Key(sha256.New, secret, nil, string(info), len(k))
	if err != nil {
		panic("seal: derive a key: " + err.Error()) // only for lengths out of range
	}
	copy(k[:], out)
	return k
}

// SessionTag tells a session from others between the same two peers. It says nothing about
// the secret.
func SessionTag(secret [32]byte) (t wire.Session) {
	out, err := hkdf.Key(sha256.New, secret[:], nil, "weft link control 1", len(t))
	if err != nil {
		panic("seal: derive a tag: " + err.Error()) // only for lengths out of range
	}
	return wire.Session(out)
}

func newAEAD(s Suite, k Key) (cipher.AEAD, error) {
	switch s {
	case AES256GCM:
		b, err := aes.NewCipher(k[:])
		if err != nil {
			return nil, err
		}
		return cipher.NewGCM(b)
	case ChaCha20Poly1305:
		return chacha20poly1305.New(k[:])
	}
	return nil, fmt.Errorf("make a cipher: %s is not known", s)
}

// Nonce is memory in which Seal and Open build the nonce: four zero bytes and the
// packet's counter. Each goroutine has one, so that a packet needs no allocation.
type Nonce [12]byte

// Tx seals the packets that are sent under one key. Lanes may be used concurrently, each
// by one goroutine.
type Tx struct {
	Suite Suite
	index uint32
	aead  cipher.AEAD
	lanes []txLane
}

// txLane keeps the counter of a lane on a cache line of its own.
type txLane struct {
	next atomic.Uint64 // written by the lane's goroutine only
	_    [56]byte
}

// NewTx returns a Tx with counters for the given number of lanes, all at zero.
// A key must never be used for a second Tx.
func NewTx(s Suite, k Key, index uint32, lanes int) (*Tx, error) {
	a, err := newAEAD(s, k)
	if err != nil {
		return nil, err
	}
	return &Tx{Suite: s, index: index, aead: a, lanes: make([]txLane, lanes)}, nil
}

// ErrExhausted is returned when a lane has used all its counters.
var ErrExhausted = errors.New("counter exhausted")

// Seal makes a packet in place. The body is in b[wire.HeaderLen:]; b must have
// wire.AuthTagLen bytes of capacity beyond its length. The result is the whole
// packet, in the same memory.
func (t *Tx) Seal(typ wire.Type, lane uint8, b []byte, n *Nonce) ([]byte, error) {
	c := &t.lanes[lane].next
	seq := c.Load()
	if seq > wire.MaxSequence {
		return nil, ErrExhausted
	}
	c.Store(seq + 1)
	wire.Header{Type: typ, Index: t.index, Lane: lane, Sequence: seq}.Put(b)
	copy(n[4:], b[4:wire.HeaderLen])
	body := t.aead.Seal(b[wire.HeaderLen:wire.HeaderLen], n[:], b[wire.HeaderLen:], b[:wire.HeaderLen])
	return b[:wire.HeaderLen+len(body)], nil
}

// Packets returns how many packets were sealed, on all lanes together.
func (t *Tx) Packets() (n uint64) {
	for i := range t.lanes {
		n += t.lanes[i].next.Load()
	}
	return n
}

// Rx opens the packets that are received under one key. It is safe for concurrent use.
// Packets of different lanes do not wait for each other.
type Rx struct {
	Suite Suite
	aead  cipher.AEAD
	lanes [wire.MaxLanes]atomic.Pointer[rxLane]
}

type rxLane struct {
	mu     sync.Mutex
	window replay.Window
}

// NewRx returns an Rx that has seen no packet.
func NewRx(s Suite, k Key) (*Rx, error) {
	a, err := newAEAD(s, k)
	if err != nil {
		return nil, err
	}
	return &Rx{Suite: s, aead: a}, nil
}

// Errors of Open.
var (
	ErrReplay = errors.New("received before, or too old to know")
	ErrForged = errors.New("authentication failed")
)

// Open authenticates and decrypts a packet in place, whose header is h. The
// body is part of b. newest reports whether no later packet of the lane was seen
// before, so that its outer addresses are current.
func (r *Rx) Open(h wire.Header, b []byte, n *Nonce) (body []byte, newest bool, err error) {
	lane := r.lanes[h.Lane].Load()
	if lane != nil {
		lane.mu.Lock()
		fresh := lane.window.Check(h.Sequence)
		lane.mu.Unlock()
		if !fresh {
			return nil, false, ErrReplay
		}
	}
	copy(n[4:], b[4:wire.HeaderLen])
	body, err = r.aead.Open(b[wire.HeaderLen:wire.HeaderLen], n[:], b[wire.HeaderLen:], b[:wire.HeaderLen])
	if err != nil {
		return nil, false, ErrForged
	}
	if lane == nil {
		// Made for authenticated packets only, so nobody else can make us
		// allocate 256 of them.
		r.lanes[h.Lane].CompareAndSwap(nil, new(rxLane))
		lane = r.lanes[h.Lane].Load()
	}
	lane.mu.Lock()
	fresh, newest := lane.window.Accept(h.Sequence)
	lane.mu.Unlock()
	if !fresh {
		return nil, false, ErrReplay
	}
	return body, newest, nil
}
