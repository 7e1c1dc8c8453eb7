package router

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/frag"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// Lengths of the headers around a packet, in bytes.
const (
	udpHeader   = 8
	ipv4Header  = 20
	ipv6Header  = 40
	ethernetLen = 14
)

// outerLen returns the length of the IP and UDP headers of packets to a.
func outerLen(a netip.AddrPort) int {
	if a.Addr().Is4() {
		return ipv4Header + udpHeader
	}
	return ipv6Header + udpHeader
}

// sleeve is a link as lanes see it.
type sleeve struct {
	// Constant.
	peer    peer.Name
	dialled bool
	begun   netip.Addr // address of the peer at first; invalid if not known
	secret  [32]byte   // of its session
	session wire.Session

	// Control goroutine only.
	machine  *link.Machine
	deadline time.Time
	indexes  []uint32 // its receiver indexes
	reported reportedLink
	busy     bool     // as r.busy counts it
	sendErr  string   // of the last probe, "" if the kernel accepted it
	path     underlay // that the fast path heard last

	// Atomic: written by the control goroutine, read by lanes.
	tx      atomic.Pointer[seal.Tx]
	addr    atomic.Pointer[netip.AddrPort]
	maxBody atomic.Int32 // bytes of body that one packet holds; 0 while not established
	quiet   atomic.Bool  // the control goroutine must hear of the next frame
	// seen is the last address other than addr from which a packet came, as reported.
	seen atomic.Pointer[seenAddr]

	// Atomic: written by lanes.
	pending            atomic.Int32 // events that the control goroutine has not handled
	drops              drops
	txPackets, txBytes atomic.Uint64 // packets, and bytes of UDP payload
	rxPackets, rxBytes atomic.Uint64
	txFrames, rxFrames atomic.Uint64
	uses, toAll        atomic.Uint64 // of txFrames, those that use the link, and those to every peer

	parts struct {
		sync.Mutex
		frag.Reassembler
		counted uint64 // the part of Dropped that is in drops
	}
	icmpLimit *rate.Limiter // of ICMP answers
	refused   *rate.Limiter // of log lines about malformed control messages

	status atomic.Pointer[machineStatus]
}

// underlay is the path to the peer's end of a link.
type underlay struct {
	addr netip.Addr
	mtu  int // in bytes of IP packet; 0 if not known
}

// reportedLink is what the mesh last heard of a link.
type reportedLink struct {
	up  bool
	rtt time.Duration
	at  time.Time
}

// machineStatus is the part of status that comes from the step machine.
type machineStatus struct {
	addr   netip.AddrPort
	state  link.State
	reason string
	suite  string
	mtu    int
	rtt    time.Duration
}

// Bounds of the ICMP messages about frames for one link, a second and at once.
const (
	icmpRate  = 100
	icmpBurst = 50
)

// refusedEvery is the least time between two log lines about malformed control
// messages of one link.
const refusedEvery = 10 * time.Second

func newSleeve(n Neighbour) *sleeve {
	l := &sleeve{
		peer: n.Name, dialled: n.Dialled, begun: n.Addr.Addr(), secret: n.Secret, session: seal.SessionTag(n.Secret),
		icmpLimit: rate.NewLimiter(icmpRate, icmpBurst), refused: rate.NewLimiter(rate.Every(refusedEvery), 1),
	}
	l.quiet.Store(true)
	return l
}

// seenAddr is an address from which a packet of the peer came, and when that was reported.
type seenAddr struct {
	addr netip.AddrPort
	at   time.Duration // on the clock of the lanes
}

// seenEvery is the least time between two reports of the same address. Until the address
// is proved, which takes a round trip, every packet comes from there.
const seenEvery = 250 * time.Millisecond

// moved reports whether the control goroutine must hear of a packet from an address.
func (l *sleeve) moved(from netip.AddrPort, now time.Duration) bool {
	if addr := l.addr.Load(); addr != nil && *addr == from {
		return false
	}
	if s := l.seen.Load(); s != nil && s.addr == from && now-s.at < seenEvery {
		return false
	}
	l.seen.Store(&seenAddr{from, now})
	return true
}

// mayAnswer reports whether the answer to a probe may go to an address.
func (l *sleeve) mayAnswer(to netip.AddrPort) bool {
	addr := l.addr.Load()
	return addr != nil && *addr == to || link.MayMove(to, l.begun)
}

// publish copies the decisions of the step machine to where lanes and status read
// them. Control goroutine only.
func (l *sleeve) publish() (state link.State) {
	m := l.machine
	addr, mtu := m.Addr(), m.MTU()
	if old := l.addr.Load(); old == nil || *old != addr {
		l.addr.Store(&addr)
	}
	state, reason := m.State()
	maxBody := 0
	if state == link.Established {
		maxBody = mtu - outerLen(addr) - wire.Overhead
	}
	l.maxBody.Store(int32(maxBody))
	if reason != "" && l.sendErr != "" {
		reason += "; " + l.sendErr
	}
	s := machineStatus{addr: addr, state: state, reason: reason, rtt: m.RTT()}
	if suite, ok := m.Suite(); ok {
		s.suite = suite.String()
	}
	if maxBody > 0 {
		s.mtu = maxBody - wire.DirectLen - ethernetLen
	}
	if old := l.status.Load(); old == nil || *old != s {
		l.status.Store(&s)
	}
	return state
}

// toAllPerUse is how many frames to every peer use a link as much as one to a single peer. A
// lone ARP request or a host that announces an address crosses all links of a mesh, and must
// not make all routers watch all links closely; a stream to every peer must.
const toAllPerUse = 16

// carries counts frames that are sent. The first after a pause that uses the link makes the
// control goroutine watch it more closely.
func (r *Router) carries(l *sleeve, h *wire.Head, frames uint64) {
	l.txFrames.Add(frames)
	if h.ToAll() {
		n := l.toAll.Add(frames)
		if n/toAllPerUse == (n-frames)/toAllPerUse {
			return
		}
	}
	l.uses.Add(frames)
	if l.quiet.Load() && l.quiet.CompareAndSwap(true, false) {
		r.notify(event{kind: used, link: l})
	}
}

// countSent counts a packet of n bytes that the kernel accepted.
func (l *sleeve) countSent(n int) {
	l.txPackets.Add(1)
	l.txBytes.Add(uint64(n))
}

// countReassembly adds what the reassembler dropped to the link's drops. The lock of
// parts is held.
func (l *sleeve) countReassembly() {
	if d := l.parts.Dropped; d != l.parts.counted {
		l.drops[DropReassembly].Add(d - l.parts.counted)
		l.parts.counted = d
	}
}

// rxKey is an entry of the table of receiver indexes.
type rxKey struct {
	rx   *seal.Rx
	link *sleeve
	used atomic.Bool
}
