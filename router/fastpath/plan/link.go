// Package plan decides about the fast datapath: Link, a step machine for each
// neighbour, whether frames may go that way on a link; Plan, what the maps in
// the kernel are to hold.
//
// Nothing here opens a socket, reads a clock or logs: times are arguments, and
// what must be done is returned as effects. Neither type is safe for concurrent
// use.
//
//	          both ends willing
//	off -----------------------> trying --- echo of a full-size probe ---> up
//	 ^                             ^ |                                      |
//	 |  one no longer is           | +-- echoes for as long as hold --+     |
//	 +-----------------------------+--------------- no echo for Silence ----+
//
// A probe is echoed by the peer's kernel, whether its router runs or not.
package plan

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// Times of the probes.
const (
	// Beat is the interval of probes that are answered. All links beat at once.
	Beat = time.Second
	// FastBeat is the interval until one is answered, and SlowBeat that after
	// Timeout of them were not.
	FastBeat = 250 * time.Millisecond
	SlowBeat = 4 * time.Second
	Timeout  = 20
	// Silence is how long a link in use may be without an echo: traffic is back
	// on sleeve within three seconds of the last packet that passed.
	Silence = 2 * time.Second
	// A link that fell is used again when echoes have come for firstHold, which
	// doubles with each fall up to lastHold, and is forgotten after calm.
	firstHold     = 4 * time.Second
	lastHold      = 16 * time.Second
	holdForgotten = 5 * time.Minute
)

// NonceLen is the length of what makes an echo unforgeable, in bytes.
const NonceLen = 16

// smallProbe is the IP packet's length inside a probe that passes if anything
// does, in bytes.
const smallProbe = 64

// Offer is what one end says of itself.
type Offer struct {
	Verdict wire.Verdict
	Why     error // if not willing; for status of this end only
	ShortID uint16
	Port    uint16
	Tunnel  wire.Tunnel // this end of an encrypted tunnel, if it has one
}

// Effect is something for the driver to do: one of the types below.
type Effect interface{ effect() }

type (
	// Send sends a message of link control over the session.
	Send struct{ Msg wire.Control }
	// Probe sends a probe as large as a frame with an IP packet of Size bytes,
	// by the way that fast frames take. The driver calls Echoed when it is back.
	Probe struct {
		To       netip.Addr
		Src, Dst uint16 // short ids
		Nonce    [NonceLen]byte
		Size     int
	}
	// Summing has the checksums inside VXLAN made in software: an echo came whose
	// checksum the card made, and made wrong.
	SumInSoftware struct{}
)

func (Send) effect()          {}
func (Probe) effect()         {}
func (SumInSoftware) effect() {}

// Config is what a Link needs to know.
type Config struct {
	MTU   int                   // of containers, in bytes of IP packet
	Epoch time.Time             // of beats: the same for all links of a router
	Nonce func() [NonceLen]byte // random
	Own   Offer                 // at first
	Addr  netip.Addr            // of the peer's end; invalid if not known
}

// Link is the fast datapath of one link. Make it with NewLink.
type Link struct {
	cfg   Config
	own   Offer
	peer  *Offer // nil: it has not said anything
	addr  netip.Addr
	path  int  // MTU of the way to addr, in bytes of IP packet; 0 if not known
	ready bool // both ends are willing and all is known
	way   way  // as it was judged last
	out   []Effect

	up          bool
	upSince     time.Time
	sent        map[[NonceLen]byte]sentProbe
	next        time.Time
	unanswered  int
	tryingSince time.Time // of trying
	fullEcho    time.Time // when the last echo of a full-size probe came
	smallEcho   time.Time // likewise of any other
	badChecksum time.Time // likewise of any with a wrong checksum
	summing     bool      // Summing was asked for
	echoesSince time.Time // since when full-size echoes come without a gap
	hold        time.Duration
	rtt         time.Duration
}

type sentProbe struct {
	at   time.Time
	size int
}

// NewLink returns a Link that begins by saying what this end offers.
func NewLink(cfg Config, now time.Time) (*Link, []Effect) {
	l := &Link{cfg: cfg, own: cfg.Own, addr: cfg.Addr.Unmap(), sent: make(map[[NonceLen]byte]sentProbe)}
	l.offer()
	return l, l.flush(now)
}

// SetOwn replaces what this end offers and tells the peer.
func (l *Link) SetOwn(now time.Time, o Offer) []Effect {
	changed := o.message() != l.own.message()
	if l.own = o; changed {
		l.offer()
	}
	return l.flush(now)
}

// Renew goes on with a link over another session: the peer's router was away,
// its kernel was not.
func (l *Link) Renew(now time.Time, own Offer) []Effect {
	l.own = own
	l.offer()
	return l.flush(now)
}

// SetAddr tells where the peer is now.
func (l *Link) SetAddr(now time.Time, a netip.Addr) []Effect {
	if a = a.Unmap(); a != l.addr {
		l.addr, l.ready = a, false // another path
	}
	return l.flush(now)
}

// SetPath tells the MTU of the way to the peer, in bytes of IP packet, as sleeve
// has found it: the tunnel's packets may be cut on the way without a word.
func (l *Link) SetPath(now time.Time, mtu int) []Effect {
	l.path = mtu
	return l.flush(now)
}

// Control takes in what the peer offers.
func (l *Link) Control(now time.Time, c wire.Control) []Effect {
	o := Offer{Verdict: c.Verdict, ShortID: c.ShortID, Port: c.Port, Tunnel: c.Tunnel}
	if l.peer == nil || *l.peer != o {
		if l.peer != nil && l.peer.ShortID != o.ShortID {
			l.ready = false
		}
		l.peer = &o
	}
	return l.flush(now)
}

// Echoed takes in that a probe came back, and whether its checksum was right. What
// is no probe of this link is ignored.
func (l *Link) Echoed(now time.Time, nonce [NonceLen]byte, summed bool) []Effect {
	p, ok := l.sent[nonce]
	if !ok {
		return nil
	}
	delete(l.sent, nonce)
	if !summed {
		// No packet of a container would be accepted, so it counts as lost.
		l.badChecksum = now
		if !l.summing {
			l.summing = true
			l.emit(SumInSoftware{})
		}
		return l.flush(now)
	}
	if p.size != l.cfg.MTU {
		l.smallEcho = now
		return l.flush(now)
	}
	if now.Sub(l.fullEcho) >= Silence {
		l.echoesSince = now
	}
	l.fullEcho, l.unanswered = now, 0
	l.next = now.Add(Beat - now.Sub(l.cfg.Epoch)%Beat)
	if d := now.Sub(p.at); l.rtt == 0 {
		l.rtt = d
	} else {
		l.rtt += (d - l.rtt) / 8 // as RFC 6298 smoothes
	}
	if l.up || now.Sub(l.echoesSince) < l.hold {
		return l.flush(now)
	}
	l.up, l.upSince = true, now
	return l.flush(now)
}

// Tick does what is due. Call it at Next, or at any other time.
func (l *Link) Tick(now time.Time) []Effect { return l.flush(now) }

// Next is when Tick must be called at the latest; zero for never.
func (l *Link) Next() time.Time {
	if !l.ready {
		return time.Time{}
	}
	if silent := l.fullEcho.Add(Silence); l.up && silent.Before(l.next) {
		return silent
	}
	return l.next
}

// Up reports whether frames may go by the fast datapath.
func (l *Link) Up() bool { return l.up }

// PeerID is the short id that the peer says it has, 0 if none.
func (l *Link) PeerID() uint16 {
	if l.peer == nil {
		return 0
	}
	return l.peer.ShortID
}

// Addr is the peer's end on the underlay.
func (l *Link) Addr() netip.Addr { return l.addr }

// Sealed reports whether frames go through the tunnel.
func (l *Link) Encrypted() bool { return l.agreed() == encrypted }

// Tunnel is the peer's end of the tunnel.
func (l *Link) Tunnel() wire.Tunnel {
	if l.peer == nil {
		return wire.Tunnel{}
	}
	return l.peer.Tunnel
}

// Remote is where VXLAN goes: to Addr, or through the tunnel to the peer's
// address inside.
func (l *Link) Remote() netip.Addr {
	if l.Encrypted() {
		return TunnelAddr(l.peer.ShortID)
	}
	return l.addr
}

// RTT is the round trip time of probes, smoothed; 0 if not known.
func (l *Link) RTT() time.Duration { return l.rtt }

// way is what the two ends agree on.
type way int

const (
	none      way = iota
	clearText     // VXLAN as it is
	encrypted     // VXLAN inside the tunnel
)

// agreed works it out: in clear if that is fine with both, else by the tunnel if
// both have one.
func (l *Link) agreed() way {
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

// Overhead is what VXLAN puts around an IP packet of a container, towards a, in
// bytes of outer IP packet (RFC 7348, section 5).
func Overhead(a netip.Addr) int {
	const ethernet, vxlan, udp, ipv4, ipv6 = 14, 8, 8, 20, 40
	if a.Is4() {
		return ethernet + vxlan + udp + ipv4
	}
	return ethernet + vxlan + udp + ipv6
}

func (l *Link) offer() { l.emit(Send{l.own.message()}) }

// message is what the peer hears of an offer.
func (o Offer) message() wire.Control {
	return wire.Control{Type: wire.Fast, Verdict: o.Verdict, ShortID: o.ShortID, Port: o.Port, Tunnel: o.Tunnel}
}

func (l *Link) emit(e Effect) { l.out = append(l.out, e) }

// flush brings the link to now and returns the effects of a step.
func (l *Link) flush(now time.Time) []Effect {
	l.update(now)
	if l.ready && !now.Before(l.next) {
		l.probe(now)
	}
	out := l.out
	l.out = nil
	return out
}

// judge moves between the states.
func (l *Link) update(now time.Time) {
	way := l.agreed()
	can := l.disagreement() == nil && (way != encrypted || l.path >= l.cfg.MTU+EncryptedOverhead(l.addr))
	if way != l.way {
		l.way, l.ready = way, false // another path
	}
	switch {
	case !can || !l.ready:
		l.up, l.fullEcho, l.smallEcho, l.badChecksum, l.summing = false, time.Time{}, time.Time{}, time.Time{}, false
		clear(l.sent)
		if l.ready = can; can {
			l.tryingSince, l.next, l.unanswered, l.hold = now, now, 0, 0
		}
	case l.up && now.Sub(l.fullEcho) >= Silence:
		l.up = false
		if l.hold = max(firstHold, min(2*l.hold, lastHold)); now.Sub(l.upSince) >= holdForgotten {
			l.hold = firstHold
		}
		l.tryingSince, l.unanswered = now, 0
	}
}

// probe asks. A link that is not up asks with a small probe too, to tell an MTU
// that does not fit from a path that is blocked.
func (l *Link) probe(now time.Time) {
	for n, p := range l.sent {
		if now.Sub(p.at) > Silence {
			delete(l.sent, n)
		}
	}
	pause := FastBeat
	if !l.up && l.unanswered >= Timeout {
		pause = SlowBeat
	}
	l.unanswered++
	l.next = now.Add(pause)
	l.sendProbe(now, l.cfg.MTU)
	if !l.up && l.cfg.MTU > smallProbe {
		l.sendProbe(now, smallProbe)
	}
}

func (l *Link) sendProbe(now time.Time, size int) {
	n := l.cfg.Nonce()
	l.sent[n] = sentProbe{now, size}
	l.emit(Probe{To: l.Remote(), Src: l.own.ShortID, Dst: l.peer.ShortID, Nonce: n, Size: size})
}
