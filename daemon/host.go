package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/passwords"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/resolve"
)

// host puts mesh, router, allocators and service discovery of this host together. It
// implements node.
type host struct {
	config     *Config
	log        *slog.Logger
	store      *store.Store
	keeper     *keeper.Keeper
	mesh       *mesh.Mesh
	router     *router.Router
	names      *dns.Service
	bindings   *bindingService
	groups     *groupService
	passwords  *passwords.Keeper
	bind       func(passwords []string) kernel.Binding // of what the fast path keeps
	allocators []*ipam.Allocator
	disks      []*store.Store // of the allocators
	notes      []string       // for the user, on what was read from the disks
	shortID    uint16         // as stored; RoutesChanged only
	lastPeers  []mesh.LastPeer
	peersWake  chan struct{} // wakes noteLastPeers

	lostMu sync.Mutex
	lost   map[*ipam.Allocator]ringConfig // allocators whose files were lost
}

var (
	_ node          = (*host)(nil)
	_ allocator     = (*ipam.Allocator)(nil)
	_ mesh.Observer = observer{}
)

// newHost is the assemble of Run.
func newHost(c *Config, id *peer.Identity, st *store.Store, k *keeper.Keeper) (_ *parts, err error) {
	h := &host{config: c, log: c.Log, store: st, keeper: k, lost: make(map[*ipam.Allocator]ringConfig), peersWake: make(chan struct{}, 1)}
	if h.shortID, err = loadShortID(st); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if err := h.openPasswords(id); err != nil {
		return nil, err
	}
	if err := h.openMesh(id); err != nil {
		return nil, err
	}
	h.passwords.Join(h.mesh)
	h.bindings, h.groups = h.newBindings(id), h.newGroups(id) // which the router needs
	if err := h.openRouter(); err != nil {
		return nil, err
	}
	h.names = h.newNames(id)
	if err := h.openAllocators(id); err != nil {
		return nil, err
	}
	p := &parts{node: h, names: h.names, bind: h.bindings.announce, newEngine: newDockerEngine}
	for _, a := range h.allocators {
		p.addresses = append(p.addresses, a)
	}
	return p, nil
}

func (h *host) openMesh(id *peer.Identity) (err error) {
	c := h.config.Mesh
	c.Identity, c.Host, c.Port = id, h.config.Host, uint16(h.config.Port)
	c.UDPAddr, c.ShortID, c.Log = h.udpAddr, h.shortID, h.log.With("part", "mesh")
	if c.Bindings, err = loadBindings(h.store); err != nil {
		h.log.Warn("the state file could not be read in full", "err", err)
		h.notes = append(h.notes, err.Error())
	}
	c.SaveBindings = func(list []peer.Binding) error { return saveBindings(h.store, list) }
	if h.lastPeers, err = loadLastPeers(h.store, h.config.goesOn); err != nil {
		h.log.Warn("the state file could not be read in full", "err", err)
	}
	c.LastPeers = h.lastPeers
	c.Refuse = newPeersFrom(h.config, h.log).refuse
	if c.Passwords, err = h.passwords.Keys(); err != nil {
		return err
	}
	h.mesh, err = mesh.New(c)
	return err
}

func (h *host) openRouter() (err error) {
	c, fast := h.config.Router, h.config.Fast
	port := int(h.mesh.Port())
	if h.config.Host.IsValid() {
		c.Host = h.config.Host.String()
	}
	c.Port, c.Bridge, c.TAP, c.MTU = port, h.config.Bridge, netdev.TAPName, h.config.MTU
	c.Sysctls, c.Keeper = h.config.Sysctls, h.keeper
	c.PlaceOf, c.Wanted = h.bindings.place, h.groups.wanted
	c.Fast, c.Log = &fast, h.log.With("part", "router")
	fast.PinDir, fast.Port, fast.TunnelPort = h.config.pinDir(), port+1, port+2
	fast.Encrypt, fast.Guard = len(h.config.Passwords) > 0, h.config.guard
	c.SealRelayed = fast.Encrypt
	h.bind = func(passwords []string) kernel.Binding {
		return fastpath.Bind(h.mesh.Identity().Seed(), passwords, *c.Fast)
	}
	fast.Binding = h.bind(h.passwords.Texts())
	h.router, err = router.New(c, control{h.mesh})
	return err
}

// ringConfig says where the ring of one range is kept, and how peers talk about it.
type ringConfig struct {
	addrRange, subnet netip.Prefix
	file              string
	channel           uint8
	kind              mesh.Kind
}

func (h *host) openAllocators(id *peer.Identity) error {
	for _, r := range []ringConfig{
		{h.config.Range, h.config.DefaultSubnet, ipamFile, mesh.ChannelRing, mesh.KindIPAM},
		{h.config.Range6, h.config.Range6, ipam6File, mesh.ChannelRing6, mesh.KindIPAM6},
	} {
		if !r.addrRange.IsValid() {
			continue
		}
		if err := h.openAllocator(id, r); err != nil {
			return err
		}
	}
	return nil
}

func (h *host) openAllocator(id *peer.Identity, r ringConfig) error {
	disk, notes, lost, err := h.openDisk(id.Name, r)
	if err != nil {
		return err
	}
	h.disks = append(h.disks, disk)
	alloc, unread, err := ipam.New(ipam.Config{
		Self: id.Name, Signer: id, Verifier: peer.Ed25519{}, Range: r.addrRange, Default: r.subnet, Init: h.config.ringInit(h.config.Peers), Lost: lost,
		DescribeOwner: api.DescribeOwner,
	}, meshAddresses{h.mesh, r.channel, r.kind}, disk, h.log.With("part", "ipam"))
	if err != nil {
		return err
	}
	for _, e := range unread {
		notes = append(notes, e.Error())
	}
	if lost {
		h.lost[alloc] = r
	}
	h.mesh.Register(r.channel, alloc.Channel())
	lines := rate.Sometimes{First: 10, Interval: time.Minute} // a peer could fill the log
	h.mesh.HandleSigned(r.kind, func(from peer.Name, msg []byte) {
		if err := alloc.Receive(from, msg); err != nil {
			lines.Do(func() { h.log.Warn("a message about addresses was refused", "peer", from, "err", err) })
		}
	})
	for _, n := range notes {
		h.log.Warn("the address file could not be read in full", "warning", n)
	}
	h.allocators, h.notes = append(h.allocators, alloc), append(h.notes, notes...)
	return nil
}

// Keys in bucketDaemon, in front of the name of an address file: the range that a router here
// had it for, and that it was lost and the ring has not come from the peers since.
const (
	keyRange = "range:"
	keyLost  = "lost:"
)

// openDisk opens an address file. lost reports whether a router had one of this range here,
// which is missing or was set aside. The state file says so, or containers that have addresses.
// A restart does not change that, until endLost does.
func (h *host) openDisk(self peer.Name, r ringConfig) (disk *store.Store, notes []string, lost bool, err error) {
	var errs []error
	get := func(key string) []byte {
		b, err := h.store.Get(bucketDaemon, []byte(key))
		errs = append(errs, err)
		return b
	}
	now, before := []byte(r.addrRange.String()), get(keyRange+r.file)
	was, shared := get(keyLost+r.file), get(keyShared)
	if err := errors.Join(errs...); err != nil {
		return nil, nil, false, fmt.Errorf("read what is known of %s: %w", r.file, err)
	}
	// A host that was alone makes its ring again at once.
	alone := len(h.config.Peers) == 0 && shared == nil && !netdev.IsShared(h.config.Bridge)
	isLost := func(missing, aside bool) bool {
		had := bytes.Equal(before, now) || before == nil && aside
		return !alone && (missing || aside) && (had || h.config.kernelState.uses(r.addrRange))
	}
	note := func() error {
		writes := []store.Write{{Bucket: bucketDaemon, Key: []byte(keyRange + r.file), Value: now}}
		if lost {
			writes = append(writes, store.Write{Bucket: bucketDaemon, Key: []byte(keyLost + r.file), Value: []byte{1}})
		}
		if err := h.store.Apply(writes); err != nil {
			return fmt.Errorf("note what is known of %s: %w", r.file, err)
		}
		return nil
	}
	_, missing := os.Stat(h.config.path(r.file))
	lost = was != nil || isLost(missing != nil, false)
	// Before a new file is made: the router may end at any moment.
	if err := note(); err != nil {
		return nil, nil, false, err
	}
	if disk, notes, err = ipam.OpenDisk(h.config.path(r.file), self, r.addrRange); err != nil {
		return nil, nil, false, err
	}
	if !lost && isLost(false, len(notes) > 0) {
		lost = true
		if err := note(); err != nil {
			return nil, nil, false, errors.Join(err, disk.Close())
		}
	}
	return disk, notes, lost, nil
}

// endLost forgets that files were lost whose state has come from the peers.
func (h *host) endLost() {
	h.lostMu.Lock()
	defer h.lostMu.Unlock()
	for a, r := range h.lost {
		if s := a.Status(); !s.Ready || strings.HasPrefix(s.State, "catching up") {
			continue
		}
		if err := h.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyLost + r.file)}}); err != nil {
			h.log.Warn("cannot note that the state of addresses is complete", "err", err)
			continue
		}
		delete(h.lost, a)
	}
}

// lostWarnings says which state was lost.
func (h *host) lostWarnings() (list []string) {
	h.lostMu.Lock()
	defer h.lostMu.Unlock()
	for _, r := range h.lost {
		list = append(list, fmt.Sprintf("the state of the addresses of %s was lost: the ring comes from the peers, and nothing is given before", r.addrRange))
	}
	return list
}

// keyShared is set in bucketDaemon once other peers own addresses.
const keyShared = "shared"

// noteShared notes on disk and in the kernel that other peers own addresses: a router that
// loses its state must ask them.
func (h *host) noteShared(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		h.endLost()
		if !slices.ContainsFunc(h.allocators, (*ipam.Allocator).Shared) {
			continue
		}
		err := errors.Join(h.store.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyShared), Value: []byte{1}}}), netdev.MarkShared(h.config.Bridge))
		if err != nil {
			h.log.Warn("cannot note that other hosts have addresses too", "err", err)
		}
		tick.Reset(time.Minute)
	}
}

// newNames makes the service discovery. Hosts without DNS have it too: they pass on
// the names of other peers.
func (h *host) newNames(id *peer.Identity) *dns.Service {
	c := h.config.DNS
	c.Self, c.Signer, c.Verifier, c.Log = id.Name, id, peer.Ed25519{}, h.log.With("part", "dns")
	c.Announce = func(delta []byte) { h.mesh.Announce(mesh.ChannelNames, delta) }
	c.Ranges, c.Now = h.config.ranges(), h.mesh.Now
	c.Owns = func(n peer.Name, a netip.Addr) bool { return owns(h.allocators, n, a) }
	s := dns.New(c)
	h.mesh.Register(mesh.ChannelNames, s.Channel())
	return s
}

// newBindings makes the copy of the addresses of containers on all hosts.
func (h *host) newBindings(id *peer.Identity) *bindingService {
	s := newBindingService(bindingConfig{
		self: id.Name, signer: id, verifier: peer.Ed25519{},
		ownerOf: func(a netip.Addr) (peer.Name, bool) { return ringOwner(h.allocators, a) },
		epoch: func() (sum uint64) {
			for _, a := range h.allocators {
				sum += a.RingEpoch()
			}
			return sum
		},
		announce: func(delta []byte) { h.mesh.Announce(mesh.ChannelBindings, delta) },
		moved:    func(m bindings.MAC, at peer.Name) { h.router.Bind(ethernet.MAC(m), at) },
		resolved: func(list []resolve.Change) { h.router.Moved(list) },
		now:      h.mesh.Now, log: h.log.With("part", "bindings"),
	})
	h.mesh.Register(mesh.ChannelBindings, s.Channel())
	return s
}

// newGroups makes the copy of the multicast groups that the hosts want.
func (h *host) newGroups(id *peer.Identity) *groupService {
	s := newGroupService(groupConfig{
		self: id.Name, signer: id, verifier: peer.Ed25519{},
		announce: func(delta []byte) { h.mesh.Announce(mesh.ChannelGroups, delta) },
		members:  func(m *groups.Members) { h.router.SetGroups(m) },
		now:      h.mesh.Now, log: h.log.With("part", "multicast"),
	})
	h.mesh.Register(mesh.ChannelGroups, s.Channel())
	return s
}

// udpAddr returns the UDP address from which a neighbour's packets arrive.
func (h *host) udpAddr(n peer.Name) (netip.AddrPort, bool) {
	l, ok := h.router.Link(n)
	return l.Addr, ok && l.State == link.Established
}

// Close implements node.
func (h *host) Close() {
	if h.mesh != nil {
		h.mesh.Close()
	}
	if h.router != nil {
		h.router.Close()
	}
	h.closeDisks()
}

func (h *host) closeDisks() {
	for _, d := range h.disks {
		if err := d.Close(); err != nil {
			h.log.Warn("an address file could not be closed", "err", err)
		}
	}
}

// Run implements node.
func (h *host) Run(ctx context.Context) error {
	defer h.closeDisks()
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range h.allocators {
		g.Go(func() error { return a.Run(ctx) })
	}
	g.Go(func() error { h.noteShared(ctx); return nil })
	g.Go(func() error { h.noteLastPeers(ctx); return nil })
	g.Go(func() error { return h.router.Run(ctx) })
	g.Go(func() error { return h.names.Run(ctx) })
	g.Go(func() error { h.bindings.run(ctx); return nil })
	g.Go(func() error { h.groups.run(ctx); return nil })
	g.Go(func() error { return h.passwords.Run(ctx) })
	g.Go(func() error { return h.mesh.Run(ctx, observer{h}) })
	return g.Wait()
}

// SetTargets implements node.
func (h *host) SetTargets(targets []string) { h.mesh.SetTargets(targets) }

// RemovePeers implements node.
func (h *host) RemovePeers(ctx context.Context, r api.PeersRequest) ([]api.Removed, error) {
	names, err := h.resolveAll(r.Peers)
	if err != nil {
		return nil, err
	}
	by := ipam.ByProgram
	if r.Operator {
		by = ipam.ByOperator
	}
	total, known := make(map[peer.Name]float64), make(map[peer.Name]bool)
	for _, a := range h.allocators {
		var removed []ipam.RemovedPeer
		if r.Force {
			removed, err = a.Refound(names)
		} else {
			removed, err = a.RemovePeers(ctx, names, by)
		}
		if err != nil {
			return nil, err
		}
		for _, r := range removed {
			total[r.Name] += r.Addresses.Float()
			known[r.Name] = known[r.Name] || !r.Unknown
		}
	}
	var out []api.Removed
	for _, n := range names {
		out = append(out, api.Removed{Peer: h.describe(n), Addresses: total[n], Unknown: !known[n]})
	}
	return out, nil
}

func (h *host) resolveAll(peers []string) (names []peer.Name, err error) {
	for _, p := range peers {
		n, err := h.resolve(p)
		if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	return names, nil
}

// Ban implements node.
func (h *host) Ban(r api.BanRequest) ([]api.Vote, error) {
	names, err := h.resolveAll(r.Peers)
	if err != nil {
		return nil, err
	}
	// First see whether this host can vote in all ranges, so that it does in all or none.
	for _, a := range h.allocators {
		if err := a.CheckBan(names, r.Unban); err != nil && !r.Look {
			return nil, err
		}
	}
	merged := make([]api.Vote, len(names))
	for i, a := range h.allocators {
		vote := a.Ban
		if r.Look {
			vote = a.BanVotes
		}
		votes, err := vote(names, r.Unban)
		if err != nil {
			return nil, err
		}
		for k, v := range votes {
			if next := h.vote(v); i == 0 {
				merged[k] = next
			} else {
				merged[k] = lessDecided(merged[k], next)
			}
		}
	}
	return merged, nil
}

// lessDecided returns which of the votes of two ranges on one matter is further from a decision.
func lessDecided(a, b api.Vote) api.Vote {
	if a.Decided || !b.Decided && b.Needed-len(b.For) > a.Needed-len(a.For) {
		return b
	}
	return a
}

// Adopt implements node.
func (h *host) Adopt(prefix string, here bool) error {
	var found []ring.ID
	var of *ipam.Allocator
	for _, a := range h.allocators {
		s := a.Status()
		var known []ring.ID
		for _, d := range s.Divergent {
			known = append(known, d.Theirs)
		}
		if here {
			known = append(known, s.LeftRings...)
		}
		slices.SortFunc(known, func(a, b ring.ID) int { return bytes.Compare(a[:], b[:]) })
		for _, id := range slices.Compact(known) {
			if prefix != "" && strings.HasPrefix(id.String(), prefix) {
				found, of = append(found, id), a
			}
		}
	}
	switch len(found) {
	case 1:
		return of.Adopt(found[0], here)
	case 0:
		return usage("adopt ring %q: no recently seen peer has a ring with this prefix; 'weft status' lists other rings", prefix)
	default:
		return usage("adopt ring %q: the prefix is ambiguous: %s", prefix, found)
	}
}

// resolve finds a peer by its name or nickname.
func (h *host) resolve(s string) (peer.Name, error) {
	if n, err := peer.ParseName(s); err == nil {
		return n, nil
	}
	switch found := h.mesh.View().Lookup(s); len(found) {
	case 1:
		return found[0], nil
	case 0:
		return peer.Name{}, usage("peer %q: neither a name nor a nickname that this router has seen; 'weft status ipam' lists the owners", s)
	default:
		return peer.Name{}, usage("peer %q: %d peers have this nickname; give one of the names %s", s, len(found), found)
	}
}

// describe returns the name of a peer with its nickname.
func (h *host) describe(n peer.Name) string { return n.With(h.mesh.View().Nickname(n)) }

// HandOver implements node.
func (h *host) HandOver(ctx context.Context) error {
	for _, a := range h.allocators {
		r, err := a.Handover(ctx)
		if err != nil {
			return err
		}
		if !r.Unreachable.IsZero() && len(h.mesh.View().Peers()) > 0 {
			return fmt.Errorf("hand over the addresses of %s: no peer confirmed that it has %.0f of them now", a.Range(), r.Unreachable.Float())
		}
	}
	return nil
}

// control is the mesh as the router sees it.
type control struct{ *mesh.Mesh }

func (c control) Send(to peer.Name, msg []byte) error { return c.Mesh.Send(to, mesh.KindLink, msg) }

func (c control) Want(to peer.Name, sends bool) { c.WantSession(to, sends) }

func (c control) Doubt(to peer.Name) { c.DoubtSession(to) }

func (c control) SetLink(to peer.Name, up bool, rtt time.Duration) { c.SetData(to, up, rtt) }

// meshAddresses is the mesh as an allocator sees it.
type meshAddresses struct {
	mesh    *mesh.Mesh
	channel uint8
	kind    mesh.Kind
}

// Send signs msg, so that nobody can ask for addresses, or give some, in another's name.
func (a meshAddresses) Send(to peer.Name, msg []byte) error {
	return a.mesh.SendSigned(to, a.kind, msg)
}
func (a meshAddresses) SetBanned(peers []ring.Holder) {
	keys := make([]peer.KeyID, 0, len(peers))
	for _, p := range peers {
		keys = append(keys, p.Key)
	}
	a.mesh.SetBanned(a.channel, keys)
}
func (a meshAddresses) ForgetName(n peer.Name)               { a.mesh.ForgetName(n) }
func (a meshAddresses) Announce(delta []byte)                { a.mesh.Announce(a.channel, delta) }
func (a meshAddresses) Reachable(n peer.Name) bool           { return a.mesh.View().Reachable(n) }
func (a meshAddresses) Peers() []peer.Name                   { return a.mesh.View().Peers() }
func (a meshAddresses) Nickname(n peer.Name) string          { return a.mesh.View().Nickname(n) }
func (a meshAddresses) Key(n peer.Name) (peer.Key, bool)     { return a.mesh.Key(n) }
func (a meshAddresses) Place(n peer.Name) (netip.Addr, bool) { return a.mesh.Place(n) }
func (a meshAddresses) Target(n peer.Name) bool              { return a.mesh.IsTarget(n) }
func (a meshAddresses) AwaitsTarget() bool                   { return a.mesh.AwaitsTarget() }
func (a meshAddresses) Collides() bool                       { return a.mesh.Collides() }
func (a meshAddresses) Banned() bool                         { return a.mesh.Banned() }

// observer passes the events of the mesh on to the router and the names.
type observer struct{ *host }

func (o observer) NeighbourUp(n mesh.Neighbour) {
	o.router.NeighbourUp(router.Neighbour{Name: n.Name, Addr: n.Addr, Secret: n.Secret, Dialled: n.Dialled, Key: n.Key})
	select {
	case o.peersWake <- struct{}{}:
	default:
	}
}

func (o observer) NeighbourDown(n peer.Name, how mesh.Ending) {
	if how == mesh.Rejected {
		o.router.NeighbourRejected(n)
		return
	}
	o.router.NeighbourDown(n)
}

func (o observer) HandshakeRefused(r mesh.Refused)        { o.router.HandshakeRefused(r.Addr, r.Dialled) }
func (o observer) PeersBanned(banned func(peer.Key) bool) { o.router.PeersBanned(banned) }
func (o observer) LinkMessage(from peer.Name, msg []byte) { o.router.HandleControl(from, msg) }
func (o observer) ViewChanged(v *mesh.View) {
	o.names.PeersChanged(v.Keys())
	o.bindings.PeersChanged(v.Keys())
	o.groups.PeersChanged(v.Keys())
	o.passwords.PeersChanged(v.Keys())
}

func (o observer) RoutesChanged(r *topology.Routes) {
	o.router.SetRoutes(r)
	if id := r.ShortIDs[o.mesh.Self()]; id != 0 && id != o.shortID {
		o.shortID = id
		if err := saveShortID(o.store, id); err != nil {
			o.log.Warn("the short id could not be stored, the next start may choose another", "err", err)
		}
	}
}
