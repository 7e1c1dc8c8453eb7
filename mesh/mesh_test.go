package mesh

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
)

// node is a Mesh that runs on loopback.
type node struct {
	*Mesh
	t    *testing.T
	stop func()

	mu      sync.Mutex
	up      map[peer.Name]Neighbour
	down    map[peer.Name]Ending
	refused []Refused
	banned  func(peer.Key) bool // that was reported last
	links   []string            // link messages, with their sender
	got     []string            // ipam messages
	route   *topology.Routes
}

func (n *node) NeighbourUp(x Neighbour) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.up[x.Name] = x
}

func (n *node) NeighbourDown(x peer.Name, how Ending) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.up, x)
	n.down[x] = how
}

func (n *node) HandshakeRefused(r Refused) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refused = append(n.refused, r)
}

func (n *node) PeersBanned(banned func(peer.Key) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.banned = banned
}

func (n *node) LinkMessage(from peer.Name, msg []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = append(n.links, fmt.Sprintf("%s %s", from, msg))
}

func (n *node) RoutesChanged(r *topology.Routes) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.route = r
}

func (n *node) ViewChanged(*View) {}

// TestMain lets more tests run in parallel than there are CPUs: they wait for timers,
// not for the CPU.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "16"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

type option func(*Config)

// register makes a node have a channel, too. It is not an option, because a Config has no
// channels.
func register(id uint8, c gossip.Channel) func(*node) { return func(n *node) { n.Register(id, c) } }

func start(t *testing.T, opts ...option) *node {
	t.Helper()
	return startWith(t, nil, opts...)
}

// startWith calls prepare before the node runs.
func startWith(t *testing.T, prepare []func(*node), opts ...option) *node {
	t.Helper()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{Identity: id, Nickname: "n", Discover: true, ConnLimit: 100, dialLoopback: true,
		Log: slog.New(slog.DiscardHandler)}
	for _, o := range opts {
		o(&cfg)
	}
	n := &node{t: t, up: make(map[peer.Name]Neighbour), down: make(map[peer.Name]Ending)}
	cfg.Host = netip.Addr{}
	if n.Mesh, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	n.Handle(KindIPAM, func(from peer.Name, msg []byte) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.got = append(n.got, fmt.Sprintf("%s %s", from, msg))
	})
	for _, f := range prepare {
		f(n)
	}
	// The context of the test ends before its cleanups begin, so all nodes stop at
	// the same time: each takes up to a second to tell the others.
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		n.Run(ctx, n)
		close(done)
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(n.stop)
	return n
}

func (n *node) addr() string { return fmt.Sprintf("127.0.0.1:%d", n.Port()) }

func to(nodes ...*node) option {
	return func(c *Config) {
		for _, n := range nodes {
			c.Targets = append(c.Targets, n.addr())
		}
	}
}

func noDiscovery(c *Config) { c.Discover = false }
func password(p ...string) option {
	return func(c *Config) {
		for _, s := range p {
			c.Passwords = append(c.Passwords, pskOf(s))
		}
	}
}

// pskOf derives keys of passwords once, as each costs a tenth of a second.
func pskOf(password string) session.PSK {
	k, _ := psks.LoadOrStore(password, sync.OnceValue(func() session.PSK {
		k, err := session.DerivePSK(password)
		if err != nil {
			panic(err)
		}
		return k
	}))
	return k.(func() session.PSK)()
}

var psks sync.Map

// eventually waits until ok returns true, and fails the test after 20 s.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if poll.Until(time.Minute, 10*time.Millisecond, poll.True(ok)) != nil {
		t.Fatalf("never: %s", what)
	}
}

// sessions returns how many sessions over TCP n has.
func (n *node) sessions() (count int) {
	for _, s := range n.Status().Sessions {
		if !s.Relayed {
			count++
		}
	}
	return count
}

// sees reports whether n can reach exactly these nodes.
func (n *node) sees(others ...*node) bool {
	var want []peer.Name
	for _, o := range others {
		if o != n {
			want = append(want, o.Self())
		}
	}
	slices.SortFunc(want, peer.Name.Compare)
	return slices.Equal(n.View().Peers(), want)
}

func TestOneKnownPeerIsEnoughAndItsLossIsSurvived(t *testing.T) {
	t.Parallel()
	a := start(t)
	b, c, d := start(t, to(a)), start(t, to(a)), start(t, to(a))
	all := []*node{a, b, c, d}
	for _, n := range all {
		eventually(t, "a full mesh", func() bool { return n.sees(all...) && n.sessions() == 3 })
	}
	a.stop()
	for _, n := range all[1:] {
		eventually(t, "a mesh of three", func() bool { return n.sees(all[1:]...) && n.sessions() == 2 })
	}
}

func TestMessagesAreRelayedOverALine(t *testing.T) {
	t.Parallel()
	a := start(t, noDiscovery)
	b := start(t, noDiscovery, to(a))
	c := start(t, noDiscovery, to(b))
	d := start(t, noDiscovery, to(c))
	// The relays too: they pass news on before they compute routes from it, and a
	// relay without a route drops the message.
	eventually(t, "all peers see all others", func() bool {
		return a.sees(b, c, d) && b.sees(a, c, d) && c.sees(a, b, d) && d.sees(a, b, c)
	})
	if a.sessions() != 1 || d.sessions() != 1 {
		t.Fatal("more sessions than the line has")
	}
	if err := a.Send(d.Self(), KindIPAM, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the message arrives", func() bool {
		d.mu.Lock()
		defer d.mu.Unlock()
		return slices.Equal(d.got, []string{a.Self().String() + " hello"})
	})
	if b.Status().Relayed == 0 {
		t.Error("the relay does not count the message")
	}
	if err := a.Send(peer.Name{2, 9}, KindIPAM, nil); err == nil {
		t.Error("a message to an unknown peer is sent")
	}
	if err := a.Send(d.Self(), KindLink, nil); err == nil {
		t.Error("a link message is relayed")
	}
}

// Two peers without a direct session agree on keys over others, if a router wants them.
func TestWantedSession(t *testing.T) {
	t.Parallel()
	a := start(t, noDiscovery)
	b := start(t, noDiscovery, to(a))
	c := start(t, noDiscovery, to(b))
	eventually(t, "all peers see all others", func() bool { return a.sees(b, c) && b.sees(a, c) && c.sees(a, b) })
	up := func(n, x *node) Neighbour {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.up[x.Self()]
	}
	agreed := func() bool {
		at, ct := up(a, c), up(c, a)
		return at.Secret == ct.Secret && at.Secret != [32]byte{} && at.Key == c.Identity().Key() && ct.Key == a.Identity().Key()
	}
	a.WantSession(c.Self(), true) // both at once
	c.WantSession(a.Self(), true)
	eventually(t, "both ends have the same secret", agreed)
	if at := up(a, c).Addr; at.IsValid() {
		t.Errorf("the address is %s, which nobody knows", at)
	}
	if up(b, a).Secret == up(a, c).Secret {
		t.Error("the relay has the secret")
	}
	eventually(t, "link messages arrive", func() bool {
		_ = a.Send(c.Self(), KindLink, []byte("offer"))
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Contains(c.links, a.Self().String()+" offer")
	})
	if a.View().Routes().Unicast[c.Self()] == c.Self() || a.sessions() != 1 {
		t.Error("the session counts as a direct one")
	}

	// One end is restarted and has nothing to say: the other's router still uses the keys.
	old := up(a, c).Secret
	c.mu.Lock()
	first := (*c.Mesh.neighbours.Load())[a.Self()]
	c.mu.Unlock()
	first.terminate(away(errDuplicate))
	eventually(t, "a new session", func() bool {
		a.WantSession(c.Self(), false)
		return agreed() && up(a, c).Secret != old
	})

	// Nobody uses them any more.
	later := time.Now().Add(wantedTimeout + punchTimeout)
	for _, n := range []*node{a, c} {
		n.Mesh.mu.Lock()
		n.wantedDue(later)
		n.relayedDue(later)
		left := len(n.wantedSessions)
		n.Mesh.mu.Unlock()
		if left != 0 {
			t.Errorf("%d sessions are still wanted", left)
		}
	}
	eventually(t, "the session ends", a.downAs(c, Away))
}

func TestWantedSessionsAreBounded(t *testing.T) {
	t.Parallel()
	a := start(t)
	for i := range 2 * maxWanted {
		a.WantSession(peer.Name{2, 7, 0, 0, byte(i >> 8), byte(i)}, true)
	}
	if s := a.Status(); s.Wanted != maxWanted || s.Unwanted != maxWanted {
		t.Errorf("%d sessions are wanted, %d refused, limit %d", s.Wanted, s.Unwanted, maxWanted)
	}
	a.Mesh.mu.Lock()
	for _, w := range a.wantedSessions {
		w.last = w.last.Add(-wantedSpare)
	}
	a.Mesh.mu.Unlock()
	a.WantSession(peer.Name{2, 8}, true)
	a.Mesh.mu.Lock()
	defer a.Mesh.mu.Unlock()
	if a.wantedSessions[peer.Name{2, 8}] == nil || len(a.wantedSessions) != maxWanted {
		t.Error("a session that was not used lately did not make space")
	}
}

// A member sends from many names. The peers to which this router sends still get keys.
func TestPeersThatOnlySendDoNotTakeAllWantedSessions(t *testing.T) {
	t.Parallel()
	a := start(t)
	evil := func() {
		for i := range 2 * maxWanted {
			a.WantSession(peer.Name{2, 6, 0, 0, byte(i >> 8), byte(i)}, false)
		}
	}
	evil()
	if s := a.Status(); s.Wanted != maxHeard || s.Unwanted != 2*maxWanted-maxHeard {
		t.Errorf("%d sessions are wanted, %d refused, limit %d", s.Wanted, s.Unwanted, maxHeard)
	}
	refused := a.Status().Unwanted
	for i := range maxWanted {
		a.WantSession(peer.Name{2, 7, 0, 0, byte(i >> 8), byte(i)}, true)
	}
	if s := a.Status(); s.Wanted != maxWanted || s.Unwanted != refused {
		t.Errorf("%d sessions are wanted, %d of peers to which this router sends refused", s.Wanted, s.Unwanted-refused)
	}
	evil()
	a.Mesh.mu.Lock()
	defer a.Mesh.mu.Unlock()
	for n := range a.wantedSessions {
		if n[1] != 7 {
			t.Fatalf("the session with %s took the place of one that is used", n)
		}
	}
}

func TestLinkMessagesComeFromNeighboursInOrder(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := start(t, to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	var want []string
	for i := range 100 {
		if err := b.Send(a.Self(), KindLink, fmt.Appendf(nil, "%d", i)); err != nil {
			t.Fatal(err)
		}
		want = append(want, fmt.Sprintf("%s %d", b.Self(), i))
	}
	eventually(t, "all link messages", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return slices.Equal(a.links, want)
	})
	a.mu.Lock()
	b.mu.Lock()
	defer a.mu.Unlock()
	defer b.mu.Unlock()
	x, y := a.up[b.Self()], b.up[a.Self()]
	if x.Secret != y.Secret || x.Secret == [32]byte{} || x.Dialled || !y.Dialled || y.Addr.String() != a.addr() {
		t.Errorf("the two ends have %+v and %+v", x, y)
	}
}

func TestFrameRoutesFollowDataLinks(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := start(t, to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	routed := func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.route != nil && a.route.Unicast[b.Self()] == b.Self()
	}
	if routed() {
		t.Error("a route without a data link")
	}
	a.SetData(b.Self(), true, time.Millisecond)
	b.SetData(a.Self(), true, time.Millisecond)
	eventually(t, "a route", routed)
	b.SetData(a.Self(), false, 0)
	eventually(t, "no route", func() bool { return !routed() })
}

// Peers that start with the same short id soon have different ones. The peer with the
// lowest name keeps it, and the routes of every peer show the ids.
func TestContestedShortIDIsSettledEverywhere(t *testing.T) {
	t.Parallel()
	same := func(c *Config) { c.ShortID = 77 }
	a := start(t, noDiscovery, same)
	b := start(t, noDiscovery, same, to(a))
	c := start(t, noDiscovery, same, to(b))
	all := []*node{a, b, c}
	lowest := a.Self()
	for _, n := range all {
		if n.Self().Compare(lowest) < 0 {
			lowest = n.Self()
		}
	}
	reported := func(n *node) (ids map[peer.Name]uint16, names map[uint16]peer.Name) {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.route != nil {
			ids, names = n.route.ShortIDs, n.route.ByShortID
		}
		return ids, names
	}
	eventually(t, "three ids, the same on all peers", func() bool {
		want, _ := reported(a)
		for _, n := range all {
			ids, names := reported(n)
			if len(ids) != 3 || len(names) != 3 || names[77] != lowest || !maps.Equal(ids, want) || n.View().Routes().ShortIDs[n.Self()] == 0 {
				return false
			}
		}
		return true
	})
	if _, err := New(Config{Identity: a.Identity(), ShortID: topology.MaxShortID + 1}); err == nil {
		t.Error("an invalid short id is accepted")
	}
}

func TestTwoIslandsBecomeOneMesh(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := start(t, to(a))
	c := start(t)
	d := start(t, to(c))
	eventually(t, "two islands", func() bool { return a.sees(b) && c.sees(d) })
	b.SetTargets([]string{a.addr(), d.addr()})
	all := []*node{a, b, c, d}
	for _, n := range all {
		eventually(t, "one mesh", func() bool { return n.sees(all...) && n.sessions() == 3 })
	}
}

func (n *node) hasProblem(text string) func() bool {
	return func() bool {
		for _, p := range n.Status().Problems {
			if strings.Contains(p.Text, text) {
				return true
			}
		}
		return false
	}
}

func TestBothPeersReportWhyASessionIsRefused(t *testing.T) {
	t.Parallel()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	named := func(c *Config) { c.Identity.Name = peer.Name{0, 0, 0, 0, 0, 1} }
	for _, c := range []struct {
		name string
		a, b []option
		say  string
		code session.Code
	}{
		{"password", []option{password("correct horse")}, []option{password("battery staple")}, "passwords differ", session.CodePassword},
		{"no password", []option{password("correct horse")}, nil, "only one of the two peers has one", session.CodePassword},
		{"version", nil, []option{func(c *Config) { c.ProtocolMin, c.ProtocolMax = 7, 8 }}, "no protocol version in common", session.CodeVersion},
		{"same name", []option{named}, []option{named}, "name collision", session.CodeCollision},
		{"same identity", []option{func(c *Config) { c.Identity = id }}, []option{func(c *Config) { c.Identity = id }}, "a state folder was copied", session.CodeIdentity},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := start(t, c.a...)
			b := start(t, append(c.b, to(a))...)
			eventually(t, "the dialler reports "+c.say, b.hasProblem(c.say))
			eventually(t, "the responder reports "+c.say, a.hasProblem(c.say))
			local := netip.MustParseAddr("127.0.0.1")
			eventually(t, "the observer of the dialler hears of it", b.heardOf(Refused{local, c.code, true}))
			eventually(t, "the observer of the responder hears of it", a.heardOf(Refused{local, c.code, false}))
			if a.sessions() != 0 || b.sessions() != 0 {
				t.Error("there is a session although it was refused")
			}
			if want := c.code == session.CodeIdentity; a.Collides() != want || b.Collides() != want {
				t.Errorf("another router has the identity: the dialler says %v, the responder %v, want %v", b.Collides(), a.Collides(), want)
			}
		})
	}
}

// heardOf returns whether the observer heard of a handshake that was refused.
func (n *node) heardOf(r Refused) func() bool {
	return func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return slices.Contains(n.refused, r)
	}
}

// downAs returns whether the last session with a peer ended in this way.
func (n *node) downAs(x *node, how Ending) func() bool {
	return func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		got, ok := n.down[x.Self()]
		return ok && got == how
	}
}

func TestPeerThatStopsIsAway(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := start(t, to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	eventually(t, "the observer knows the key that b proved", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.up[b.Self()].Key == b.Identity().Key()
	})
	b.stop()
	eventually(t, "the session is down and the peer away", a.downAs(b, Away))
}

// A copy of a peer that is already in the mesh connects to a third peer.
func TestCloneMetAtAThirdPeerIsRefused(t *testing.T) {
	t.Parallel()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	same := func(c *Config) { c.Identity = id }
	hub := start(t, noDiscovery)
	first := start(t, noDiscovery, same, to(hub))
	eventually(t, "the first peer is in the mesh", func() bool { return hub.sees(first) })
	second := start(t, noDiscovery, same, to(hub))
	eventually(t, "the hub reports it", hub.hasProblem("another live peer"))
	eventually(t, "the clone reports it", second.hasProblem("another live peer"))
	if !hub.sees(first) {
		t.Error("the first peer was dropped")
	}
	if !second.Collides() || first.Collides() || hub.Collides() {
		t.Errorf("only the clone knows that its identity is in use: first %v, clone %v, hub %v", first.Collides(), second.Collides(), hub.Collides())
	}
}

// A host at a dialled address that proves no key cannot make others believe that their
// identity is in use.
func TestRefusalInClearTextIsNoCollision(t *testing.T) {
	t.Parallel()
	for _, code := range []session.Code{session.CodeCollision, session.CodeIdentity} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				var preamble [8]byte // repeated as the own one
				_, _ = io.ReadFull(c, preamble[:])
				_, _ = c.Write(append(preamble[:], 0xff, 0xff, byte(code), 0))
				_, _ = io.Copy(io.Discard, c)
				c.Close()
			}
		}()
		b := start(t, password("correct horse"), func(c *Config) { c.Targets = append(c.Targets, l.Addr().String()) })
		eventually(t, "the session is refused", b.heardOf(Refused{netip.MustParseAddr("127.0.0.1"), code, true}))
		if b.Collides() {
			t.Errorf("a refusal with code %s counts", code)
		}
	}
}

// A peer that proves a key of its own refuses a session: another live router is said to have the
// identity of the dialler. That counts only if the other router signs this handshake.
func TestIdentityInUseNeedsAProof(t *testing.T) {
	t.Parallel()
	victim := newIdentity(t, peer.Name{})
	other := newIdentity(t, peer.Name{})
	proof := func(signer *peer.Identity, b session.Binding, instance uint64) []byte {
		sig := signer.Sign(cloneDomain, signedClone(b, instance))
		return append(binary.BigEndian.AppendUint64(nil, instance), sig[:]...)
	}
	for _, c := range []struct {
		name  string
		proof func(h *session.Hello, session *session.Conn) []byte
		want  bool
	}{
		{"a copy", func(h *session.Hello, _ *session.Conn) []byte { return proof(victim, h.Binding, h.Instance+1) }, true},
		{"none", func(*session.Hello, *session.Conn) []byte { return nil }, false},
		{"a short one", func(h *session.Hello, _ *session.Conn) []byte { return proof(victim, h.Binding, 1)[:70] }, false},
		{"of another key", func(h *session.Hello, _ *session.Conn) []byte { return proof(other, h.Binding, 1) }, false},
		{"of another handshake", func(h *session.Hello, _ *session.Conn) []byte { return proof(victim, session.Binding{1}, 1) }, false},
		{"of the dialler itself", func(h *session.Hello, c *session.Conn) []byte {
			if err := c.WriteRecord(append([]byte{recCloneAsk}, h.Binding[:]...)); err != nil {
				return nil
			}
			for {
				if rec, err := c.ReadRecord(); err != nil || len(rec) > 0 && rec[0] == recCloneProof {
					if err != nil || len(rec) != 1+cloneProofLen {
						t.Errorf("the dialler signs nothing: %x, %v", rec, err)
						return nil
					}
					return rec[1:]
				}
			}
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			listen := func(serve func(nc net.Conn, cfg *session.Config)) string {
				cfg := handshakeOf(t, newIdentity(t, peer.Name{}))
				l, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				var dials sync.WaitGroup
				t.Cleanup(func() {
					l.Close()
					dials.Wait()
				})
				dials.Go(func() {
					for {
						nc, err := l.Accept()
						if err != nil {
							return
						}
						serve(nc, cfg)
					}
				})
				return l.Addr().String()
			}
			sessions := make(chan *session.Conn, 1)
			first := listen(func(nc net.Conn, cfg *session.Config) {
				s, err := session.Accept(nc, cfg)
				if err != nil {
					nc.Close()
					return
				}
				t.Cleanup(func() { s.Close() })
				select {
				case sessions <- s:
				default: // it has been dialled again
				}
			})
			second := listen(func(nc net.Conn, cfg *session.Config) {
				refusing := *cfg
				refusing.Check = func(h *session.Hello, _ bool) *session.Refusal {
					r := &session.Refusal{Code: session.CodeIdentity, Reason: "in use"}
					select {
					case s := <-sessions:
						sessions <- s
						r.Proof = c.proof(h, s)
					case <-t.Context().Done():
					}
					return r
				}
				_, _ = session.Accept(nc, &refusing)
				nc.Close()
			})
			b := start(t, noDiscovery, withIdentity(victim), func(c *Config) { c.Targets = append(c.Targets, first, second) })
			eventually(t, "the session is refused", b.heardOf(Refused{netip.MustParseAddr("127.0.0.1"), session.CodeIdentity, true}))
			if got := b.Collides(); got != c.want {
				t.Errorf("a refusal with this proof: the identity is in use: %v, want %v", got, c.want)
			}
		})
	}
}

// handshakeOf returns the configuration of handshakes of a peer without a password.
func handshakeOf(t *testing.T, id *peer.Identity) *session.Config {
	t.Helper()
	static, err := session.NewStatic(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &session.Config{
		Self: id.Name, Instance: 7, Signer: id, Verifier: peer.Ed25519{}, Static: static, Accept: []session.PSK{{}},
		Min: session.ProtocolMin, Max: session.ProtocolMax, Random: rand.Reader,
		Check: func(*session.Hello, bool) *session.Refusal { return nil },
	}
}

// Two hosts that share a name do not concern a third one.
func TestCollisionOfOtherPeersIsNotOwn(t *testing.T) {
	t.Parallel()
	name := peer.Name{0, 0, 0, 0, 0, 1}
	c := start(t, withIdentity(newIdentity(t, name)))
	b := start(t)
	a := start(t, withIdentity(newIdentity(t, name)), to(b))
	eventually(t, "a session", func() bool { return b.sees(a) })
	b.SetTargets([]string{c.addr()})
	eventually(t, "the other host with the name is refused", b.heardOf(Refused{netip.MustParseAddr("127.0.0.1"), session.CodeCollision, true}))
	if b.Collides() {
		t.Error("the host says that its own identity is in use")
	}
}

func TestRollingPasswordChangeDropsNoSession(t *testing.T) {
	t.Parallel()
	a := start(t, password("old password", "new password"))
	b := start(t, password("new password", "old password"), to(a))
	c := start(t, password("old password"), to(b))
	for _, n := range []*node{a, b, c} {
		eventually(t, "one mesh", func() bool { return n.sees(a, b, c) })
	}
}

func TestConnectionLimitStillReachesAll(t *testing.T) {
	t.Parallel()
	limit := func(c *Config) { c.ConnLimit = 2 }
	a := start(t, limit)
	b := start(t, limit, to(a))
	c := start(t, limit, to(b))
	d := start(t, limit, to(c))
	all := []*node{a, b, c, d}
	for _, n := range all {
		eventually(t, "all peers reach all others", func() bool { return n.sees(all...) && n.sessions() <= 2 })
	}
}

func TestRestartedPeerComesBack(t *testing.T) {
	t.Parallel()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := start(t)
	b := start(t, to(a), func(c *Config) { c.Identity = id })
	eventually(t, "both peers in the mesh", func() bool { return a.sees(b) && b.sees(a) })
	b.stop()
	eventually(t, "the session to be gone", func() bool { return a.sessions() == 0 })
	again := start(t, to(a), func(c *Config) { c.Identity = id })
	eventually(t, "both peers in the mesh again", func() bool { return a.sees(again) && again.sees(a) })
}

func TestStopIsSafeAtAnyTime(t *testing.T) {
	t.Parallel()
	a := start(t)
	for range 5 {
		start(t, to(a)).stop()
	}
}

// Two peers that cannot dial each other get a session through the hub. Both learn the
// address at which the hub sees the other's UDP port.
func TestPeersThatCannotDialEachOtherPunchHoles(t *testing.T) {
	t.Parallel()
	seen := func(n peer.Name) (netip.AddrPort, bool) {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, n[4], n[5]}), 6783), true
	}
	// Nothing listens at the addresses that they advertise.
	translated := func(c *Config) { c.Advertise = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1")} }
	hub := start(t, udp(seen))
	a, b := start(t, translated, to(hub), udp(seen)), start(t, translated, to(hub), udp(seen))
	for _, n := range []*node{a, b} {
		eventually(t, "a session with the hub", func() bool { return n.sees(hub, a, b) })
		n.SetData(hub.Self(), true, time.Millisecond)
		hub.SetData(n.Self(), true, time.Millisecond)
	}
	reported := func(n, of *node) func() bool {
		return func() bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			want, _ := seen(of.Self())
			return n.up[of.Self()].Addr == want
		}
	}
	eventually(t, "the address of b at a", reported(a, b))
	eventually(t, "the address of a at b", reported(b, a))
	a.mu.Lock()
	b.mu.Lock()
	x, y := a.up[b.Self()], b.up[a.Self()]
	a.mu.Unlock()
	b.mu.Unlock()
	if x.Secret != y.Secret || x.Secret == [32]byte{} {
		t.Error("the two peers do not share a secret")
	}
	if err := a.Send(b.Self(), KindLink, []byte("offer")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a link message at b", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return slices.Equal(b.links, []string{a.Self().String() + " offer"})
	})
	a.SetData(b.Self(), true, time.Millisecond)
	b.SetData(a.Self(), true, time.Millisecond)
	eventually(t, "a direct route for frames", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.route.Unicast[b.Self()] == b.Self()
	})
	hub.stop()
	eventually(t, "the end of the link after the session that carried it", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		_, up := a.up[b.Self()]
		return !up
	})
}

func udp(f func(peer.Name) (netip.AddrPort, bool)) option {
	return func(c *Config) { c.UDPAddr = f }
}

func TestFullQueueToANeighbourIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	n := &neighbour{control: make(chan []byte, MaxControl)}
	for range MaxControl {
		_ = n.push(make([]byte, MaxUnicast))
	}
	if got := n.queued.Load(); got > maxControlBytes || n.dropped.Load() == 0 {
		t.Errorf("%d bytes wait, %d records were dropped", got, n.dropped.Load())
	}
}

// forger shows one key and signs with another.
type forger struct{ shown, signer peer.Signer }

func (l forger) Key() peer.Key                          { return l.shown.Key() }
func (l forger) Sign(d string, b []byte) peer.Signature { return l.signer.Sign(d, b) }

func TestForgedEntryIsRefusedAndReported(t *testing.T) {
	t.Parallel()
	a := start(t)
	b := start(t, to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	victim, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := topology.New(topology.Config{Self: victim.Name, Signer: forger{victim, b.Identity()}, Verifier: peer.Ed25519{},
		Book: new(peer.Book), Start: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	nothing, err := topology.New(topology.Config{Self: a.Self(), Signer: a.Identity(), Verifier: peer.Ed25519{}, Book: new(peer.Book)})
	if err != nil {
		t.Fatal(err)
	}
	deltas, _, err := forged.Missing(nothing.Digest())
	if err != nil {
		t.Fatal(err)
	}
	b.Announce(ChannelTopology, deltas[0])
	eventually(t, "a reports it", a.hasProblem("not signed by its owner"))
	eventually(t, "b reports it", b.hasProblem("not signed by its owner"))
	eventually(t, "a rejected b", a.downAs(b, Rejected))
	eventually(t, "b was rejected by a", b.downAs(a, Rejected))
	if a.View().Reachable(victim.Name) || a.View().Nickname(victim.Name) != "" {
		t.Error("the entry was merged")
	}
}

// A peer whose others are all away gets routes too: the kernel carries frames to them with
// its short id.
func TestLonePeerHasRoutes(t *testing.T) {
	t.Parallel()
	n := start(t)
	eventually(t, "a lone peer has a short id", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.route != nil && n.route.ShortIDs[n.Self()] != 0
	})
}
