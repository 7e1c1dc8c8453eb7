package ipam

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// DefaultDeadline bounds a request whose context has no deadline.
const DefaultDeadline = 30 * time.Second

// Mesh is the part of the mesh that an Allocator uses. It is called with the
// Allocator's lock held, so its methods must neither block nor call back.
type Mesh interface {
	View
	// Send sends a message to one peer, end to end, best effort. It returns an
	// error if the message was not sent at all.
	Send(to peer.Name, msg []byte) error
	// Announce gives a delta of the channel to all peers, best effort.
	Announce(delta []byte)
	// SetBanned says which peers the mesh must refuse. It replaces the list before.
	SetBanned(peers []ring.Holder)
	// ForgetName ends the binding of an overridden name to its key.
	ForgetName(peer.Name)
}

// Allocator gives addresses of one address range. Make one with New and run it
// with Run. All methods are safe for concurrent use.
type Allocator struct {
	mesh Mesh         // constant
	disk Disk         // constant; used under mu
	log  *slog.Logger // constant

	mu          sync.Mutex // held during a step with its write, and over calls of mesh
	core        *core
	waiters     map[uint64]chan effReply
	unsaved     []store.Write // writes that failed
	heldReplies []effect      // replies of the steps that made them, given after the write
	diskErr     error         // of the last write; nil if all is written
	tick        *time.Timer   // of Run
	tickAt      time.Time     // when it fires; zero while it is not set
}

// New returns an Allocator that continues with the state on disk. The notes are for
// the user: they list parts of the state that could not be read.
func New(cfg Config, mesh Mesh, disk Disk, log *slog.Logger) (a *Allocator, notes []error, err error) {
	if !cfg.Range.IsValid() || cfg.Range.Addr().Is4In6() {
		return nil, nil, fmt.Errorf("address range %s: not a prefix of IPv4 or IPv6", cfg.Range)
	}
	cfg.Range = cfg.Range.Masked()
	if !cfg.Default.IsValid() {
		cfg.Default = cfg.Range
	}
	cfg.Default = cfg.Default.Masked()
	if !cfg.Default.Overlaps(cfg.Range) {
		return nil, nil, fmt.Errorf("default subnet %s is outside the address range %s", cfg.Default, cfg.Range)
	}
	if cfg.Init.Mode == Seed && len(cfg.Init.Seeds) == 0 {
		return nil, nil, fmt.Errorf("address range %s: the list of seeds is empty", cfg.Range)
	}
	a = &Allocator{mesh: mesh, disk: disk, log: log, waiters: make(map[uint64]chan effReply), tick: time.NewTimer(0)}
	a.core = newCore(cfg, mesh, rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())))
	notes = a.core.load(disk)
	return a, notes, nil
}

// Run drives the Allocator's timers until ctx is done. It also retries failed
// writes.
func (a *Allocator) Run(ctx context.Context) error {
	for {
		_ = a.step(func(c *core) { // save has logged its error
			a.tickAt = time.Time{}
			c.tick()
		})
		select {
		case <-ctx.Done():
			a.mu.Lock()
			defer a.mu.Unlock()
			last := a.core.deferred
			a.core.deferred = nil
			return a.save(last)
		case <-a.tick.C:
		}
	}
}

// resetTick sets the timer of the next tick, which comes soon if something waits
// for it. It is called with mu held.
func (a *Allocator) resetTick() {
	d := tickEvery
	if len(a.unsaved) == 0 && a.core.idle() {
		d = idleTickEvery
	}
	if at := time.Now().Add(d); a.tickAt.IsZero() || at.Before(a.tickAt) {
		a.tickAt = at
		a.tick.Reset(d)
	}
}

// step runs f in the core, writes its decisions and then carries out its effects.
// It returns an error if the write failed. Replies are then held until a write
// succeeds, and messages are dropped as if they had been lost on the way.
func (a *Allocator) step(f func(*core)) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.resetTick()
	writes, effects := a.core.step(time.Now(), func() { f(a.core) })
	if err := a.save(writes); err != nil {
		for _, e := range effects {
			if r, ok := e.(effReply); ok {
				a.heldReplies = append(a.heldReplies, r)
			}
		}
		return err
	}
	effects = append(a.heldReplies, effects...)
	a.heldReplies = nil
	for _, e := range effects {
		switch e := e.(type) {
		case effSend:
			if err := a.mesh.Send(e.to, e.msg); err != nil {
				a.log.Debug("ipam message not sent", "peer", e.to, "err", err)
			}
		case effAnnounce:
			a.mesh.Announce(e.delta)
		case effBanned:
			a.mesh.SetBanned(e.peers)
		case effForget:
			a.mesh.ForgetName(e.name)
		case effWarn:
			a.log.Warn(e.msg, e.args...)
		case effReply:
			if w := a.waiters[e.id]; w != nil {
				delete(a.waiters, e.id)
				w <- e
			}
		}
	}
	return nil
}

// stepFromMesh runs f, which handles input from the mesh, only if the disk works.
// So the unsaved writes are bounded by the requests made on this host.
func (a *Allocator) stepFromMesh(f func(*core)) error {
	a.mu.Lock()
	err := a.diskErr
	a.mu.Unlock()
	if err != nil {
		return err
	}
	return a.step(f)
}

// save writes to disk, together with the writes that failed before.
func (a *Allocator) save(writes []store.Write) error {
	a.unsaved = append(a.unsaved, writes...)
	if len(a.unsaved) == 0 {
		return nil
	}
	err := a.disk.Apply(a.unsaved)
	if err != nil {
		if a.diskErr == nil {
			a.log.Error("addresses cannot be written, so none are given", "err", err)
		}
		a.diskErr = err
		return err
	}
	if a.diskErr != nil {
		a.log.Info("addresses can be written again")
	}
	a.diskErr, a.unsaved = nil, nil
	return nil
}

// call begins a request and waits for its reply.
func (a *Allocator) call(ctx context.Context, what string, begin func(c *core, id uint64)) (answer, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultDeadline)
		defer cancel()
	}
	w := make(chan effReply, 1)
	var id uint64
	_ = a.step(func(c *core) {
		id = c.nextID()
		a.waiters[id] = w
		begin(c, id)
	})
	select {
	case r := <-w:
		return wrap(what, r)
	case <-ctx.Done():
	}
	var waitedFor error
	_ = a.step(func(c *core) {
		waitedFor = c.cancel(id)
		delete(a.waiters, id)
		if a.diskErr != nil {
			waitedFor = a.diskErr
		}
	})
	select {
	case r := <-w: // the reply came in the meantime
		return wrap(what, r)
	default:
	}
	cause := ErrDeadline
	if errors.Is(ctx.Err(), context.Canceled) {
		cause = context.Canceled
	}
	err := fmt.Errorf("%s: %w", what, cause)
	if waitedFor != nil {
		err = fmt.Errorf("%w: %w", err, waitedFor)
	}
	return answer{}, err
}

func wrap(what string, r effReply) (answer, error) {
	if r.err != nil {
		return answer{}, fmt.Errorf("%s: %w", what, r.err)
	}
	return r.answer, nil
}

// Allocate returns an address of subnet for owner, with the length of subnet. If
// owner already has one it is returned again. A zero subnet means the default.
// Allocate waits for an address until ctx is done (DefaultDeadline if it has no
// deadline); the error then says what it waited for.
func (a *Allocator) Allocate(ctx context.Context, owner string, subnet netip.Prefix) (netip.Prefix, error) {
	if !subnet.IsValid() {
		subnet = a.core.cfg.Default
	}
	got, err := a.call(ctx, fmt.Sprintf("allocate an address of %s for %s", subnet, a.core.cfg.describeOwner(owner)),
		func(c *core, id uint64) { c.allocate(id, owner, subnet) })
	return got.prefix, err
}

// Claim records that owner uses the address p.Addr() with a subnet of length
// p.Bits(). If the address is in the address range, Claim asks the peer that owns
// it, and fails at once if somebody else uses it. An address outside the range is
// only recorded here. A claim may be repeated.
func (a *Allocator) Claim(ctx context.Context, owner string, p netip.Prefix) error {
	if !p.IsValid() || p.Addr().Is4In6() {
		return fmt.Errorf("claim %s for %s: not an address with a prefix length", p, a.core.cfg.describeOwner(owner))
	}
	_, err := a.call(ctx, fmt.Sprintf("claim %s for %s", p, a.core.cfg.describeOwner(owner)), func(c *core, id uint64) { c.claim(id, owner, p) })
	return err
}

// Hold records at once that owner uses the address p.Addr(), because the kernel of this host
// says so, whoever owns its range and whoever has it by the state file. It returns who had it
// before, "" for nobody. If another peer owns the range, the Allocator asks it for the address,
// and Status shows it until it has it. Call Hold before Run.
func (a *Allocator) Hold(owner string, p netip.Prefix) (before string) {
	if !p.IsValid() || p.Addr().Is4In6() || checkOwner(owner) != nil {
		return ""
	}
	_ = a.step(func(c *core) { before = c.hold(owner, p) })
	return before
}

// Shared reports whether other peers own a part of the address range.
func (a *Allocator) Shared() (shared bool) {
	_ = a.step(func(c *core) {
		voters, owners := c.known()
		shared = len(voters)+len(owners) > 0
	})
	return shared
}

// Range returns the range that addresses come from.
func (a *Allocator) Range() netip.Prefix { return a.core.cfg.Range }

// DefaultSubnet returns the subnet for requests that name none.
func (a *Allocator) DefaultSubnet() netip.Prefix { return a.core.cfg.Default }

// Lookup returns the addresses of owner, in order.
func (a *Allocator) Lookup(owner string) (out []netip.Prefix) {
	_ = a.step(func(c *core) {
		for _, addr := range c.byOwner[owner] {
			out = append(out, netip.PrefixFrom(addr, c.allocations[addr].bits))
		}
	})
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}

// Owners returns all owners on this host with their addresses.
func (a *Allocator) Owners() map[string][]netip.Prefix {
	out := make(map[string][]netip.Prefix)
	_ = a.step(func(c *core) {
		for owner, addrs := range c.byOwner {
			for _, addr := range addrs {
				out[owner] = append(out[owner], netip.PrefixFrom(addr, c.allocations[addr].bits))
			}
		}
	})
	return out
}

// Release frees an address of owner. It returns an error if owner does not have
// it.
func (a *Allocator) Release(owner string, address netip.Addr) error {
	ok := false
	_ = a.step(func(c *core) { ok = c.release(owner, address) })
	if !ok {
		return fmt.Errorf("release %s of %s: it does not have that address", address, a.core.cfg.describeOwner(owner))
	}
	return nil
}

// ReleaseAll frees all addresses of owner and returns them.
func (a *Allocator) ReleaseAll(owner string) (out []netip.Prefix) {
	_ = a.step(func(c *core) {
		for _, addr := range slices.Clone(c.byOwner[owner]) {
			out = append(out, netip.PrefixFrom(addr, c.allocations[addr].bits))
			c.release(owner, addr)
		}
	})
	return out
}

// Prime waits until there is a ring, and makes one if necessary.
func (a *Allocator) Prime(ctx context.Context) error {
	_, err := a.call(ctx, "wait for the ring", func(c *core, id uint64) { c.prime(id) })
	return err
}

// RemovePeers gives the space of dead peers to others, by a decision of the voters. The
// result lists peers that owned nothing with zero addresses.
func (a *Allocator) RemovePeers(ctx context.Context, names []peer.Name, by Requester) ([]RemovedPeer, error) {
	got, err := a.call(ctx, "remove peers", func(c *core, id uint64) { c.remove(id, slices.Clone(names), by) })
	return got.removed, err
}

// Ban records that the operator of this host wants peers to be banned, or with unban not to
// be banned any more, and returns how far that is. A voter agrees only if its own operator
// asked for the same; its vote holds for ten minutes. If the operator asked for the opposite
// before, that is taken back instead. A banned peer owns nothing, has no vote, and the mesh
// refuses it.
func (a *Allocator) Ban(names []peer.Name, unban bool) (votes []Vote, err error) {
	if e := a.step(func(c *core) { votes, err = c.ban(names, unban) }); e != nil {
		return nil, e
	}
	return votes, err
}

// CheckBan returns the error that Ban would return now.
func (a *Allocator) CheckBan(names []peer.Name, unban bool) (err error) {
	_ = a.step(func(c *core) { err = c.checkBan(names, unban) })
	return err
}

// BanVotes returns how far the bans of peers are, or with unban the ends of their bans. It
// returns the error that Ban would for a peer that cannot be banned.
func (a *Allocator) BanVotes(names []peer.Name, unban bool) (votes []Vote, err error) {
	_ = a.step(func(c *core) { votes, err = c.banVotes(names, unban) })
	return votes, err
}

// Refound removes dead peers on the word of the operator of this host alone, when so many
// voters are lost that the others cannot decide. This peer founds the ring again, with the
// same owners but those peers. The other hosts show the new ring as divergent; their
// operators follow it with Adopt and here set.
func (a *Allocator) Refound(names []peer.Name) (out []RemovedPeer, err error) {
	if e := a.step(func(c *core) { out, err = c.refound(names) }); cmp.Or(e, err) != nil {
		return nil, fmt.Errorf("remove peers by force: %w", cmp.Or(e, err))
	}
	return out, nil
}

// Handover gives all space of this peer to another peer that can be reached and agrees.
// The Allocator refuses all requests from now on. Handover waits until the voters have
// decided it. If they do not decide in time, Handover returns an error and counts all
// addresses as unreachable; the handover goes on.
func (a *Allocator) Handover(ctx context.Context) (HandoverResult, error) {
	var before HandoverResult
	_ = a.step(func(c *core) { before = c.total() })
	got, err := a.call(ctx, "hand over the addresses of "+a.Range().String(), func(c *core, id uint64) { c.handover(id) })
	if err != nil {
		before.Unreachable = before.Addresses
		return before, err
	}
	return got.handover, nil
}

// Adopt wants all peers of this peer's ring to leave it for the ring other, which Status
// shows under Divergent. The voters of the ring decide that. If here is set, only this
// peer leaves its ring, without asking anyone; it can also go back to a ring that it left.
// Addresses in use stay in use, and the peers ask for them in the other ring. Status shows
// those that another peer uses as well.
func (a *Allocator) Adopt(other ring.ID, here bool) (err error) {
	_ = a.step(func(c *core) { err = c.adopt(other, here) })
	return err
}

// Status returns the present state.
func (a *Allocator) Status() (s Status) {
	_ = a.step(func(c *core) {
		s = c.status()
		s.DiskErr = a.diskErr
	})
	return s
}

// Receive handles a message that came from a peer. It returns an error for bytes
// that are not a message. msg is borrowed until Receive returns.
func (a *Allocator) Receive(from peer.Name, msg []byte) error {
	var err error
	return cmp.Or(a.stepFromMesh(func(c *core) { err = c.receive(from, msg) }), err)
}

// Channel returns the state that the mesh replicates. It may be used from any
// goroutine.
func (a *Allocator) Channel() gossip.Channel { return channel{a} }

type channel struct{ a *Allocator }

func (ch channel) Digest() (d []byte) {
	_ = ch.a.step(func(c *core) { d = c.digest() }) // a digest reveals no decision
	return d
}

func (ch channel) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	if e := ch.a.stepFromMesh(func(c *core) { deltas, wants, err = c.missing(digest) }); e != nil {
		return nil, false, e
	}
	return deltas, wants, err
}

func (ch channel) Merge(from peer.Name, delta []byte) (news []byte, err error) {
	if e := ch.a.stepFromMesh(func(c *core) { news, err = c.merge(from, delta) }); e != nil {
		return nil, e
	}
	return news, err
}

func (ch channel) Join(older, newer []byte) []byte { return joinDeltas(older, newer) }
