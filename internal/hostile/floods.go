package hostile

import (
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/passwords"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
	"github.com/weft-net/weft/mesh/rotation"
	"github.com/weft-net/weft/mesh/session"
)

// Flood is one attack.
type Flood struct {
	Name string
	Help string // what it sends
	// MaxGiven is the share of the addresses of honest hosts that it may get: what a few
	// asks give to somebody, or what a host needs.
	MaxGiven float64
	run      func(r *run)
}

// Shares for MaxGiven.
const (
	littleGiven = 0.01
	hostGiven   = 0.5
)

// Floods are all attacks.
var Floods = []*Flood{
	{"silent", "connections of strangers that say nothing, or one byte at a time", littleGiven, silent},
	{"handshakes", "handshakes of strangers with a wrong password, and of members under ever new names", littleGiven, handshakes},
	{"topology", "entries of 2,000 made-up peers with many links, changed without end, some of them from the future", littleGiven, member(madeUpTopology)},
	{"members", "member messages that declare members dead and made-up ones alive, and half-open streams", littleGiven, member(memberSpam)},
	{"relayed", "openings of relayed sessions in the names of made-up peers, which never go on", littleGiven, member(relayedOpens)},
	{"overridden", "entries of ever new peers under names that users could have given", littleGiven, member(overriddenNames)},
	{"sources", "messages with the names of others as their source", littleGiven, member(forgedSources)},
	{"space", "requests of made-up peers for addresses, and for those in use", littleGiven, member(spaceAsks)},
	{"greedy", "requests of one real member for all addresses", hostGiven, member(greedyAsks)},
	{"wishes", "wishes that living hosts are removed, banned or replaced as voters", littleGiven, member(wishes)},
	{"ring", "another ring over the same range, and wishes to adopt it", littleGiven, member(ownRing)},
	{"names", "host names of made-up peers", littleGiven, member(hostNames)},
	{"bindings", "MAC and IP addresses that made-up peers say they gave to containers", littleGiven, member(madeUpBindings)},
	{"groups", "multicast groups that made-up peers want, other ones each time", littleGiven, member(madeUpGroups)},
	{"passwords", "what made-up peers say of the passwords that they accept", littleGiven, member(passwordStates)},
	{"digests", "digests of peers that know nothing, which ask for everything", littleGiven, member(digests)},
	{"malformed", "records, gossip and signatures that cannot be true", littleGiven, member(malformed)},
}

// Find returns the flood of a name, nil if there is none.
func Find(name string) *Flood {
	i := slices.IndexFunc(Floods, func(f *Flood) bool { return f.Name == name })
	if i < 0 {
		return nil
	}
	return Floods[i]
}

func member(step func(r *run, p *Peer, n int) error) func(r *run) {
	return func(r *run) { r.member(func(p *Peer, n int) error { return step(r, p, n) }) }
}

// maxSilent bounds the connections of silent at one router, for the file descriptors of
// this process.
const maxSilent = 400

// silent connects, sends nothing or a part of a preamble, and stays.
func silent(r *run) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxSilent)
	for n := 0; r.pace(); n++ {
		select {
		case slots <- struct{}{}:
		case <-r.ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			c, err := r.connect(r.ctx, r.target, true)
			if err != nil {
				return
			}
			defer c.Close()
			r.sent.Add(1)
			r.stay(c, n%2 == 0)
		})
	}
}

// stay keeps a connection until the router closes it.
func (r *run) stay(c net.Conn, speaks bool) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	preamble := []byte{'W', 'E', 'F', 'T', session.ProtocolMin, session.ProtocolMax, 0, 0}
	for i := 0; ; i++ {
		if speaks && i < len(preamble) {
			if _, err := c.Write(preamble[i : i+1]); err != nil {
				return
			}
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		var b [64]byte
		if _, err := c.Read(b[:]); err != nil && !isTimeout(err) {
			return
		}
		select {
		case <-tick.C:
		case <-r.ctx.Done():
			return
		}
	}
}

func isTimeout(err error) bool {
	t, ok := err.(net.Error) //nolint:errorlint // of the connection itself
	return ok && t.Timeout()
}

// handshakes makes whole handshakes, every other one with a wrong password.
func handshakes(r *run) {
	for n := 0; r.pace(); n++ {
		id, err := peer.NewIdentity(crand.Reader)
		if err != nil {
			return
		}
		nc, err := r.connect(r.ctx, r.target, true)
		if err != nil {
			continue
		}
		psk := r.psk
		if n%2 == 0 {
			psk[0] ^= 1
		}
		_ = nc.SetDeadline(time.Now().Add(session.Timeout))
		_, _ = r.shake(nc, id, psk) // what comes of it is the router's problem
		r.sent.Add(1)
		nc.Close()
	}
}

const (
	madeUpPeers = 2000
	// linksOfMadeUp is how many links each made-up entry states.
	linksOfMadeUp = 200
	// hubLinks is how many made-up peers the entry of the member itself confirms.
	hubLinks = 1000
)

// madeUpTopology announces entries of peers that hang on this one.
func madeUpTopology(r *run, p *Peer, n int) error {
	i := n % madeUpPeers
	m, err := r.made(i)
	if err != nil {
		return err
	}
	links := []peer.Name{p.ID.Name, p.Router}
	for k := range linksOfMadeUp {
		other, err := r.made((i + k + n/madeUpPeers) % (i + 1))
		if err != nil {
			return err
		}
		if other.Name != m.Name {
			links = append(links, other.Name)
		}
	}
	var ahead time.Duration
	switch n % 16 {
	case 5:
		ahead = time.Hour // allowed, as clocks differ
	case 9:
		ahead = 1000 * time.Hour
	}
	delta, err := r.entry(m, links, ahead)
	if err != nil {
		return err
	}
	if n%16 == 0 {
		if err := r.confirm(p, i+1, n); err != nil {
			return err
		}
	}
	return p.Gossip(gossipDelta, mesh.ChannelTopology, delta)
}

// confirm states links of this peer with up to hubLinks of the first count made-up peers,
// beginning at one that differs each time.
func (r *run) confirm(p *Peer, count, from int) error {
	to := []peer.Name{p.Router}
	for k := range min(count, hubLinks) {
		m, err := r.made((from + k) % count)
		if err != nil {
			return err
		}
		to = append(to, m.Name)
	}
	return p.Link(to...)
}

// announceMadeUp makes the first made-up peers neighbours of this one, once for each
// session, so that routers believe that they are in the mesh.
func (r *run) announceMadeUp(p *Peer) error {
	if p.announced {
		return nil
	}
	p.announced = true
	for i := range madeUpNeighbours {
		m, err := r.made(i)
		if err != nil {
			return err
		}
		delta, err := r.entry(m, []peer.Name{p.ID.Name}, 0)
		if err != nil {
			return err
		}
		if err := p.Gossip(gossipDelta, mesh.ChannelTopology, delta); err != nil {
			return err
		}
	}
	return r.confirm(p, madeUpNeighbours, 0)
}

// madeUpNeighbours is how many made-up peers the floods use that need them in the mesh.
const madeUpNeighbours = 500

// others returns the peers of the mesh that this attack did not make up: the router at the
// other end at least.
func others(p *Peer) (all []peer.Name) {
	for _, e := range p.Known() {
		all = append(all, e.Name)
	}
	if !slices.Contains(all, p.Router) {
		all = append(all, p.Router)
	}
	return all
}

func pick[T any](rng *rand.Rand, list []T) T { return list[rng.IntN(len(list))] }

// Types of memberlist's messages.
const (
	memberSuspect = 3
	memberAlive   = 4
	memberDead    = 5
)

// memberMessage encodes a message as memberlist does: a type, and a map in MessagePack.
func memberMessage(kind byte, incarnation uint32, node, from peer.Name) []byte {
	text := func(b []byte, s string) []byte { return append(append(b, 0xa0|byte(len(s))), s...) }
	b := []byte{kind, 0x83}
	b = binary.BigEndian.AppendUint32(append(text(b, "Incarnation"), 0xce), incarnation)
	b = text(text(b, "Node"), node.String())
	if kind != memberAlive {
		return text(text(b, "From"), from.String())
	}
	b[1] = 0x86
	a := netip.AddrFrom16([16]byte{0xfd, 0x77, 0x65, 0x66, 0x74, 10: node[0], node[1], node[2], node[3], node[4], node[5]})
	b = append(append(text(b, "Addr"), 0xc4, 16), a.AsSlice()...)
	b = binary.BigEndian.AppendUint16(append(text(b, "Port"), 0xcd), 6783)
	b = append(text(b, "Meta"), 0xc4, 0)
	return append(append(text(b, "Vsn"), 0xc4, 6), 1, 5, 5, 0, 0, 0)
}

// memberSpam says of members what is not true.
func memberSpam(r *run, p *Peer, n int) error {
	if err := r.announceMadeUp(p); err != nil {
		return err
	}
	honest := others(p)
	to := pick(r.rng, honest)
	about := pick(r.rng, honest)
	if n%2 == 0 {
		m, err := r.made(r.rng.IntN(madeUpNeighbours))
		if err != nil {
			return err
		}
		about = m.Name
	}
	switch kind := []byte{memberDead, memberAlive, memberSuspect, 0}[n%4]; kind {
	case 0: // a stream that is opened and never goes on
		b := binary.BigEndian.AppendUint32([]byte{0}, r.rng.Uint32())
		return p.Unicast(to, p.ID.Name, maxHops, mesh.KindMemberStream, append(b, 0, 0, 0, 0))
	default:
		return p.Unicast(to, p.ID.Name, maxHops, mesh.KindMember, memberMessage(kind, r.rng.Uint32()>>1, about, p.ID.Name))
	}
}

// OpenRelayed opens a stream for a session over relays, as streams in mesh/stream begin.
func (p *Peer) OpenRelayed(to, from peer.Name, number uint32) error {
	b := binary.BigEndian.AppendUint32([]byte{0}, number)
	return p.Unicast(to, from, maxHops, mesh.KindRelayed, append(b, 0, 0, 0, 0))
}

// relayedOpens opens streams for sessions over relays.
func relayedOpens(r *run, p *Peer, n int) error {
	if err := r.announceMadeUp(p); err != nil {
		return err
	}
	m, err := r.made(n % madeUpNeighbours)
	if err != nil {
		return err
	}
	return p.OpenRelayed(pick(r.rng, others(p)), m.Name, r.rng.Uint32())
}

// overriddenNames announces peers that no one has heard of, each under a name that is not
// derived from its key, and drops the oldest of them.
func overriddenNames(r *run, p *Peer, n int) error {
	const confirmEvery = 100
	id, err := r.NewIdentity(peer.Name{0, 0x66, byte(r.index), byte(n >> 16), byte(n >> 8), byte(n)})
	if err != nil {
		return err
	}
	p.latest = append(p.latest, id.Name)
	p.latest = p.latest[max(0, len(p.latest)-hubLinks):]
	if n%confirmEvery == 0 {
		if err := p.Link(append(slices.Clone(p.latest), p.Router)...); err != nil {
			return err
		}
	}
	return p.Announce(id, p.ID.Name)
}

// forgedSources sends messages of all kinds from everybody to everybody.
func forgedSources(r *run, p *Peer, n int) error {
	honest := others(p)
	from := pick(r.rng, honest)
	if n%3 == 0 {
		m, err := r.made(r.rng.IntN(1000))
		if err != nil {
			return err
		}
		from = m.Name
	}
	payload := make([]byte, r.rng.IntN(2000))
	_, _ = crand.Read(payload)
	hops := byte(r.rng.IntN(256))
	if n%2 == 0 {
		hops = maxHops - 1
	}
	return p.Unicast(pick(r.rng, honest), from, hops, mesh.Kind(r.rng.IntN(10)), payload)
}

// Types of the messages between allocators; see ipam/message.go.
const (
	msgSpaceAsk = 2
	msgClaimAsk = 4
	msgWish     = 7
)

func allocatorMessage(typ byte, id uint64, body []byte) []byte {
	return append(binary.BigEndian.AppendUint64([]byte{1, typ}, id), body...)
}

// SpaceAsk is a message that asks for addresses of a subnet.
func SpaceAsk(id uint64, subnet netip.Prefix) []byte {
	return allocatorMessage(msgSpaceAsk, id, append(address(subnet.Addr()), byte(subnet.Bits())))
}

// ClaimAsk is a message that asks for one address, and says that a container uses it.
func ClaimAsk(id uint64, a netip.Addr) []byte {
	return allocatorMessage(msgClaimAsk, id, append(address(a), 1))
}

// Wish is a message that asks voters to decide an action.
func Wish(slot uint64, a *ring.Action) []byte { return allocatorMessage(msgWish, slot, a.Encode()) }

func address(a netip.Addr) []byte {
	family := byte(6)
	if a.Is4() {
		family = 4
	}
	return append([]byte{family}, a.AsSlice()...)
}

// ask returns a request for space or for an address that is probably in use.
func (r *run) ask(n int) []byte {
	if n%4 == 3 {
		a := r.cfg.Range.Addr()
		for range r.rng.IntN(16) {
			a = a.Next()
		}
		return ClaimAsk(uint64(n), a)
	}
	return SpaceAsk(uint64(n), r.cfg.Range)
}

// spaceAsks asks for addresses in the names of made-up peers.
func spaceAsks(r *run, p *Peer, n int) error {
	if err := r.announceMadeUp(p); err != nil {
		return err
	}
	m, err := r.made(n % madeUpNeighbours)
	if err != nil {
		return err
	}
	return p.Signed(m, pick(r.rng, others(p)), mesh.KindIPAM, r.ask(n))
}

// greedyAsks asks in this peer's own name.
func greedyAsks(r *run, p *Peer, n int) error {
	return p.Signed(p.ID, pick(r.rng, others(p)), mesh.KindIPAM, r.ask(n))
}

// wishes asks the voters for what only a quorum of operators may decide.
func wishes(r *run, p *Peer, n int) error {
	known := p.Known()
	if len(known) == 0 {
		return nil // gossip has not brought any yet
	}
	e := pick(r.rng, known)
	victim, self := ring.HolderOf(e.Name, e.Key), ring.HolderOf(p.ID.Name, p.ID.Key())
	var a *ring.Action
	switch n % 4 {
	case 0:
		a = &ring.Action{Kind: ring.Remove, From: victim, To: self}
	case 1:
		a = &ring.Action{Kind: ring.Ban, From: victim, To: self}
	case 2:
		a = &ring.Action{Kind: ring.Voters, Voters: []ring.Holder{self}}
	case 3:
		m, err := r.made(n % 100)
		if err != nil {
			return err
		}
		a = &ring.Action{Kind: ring.Remove, From: victim, To: ring.HolderOf(m.Name, m.Key())}
	}
	return p.Signed(p.ID, pick(r.rng, others(p)), mesh.KindIPAM, Wish(uint64(r.rng.IntN(8)), a))
}

// genesis makes a ring of this peer and a made-up one.
func (r *run) genesis(p *Peer, n int) (*ring.Genesis, error) {
	m, err := r.made(n % 100)
	if err != nil {
		return nil, err
	}
	self, other := ring.HolderOf(p.ID.Name, p.ID.Key()), ring.HolderOf(m.Name, m.Key())
	g, err := ring.NewGenesis(r.cfg.Range, []ring.Holder{self, other})
	if err != nil {
		return nil, fmt.Errorf("make a ring: %w", err)
	}
	v1, _ := g.Sign(p.ID, self)
	v2, _ := g.Sign(m, other)
	return g.WithVotes([]ring.Vote{v1, v2}), nil
}

// ownRing spreads a ring of its own, and asks all voters to adopt it.
func ownRing(r *run, p *Peer, n int) error {
	g, err := r.genesis(p, n)
	if err != nil {
		return err
	}
	adopt := &ring.Action{Kind: ring.Adopt, Genesis: g}
	id := g.ID()
	switch n % 3 {
	case 0:
		return p.Gossip(gossipDelta, mesh.ChannelRing, ringRecord(id, adopt.Encode()[1:]))
	case 1: // a digest of the ring, far ahead
		d := append(append(ring.EncodeRange(r.cfg.Range), 1), id[:]...)
		d = binary.BigEndian.AppendUint64(d, 1<<40)
		return p.Gossip(gossipDigest, mesh.ChannelRing, append(d, id[:]...))
	}
	return p.Signed(p.ID, pick(r.rng, others(p)), mesh.KindIPAM, Wish(uint64(r.rng.IntN(8)), adopt))
}

// namesOfMadeUp is how many host names each made-up peer gets, and namesPerStep how many of
// them in a step.
const (
	namesOfMadeUp = 2000
	namesPerStep  = 100
)

// hostNames gives made-up peers ever more host names. The runs at other routers do that for
// other peers.
func hostNames(r *run, p *Peer, n int) error {
	if err := r.announceMadeUp(p); err != nil {
		return err
	}
	const steps = namesOfMadeUp / namesPerStep
	i := ((n/steps)*len(r.cfg.Targets) + r.index) % madeUpNeighbours
	m, err := r.made(i)
	if err != nil {
		return err
	}
	s := r.hostNames[i]
	if s == nil {
		s = names.New(names.Config{Self: m.Name, Signer: m, Verifier: peer.Ed25519{}, Start: time.Now()})
		if r.hostNames == nil {
			r.hostNames = make(map[int]*names.State)
		}
		r.hostNames[i] = s
	}
	var in []names.Entry
	for k := range namesPerStep {
		in = append(in, names.Entry{Name: fmt.Sprintf("web%d-%d.weft.internal", n, k), Container: "c", Addr: r.cfg.Range.Addr().Next()})
	}
	return p.changeNames(s, in)
}

// passwordStates announces which passwords made-up peers accept, another list each time.
func passwordStates(r *run, p *Peer, n int) error {
	i, m, err := r.madeUpInTurn(p, n)
	if err != nil {
		return err
	}
	s := r.passwords[i]
	if s == nil {
		s = records.New(records.Config[rotation.State]{
			Use: passwords.Use, Self: m.Name, Signer: m, Verifier: peer.Ed25519{}, Start: time.Now(),
			Decode: func(_ uint8, payload []byte) (rotation.State, error) { return rotation.ParseState(payload) },
		})
		if r.passwords == nil {
			r.passwords = make(map[int]*records.Map[rotation.State])
		}
		r.passwords[i] = s
	}
	var state rotation.State
	for range rotation.MaxHeld {
		state.Accepts = append(state.Accepts, rotation.Accepted{Password: rotation.ID{byte(n), byte(r.rng.Uint32()), byte(r.rng.Uint32())}, Order: r.rng.Int64N(1 << 60)})
	}
	deltas, err := s.Set(map[uint8][]byte{0: state.Append(nil), byte(n): state.Append(nil)})
	if err != nil {
		return err
	}
	return p.spread(mesh.ChannelPasswords, deltas)
}

// madeUpInTurn announces the made-up peers, and returns the one, with its number, whose turn to
// announce records it is in a step.
func (r *run) madeUpInTurn(p *Peer, step int) (i int, m *Identity, err error) {
	if err := r.announceMadeUp(p); err != nil {
		return 0, nil, err
	}
	i = (step*len(r.cfg.Targets) + r.index) % madeUpNeighbours
	m, err = r.made(i)
	return i, m, err
}

// bindingsPerStep is how many bindings a made-up peer announces in a step, other ones each time.
const bindingsPerStep = 200

// madeUpBindings announces bindings of made-up peers, with as many addresses as fit. Half of them
// are of addresses of the mesh, and a part is the same for all peers.
func madeUpBindings(r *run, p *Peer, n int) error {
	i, m, err := r.madeUpInTurn(p, n)
	if err != nil {
		return err
	}
	s := r.bindings[i]
	if s == nil {
		s = newBindings(m)
		if r.bindings == nil {
			r.bindings = make(map[int]*bindings.State)
		}
		r.bindings[i] = s
	}
	var list []bindings.Binding
	inside := r.cfg.Range.Addr().As4()
	for k := range bindingsPerStep {
		b := bindings.Binding{MAC: bindings.MAC{2, byte(k % 2), byte(n >> 16), byte(n >> 8), byte(n), byte(k)}, Kind: bindings.Container}
		if k%8 == 0 {
			b.MAC = bindings.MAC{2, 0x42, inside[0], inside[1], 0, byte(k)}
		}
		for a := range bindings.MaxAddrs {
			if k%2 == 0 {
				b.Addrs = append(b.Addrs, netip.AddrFrom4([4]byte{inside[0], inside[1], byte(k), byte(a)}))
			} else {
				b.Addrs = append(b.Addrs, netip.AddrFrom16([16]byte{0xfd, byte(n >> 16), byte(n >> 8), byte(n), byte(k), byte(a)}))
			}
		}
		list = append(list, b)
	}
	return p.bind(s, list)
}

// madeUpGroups announces that made-up peers want as many multicast groups as fit.
func madeUpGroups(r *run, p *Peer, n int) error {
	i, m, err := r.madeUpInTurn(p, n)
	if err != nil {
		return err
	}
	s := r.groups[i]
	if s == nil {
		s = newGroups(m)
		if r.groups == nil {
			r.groups = make(map[int]*groups.State)
		}
		r.groups[i] = s
	}
	w := groups.Wants{All: n%16 == 0}
	for k := range groups.MaxGroups {
		w.Groups = append(w.Groups, netip.AddrFrom16([16]byte{0: 0xff, 1: 5, 10: byte(n >> 16), 11: byte(n >> 8), 12: byte(n), 14: byte(k >> 8), 15: byte(k)}))
	}
	deltas, err := s.Announce(w)
	if err != nil {
		return err
	}
	return p.spread(mesh.ChannelGroups, deltas)
}

// digests asks for the whole state of every channel again and again.
func digests(r *run, p *Peer, n int) error {
	channel := []byte{mesh.ChannelTopology, mesh.ChannelRing, mesh.ChannelNames, mesh.ChannelBindings, mesh.ChannelGroups}[n%5]
	var digest []byte
	switch channel {
	case mesh.ChannelTopology:
		topo, err := r.database(p.ID.Identity, time.Now())
		if err != nil {
			return err
		}
		digest = topo.Digest()
	case mesh.ChannelRing:
		digest = append(append(ring.EncodeRange(r.cfg.Range), 1), make([]byte, ring.DigestLen-1)...)
	case mesh.ChannelNames:
		digest = names.New(names.Config{Self: p.ID.Name, Signer: p.ID, Verifier: peer.Ed25519{}, Start: time.Unix(1, 0)}).Digest()
	case mesh.ChannelBindings:
		digest = newBindings(p.ID).Digest()
	case mesh.ChannelGroups:
		digest = newGroups(p.ID).Digest()
	}
	return p.Gossip(byte(gossipDigest+n%2), channel, digest)
}

// malformed sends something that no router sends, after which the session ends.
func malformed(r *run, p *Peer, n int) error {
	garbage := make([]byte, 1+r.rng.IntN(4000))
	_, _ = crand.Read(garbage)
	channel := byte(r.rng.IntN(10))
	switch n % 8 {
	case 0:
		return p.Gossip(gossipDelta, channel, garbage)
	case 1:
		return p.Gossip(gossipDigest, channel, garbage)
	case 2:
		return p.Gossip(gossipSum, channel, garbage)
	case 3:
		return p.Send(garbage)
	case 4:
		return p.Send([]byte{recUnicast, 1, 2})
	case 5: // an entry with another signature
		m, err := r.made(n % 100)
		if err != nil {
			return err
		}
		delta, err := r.entry(m, []peer.Name{p.ID.Name, {2, byte(n >> 8), byte(n), 1, 1, 1}}, 0)
		if err != nil {
			return err
		}
		delta = slices.Clone(delta)
		delta[len(delta)-1] ^= 1
		return p.Gossip(gossipDelta, mesh.ChannelTopology, delta)
	case 6: // an entry of another's, signed by this peer
		other := *p.ID.Identity
		other.Name = p.Router
		topo, err := r.database(&other, time.Now().Add(time.Hour))
		if err != nil {
			return err
		}
		return p.Gossip(gossipDelta, mesh.ChannelTopology, topo.SetLinks(sessionsWith([]peer.Name{p.ID.Name})))
	}
	return p.Signed(p.ID, p.Router, mesh.KindIPAM, garbage)
}
