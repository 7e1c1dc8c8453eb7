// Package link is the step machine of one sleeve link. It agrees on keys and renews
// them, monitors whether the peer answers, follows its address, and finds the path MTU.
//
// A Machine has no socket, clock or goroutine. Its driver calls a method for each event,
// with the time, and carries out the effects that it returns, in order. A Machine is not
// safe for concurrent use.
//
//	          keys agreed, answered,
//	          path MTU known                 the path is dead
//	pending ------------------> established ------------------> failed
//	   ^                            ^  ^                          |
//	   |   keys too old             |  +--------------------------+
//	   +----------------------------+     answers come for a while
//
// Package liveness decides whether the path is dead: in 0.6 s if frames use it. While the
// kernel's fast path to the peer works only Silence makes the link fail: then the peer's
// router is away and not the path.
package link

import (
	"crypto/ecdh"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/liveness"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// Times of the heartbeat.
const (
	// FastBeat is the interval of heartbeats until one is answered. Jitter shortens
	// it by up to an eighth.
	FastBeat = 500 * time.Millisecond
	// Beat is the interval of heartbeats that are answered, if the link carries no
	// frames and the router has few links; package liveness has the others. All links of a router send them at the same
	// moment, so that a router with many links wakes up once to send them, and once for the
	// answers.
	Beat = 2 * time.Second
	// Timeout is the number of consecutive heartbeats that are sent fast. After it,
	// a peer that stopped answering gets one every Beat, and a peer that never
	// answered gets them less and less often, at last every SlowBeat.
	Timeout  = 120
	SlowBeat = 16 * time.Second
	// Silence is how long an established link may be without an answer while the fast path
	// works.
	Silence = 8 * time.Second
	// A link that failed is used again after answers came for firstHold. The time doubles
	// with each failure up to lastHold, and starts again after holdForgotten without one.
	firstHold     = time.Second
	lastHold      = 16 * time.Second
	holdForgotten = time.Minute
)

// State of a link.
type State int

// States.
const (
	Pending State = iota
	Established
	Failed
)

// String returns the word for status.
func (s State) String() string { return [...]string{"pending", "established", "failed"}[s] }

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Config configures a Machine. The limits may be zero.
type Config struct {
	Self, Peer peer.Name
	Secret     [32]byte       // from the session, the same at both ends
	Suites     seal.Suites    // that this end runs fast
	Addr       netip.AddrPort // where the peer probably is
	Lanes      int            // of this end, for sending
	MaxMTU     int            // largest IP packet to try, in bytes

	Epoch    time.Time     // of heartbeats: the same for all links of a router
	Entropy  io.Reader     // of ephemeral keys
	Jitter   *rand.Rand    // of everything that is not secret
	NewIndex func() uint32 // returns a receiver index that is not in use, 1..wire.MaxIndex
	Traffic  func() uint64 // returns how many frames were sent so far; nil if not known
	// Pace and Unread are those of liveness.Config.
	Pace   func() time.Duration
	Unread func() bool
	Links  func() int // returns how many links the router has; nil for few

	RenewAfter   time.Duration // age of keys at which new ones are asked for; RenewAge if 0
	RenewPackets uint64        // packets sent after which new keys are asked for; RenewPackets if 0
}

// Effect is an action for the driver: one of the types below.
type Effect interface{ effect() }

type (
	// SendControl sends a message of link control over the session.
	SendControl struct{ Msg []byte }
	// SendProbe sends a Probe packet that requests an answer, padded to Body.Size
	// bytes of IP packet. If the kernel refuses it as too big the driver calls TooBig.
	SendProbe struct {
		To   netip.AddrPort
		Body wire.ProbeBody
	}
	// InstallRx opens packets to Index with Rx from now on. The driver calls FirstUse
	// after the first one.
	InstallRx struct {
		Index uint32
		Rx    *seal.Rx
	}
	// RemoveRx undoes InstallRx, or returns an index of NewIndex that was not used.
	RemoveRx struct{ Index uint32 }
	// Silent says that the peer does not answer although the fast path to it works: either
	// its router is away, which the session shows, or something blocks sleeve.
	Silent struct{}
	// UseTx seals all packets with Tx from now on; nil stops sending.
	UseTx struct{ Tx *seal.Tx }
)

func (SendControl) effect() {}
func (SendProbe) effect()   {}
func (InstallRx) effect()   {}
func (RemoveRx) effect()    {}
func (Silent) effect()      {}
func (UseTx) effect()       {}

// Machine is one link. Make it with New.
type Machine struct {
	cfg   Config
	state State
	addr  netip.AddrPort
	out   []Effect // collected during a step
	// candidate is the address that the peer may have now, nil if it is addr.
	candidate *candidate

	keys keys
	beat beat
	live *liveness.Detector
	path path

	fast    bool          // the fast path to the peer works
	upSince time.Time     // when the link was established last
	since   time.Time     // since when answers come without a gap
	hold    time.Duration // how long they must come until a link that failed is used

	// unusable says why the link cannot come up until keys are agreed, "" if it can.
	unusable string
}

// New returns a machine for a neighbour, and the effects that begin the link.
func New(cfg Config, now time.Time) (*Machine, []Effect) {
	if cfg.RenewAfter == 0 {
		cfg.RenewAfter = RenewAge
	}
	if cfg.RenewPackets == 0 {
		cfg.RenewPackets = RenewPackets
	}
	m := &Machine{cfg: cfg, addr: cfg.Addr}
	m.live = liveness.New(liveness.Config{Epoch: cfg.Epoch, Rest: m.rest, Pace: cfg.Pace, Unread: cfg.Unread})
	m.path.init(cfg.MaxMTU)
	m.beat.sent = make(map[uint64]sentProbe)
	if m.offers() {
		m.keys.round = uint32(now.Unix())
		m.offer(now)
	}
	return m, m.flush()
}

// rest returns the interval of heartbeats while the link carries no frames.
func (m *Machine) rest() time.Duration {
	if m.cfg.Links == nil {
		return Beat
	}
	return liveness.Rest(m.cfg.Links(), Beat)
}

// State returns the state and, unless it is Established, the reason in words.
func (m *Machine) State() (State, string) {
	if m.state == Established {
		return m.state, ""
	}
	switch {
	case m.unusable != "":
		return m.state, m.unusable
	case m.keys.tx == nil:
		return m.state, "waiting for the peer's keys"
	case !m.addr.IsValid():
		return m.state, "waiting for a packet of the peer, whose address is not known"
	case m.beat.lastAnswer.IsZero():
		return m.state, fmt.Sprintf("no answer on UDP from %s", m.addr)
	case m.state == Failed && m.live.Alive():
		return m.state, fmt.Sprintf("%s answers again, watched for %s before the link is used", m.addr, m.hold)
	case m.state == Failed:
		return m.state, fmt.Sprintf("no answer on UDP from %s any more", m.addr)
	}
	return m.state, "measuring the path"
}

// Addr returns the address of the peer; invalid if not known.
func (m *Machine) Addr() netip.AddrPort { return m.addr }

// MTU returns the size of the largest IP packet that is known to reach the peer, in
// bytes.
func (m *Machine) MTU() int { return m.path.mtu }

// RTT returns the smoothed round trip time; 0 if not known.
func (m *Machine) RTT() time.Duration { return m.live.RTT() }

// Busy reports whether the link carries frames, so that heartbeats are frequent.
func (m *Machine) Busy(now time.Time) bool { return m.live.Busy(now) }

// Used reports that the link carries a frame after a pause. Tick finds out by
// Config.Traffic, but later.
func (m *Machine) Used(now time.Time) []Effect {
	m.live.Used(now)
	return m.Tick(now)
}

// SetFast reports whether the fast path to the peer works.
func (m *Machine) SetFast(now time.Time, up bool) []Effect {
	m.fast = up
	return m.Tick(now)
}

// Check makes the machine find out at once whether the path works and which packets it
// carries, because the fast path lost some.
func (m *Machine) Check(now time.Time) []Effect {
	m.path.verified = time.Time{}
	m.live.Check(now)
	return m.Tick(now)
}

// Suite returns the cipher suite of packets; ok is false before keys are agreed.
func (m *Machine) Suite() (s seal.Suite, ok bool) {
	if m.keys.tx == nil {
		return 0, false
	}
	return m.keys.tx.Suite, true
}

// flush returns the effects of a step.
func (m *Machine) flush() []Effect {
	out := m.out
	m.out = nil
	return out
}

func (m *Machine) do(e Effect) { m.out = append(m.out, e) }

// Tick does what is due. Call it at Next, or at any other time.
func (m *Machine) Tick(now time.Time) []Effect {
	m.tickKeys(now)
	m.tickMove(now)
	m.tickBeat(now)
	m.tickPath(now)
	m.update(now)
	return m.flush()
}

// update moves between the states.
func (m *Machine) update(now time.Time) {
	alive := m.live.Alive()
	switch {
	case m.keys.tx == nil:
		m.state = Pending
	case m.state == Established && !alive && !now.Before(m.deadline()):
		m.state = Failed
		if m.hold = max(firstHold, min(2*m.hold, lastHold)); now.Sub(m.upSince) >= holdForgotten {
			m.hold = firstHold
		}
	case m.state != Established && alive && m.path.known && !now.Before(m.usable()):
		m.state, m.upSince = Established, now
	}
}

// deadline returns when a link whose path is dead fails.
func (m *Machine) deadline() time.Time {
	if m.fast {
		return m.beat.lastAnswer.Add(Silence)
	}
	return m.beat.lastAnswer
}

// usable returns when a link whose peer answers may be used.
func (m *Machine) usable() time.Time {
	if m.state == Failed {
		return m.since.Add(m.hold)
	}
	return m.since
}

// Next returns when Tick must be called at the latest.
func (m *Machine) Next() time.Time {
	next := m.keys.next(m)
	for _, t := range []time.Time{m.nextBeat(), m.path.next(), m.nextState(), m.nextMove()} {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	return next
}

func (m *Machine) nextBeat() time.Time {
	switch {
	case m.keys.tx == nil, !m.addr.IsValid():
		return time.Time{} // there is no key, or no address
	case m.live.Alive():
		return m.live.Next()
	}
	return m.beat.next
}

// nextState returns when update changes the state by itself; zero for never.
func (m *Machine) nextState() time.Time {
	switch alive := m.live.Alive(); {
	case m.state == Established && !alive:
		return m.deadline()
	case m.state == Failed && alive && m.path.known:
		return m.usable()
	}
	return time.Time{}
}

var curve = ecdh.X25519()
