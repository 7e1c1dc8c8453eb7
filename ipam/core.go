package ipam

import (
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/consensus"
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
	// Key returns the key of a peer by its own entry in the topology.
	Key(peer.Name) (peer.Key, bool)
	// Place returns the underlay address at which this peer has a direct session with
	// another one.
	Place(peer.Name) (netip.Addr, bool)
	// Target reports whether a user told this peer to connect to that one.
	Target(peer.Name) bool
	// AwaitsTarget reports whether a user named peers to connect to, and none of them has
	// answered yet.
	AwaitsTarget() bool
	// Collides reports whether another live router uses the identity of this one.
	Collides() bool
	// Banned reports whether peers refuse this one because the voters banned it. The ring may not
	// say so: the decision does not reach a peer that is out already, or that was away.
	Banned() bool
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
	// Absence is how long a peer must be away before this peer agrees to remove it, if two
	// hosts ask for it. If one host alone asks, it must be away for aloneAfter times as
	// long. If it is too short, a host that restarts can lose its addresses because
	// somebody else asks for it. Default 10 s.
	Absence time.Duration
	// Settle is how long a peer must be there before this peer agrees to give it a vote.
	// Default 20 s.
	Settle time.Duration
	// Keep is how long this peer leaves the addresses of a removed peer unused, as its heir,
	// so that the peer gets them back if it returns. Default 1 h.
	Keep time.Duration

	// CatchUp is how long this peer gives nothing after its start if it reaches none of the
	// peers that the ring on its disk names. If it is too long, a host whose peers are all dead
	// starts no container after a restart. If it is too short, a host with an old disk that is
	// cut off gives addresses that others have. Default 2 min.
	CatchUp time.Duration
	// Lost says that the state of this peer is not complete: a file is missing or was damaged,
	// or belongs to another run of the host. The peer then catches up, and makes no ring for
	// the time of CatchUp, even if no ring is on the disk.
	Lost bool

	// DescribeOwner returns what an error says for an owner of addresses on this host; the
	// owner itself if nil.
	DescribeOwner func(owner string) string

	maxRanges int // for tests: less than ring.MaxRanges
}

// Times of the core.
const (
	defaultGrace  = 3 * time.Second
	defaultAway   = 10 * time.Second
	defaultSettle = 20 * time.Second
	defaultKeep   = time.Hour
	askTimeout    = 2 * time.Second        // for the answer to a space or claim ask
	askPause      = 500 * time.Millisecond // from a range that was given to the next ask
	donorTTL      = 5 * time.Second        // how long an answer about free addresses is used
	electionPause = 1 * time.Second        // least time between two proposals; up to twice as much
	hurryAfter    = 1 * time.Second        // from a proposal until a quorum of promises is enough
	resendEvery   = 1 * time.Second        // for messages that were not answered
	regainEvery   = 5 * time.Second        // between two asks for one address
	flushEvery    = 1 * time.Second        // for records of other peers
	watchEvery    = 1 * time.Second        // between two looks at who is absent
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
	// effBanned says which peers the mesh must refuse.
	effBanned struct{ peers []ring.Holder }
	// effForget ends the binding of the overridden name of a peer that was removed.
	effForget struct{ name peer.Name }
	effWarn   struct {
		msg  string // constant
		args []any  // for slog
	}
)

func (effSend) effect()     {}
func (effAnnounce) effect() {}
func (effReply) effect()    {}
func (effWarn) effect()     {}
func (effBanned) effect()   {}
func (effForget) effect()   {}

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
	proposedAt  time.Time
	nextWarn    time.Time
	// nextDivergedWarn is when another ring is logged again.
	nextDivergedWarn time.Time

	pending     []*request // in order of arrival
	lastID      uint64
	asks        map[netip.Prefix]*spaceAsk
	donors      map[peer.Name]donor
	askers      map[peer.Name]*asker
	givenTo     asker // all askers together
	given       map[netip.Addr]*given
	offers      map[string]*offer // by the encoded action
	kept        []kept            // in order of their addresses
	rivals      map[netip.Addr]rivals
	rivalsFrom  map[netip.Addr]int // claims by underlay address
	removals    map[uint64]*removal
	leaving     *leaving
	left        bool
	foreign     map[netip.Addr]*foreignAddr
	catch       *catchUp // nil once this peer has caught up
	diskSlot    uint64   // of the ring on the disk at the start; noSlot for none
	diverged    map[ring.ID]Divergence
	otherRanges map[netip.Prefix]time.Time // of other peers, and when they were heard of

	// Decisions; see decide.go and voters.go.
	startedPeers map[peer.Name]*started    // the last starts of owners and voters
	checked      map[string][]*ring.Action // of actionsOf, by body
	checkedEpoch uint64                    // of the ring
	wishes       map[wishKey]*wish
	asked        map[wishKey]*wish // by the operator of this host
	takenBack    map[wishKey]*wish // the opposites of wishes that the operator took back a short time ago
	voices       map[wishKey]*voice
	consents     map[consent]time.Time
	machine      *consensus.Machine
	machineRing  ring.ID
	savedVotes   []byte
	deciding     bool
	aloneFirst   bool // of the last proposal
	activeUntil  time.Time
	roundSent    time.Time
	helped       map[peer.Name]time.Time
	helps        asker                 // peers without a vote together
	refusals     map[peer.Name]refusal // the last reason of each voter that does not agree
	absentSince  map[ring.Holder]time.Time
	lastPlace    map[ring.Holder]netip.Addr // of owners and voters with which there was a direct session
	nextWatch    time.Time
	nextVoters   time.Time
	others       othersRanges
	placeSince   map[netip.Addr]settled
	placesCache  map[netip.Addr]ring.Holder
	placesAt     time.Time

	self          ring.Holder
	epoch         uint64            // of the ring that space follows
	onDisk        map[string]stored // the records of the ring
	savedRing     ring.ID
	banned        []ring.Holder
	named         map[ring.Holder]bool  // owners and voters with overridden names
	healed        map[ring.ID]time.Time // rings whose peers decided to follow this one
	counters      Counters
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
	if cfg.Absence == 0 {
		cfg.Absence = defaultAway
	}
	if cfg.Settle == 0 {
		cfg.Settle = defaultSettle
	}
	if cfg.Keep == 0 {
		cfg.Keep = defaultKeep
	}
	if cfg.CatchUp == 0 {
		cfg.CatchUp = defaultCatchUp
	}
	if cfg.maxRanges == 0 {
		cfg.maxRanges = ring.MaxRanges
	}
	return &core{cfg: cfg, view: view, rng: rng,
		self:        ring.HolderOf(cfg.Self, cfg.Signer.Key()),
		ring:        ring.New(cfg.Range, cfg.Verifier, view.Key),
		allocations: make(map[netip.Addr]allocation),
		byOwner:     make(map[string][]netip.Addr),
		asks:        make(map[netip.Prefix]*spaceAsk),
		donors:      make(map[peer.Name]donor),
		askers:      make(map[peer.Name]*asker),
		given:       make(map[netip.Addr]*given),
		offers:      make(map[string]*offer),
		rivals:      make(map[netip.Addr]rivals),
		rivalsFrom:  make(map[netip.Addr]int),
		removals:    make(map[uint64]*removal),
		foreign:     make(map[netip.Addr]*foreignAddr),
		diverged:    make(map[ring.ID]Divergence),
		otherRanges: make(map[netip.Prefix]time.Time),
		wishes:      make(map[wishKey]*wish),
		asked:       make(map[wishKey]*wish), takenBack: make(map[wishKey]*wish),
		voices:       make(map[wishKey]*voice),
		consents:     make(map[consent]time.Time),
		startedPeers: make(map[peer.Name]*started),
		helped:       make(map[peer.Name]time.Time),
		refusals:     make(map[peer.Name]refusal),
		absentSince:  make(map[ring.Holder]time.Time),
		lastPlace:    make(map[ring.Holder]netip.Addr),
		placeSince:   make(map[netip.Addr]settled),
		onDisk:       make(map[string]stored),
		healed:       make(map[ring.ID]time.Time),
	}
}

// mine returns this peer as an owner: by its key, and by its name alone if it is a founder
// of a ring from seeds.
func (c *core) mine() []ring.Holder {
	if h, ok := c.ring.Founder(c.cfg.Self); ok {
		return []ring.Holder{c.self, h}
	}
	return []ring.Holder{c.self}
}

func (c *core) isMine(h ring.Holder) bool { return slices.Contains(c.mine(), h) }

// holderOf returns another peer as an owner, by the key of its entry.
func (c *core) holderOf(n peer.Name) (ring.Holder, bool) {
	k, ok := c.view.Key(n)
	if !ok {
		return ring.Holder{}, false
	}
	return ring.HolderOf(n, k), true
}

// step runs f at now. The writes that it returns must be on disk before the effects
// are carried out.
func (c *core) step(now time.Time, f func()) ([]store.Write, []effect) {
	c.now = now
	if c.started.IsZero() {
		c.started = now
		c.startRivals()
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
	c.pushCatchUp()
	if c.ring.Ready() && !c.now.Before(c.nextWatch) {
		c.nextWatch = c.now.Add(watchEvery)
		c.watchAbsence()
		c.endStarted()
	}
	c.pushAsks()
	c.pushLeave()
	c.pushRegain()
	c.pushKept()
	c.pushOffers()
	c.pushDecide()
	c.pushRemovals()
	c.removeBannedSeeds()
	maps.DeleteFunc(c.diverged, func(_ ring.ID, d Divergence) bool { return c.now.Sub(d.Seen) > divergenceTTL })
	maps.DeleteFunc(c.healed, func(_ ring.ID, at time.Time) bool { return c.now.Sub(at) >= healTime })
}

// idle reports whether ticks are needed only every idleTickEvery.
func (c *core) idle() bool {
	return len(c.pending)+len(c.removals)+len(c.deferred)+len(c.wishes)+len(c.asked)+len(c.takenBack)+len(c.voices) == 0 && c.leaving == nil &&
		!c.keepsSoon() && !c.regainDue() &&
		!c.electionWaits() && (c.catch == nil || c.caughtUp()) && (c.machine == nil || !c.machine.Pending() && !c.now.Before(c.activeUntil)) && (c.ring.Ready() || !c.ringWanted || c.left)
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

// handlers has what a core does with each type of message.
var handlers = map[messageType]func(c *core, from peer.Name, m message){
	msgRecords:     func(c *core, from peer.Name, m message) { _, _ = c.mergeRing(from, m.body) },
	msgSpaceAsk:    (*core).onSpaceAsk,
	msgSpaceAnswer: (*core).onSpaceAnswer,
	msgClaimAsk:    (*core).onClaimAsk,
	msgClaimAnswer: (*core).onClaimAnswer,
	msgLeave:       (*core).onLeave,
	msgWish:        (*core).onWish,
	msgRound:       (*core).onRound,
	msgBehind:      (*core).onBehind,
	msgRefusal:     (*core).onRefusal,
	msgStateAsk:    (*core).onStateAsk,
	msgStateAnswer: (*core).onStateAnswer,
}

func (c *core) handle(from peer.Name, m message) {
	if f := handlers[m.kind]; f != nil { // else of a newer peer
		f(c, from, m)
	}
}

func (c *core) send(to peer.Name, m message) {
	if to == c.cfg.Self {
		c.inbox = append(c.inbox, m)
		return
	}
	c.out = append(c.out, effSend{to, m.encode()})
}

func (c *core) reply(id uint64, a answer) { c.out = append(c.out, effReply{id: id, answer: a}) }

func (c *core) fail(id uint64, err error) { c.out = append(c.out, effReply{id: id, err: err}) }

func (c *core) warn(what string, args ...any) { c.out = append(c.out, effWarn{what, args}) }

// publish announces records that this peer made or was the first to complete.
func (c *core) publish(out ring.Outcome) {
	if out.News != nil {
		c.out = append(c.out, effAnnounce{append([]byte{deltaRing}, out.News...)})
	}
}

// targetTimeout is how long a copy without a ring waits for one of the peers that the user
// named. If all of those are dead, others may show it the ring.
const targetTimeout = 30 * time.Second

// admits reports whether a copy without a ring takes one from a peer. If a peer that the
// user named is there, or may still come, only such a peer is believed.
func (c *core) admits(from peer.Name) bool {
	if _, waits := c.ring.Awaits(); c.ring.Ready() || waits || c.view.Target(from) {
		return true
	}
	if c.view.AwaitsTarget() && c.now.Before(c.started.Add(targetTimeout)) {
		return false
	}
	return !slices.ContainsFunc(c.view.Peers(), func(n peer.Name) bool {
		_, direct := c.view.Place(n)
		return direct && c.view.Target(n)
	})
}

// mergeRing merges a delta of the ring.
func (c *core) mergeRing(from peer.Name, delta []byte) (news []byte, err error) {
	if !c.admits(from) {
		return nil, nil
	}
	if c.view.Target(from) {
		c.ring.Trust()
	}
	wasReady := c.ring.Ready()
	out, err := c.ring.Merge(delta)
	c.catchUpAfter(wasReady)
	for _, r := range out.Refused {
		// A record that arrives before the records that it builds on comes again.
		if !errors.Is(r, ring.ErrEarly) && !c.now.Before(c.nextWarn) {
			c.nextWarn = c.now.Add(warnEvery)
			c.warn("ring record refused", "peer", from, "err", r, "refused_so_far", c.ring.Refused())
		}
	}
	var div *ring.DivergentError
	if errors.As(err, &div) {
		c.noteDivergence(from, div)
	}
	if errors.Is(err, ring.ErrEarly) {
		err = nil
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
	before := c.space.Owned()
	c.dropOffers()
	c.noteMoves()
	c.endConsents()
	c.setOwned()
	if addr.Total(c.space.Owned()).IsZero() && len(before) > 0 && len(c.offers) == 0 && c.leaving == nil && c.ring.Ready() {
		c.warn("this peer was removed from the ring", "addresses_in_use", len(c.allocations))
	}
	c.saveRing()
	c.findForeign()
	if c.ring.Ready() {
		c.ringWanted = false
		for id := range c.diverged {
			if c.ring.Left(id) || id == c.ring.Genesis().ID() {
				delete(c.diverged, id)
			}
		}
	}
	c.wakeCatchUp()
	c.retryPending()
	c.pushRegain()
	c.pushLeave()
	c.pushRemovals()
	c.removeBannedSeeds()
	if now := c.ring.Banned(); !slices.Equal(now, c.banned) {
		c.banned = now
		c.out = append(c.out, effBanned{now})
	}
	c.forgetNames()
	c.pushDecide()
	return true
}

// forgetNames ends the bindings of overridden names whose peers left the ring and are not
// there, so that a host with another key can have the name.
func (c *core) forgetNames() {
	now := make(map[ring.Holder]bool)
	for h := range c.ring.Owners() {
		now[h] = !h.Name.Derived()
	}
	for _, h := range c.ring.Voters() {
		now[h] = !h.Name.Derived()
	}
	for h, overridden := range c.named {
		if _, still := now[h]; !still && overridden && c.ring.Ready() && !c.present(h) {
			c.out = append(c.out, effForget{h.Name})
		}
	}
	c.named = now
}

// setOwned gives the space what the ring says this peer owns, without what it has offered
// to others, keeps for them, or may give only to those who use it. What containers of this host
// use is its own all the same.
func (c *core) setOwned() {
	without := c.keptRanges()
	for a := range c.rivals {
		without = append(without, addr.Single(a))
	}
	without = c.space.Unused(addr.Normal(without))
	for _, o := range c.offers {
		without = append(without, o.action.Range)
	}
	c.space.SetOwned(addr.Subtract(c.ring.Owned(c.mine()...), addr.Normal(without)))
}

// withheld reports whether an address of this peer is kept, or given only to those who use it. It is
// no longer free once its container has ended.
func (c *core) withheld(a netip.Addr) bool { return c.rivals[a] != nil || c.keptAt(a) != nil }

// describeOwner returns an owner of addresses on this host in words.
func (cfg *Config) describeOwner(owner string) string {
	if cfg.DescribeOwner == nil {
		return owner
	}
	return cfg.DescribeOwner(owner)
}

// displayName returns the name of a peer for people, with its nickname if known.
func (c *core) displayName(n peer.Name) string { return n.With(c.view.Nickname(n)) }

// ringDivides reports whether a is in the address range of the ring.
func (c *core) ringDivides(a netip.Addr) bool { return addr.Of(c.cfg.Range).Contains(a) }
