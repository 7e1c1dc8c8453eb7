package mesh

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/mesh/peer"
)

// A relay could put any source into a message. So messages that ask for something, or give
// it, are signed by their source. The body of such a message is, numbers big-endian:
//
//	 0  instance  u64  of the source's present entry
//	 8  stamp     u64  the source's clock in microseconds
//	16  number    u64  rises with each signed message of this instance
//	24  payload
//	..  signature 64   over "weft message" and destination 6, source 6, kind u8, and all
//	                   bytes of the body before it
//
// The receiver accepts a message only if the source has an entry with that key and
// instance and is reachable, and if it has not had the number yet. It keeps the last 1,024
// numbers, so that messages may overtake each other.
//
// A relay may also hold a message back. Clocks of hosts differ, so the receiver keeps the
// shortest delay that it has seen, that is the difference of the two clocks plus the time
// on the way, and refuses a message that took maxLate longer. Clocks drift, and a host may
// sleep, so the shortest delay grows slowly, and after a minute of nothing but late
// messages the receiver accepts that the difference has changed.
const (
	signedHeader   = 3 * 8
	signedOverhead = signedHeader + peer.SignatureLen
	messageDomain  = "weft message"
	maxLate        = 60 * time.Second
	// driftShare is how much the shortest delay grows: one part in driftShare, more than
	// any clock drifts.
	driftShare = 1000
	// A neighbour can make this peer check signedPerSecond signed messages a second with a
	// burst of signedBurst.
	signedPerSecond = 200
	signedBurst     = 1000
	// maxSigners bounds the peers whose numbers are kept, more than the topology has.
	maxSigners = 8192
)

// MaxSigned is the size limit of a signed message, in bytes.
const MaxSigned = MaxUnicast - signedOverhead

// SendSigned is Send for a kind that the other peer registered with HandleSigned. The peer
// knows for sure that the message comes from this one.
func (m *Mesh) SendSigned(to peer.Name, k Kind, msg []byte) error {
	if len(msg) > MaxSigned {
		return fmt.Errorf("send %d signed bytes to peer %s: at most %d", len(msg), to, MaxSigned)
	}
	b := make([]byte, 0, len(msg)+signedOverhead)
	b = binary.BigEndian.AppendUint64(b, m.instance)
	b = binary.BigEndian.AppendUint64(b, uint64(m.stamp()))
	b = binary.BigEndian.AppendUint64(b, m.signed.sent.Add(1))
	b = append(b, msg...)
	sig := m.cfg.Identity.Sign(messageDomain, signedBytes(to, m.self, k, b))
	return m.Send(to, k, append(b, sig[:]...))
}

// HandleSigned registers f for messages of a kind that other peers send with SendSigned. Only
// those come to f that the peer from signed, each at most once. f owns the message. It is
// called by the readers of sessions, so it must not block. Call HandleSigned before Run.
func (m *Mesh) HandleSigned(k Kind, f func(from peer.Name, msg []byte)) {
	m.handlers[k], m.signed.kinds[k] = f, true
}

// stamp returns the clock for signed messages. It does not follow changes of the host's
// clock.
func (m *Mesh) stamp() int64 { return m.start.Add(time.Since(m.start)).UnixMicro() }

func signedBytes(to, from peer.Name, k Kind, body []byte) []byte {
	b := make([]byte, 0, 2*peer.NameLen+1+len(body))
	b = append(b, to[:]...)
	b = append(b, from[:]...)
	b = append(b, byte(k))
	return append(b, body...)
}

// signedMessage is a parsed body. The slices are parts of it.
type signedMessage struct {
	instance uint64
	stamp    int64 // microseconds
	number   uint64
	signed   []byte // all before the signature
	payload  []byte
	sig      peer.Signature
}

var errSignedMessage = errors.New("malformed signed message")

func parseSigned(b []byte) (s signedMessage, err error) {
	if len(b) < signedOverhead {
		return s, fmt.Errorf("%d bytes, want at least %d: %w", len(b), signedOverhead, errSignedMessage)
	}
	end := len(b) - peer.SignatureLen
	stamp := binary.BigEndian.Uint64(b[8:])
	if stamp >= 1<<62 {
		return s, fmt.Errorf("stamp %d: %w", stamp, errSignedMessage)
	}
	return signedMessage{
		instance: binary.BigEndian.Uint64(b), stamp: int64(stamp), number: binary.BigEndian.Uint64(b[16:]),
		signed: b[:end], payload: b[signedHeader:end], sig: peer.Signature(b[end:]),
	}, nil
}

// signed is the state of signed messages.
type signed struct {
	kinds [256]bool // constant once Run is called
	sent  atomic.Uint64

	mu      sync.Mutex // no other lock is taken while it is held
	sources map[peer.Name]*signer
}

// signer is what this peer keeps of one source.
type signer struct {
	instance  uint64
	numbers   numberWindow
	delay     int64 // the shortest, in microseconds
	at        time.Time
	lateSince time.Time // zero unless the last message was late
}

var (
	errUnknownSource = errors.New("its source has no such entry, or cannot be reached")
	errRepeated      = errors.New("it came before, or others of its source have overtaken it by far")
	errLate          = errors.New("it took too long")
	errTooMany       = errors.New("its neighbour sends too many")
	errNotSigned     = errors.New("its source did not sign it")
)

// receiveSigned returns the payload of a signed message. It checks what is cheap before the
// signature, and changes nothing before the signature is proved.
func (m *Mesh) receiveSigned(n *neighbour, from peer.Name, k Kind, body []byte) ([]byte, error) {
	s, err := parseSigned(body)
	if err != nil {
		return nil, err
	}
	v := m.view.Load()
	e := v.byName[from]
	if e == nil || e.Instance != s.instance || !v.Reachable(from) {
		return nil, errUnknownSource
	}
	now, delay := time.Now(), m.stamp()-s.stamp
	if err := m.signed.check(from, &s, delay, now); err != nil && !errors.Is(err, errLate) {
		return nil, err
	}
	if n.signedLimit != nil && !n.signedLimit.AllowN(now, 1) {
		return nil, errTooMany
	}
	if !(peer.Ed25519{}).Verify(e.Key, messageDomain, signedBytes(m.self, from, k, s.signed), s.sig) {
		return nil, errNotSigned
	}
	if err := m.signed.accept(from, &s, delay, now, func(p peer.Name) bool { return v.byName[p] != nil }); err != nil {
		return nil, err
	}
	return s.payload, nil
}

// check returns an error if the message would not be accepted even if its signature is
// valid.
func (g *signed) check(from peer.Name, s *signedMessage, delay int64, now time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	src := g.sources[from]
	switch {
	case src == nil || src.instance != s.instance:
		return nil
	case !src.numbers.fresh(s.number):
		return errRepeated
	case src.late(delay, now):
		return errLate
	}
	return nil
}

// late reports whether a delay is too long.
func (src *signer) late(delay int64, now time.Time) bool {
	drift := now.Sub(src.at) / driftShare
	return delay > src.delay+(drift+maxLate).Microseconds()
}

// accept records a message whose signature is valid.
func (g *signed) accept(from peer.Name, s *signedMessage, delay int64, now time.Time, known func(peer.Name) bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	src := g.sources[from]
	if src == nil || src.instance != s.instance {
		if g.sources == nil {
			g.sources = make(map[peer.Name]*signer)
		}
		for n := range g.sources {
			if len(g.sources) < maxSigners {
				break
			}
			if !known(n) {
				delete(g.sources, n)
			}
		}
		src = &signer{instance: s.instance, delay: delay, at: now}
		g.sources[from] = src
	}
	if !src.numbers.fresh(s.number) {
		return errRepeated // another neighbour brought it meanwhile
	}
	if src.late(delay, now) {
		if src.lateSince.IsZero() {
			src.lateSince = now
		}
		if now.Sub(src.lateSince) < maxLate {
			return errLate
		}
		src.delay, src.at = delay, now
	}
	src.lateSince = time.Time{}
	src.numbers.add(s.number)
	if grown := src.delay + (now.Sub(src.at) / driftShare).Microseconds(); delay < grown {
		src.delay, src.at = delay, now
	}
	return nil
}

// numberWindow remembers which of the last numbers were seen.
type numberWindow struct {
	highest uint64
	seen    [windowLen / 64]uint64 // bit n%windowLen for number n
}

const windowLen = 1024

// fresh reports whether n was not seen and is not too old.
func (w *numberWindow) fresh(n uint64) bool {
	switch {
	case n > w.highest:
		return true
	case w.highest-n >= windowLen:
		return false
	}
	return w.seen[n%windowLen/64]&(1<<(n%64)) == 0
}

func (w *numberWindow) add(n uint64) {
	if n > w.highest {
		if n-w.highest >= windowLen {
			clear(w.seen[:])
		} else {
			for i := w.highest + 1; i < n; i++ {
				w.seen[i%windowLen/64] &^= 1 << (i % 64)
			}
		}
		w.highest = n
	}
	w.seen[n%windowLen/64] |= 1 << (n % 64)
}

func newSignedLimit() *rate.Limiter { return rate.NewLimiter(signedPerSecond, signedBurst) }
