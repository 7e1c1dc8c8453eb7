// Package plan makes the decisions of the fast path. Link is a step machine that decides
// whether frames may use the fast path on one link. Plan computes the contents of the
// maps in the kernel.
//
// Nothing here opens a socket, reads a clock or logs: times are arguments, and actions are
// returned as effects. The types are not safe for concurrent use.
//
//	          both ends willing
//	off -----------------------> trying --- echo of a full-size probe ---> up
//	 ^                             ^ |                                      |
//	 |  one no longer is           | +-- echoes for as long as hold --+     |
//	 +-----------------------------+--- the path is dead, or too narrow ----+
//
// The kernel of the peer echoes probes, whether its router runs or not. Package liveness
// decides whether the path is dead: in 0.6 s if frames use it. Full-size probes find out
// whether it is too narrow: once in a Beat, or each RetryBeat while they are lost.
package plan

import (
	"math"
	"net/netip"
	"time"

	"github.com/weft-net/weft/router/liveness"
	"github.com/weft-net/weft/router/wire"
)

// Times of the probes.
const (
	// Beat is the interval of full-size probes that are answered on a link that carries
	// frames, or if there are few links. All links send them at the same moment.
	Beat = time.Second
	// RetryBeat is the interval while they are lost on a link in use. FastBeat is the
	// interval on one that is not, and SlowBeat the interval after Timeout unanswered ones.
	RetryBeat = 100 * time.Millisecond
	FastBeat  = 250 * time.Millisecond
	SlowBeat  = 4 * time.Second
	Timeout   = 20
	// Silence is how long a link in use may be without the echo of a full-size probe.
	// Traffic is back on sleeve within three seconds after the last full-size packet that
	// passed. If the driver was late, the time since the last echo says nothing, so there
	// must also be minOverdue probes that had RetryBeat for their echoes, the first of them
	// silentFor ago.
	Silence    = 2 * time.Second
	silentFor  = Silence - Beat
	minOverdue = 15
	// A link that failed is used again after echoes came for firstHold. The time
	// doubles with each failure up to lastHold, and starts again after holdForgotten
	// without a failure.
	firstHold     = 4 * time.Second
	lastHold      = 16 * time.Second
	holdForgotten = 5 * time.Minute
)

// NonceLen is the length of a probe's nonce, which makes echoes unforgeable, in bytes.
const NonceLen = 16

// smallProbe is the length of the IP packet in a probe that passes if any packet does,
// in bytes.
const smallProbe = 64

// Offer is what one end offers to the other.
type Offer struct {
	Verdict wire.Verdict
	Why     error // if not willing; not sent to the peer
	ShortID uint16
	Port    uint16
	Tunnel  wire.Tunnel // this end of an encrypted tunnel, if it has one
	Encaps  Encaps      // that this end uses and accepts
	NoPlain error       // why it wants none although the settings allow some
	Plain   wire.Encaps // likewise of the peer
}

// Effect is an action for the driver: one of the types below.
type Effect interface{ effect() }

type (
	// Send sends a message of link control over the session.
	Send struct{ Msg wire.Control }
	// Probe sends a probe as large as a frame with an IP packet of Size bytes, by the
	// same path as other frames. The driver calls Echoed when the echo comes.
	Probe struct {
		To       netip.Addr
		Src, Dst uint16 // short ids
		Nonce    [NonceLen]byte
		Size     int
	}
	// PlainProbe sends a probe that is a plain packet of Size bytes, as Probe does.
	PlainProbe struct {
		Encap    Encap
		From, To netip.Addr // of containers of this host and of the peer
		Src, Dst uint16     // short ids
		Nonce    [NonceLen]byte
		Size     int
	}
	// SumInSoftware makes the kernel compute the checksums inside VXLAN, because an
	// echo came with a wrong checksum from the card.
	SumInSoftware struct{}
	// Suspect says that echoes on a link in use are late.
	Suspect struct{}
)

func (Send) effect()          {}
func (Probe) effect()         {}
func (PlainProbe) effect()    {}
func (SumInSoftware) effect() {}
func (Suspect) effect()       {}

// Config configures a Link.
type Config struct {
	MTU   int                   // of containers, in bytes of IP packet
	Epoch time.Time             // of the moments of probes: the same for all links of a router
	Nonce func() [NonceLen]byte // random
	Own   Offer                 // at first
	Addr  netip.Addr            // of the peer's end; invalid if not known
	// Pace and Unread are those of liveness.Config.
	Pace   func() time.Duration
	Unread func() bool
	Links  func() int // returns how many links the router has; nil for few
	// Carries returns whether frames use another path to the peer, and will use this one when
	// it is up; true if nil.
	Carries func() bool
	// Ends returns an address of a container of this host and one of the peer, of a family; invalid
	// if one of them has none. Without it there are no plain packets.
	Ends func(Family) (own, peers netip.Addr)
	// Cannot says why this host cannot send packets of a family in an encapsulation; nil if it can.
	Cannot func(Encap, Family) error
}

// rest returns the interval of probes on a link that carries no frames.
func (c *Config) rest() time.Duration {
	if c.Links == nil {
		return Beat
	}
	return liveness.Rest(c.Links(), Beat)
}

// Link is the fast path of one link. Make it with NewLink.
type Link struct {
	cfg       Config
	own       Offer
	peer      *Offer // nil: it has offered nothing yet
	addr      netip.Addr
	path      int       // MTU of the path to addr, in bytes of IP packet; 0 if not known
	ready     bool      // both ends are willing and everything is known
	transport transport // of the last update
	out       []Effect

	vxlan   prober
	summing bool   // SumInSoftware was emitted
	ways    []*way // of plain packets, better ones first
}

// NewLink returns a Link, which sends its offer first.
func NewLink(cfg Config, now time.Time) (*Link, []Effect) {
	l := newLink(cfg)
	l.offer()
	return l, l.flush(now)
}

func newLink(cfg Config) *Link {
	l := &Link{cfg: cfg, own: cfg.Own, addr: cfg.Addr.Unmap()}
	l.vxlan = newProber(&l.cfg)
	for _, e := range Auto {
		for _, family := range families {
			l.ways = append(l.ways, &way{Encap: e, family: family, prober: newProber(&l.cfg)})
		}
	}
	l.orderWays()
	return l
}

// ContinueLink returns a Link that is up, of an earlier process, whose peer offered far. It
// sends no offer, and finds out by probes that it is no longer up.
func ContinueLink(cfg Config, far Offer, now time.Time) *Link {
	l := newLink(cfg)
	l.peer, l.path, l.ready = &far, math.MaxInt, true
	l.vxlan.resume(now)
	l.transport = l.agreedTransport()
	return l
}

// SetOwn changes the offer of this end, and sends it if the peer would see a change.
func (l *Link) SetOwn(now time.Time, o Offer) []Effect {
	changed := o.message() != l.own.message()
	if l.own = o; changed {
		l.offer()
	}
	l.orderWays()
	return l.flush(now)
}

// Renew continues a link over a new session: the peer's router was away, but its kernel
// was not.
func (l *Link) Renew(now time.Time, own Offer) []Effect {
	l.own = own
	l.orderWays()
	l.offer()
	return l.flush(now)
}

// SetAddr sets the address of the peer's end.
func (l *Link) SetAddr(now time.Time, a netip.Addr) []Effect {
	if a = a.Unmap(); a != l.addr {
		l.addr, l.ready = a, false // another path
	}
	return l.flush(now)
}

// SetPath sets the MTU of the path to the peer as sleeve found it, in bytes of IP packet.
// Packets of the tunnel need it, as they may be fragmented on the path silently.
func (l *Link) SetPath(now time.Time, mtu int) []Effect {
	l.path = mtu
	return l.flush(now)
}

// Control handles the offer of the peer.
func (l *Link) Control(now time.Time, c wire.Control) []Effect {
	o := Offer{Verdict: c.Verdict, ShortID: c.ShortID, Port: c.Port, Tunnel: c.Tunnel, Plain: c.Encaps}
	if l.peer == nil || *l.peer != o {
		if l.peer != nil && l.peer.ShortID != o.ShortID {
			l.ready = false
		}
		l.peer = &o
	}
	return l.flush(now)
}

// Echoed handles a probe that came back; summed reports whether its checksum was right.
// Probes of other links are ignored.
func (l *Link) Echoed(now time.Time, nonce [NonceLen]byte, summed bool) []Effect {
	if p, ok := l.vxlan.answer(nonce); ok && summed {
		l.vxlan.echoed(now, p)
	} else if ok {
		// No packet of a container would be accepted, so it counts as lost.
		l.vxlan.badChecksum = now
		if !l.summing {
			l.summing = true
			l.emit(SumInSoftware{})
		}
	}
	for _, w := range l.ways {
		if p, ok := w.answer(nonce); ok && summed {
			w.echoed(now, p)
		} else if ok {
			w.badChecksum = now
		}
	}
	return l.flush(now)
}

// Tick does what is due. Call it at Next, or at any other time.
func (l *Link) Tick(now time.Time) []Effect { return l.flush(now) }

// Next returns when Tick must be called at the latest; zero for never.
func (l *Link) Next() time.Time {
	if !l.ready {
		return time.Time{}
	}
	next := l.vxlan.due()
	for _, w := range l.ways {
		if w.tried {
			next = earlier(next, w.due())
		}
	}
	return next
}

// Used reports that frames use the link.
func (l *Link) Used(now time.Time) []Effect {
	l.vxlan.used(now)
	for _, w := range l.ways {
		if w.tried {
			w.used(now)
		}
	}
	return l.flush(now)
}

// Busy reports whether frames used the link recently.
func (l *Link) Busy(now time.Time) bool { return l.vxlan.live.Busy(now) }

// Up reports whether frames may use VXLAN.
func (l *Link) Up() bool { return l.vxlan.up }

// Heard returns when the last echo of a full-size probe came by VXLAN; zero if none came by this path.
func (l *Link) Heard() time.Time { return l.vxlan.fullEcho }

// PeerID returns the short id that the peer claims, 0 if none.
func (l *Link) PeerID() uint16 {
	if l.peer == nil {
		return 0
	}
	return l.peer.ShortID
}

// Addr returns the address of the peer on the underlay.
func (l *Link) Addr() netip.Addr { return l.addr }

// Encrypted reports whether frames use the tunnel.
func (l *Link) Encrypted() bool { return l.agreedTransport() == encrypted }

// Tunnel returns the peer's end of the tunnel.
func (l *Link) Tunnel() wire.Tunnel {
	if l.peer == nil {
		return wire.Tunnel{}
	}
	return l.peer.Tunnel
}

// Remote returns the destination of VXLAN packets: Addr, or the peer's address inside the
// tunnel.
func (l *Link) Remote() netip.Addr {
	if l.Encrypted() {
		return TunnelAddr(l.peer.ShortID)
	}
	return l.addr
}

// RTT returns the smoothed round trip time of probes; 0 if not known.
func (l *Link) RTT() time.Duration { return l.vxlan.live.RTT() }

// transport is how the two ends agree to send VXLAN.
type transport int

const (
	none      transport = iota
	clearText           // VXLAN in clear text
	encrypted           // VXLAN inside the tunnel
)

// agreedTransport returns clearText if both ends allow it, else encrypted if both have a
// tunnel.
func (l *Link) agreedTransport() transport {
	if l.peer == nil {
		return none
	}
	for _, v := range []wire.Verdict{l.own.Verdict, l.peer.Verdict} {
		if v != wire.FastWilling && v != wire.FastEncrypted {
			return none
		}
	}
	switch {
	case l.own.Verdict == wire.FastWilling && l.peer.Verdict == wire.FastWilling:
		return clearText
	case l.own.Tunnel.Valid() && l.peer.Tunnel.Valid():
		return encrypted
	}
	return none
}

// Overhead returns the overhead of VXLAN for an IP packet of a container to a host at a,
// in bytes of outer IP packet (RFC 7348, section 5).
func Overhead(a netip.Addr) int {
	const ethernet, vxlan, udp, ipv4, ipv6 = 14, 8, 8, 20, 40
	if a.Is4() {
		return ethernet + vxlan + udp + ipv4
	}
	return ethernet + vxlan + udp + ipv6
}

func (l *Link) offer() { l.emit(Send{l.own.message()}) }

// message returns the part of an offer that is sent to the peer.
func (o Offer) message() wire.Control {
	return wire.Control{Type: wire.Fast, Verdict: o.Verdict, ShortID: o.ShortID, Port: o.Port, Tunnel: o.Tunnel, Encaps: o.Encaps.set()}
}

func (l *Link) emit(e Effect) { l.out = append(l.out, e) }

// flush updates the link to now and returns the effects of a step.
func (l *Link) flush(now time.Time) []Effect {
	l.update(now)
	if l.ready {
		l.vxlan.send(now, func(n [NonceLen]byte, size int) {
			l.emit(Probe{To: l.Remote(), Src: l.own.ShortID, Dst: l.peer.ShortID, Nonce: n, Size: size})
		})
		l.tryWays(now)
	}
	out := l.out
	l.out = nil
	return out
}

// update moves between the states.
func (l *Link) update(now time.Time) {
	agreed := l.agreedTransport()
	can := l.disagreement() == nil && (agreed != encrypted || l.path >= l.cfg.MTU+EncryptedOverhead(l.addr))
	if agreed != l.transport {
		l.transport, l.ready = agreed, false // another path
	}
	if !can || !l.ready {
		l.vxlan.stop()
		l.summing = false
		for _, w := range l.ways {
			w.end()
		}
		if l.ready = can; can {
			l.vxlan.begin(now)
		}
		return
	}
	if l.vxlan.update(now) {
		l.emit(Suspect{})
	}
}
