package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
	"github.com/weft-net/weft/router"
)

// host is the Node of the program: mesh, router and allocators put together.
type host struct {
	config     *Config
	log        *slog.Logger
	mesh       *mesh.Mesh
	router     *router.Router
	allocators []*allocator
	store      *store.Store
	shortID    uint16 // as stored; RoutesChanged only
	names      *dns.Service
}

// allocator is the allocator of one universe with its file.
type allocator struct {
	*ipam.Allocator
	addrRange, subnet netip.Prefix
	disk              *store.Store
	notes             []string // for the user, on what was read from the file
}

var (
	_ Node          = (*host)(nil)
	_ Addresses     = (*allocator)(nil)
	_ mesh.Observer = observer{}
)

// Default is the Assemble of the program.
func Default(c *Config, id *peer.Identity, st *store.Store, log *slog.Logger) (_ *Parts, err error) {
	h := &host{config: c, log: log, store: st}
	if h.shortID, err = loadShortID(st); err != nil {
		return nil, err
	}
	m, err := mesh.New(mesh.Config{
		Identity: id, Nickname: c.NickName, Host: c.Host, Port: uint16(c.Port), Passwords: c.Passwords,
		ConnLimit: c.ConnLimit, Discover: !c.NoDiscovery, UDPAddr: h.udpAddr, ShortID: h.shortID,
		ProtocolMin: uint8(c.ProtocolMin), ProtocolMax: uint8(c.ProtocolMax), Log: log.With("part", "mesh"),
	})
	if err != nil {
		return nil, err
	}
	h.mesh = m
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	at := ""
	if c.Host.IsValid() {
		at = c.Host.String()
	}
	h.router, err = router.New(router.Config{
		Host: at, Port: int(m.Port()), Bridge: c.Bridge, TAP: netdev.TAPName, MTU: c.MTU, Log: log.With("part", "router"),
		NoTAPOffload: c.NoTAPOffload, NoUDPOffload: c.NoUDPOffload,
		Fast: &router.FastConfig{
			PinDir: c.pinDir(), Port: int(m.Port()) + 1, TunnelPort: int(m.Port()) + 2, Off: c.NoFastdp, NoExpress: c.NoExpress, NoExpressTo: c.NoExpressTo,
			Encrypt: len(c.Passwords) > 0, Trusted: c.TrustedSubnets,
		},
	}, control{m})
	if err != nil {
		return nil, err
	}
	h.names = h.newNames(id)
	parts := &Parts{Node: h, Names: h.names}
	for _, u := range []struct {
		addrRange, subnet netip.Prefix
		file              string
		channel           uint8
		kind              mesh.Kind
	}{
		{c.Range, c.DefaultSubnet, ipamFile, mesh.ChannelRing, mesh.KindIPAM},
		{c.Range6, c.Range6, ipam6File, mesh.ChannelRing6, mesh.KindIPAM6},
	} {
		if !u.addrRange.IsValid() {
			continue
		}
		a, err := h.allocator(id, u.addrRange, u.subnet, u.file, u.channel, u.kind)
		if err != nil {
			return nil, err
		}
		h.allocators = append(h.allocators, a)
		parts.Ranges = append(parts.Ranges, a)
	}
	return parts, nil
}

func (h *host) allocator(id *peer.Identity, addrRange, subnet netip.Prefix, file string, channel uint8, kind mesh.Kind) (*allocator, error) {
	disk, notes, err := ipam.OpenDisk(h.config.path(file), id.Name, addrRange)
	if err != nil {
		return nil, err
	}
	alloc, unread, err := ipam.New(ipam.Config{
		Self: id.Name, Signer: id, Verifier: peer.Ed25519{}, Range: addrRange, Default: subnet, Init: h.config.ringInit(),
	}, addresses{h.mesh, channel, kind}, disk, h.log.With("part", "ipam"))
	if err != nil {
		disk.Close()
		return nil, err
	}
	for _, e := range unread {
		notes = append(notes, e.Error())
	}
	h.mesh.Register(channel, alloc.Channel())
	h.mesh.Handle(kind, func(from peer.Name, msg []byte) {
		if err := alloc.Receive(from, msg); err != nil {
			h.log.Warn("address message refused", "from", from, "err", err)
		}
	})
	for _, n := range notes {
		h.log.Warn("address file", "what", n)
	}
	return &allocator{alloc, addrRange, subnet, disk, notes}, nil
}

// newNames makes the service discovery. Hosts without DNS pass on what others say
// too.
func (h *host) newNames(id *peer.Identity) *dns.Service {
	c := h.config.DNS
	c.Self, c.Signer, c.Verifier, c.Log = id.Name, id, peer.Ed25519{}, h.log.With("part", "dns")
	c.Announce = func(delta []byte) { h.mesh.Announce(mesh.ChannelNames, delta) }
	for _, r := range []netip.Prefix{h.config.Range, h.config.Range6} {
		if r.IsValid() {
			c.Ranges = append(c.Ranges, r)
		}
	}
	s := dns.New(c)
	h.mesh.Register(mesh.ChannelNames, s.Channel())
	return s
}

// udpAddr tells at which UDP address a neighbour's packets come in.
func (h *host) udpAddr(n peer.Name) (netip.AddrPort, bool) {
	l, ok := h.router.Link(n)
	return l.Addr, ok && l.State == "established"
}

// ringInit says how the first ring is made.
func (c *Config) ringInit() ipam.Init {
	switch c.IPAllocInit.Kind {
	case InitSeed:
		return ipam.Init{Mode: ipam.Seed, Seeds: c.IPAllocInit.Seeds}
	case InitObserver:
		return ipam.Init{Mode: ipam.Observer, Expect: max(1, len(c.Peers))}
	}
	expect := c.IPAllocInit.Quorum
	if expect == 0 {
		expect = len(c.Peers) + 1
	}
	return ipam.Init{Mode: ipam.Consensus, Expect: expect}
}

// Range implements Addresses.
func (a *allocator) Range() netip.Prefix { return a.addrRange }

// DefaultSubnet implements Addresses.
func (a *allocator) DefaultSubnet() netip.Prefix { return a.subnet }

// close lets go of what was opened, when Run will not.
func (h *host) close() {
	h.mesh.Close()
	if h.router != nil {
		h.router.Close()
	}
	for _, a := range h.allocators {
		a.disk.Close()
	}
}

// Run implements Node.
func (h *host) Run(ctx context.Context) error {
	defer func() {
		for _, a := range h.allocators {
			if err := a.disk.Close(); err != nil {
				h.log.Warn("close the address file", "err", err)
			}
		}
	}()
	g, ctx := errgroup.WithContext(ctx)
	for _, a := range h.allocators {
		g.Go(func() error { return a.Run(ctx) })
	}
	g.Go(func() error { return h.router.Run(ctx) })
	g.Go(func() error { return h.names.Run(ctx) })
	g.Go(func() error { return h.mesh.Run(ctx, observer{h}) })
	return g.Wait()
}

// SetTargets implements Node.
func (h *host) SetTargets(targets []string) { h.mesh.SetTargets(targets) }

// RemovePeers implements Node.
func (h *host) RemovePeers(ctx context.Context, peers []string) ([]api.Removed, error) {
	var names []peer.Name
	for _, p := range peers {
		n, err := h.resolve(p)
		if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	total := make(map[peer.Name]float64)
	for _, a := range h.allocators {
		removed, err := a.RemovePeers(ctx, names)
		if err != nil {
			return nil, err
		}
		for _, r := range removed {
			total[r.Name] += r.Addresses.Float()
		}
	}
	var out []api.Removed
	for _, n := range names {
		out = append(out, api.Removed{Peer: h.describe(n), Addresses: total[n]})
	}
	return out, nil
}

// Adopt implements Node.
func (h *host) Adopt(prefix string) error {
	var found []ring.ID
	var of *allocator
	for _, a := range h.allocators {
		for _, d := range a.Status().Divergent {
			if prefix != "" && strings.HasPrefix(d.Theirs.String(), prefix) {
				found, of = append(found, d.Theirs), a
			}
		}
	}
	switch len(found) {
	case 1:
		return of.Adopt(found[0])
	case 0:
		return usage(fmt.Sprintf("adopt ring %q: no peer has shown such a ring lately; 'weft status' lists those that differ from this side's", prefix))
	default:
		return usage(fmt.Sprintf("adopt ring %q: several begin like that: %s", prefix, found))
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
		return peer.Name{}, usage(fmt.Sprintf("peer %q: neither a name nor a nickname that this router has seen; 'weft status ipam' lists the owners", s))
	default:
		return peer.Name{}, usage(fmt.Sprintf("peer %q: %d peers go by this nickname; give one of the names %s", s, len(found), found))
	}
}

// describe names a peer for people.
func (h *host) describe(n peer.Name) string {
	if nick := h.mesh.View().Nickname(n); nick != "" {
		return fmt.Sprintf("%s(%s)", n, nick)
	}
	return n.String()
}

// Leave implements Node. What the others must know goes out before it returns;
// the mesh says its goodbye when Run ends.
func (h *host) Leave(ctx context.Context, handover bool) error {
	if !handover {
		return nil
	}
	for _, a := range h.allocators {
		r, err := a.Handover(ctx)
		if err != nil {
			return fmt.Errorf("hand over the addresses of %s: %w", a.addrRange, err)
		}
		if !r.Unreachable.IsZero() && len(h.mesh.View().Peers()) > 0 {
			return fmt.Errorf("hand over the addresses of %s: no peer confirmed that it has %.0f of them now", a.addrRange, r.Unreachable.Float())
		}
	}
	return nil
}

// control is the mesh as the router sees it.
type control struct{ *mesh.Mesh }

func (c control) Send(to peer.Name, msg []byte) error { return c.Mesh.Send(to, mesh.KindLink, msg) }

func (c control) SetLink(to peer.Name, up bool, rtt time.Duration) { c.SetData(to, up, rtt) }

// addresses is the mesh as an allocator sees it.
type addresses struct {
	mesh    *mesh.Mesh
	channel uint8
	kind    mesh.Kind
}

func (a addresses) Send(to peer.Name, msg []byte) error { return a.mesh.Send(to, a.kind, msg) }
func (a addresses) Announce(delta []byte)               { a.mesh.Announce(a.channel, delta) }
func (a addresses) Reachable(n peer.Name) bool          { return a.mesh.View().Reachable(n) }
func (a addresses) Peers() []peer.Name                  { return a.mesh.View().Peers() }
func (a addresses) Nickname(n peer.Name) string         { return a.mesh.View().Nickname(n) }

// observer tells the router and the names what the mesh sees.
type observer struct{ *host }

func (o observer) NeighbourUp(n mesh.Neighbour) {
	o.router.NeighbourUp(router.Neighbour{Name: n.Name, Addr: n.Addr, Secret: n.Secret, Dialled: n.Dialled})
}
func (o observer) NeighbourDown(n peer.Name)              { o.router.NeighbourDown(n) }
func (o observer) LinkMessage(from peer.Name, msg []byte) { o.router.HandleControl(from, msg) }
func (o observer) ViewChanged(v *mesh.View)               { o.names.PeersChanged(v.Keys()) }

func (o observer) RoutesChanged(r *topology.Routes) {
	o.router.SetRoutes(r)
	if id := r.ShortIDs[o.mesh.Self()]; id != 0 && id != o.shortID {
		o.shortID = id
		if err := saveShortID(o.store, id); err != nil {
			o.log.Warn("the next start may choose another", "err", err)
		}
	}
}
