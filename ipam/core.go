package ipam

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/ipam/space"
	"github.com/weft-net/weft/mesh/peer"
)

// View answers questions of the core about the mesh. Answers describe the present
// moment; none of the methods blocks.
type View interface {
	// Reachable reports whether a peer is in the mesh and a path leads to it.
	Reachable(peer.Name) bool
	// Peers returns all reachable peers except this one.
	Peers() []peer.Name
	// Nickname returns the nickname of a peer, "" if it is unknown.
	Nickname(peer.Name) string
}

// Config configures an Allocator. All fields are constant.
type Config struct {
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	// Range is the address range that all peers share. Default is the subnet of
	// requests that name none.
	Range, Default netip.Prefix
	// Init configures how the first ring is made.
	Init Init
	// Grace is how long a peer that knows of no ring waits after its start for
	// others to show one, before it makes one. If it is too long, the first
	// container of a new mesh waits. If it is too short, a host that was reset
	// makes a ring of its own before it is connected. Default 3 s.
	Grace time.Duration
}

// Times of the core.
const (
	defaultGrace  = 3 * time.Second
	askTimeout    = 2 * time.Second        // for the answer to a space or claim ask
	donorTTL      = 5 * time.Second        // how long an answer about free addresses is used
	electionPause = 1 * time.Second        // least time between two proposals; up to twice as much
	roundTimeout  = 3 * time.Second        // for one round of a removal; up to twice as much
	resendEvery   = 1 * time.Second        // for messages that were not answered
	regainEvery   = 5 * time.Second        // between two asks for one address
	flushEvery    = 1 * time.Second        // for records of other peers
	compactEvery  = 1 * time.Minute        // for own adjacent ranges
	warnEvery     = 10 * time.Second       // between two warnings about refused records
	tickEvery     = 250 * time.Millisecond // of the driver, while something waits
	idleTickEvery = 5 * time.Second        // of the driver, while nothing waits
)

// effect is something for the driver to do once the writes of the step are on
// disk: one of the types below.
type effect interface{ effect() }

type (
	effSend struct {
		to  peer.Name
		msg []byte
	}
	effAnnounce struct{ delta []byte } // of the channel
	// effReply ends the request id.
	effReply struct {
		id uint64
		answer
		err error
	}
	effWarn struct {
		msg  string // constant
		args []any  // for slog
	}
)

func (effSend) effect()     {}
func (effAnnounce) effect() {}
func (effReply) effect()    {}
func (effWarn) effect()     {}

// answer is the result of a request. Each kind of request sets its own field; a
// claim and a prime have no result.
type answer struct {
	prefix   netip.Prefix   // of allocate
	removed  []RemovedPeer  // of remove
	handover HandoverResult // of handover
}

// core is the allocator without clock, disk and network. Each step is given the
// time and returns writes and effects. A core is not safe for concurrent use.
type core struct {
	cfg  Config
	view View
	rng  *rand.Rand
	now  time.Time

	ring        *ring.Ring
	election    *paxos.Election // nil if the first ring comes from seeds
	space       space.Space
	allocations map[netip.Addr]allocation
	byOwner     map[string][]netip.Addr

	started     time.Time
	ringWanted  bool
	nextPropose time.Time
	nextCompact time.Time
	nextWarn    time.Time

	pending  []*request // in order of arrival
	lastID   uint64
	asks     map[netip.Prefix]*spaceAsk
	donors   map[peer.Name]donor
	removals map[uint64]*removal
	votes    map[ring.Holder]*paxos.Acceptor[string] // by the holder to remove; the value is the proposal
	round    uint32                                  // of the last ballot that this peer led; it is on disk
	leaving  *leaving
	left     bool
	foreign  map[netip.Addr]*foreignAddr
	diverged map[ring.ID]Divergence

	epoch         uint64      // of the ring that space follows
	holder        ring.Holder // self, as of epoch
	genesis       ring.ID     // of the ring on disk
	onDisk        map[ring.ID]bool
	inbox         []message // to self
	writes        []store.Write
	deferred      []store.Write // may be written after the effects
	deferredSince time.Time
	out           []effect
}

func newCore(cfg Config, view View, rng *rand.Rand) *core {
	if cfg.Grace == 0 {
		cfg.Grace = defaultGrace
	}
	c := &core{cfg: cfg, view: view, rng: rng,
		ring:        ring.New(cfg.Range, cfg.Verifier),
		allocations: make(map[netip.Addr]allocation),
		byOwner:     make(map[string][]netip.Addr),
		asks:        make(map[netip.Prefix]*spaceAsk),
		donors:      make(map[peer.Name]donor),
		removals:    make(map[uint64]*removal),
		votes:       make(map[ring.Holder]*paxos.Acceptor[string]),
		foreign:     make(map[netip.Addr]*foreignAddr),
		diverged:    make(map[ring.ID]Divergence),
		onDisk:      make(map[ring.ID]bool),
	}
	c.holder = c.ring.Holder(cfg.Self)
	return c
}

// step runs f at now. The writes that it returns must be on disk before the effects
// are carried out.
func (c *core) step(now time.Time, f func()) ([]store.Write, []effect) {
	c.now = now
	if c.started.IsZero() {
		c.started = now
	}
	f()
	for {
		for len(c.inbox) > 0 {
			m := c.inbox[0]
			c.inbox = c.inbox[1:]
			c.handle(c.cfg.Self, m)
		}
		if !c.refresh() {
			break
		}
	}
	writes, out := c.writes, c.out
	c.writes, c.out = nil, nil
	// Records of other peers go with the next own write, or alone after flushEvery.
	if len(c.deferred) > 0 && (len(writes) > 0 || now.Sub(c.deferredSince) >= flushEvery) {
		writes = append(c.deferred, writes...)
		c.deferred = nil
	}
	return writes, out
}

// tick does everything that is due.
func (c *core) tick() {
	c.establish()
	c.pushAsks()
	c.pushRemovals()
	c.pushLeave()
	c.pushRegain()
	for id, d := range c.diverged {
		if c.now.Sub(d.Seen) > divergenceTTL {
			delete(c.diverged, id)
		}
	}
	if c.ring.Ready() && !c.left && c.now.After(c.nextCompact) {
		c.nextCompact = c.now.Add(compactEvery)
		if out, err := c.ring.Compact(c.cfg.Signer, c.cfg.Self, 8); err == nil && out.News != nil {
			c.publish(out)
		}
	}
}

// idle reports whether ticks are needed only every idleTickEvery.
func (c *core) idle() bool {
	return len(c.pending)+len(c.removals)+len(c.deferred) == 0 && c.leaving == nil && (c.ring.Ready() || !c.ringWanted || c.left)
}

// receive handles a unicast message of another peer.
func (c *core) receive(from peer.Name, msg []byte) error {
	m, err := parseMessage(msg)
	if err != nil {
		return err
	}
	c.handle(from, m)
	return nil
}

func (c *core) handle(from peer.Name, m message) {
	switch m.kind {
	case msgRecords:
		_, _ = c.mergeRing(from, m.delta)
	case msgSpaceAsk:
		c.onSpaceAsk(from, m)
	case msgSpaceAnswer:
		c.onSpaceAnswer(from, m)
	case msgClaimAsk:
		c.onClaimAsk(from, m)
	case msgClaimAnswer:
		c.onClaimAnswer(from, m)
	case msgLeave:
		c.onLeave(from, m)
	case msgLeaveAck:
		c.onLeaveAck(from, m)
	case msgPrepare, msgAccept:
		c.onBallot(from, m)
	case msgPromise:
		c.onPromise(from, m)
	case msgVote:
		c.onVote(from, m)
	}
}

func (c *core) send(to peer.Name, m message) {
	if to == c.cfg.Self {
		c.inbox = append(c.inbox, m)
		return
	}
	c.out = append(c.out, effSend{to, m.encode()})
}

// sendProof sends to all records that it needs to accept records.
func (c *core) sendProof(to peer.Name, records []ring.Raw) {
	for _, d := range c.ring.Proof(records) {
		c.send(to, message{kind: msgRecords, delta: d})
	}
}

func (c *core) reply(id uint64, a answer) { c.out = append(c.out, effReply{id: id, answer: a}) }

func (c *core) fail(id uint64, err error) { c.out = append(c.out, effReply{id: id, err: err}) }

func (c *core) warn(what string, args ...any) { c.out = append(c.out, effWarn{what, args}) }

// publish writes and announces records that this peer made.
func (c *core) publish(out ring.Outcome) {
	c.writes = append(c.writes, c.ringWrites(out)...)
	c.out = append(c.out, effAnnounce{append([]byte{deltaRing}, out.News...)})
}

// mergeRing merges a delta of the ring.
func (c *core) mergeRing(from peer.Name, delta []byte) (news []byte, err error) {
	out, err := c.ring.Merge(delta)
	for _, r := range out.Refused {
		// A record that arrives before the records that it builds on is refused as
		// well. It comes again.
		early := errors.Is(r, ring.ErrAuthority) || errors.Is(r, ring.ErrBasis)
		if !early && !c.now.Before(c.nextWarn) {
			c.nextWarn = c.now.Add(warnEvery)
			c.warn("ring record refused", "peer", from, "err", r, "refused_so_far", c.ring.Refused())
		}
	}
	var div *ring.DivergentError
	if errors.As(err, &div) {
		c.noteDivergence(from, div)
	}
	if len(out.Records) > 0 {
		if len(c.deferred) == 0 {
			c.deferredSince = c.now
		}
		c.deferred = append(c.deferred, c.ringWrites(out)...)
	}
	return out.News, err
}

// refresh updates all state that depends on the ring, and reports whether the ring
// had changed.
func (c *core) refresh() bool {
	if c.ring.Epoch() == c.epoch {
		return false
	}
	c.epoch = c.ring.Epoch()
	if heir, removed := c.ring.Removed(c.holder); removed && !c.left {
		c.warn("this peer was removed from the ring", "heir", heir, "addresses_in_use", len(c.allocations))
	}
	c.holder = c.ring.Holder(c.cfg.Self)
	c.space.SetOwned(c.ring.Owned(c.cfg.Self))
	c.saveRingIdentity()
	c.forgetVotes()
	c.findForeign()
	if c.ring.Ready() {
		c.ringWanted = false
		for id := range c.diverged {
			if c.ring.Superseded(id) {
				delete(c.diverged, id)
			}
		}
	}
	c.retryPending()
	return true
}

// displayName returns the name of a peer for people, with its nickname if known.
func (c *core) displayName(n peer.Name) string {
	if nick := c.view.Nickname(n); nick != "" {
		return fmt.Sprintf("%s(%s)", n, nick)
	}
	return n.String()
}

// ringDivides reports whether a is in the address range of the ring.
func (c *core) ringDivides(a netip.Addr) bool { return addr.Of(c.cfg.Range).Contains(a) }
