package ipam

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// memDisk is a disk in memory.
type memDisk struct {
	data map[string]map[string][]byte
	err  error // if set, what Apply returns
}

func newDisk() *memDisk { return &memDisk{data: map[string]map[string][]byte{}} }

func (d *memDisk) clone() *memDisk {
	c := newDisk()
	for bucket, kv := range d.data {
		c.data[bucket] = maps.Clone(kv)
	}
	return c
}

func (d *memDisk) Load(bucket string, f func(key, value []byte)) error {
	for _, k := range slices.Sorted(maps.Keys(d.data[bucket])) { // as a store does
		f([]byte(k), d.data[bucket][k])
	}
	return nil
}

func (d *memDisk) Apply(writes []store.Write) error {
	if d.err != nil {
		return d.err
	}
	for _, w := range writes {
		if d.data[w.Bucket] == nil {
			d.data[w.Bucket] = map[string][]byte{}
		}
		if w.Value == nil {
			delete(d.data[w.Bucket], string(w.Key))
		} else {
			d.data[w.Bucket][string(w.Key)] = bytes.Clone(w.Value)
		}
	}
	return nil
}

// sim is a mesh of cores in virtual time. Its network can lose, delay and cut. Equal
// seeds give equal runs.
type sim struct {
	t                  testing.TB
	rng                *rand.Rand
	now                time.Time
	loss               float64
	nodes              []*node
	wire               []packet
	cut                func(a, b *node) bool
	direct             func(a, b *node) bool // whether two nodes can have a direct session
	duplicatesExpected bool                  // two rings give the same addresses
	lies               bool                  // some nodes send what is malformed
	tickEvery          time.Duration         // 0: each step
	made               int
	replies            map[uint64]effReply // by request; ids are unique over nodes
	watcher            watcher             // nil if there is none
}

// watcher sees what happens in a sim.
type watcher interface {
	// stepped is called for each step that a node survives.
	stepped(n *node, writes []store.Write, effects []effect)
	// repaired is called for each delta that answers a digest.
	repaired(from, to *node, delta []byte)
}

type packet struct {
	at       time.Time
	from, to *node
	kind     byte // u unicast, d delta, h digest
	data     []byte
}

type node struct {
	s              *sim
	cfg            Config
	core           *core // nil: dead
	disk           *memDisk
	number         int
	diesInNextStep bool       // between the write and the effects
	digest, tick   time.Time  // the next ones
	at             *node      // the node whose underlay address it shares; nil: it has its own
	underlay       netip.Addr // its own underlay address; zero: one by its number
	awaits         bool       // its targets do not answer
	collides       bool       // another node uses its identity
	banned         bool       // the others refuse it
	pretends       bool       // it has no core, but others see it
}

const simStep = 50 * time.Millisecond

func newSim(t testing.TB, seed uint64) *sim {
	return &sim{t: t, rng: rand.New(rand.NewPCG(seed, 7)), now: time.Unix(1_700_000_000, 0),
		replies: map[uint64]effReply{},
		cut:     func(a, b *node) bool { return false }, direct: func(a, b *node) bool { return true }}
}

// add makes a node with a name of its own.
func (s *sim) add(addrRange string, init Init) *node {
	s.made++
	n := &node{s: s, number: s.made, disk: newDisk(), cfg: Config{
		Self:   nameOfNode(s.made),
		Signer: peer.Cheap{ID: peer.Key{1, byte(s.made), byte(s.made >> 8)}}, Verifier: peer.Cheap{},
		Range: pfx(addrRange), Default: pfx(addrRange), Init: init, Grace: time.Second, Absence: 2 * time.Second, Settle: time.Second}}
	s.nodes = append(s.nodes, n)
	n.launch()
	return n
}

// withKeys gives a fresh node a real key and the name that is derived from it.
func (n *node) withKeys() *node {
	seed := make([]byte, 32)
	seed[0] = byte(n.number)
	id, err := peer.IdentityFromSeed(seed)
	if err != nil {
		n.s.t.Fatal(err)
	}
	n.cfg.Self, n.cfg.Signer, n.cfg.Verifier = id.Name, id, peer.Ed25519{}
	n.launch()
	return n
}

func (s *sim) addAll(n int, addrRange string) []*node {
	for range n {
		s.add(addrRange, Init{Mode: Consensus, Expect: n})
	}
	return s.nodes
}

func (n *node) launch() {
	n.core = newCore(n.cfg, n, n.s.rng)
	n.core.lastID = uint64(n.number)<<32 + uint64(n.s.rng.Uint32()>>1)
	if notes := n.core.load(n.disk); len(notes) > 0 {
		n.s.t.Fatalf("%s: %v", n.cfg.Self, notes)
	}
	n.diesInNextStep = false
}

func (n *node) kill() { n.core = nil }

func (n *node) sees(m *node) bool {
	alive := func(n *node) bool { return n.core != nil || n.pretends }
	return alive(n) && alive(m) && !n.s.cut(n, m) && !n.s.cut(m, n)
}

// The node is its core's View.
func (n *node) Reachable(p peer.Name) bool {
	return slices.ContainsFunc(n.s.nodes, func(m *node) bool { return m.cfg.Self == p && n.sees(m) })
}

func (n *node) Peers() (out []peer.Name) {
	for _, m := range n.s.nodes {
		if m != n && n.sees(m) {
			out = append(out, m.cfg.Self)
		}
	}
	return out
}

func (n *node) Nickname(peer.Name) string { return "" }

func (n *node) Key(p peer.Name) (peer.Key, bool) {
	for _, m := range n.s.nodes {
		if m.cfg.Self == p && (m.core != nil || m.pretends) {
			return m.cfg.Signer.Key(), true
		}
	}
	return peer.Key{}, false
}

func (n *node) Place(p peer.Name) (netip.Addr, bool) {
	for _, m := range n.s.nodes {
		if m.cfg.Self == p && n.sees(m) && n.s.direct(n, m) {
			return m.place(), true
		}
	}
	return netip.Addr{}, false
}

// place returns the underlay address of a node.
func (n *node) place() netip.Addr {
	if n.at != nil {
		return n.at.place()
	}
	if n.underlay.IsValid() {
		return n.underlay
	}
	return netip.AddrFrom4([4]byte{192, 0, 2 + byte(n.number>>8), byte(n.number)})
}

func (n *node) Target(peer.Name) bool { return true }

func (n *node) AwaitsTarget() bool { return n.awaits }

func (n *node) Collides() bool { return n.collides }

func (n *node) Banned() bool { return n.banned }

// do runs f in the node's core, as the driver does.
func (n *node) do(f func(*core)) {
	if n.core == nil {
		return
	}
	writes, effects := n.core.step(n.s.now, func() { f(n.core) })
	_ = n.disk.Apply(writes)
	if n.diesInNextStep {
		n.kill()
		return
	}
	if n.s.watcher != nil {
		n.s.watcher.stepped(n, writes, effects)
	}
	for _, e := range effects {
		switch e := e.(type) {
		case effSend:
			for _, m := range n.s.nodes {
				if m.cfg.Self == e.to {
					n.s.post(n, m, 'u', e.msg)
				}
			}
		case effAnnounce:
			for _, m := range n.s.nodes {
				if m != n {
					n.s.post(n, m, 'd', e.delta)
				}
			}
		case effReply:
			n.s.replies[e.id] = e
		}
	}
	n.s.check()
}

func (s *sim) post(from, to *node, kind byte, data []byte) {
	if from.sees(to) && s.rng.Float64() >= s.loss {
		at := s.now.Add(time.Duration(s.rng.Int64N(int64(100 * time.Millisecond))))
		s.wire = append(s.wire, packet{at, from, to, kind, data})
	}
}

// run lets the time d pass.
func (s *sim) run(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); {
		s.now = s.now.Add(simStep)
		due := s.wire
		s.wire = nil
		for _, p := range due {
			if s.now.Before(p.at) {
				s.wire = append(s.wire, p)
			} else if p.from.sees(p.to) {
				s.deliver(p)
			}
		}
		for _, n := range s.nodes {
			if n.core == nil {
				continue
			}
			if !s.now.Before(n.tick) {
				n.tick = s.now.Add(s.tickEvery)
				n.do(func(c *core) { c.tick() })
			}
			if n.core != nil && s.now.After(n.digest) {
				n.digest = s.now.Add(time.Second)
				m := s.nodes[s.rng.IntN(len(s.nodes))]
				if m != n {
					s.post(n, m, 'h', n.core.digest())
				}
			}
		}
	}
}

func (s *sim) deliver(p packet) {
	switch n := p.to; p.kind {
	case 'u':
		n.do(func(c *core) {
			if err := c.receive(p.from.cfg.Self, p.data); err != nil && !s.lies {
				s.t.Fatalf("message of %s: %v", p.from.cfg.Self, err)
			}
		})
	case 'd':
		n.do(func(c *core) { _, _ = c.merge(p.from.cfg.Self, p.data) })
	case 'h':
		n.do(func(c *core) {
			deltas, wants, err := c.missing(p.data)
			if err != nil && !s.lies {
				s.t.Fatalf("digest of %s: %v", p.from.cfg.Self, err)
			}
			for _, d := range deltas {
				s.post(n, p.from, 'd', d)
				if s.watcher != nil {
					s.watcher.repaired(n, p.from, d)
				}
			}
			if wants {
				s.post(n, p.from, 'h', c.digest())
			}
		})
	}
}

// check fails the test if two live nodes use one address and neither of them knows.
func (s *sim) check() {
	s.t.Helper()
	if s.duplicatesExpected {
		return
	}
	users := map[netip.Addr]*node{}
	for _, n := range s.nodes {
		if n.core == nil {
			continue
		}
		for a := range n.core.allocations {
			if m := users[a]; m != nil && n.core.ringDivides(a) && n.core.foreign[a] == nil && m.core.foreign[a] == nil &&
				n.core.ring.Ready() && m.core.ring.Ready() {
				s.t.Fatalf("%s is in use on %s and on %s", a, m.cfg.Self, n.cfg.Self)
			}
			users[a] = n
		}
	}
}

// begin starts a request and returns its id.
func (n *node) begin(f func(c *core, id uint64)) (id uint64) {
	n.do(func(c *core) {
		id = c.nextID()
		f(c, id)
	})
	return id
}

// bans votes for the ban of a node, or for its end.
func (n *node) bans(other *node, unban bool) (v Vote) {
	n.s.t.Helper()
	n.do(func(c *core) {
		votes, err := c.ban([]peer.Name{other.cfg.Self}, unban)
		if err != nil {
			n.s.t.Fatalf("%s: ban %s: %v", n.cfg.Self, other.cfg.Self, err)
		}
		v = votes[0]
	})
	return v
}

// isBanned waits until a node knows that another one is banned, or not.
func (n *node) isBanned(other *node, want bool) {
	n.s.t.Helper()
	for range 200 {
		if n.core.ring.IsBanned(other.self()) == want {
			return
		}
		n.s.run(100 * time.Millisecond)
	}
	n.s.t.Fatalf("%s says that %s is banned: %v; %+v", n.cfg.Self, other.cfg.Self, !want, n.core.status().Votes)
}

// await lets time pass until the request has its reply.
func (n *node) await(id uint64, d time.Duration) (effReply, bool) {
	for end := n.s.now.Add(d); ; {
		if r, ok := n.s.replies[id]; ok {
			return r, true
		}
		if !n.s.now.Before(end) {
			return effReply{}, false
		}
		n.s.run(simStep)
	}
}

// reason cancels the request and returns what it waited for, "" if there is no
// such request.
func (n *node) reason(id uint64) (text string) {
	n.do(func(c *core) {
		if err := c.cancel(id); err != nil {
			text = err.Error()
		}
	})
	return text
}

func (n *node) allocate(owner, subnet string) netip.Addr {
	n.s.t.Helper()
	id := n.begin(func(c *core, id uint64) { c.allocate(id, owner, pfx(subnet)) })
	r, ok := n.await(id, 30*time.Second)
	if !ok || r.err != nil {
		n.s.t.Fatalf("%s allocates for %s: %v %s", n.cfg.Self, owner, r.err, n.reason(id))
	}
	return r.prefix.Addr()
}

// converged lets time pass until all live nodes have one ring.
func (s *sim) converged(d time.Duration) {
	s.t.Helper()
	for end := s.now.Add(d); s.now.Before(end); s.run(500 * time.Millisecond) {
		var first []byte
		same := true
		for _, n := range s.nodes {
			if n.core == nil {
				continue
			}
			dg := n.core.ring.Digest()
			if first == nil {
				first = dg
			}
			same = same && n.core.ring.Ready() && bytes.Equal(first, dg)
		}
		if same {
			return
		}
	}
	for _, n := range s.nodes {
		if n.core != nil {
			s.t.Logf("%s: %+v", n.cfg.Self, n.core.status().State)
		}
	}
	s.t.Fatal("the rings do not converge")
}

// reset hands the node's space over and removes it.
func (n *node) reset() HandoverResult {
	n.s.t.Helper()
	for _, owner := range slices.Sorted(maps.Keys(n.core.byOwner)) {
		n.do(func(c *core) {
			for _, a := range slices.Clone(c.byOwner[owner]) {
				c.release(owner, a)
			}
		})
	}
	id := n.begin(func(c *core, id uint64) { c.handover(id) })
	r, ok := n.await(id, 20*time.Second)
	if !ok || r.err != nil {
		n.s.t.Fatalf("%s resets: %v %s", n.cfg.Self, r.err, n.reason(id))
	}
	n.kill()
	n.s.nodes = slices.DeleteFunc(n.s.nodes, func(m *node) bool { return m == n })
	return r.handover
}

// liveShare returns how many addresses live peers own.
func (s *sim) liveShare(n *node) (c addr.Count) {
	for h, size := range n.core.ring.Owners() {
		if h.Name == n.cfg.Self || n.Reachable(h.Name) {
			if m := s.nodes[slices.IndexFunc(s.nodes, func(m *node) bool { return m.cfg.Self == h.Name })]; m.core.self == h {
				c = c.Add(size)
			}
		}
	}
	return c
}

// drop removes a dead node from the simulation.
func (s *sim) drop(n *node) {
	s.nodes = slices.DeleteFunc(s.nodes, func(m *node) bool { return m == n })
}
