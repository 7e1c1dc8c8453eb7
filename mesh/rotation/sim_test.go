package rotation

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// idOf is a password's id without Argon2id.
func idOf(text string) ID {
	s := (peer.Cheap{ID: peer.Key{1}}).Sign("id", []byte(text))
	return ID(s[:])
}

func pw(text string) Password { return Password{text, idOf(text)} }

// sim is a mesh without goroutines and sockets. What a peer publishes reaches each other peer
// after a random time, and orders can be lost.
type sim struct {
	t      *testing.T
	rng    *rand.Rand
	now    time.Time
	loss   float64
	nodes  []*node
	banned map[peer.KeyID]bool
}

type node struct {
	*Machine
	id      peer.Cheap
	key     peer.KeyID
	away    bool
	voter   bool
	config  []Password
	gradual bool
	disk    []byte
	publish State         // newest
	seen    map[int]State // of others, which survives no restart
	calls   int           // of IDOf
}

func newSim(t *testing.T, rng *rand.Rand, n int, loss float64) *sim {
	s := &sim{t: t, rng: rng, now: epoch, loss: loss}
	for i := range n {
		k := peer.Key{1: byte(i + 1)}
		s.nodes = append(s.nodes, &node{id: peer.Cheap{ID: k}, key: peer.IDOf(k), voter: true, config: []Password{pw("old password")}})
	}
	for i := range s.nodes {
		s.boot(i)
	}
	return s
}

func (s *sim) boot(i int) {
	n := s.nodes[i]
	m, _, err := New(Config{
		Clock:   func() time.Time { return s.now },
		Gradual: n.gradual, Self: n.key, Signer: n.id, Verifier: peer.Cheap{},
		IDOf: func(text string) ID { n.calls++; return idOf(text) },
		MayOrder: func(k peer.Key) bool {
			return slices.ContainsFunc(s.nodes, func(o *node) bool { return o.id.Key() == k && o.voter })
		},
		Banned: func(k peer.KeyID) bool { return s.banned[k] },
	}, n.config, n.disk, s.now)
	if err != nil {
		s.t.Fatalf("peer %d: %v", i, err)
	}
	n.Machine, n.seen, n.away, n.publish = m, make(map[int]State), false, m.State()
}

func (s *sim) keys(of ...int) (out []peer.KeyID) {
	for _, i := range of {
		out = append(out, s.nodes[i].key)
	}
	return out
}

// all returns the keys of all peers.
func (s *sim) all() (out []peer.KeyID) {
	for _, n := range s.nodes {
		out = append(out, n.key)
	}
	return out
}

func (s *sim) run(d time.Duration) {
	for end := s.now.Add(d); s.now.Before(end); s.now = s.now.Add(500 * time.Millisecond) {
		s.round()
		s.check()
	}
}

func (s *sim) round() {
	for i, n := range s.nodes {
		if n.away {
			continue
		}
		var list []Peer
		neighbours := make(map[peer.KeyID]bool)
		for j, o := range s.nodes {
			list = append(list, Peer{Name: peer.Name{5: byte(j)}, Key: o.key, Member: true, Owner: true})
			if j != i && !o.away {
				neighbours[o.key] = true
			}
		}
		n.SetPeers(list, s.now)
		n.SetNeighbours(neighbours)
		for j, o := range s.nodes {
			if !o.away && s.rng.IntN(3) == 0 {
				n.seen[j] = o.publish
			}
			n.SetState(o.key, n.seen[j])
		}
		changed, messages := n.Tick(s.now)
		if changed {
			n.disk, n.publish = n.Saved(), n.State()
		}
		for _, m := range messages {
			to := s.nodes[slices.IndexFunc(s.nodes, func(o *node) bool { return o.key == m.To })]
			if !to.away && s.rng.Float64() >= s.loss {
				if err := to.Receive(n.key, m.Bytes, s.now); err != nil && !strings.Contains(err.Error(), "too many") && !strings.Contains(err.Error(), "has no vote") {
					s.t.Fatalf("order from %d refused: %v", i, err)
				}
			}
		}
	}
}

// check fails if a peer would dial another one with a password that this one does not accept.
func (s *sim) check() {
	for i, a := range s.nodes {
		for j, b := range s.nodes {
			offered := a.publish.Accepts[0].Password
			if _, ok := b.publish.accepts(offered); !ok && !a.away && !b.away {
				s.t.Fatalf("after %v peer %d offers %v, which peer %d does not accept", s.now.Sub(epoch), i, offered, j)
			}
		}
	}
}

func (s *sim) everyone(accepts ...string) bool {
	for _, n := range s.nodes {
		var got []string
		for _, p := range n.Passwords() {
			got = append(got, p.Text)
		}
		if !n.away && !slices.Equal(got, accepts) {
			return false
		}
	}
	return true
}

// Peers restart, are away, and lose orders; the peer on which the rotation was started dies.
// Any two that are there can always make a session, and in the end all know only the new
// password.
func TestAnyTwoPeersAlwaysShareAPassword(t *testing.T) {
	rng := seed.Rand(t)
	for range 25 {
		s := newSim(t, rng, 2+rng.IntN(8), rng.Float64()*0.8)
		s.run(time.Duration(rng.IntN(30)) * time.Second)
		for k := range 1 + rng.IntN(2) { // one rotation, or two at once
			if err := s.nodes[k].Start(pw(fmt.Sprintf("new password %d", k)), s.all(), s.now); err != nil {
				t.Fatal(err)
			}
		}
		for range 20 {
			s.run(time.Duration(rng.IntN(4000)) * time.Millisecond)
			i := rng.IntN(len(s.nodes))
			if n := s.nodes[i]; n.away || rng.IntN(3) == 0 {
				s.boot(i)
			} else {
				n.away = true
			}
		}
		for i, n := range s.nodes {
			if n.away {
				s.boot(i)
			}
		}
		s.run(4 * time.Minute)
		last := s.nodes[0].held[0].Text
		if last == "old password" {
			continue // the giver died before anybody had the order
		}
		if !s.everyone(last) {
			for i, n := range s.nodes {
				t.Errorf("peer %d: %q offered %v", i, n.Passwords(), n.offered)
			}
			t.Fatalf("not all peers know only %q", last)
		}
	}
}

// A member that the order does not name, or that is away, keeps its old password valid. Status
// says who is behind.
func TestNobodyIsLockedOut(t *testing.T) {
	s := newSim(t, seed.Rand(t), 4, 0)
	s.run(DefaultSettle)
	s.nodes[3].away = true
	if err := s.nodes[0].Start(pw("new password"), s.keys(0, 1), s.now); err != nil {
		t.Fatal(err)
	}
	s.run(time.Hour)
	st := s.nodes[0].Status()
	if !st.Running || len(st.Peers) != 3 || st.Peers[0].Step != Accepts || st.Peers[1].Step != Behind || st.Peers[1].Named || st.Peers[2].Named {
		t.Fatalf("status %+v", st)
	}
	// The operator adds the two on another host.
	if err := s.nodes[1].Start(pw("new password"), s.keys(2, 3), s.now); err != nil {
		t.Fatal(err)
	}
	s.run(time.Minute)
	if s.everyone("new password") {
		t.Fatal("the old password is gone, although a member is away")
	}
	s.boot(3)
	s.run(time.Minute)
	if !s.everyone("new password") {
		t.Fatalf("not finished: %+v", s.nodes[0].Status())
	}
}

// Each host's configuration changes on its own, as Secrets of Kubernetes do.
func TestConfigurationsChangeOneByOne(t *testing.T) {
	rng := seed.Rand(t)
	s := newSim(t, rng, 5, 0)
	for i, n := range s.nodes {
		n.gradual = true
		s.boot(i)
	}
	s.run(DefaultSettle)
	for _, i := range rng.Perm(5) {
		if s.everyone("new password", "other password") {
			t.Fatal("finished before all have the password")
		}
		s.nodes[i].Configure([]Password{pw("new password"), pw("other password")})
		s.run(time.Duration(rng.IntN(60)) * time.Second)
		if s.nodes[i].config = []Password{pw("new password"), pw("other password")}; rng.IntN(2) == 0 {
			s.boot(i)
		}
	}
	s.run(time.Minute)
	if !s.everyone("new password", "other password") {
		t.Fatalf("not finished: %+v", s.nodes[0].Status())
	}
}

// Secrets change while routers are restarted, as in a rolling update. Lines that the user adds
// are accepted at once, and those that the user takes away are not.
func TestConfigurationsChangeAtARestart(t *testing.T) {
	rng := seed.Rand(t)
	s := newSim(t, rng, 4, 0)
	for i, n := range s.nodes {
		n.gradual = true
		s.boot(i)
	}
	s.run(DefaultSettle)
	for _, i := range rng.Perm(4) {
		s.nodes[i].config = []Password{pw("new password")}
		s.boot(i)
		s.run(time.Duration(rng.IntN(30)) * time.Second)
	}
	s.run(time.Minute)
	if !s.everyone("new password") {
		t.Fatalf("not finished: %+v", s.nodes[0].Status())
	}
	for _, n := range s.nodes {
		n.Configure([]Password{pw("new password"), pw("later password")})
	}
	s.run(time.Second)
	if !s.everyone("new password", "later password") {
		t.Errorf("with a second line: %q", s.nodes[0].Passwords())
	}
	for _, n := range s.nodes {
		n.Configure([]Password{pw("new password")})
	}
	if !s.everyone("new password") {
		t.Errorf("without the second line: %q", s.nodes[0].Passwords())
	}
}

// After the rotation the configuration of the launch still has the old password.
func TestRestartGoesOnAfterTheConfiguration(t *testing.T) {
	s := newSim(t, seed.Rand(t), 3, 0)
	s.run(DefaultSettle)
	if err := s.nodes[0].Start(pw("new password"), s.all(), s.now); err != nil {
		t.Fatal(err)
	}
	s.run(time.Minute)
	if s.boot(1); !s.everyone("new password") || !s.nodes[1].Replaced(idOf("old password")) {
		t.Fatalf("after a restart with the old configuration: %q", s.nodes[1].Passwords())
	}
	s.nodes[1].Configure([]Password{pw("old password")})
	if !s.everyone("new password") {
		t.Fatal("the old password came back by a file that was written again")
	}
	// The operator gives another password: that counts alone.
	n := s.nodes[1]
	m, forgot, err := New(n.cfg, []Password{pw("for another mesh")}, n.disk, s.now)
	if got := m.Passwords(); err != nil || !forgot || len(got) != 1 || got[0] != pw("for another mesh") {
		t.Errorf("with a new configuration: %q, %v, %v", got, forgot, err)
	}
}

// Orders that no honest peer gives or passes on change nothing.
func TestOrdersWithoutAuthorityAreRefused(t *testing.T) {
	s := newSim(t, seed.Rand(t), 4, 0)
	s.run(DefaultSettle)
	victim, liar := s.nodes[0], s.nodes[3]
	give := func(signer peer.Cheap, at time.Time, text, said string, peers ...int) []byte {
		o, err := newOrder(signer, at.UnixMicro(), idOf(said), s.keys(peers...))
		if err != nil {
			t.Fatal(err)
		}
		return o.message(text)
	}
	forged := give(liar.id, s.now, "a new password", "a new password", 0, 3)
	copy(forged[9:], s.nodes[1].id.ID[:])
	for what, msg := range map[string][]byte{
		"signed by another":         forged,
		"for others":                give(liar.id, s.now, "a new password", "a new password", 1, 3),
		"passed on by an outsider":  give(liar.id, s.now, "a new password", "a new password", 0, 1),
		"too short":                 give(liar.id, s.now, "short", "short", 0, 3),
		"another text than it says": give(liar.id, s.now, "a new password", "another password", 0, 3),
		"of an hour ahead":          give(liar.id, s.now.Add(time.Hour), "a new password", "a new password", 0, 3),
		"cut short":                 forged[:100],
	} {
		if err := victim.Receive(liar.key, msg, s.now); err == nil {
			t.Errorf("an order %s was taken", what)
		}
	}
	liar.voter = false
	if err := victim.Receive(liar.key, give(liar.id, s.now, "a new password", "a new password", 0, 3), s.now.Add(time.Minute)); err == nil {
		t.Error("an order of a peer without a vote was taken")
	}
	if err := liar.Start(pw("a new password"), nil, s.now); !errors.Is(err, ErrNoVote) {
		t.Errorf("start without a vote: %v", err)
	}
	if !s.everyone("old password") {
		t.Error("a password changed")
	}
}

// One voter that gives orders all the time neither fills the passwords of others nor costs
// them much, nor does it keep an honest order from its end. The honest order ends its
// passwords, too.
func TestFloodOfOrders(t *testing.T) {
	s := newSim(t, seed.Rand(t), 4, 0)
	s.run(DefaultSettle)
	liar := s.nodes[3]
	before := s.nodes[0].calls
	flood := func() {
		for i := range 50 {
			text := fmt.Sprintf("made up by %v and %d", s.now.UnixNano(), i)
			o, err := newOrder(liar.id, s.now.Add(maxAhead).UnixMicro()-1000+int64(i), idOf(text), s.keys(0, 1, 3))
			if err != nil {
				t.Fatal(err)
			}
			for _, to := range s.nodes[:2] {
				_ = to.Receive(liar.key, o.message(text), s.now)
			}
		}
		s.run(5 * time.Second)
	}
	for range 25 {
		flood()
	}
	if n, m := len(s.nodes[0].Passwords()), s.nodes[0].calls-before; n > 1+maxOfGiver || m > 20 {
		t.Errorf("%d passwords are accepted after a flood of five minutes, %d were checked", n, m)
	}
	if err := s.nodes[0].Start(pw("new password"), s.all(), s.now); err != nil {
		t.Fatal(err)
	}
	for range 12 {
		flood()
	}
	s.run(time.Minute)
	for i, n := range s.nodes[:3] {
		if p := n.Passwords(); p[0].Text != "new password" || slices.ContainsFunc(p, func(p Password) bool { return p.Text == "old password" }) {
			t.Errorf("peer %d has %q", i, p)
		}
	}
}

// A voter spreads a password of its own, and is banned. Its password goes with it, whether others
// use it already or not, and the next one takes the place of all.
func TestBanEndsThePasswordsOfThePeer(t *testing.T) {
	rng := seed.Rand(t)
	for _, names := range [][]int{{1}, {0, 1, 2}, {0, 1, 2, 3}} {
		s := newSim(t, rng, 4, 0)
		s.run(DefaultSettle)
		evil := s.nodes[3]
		o, err := newOrder(evil.id, s.now.Add(maxAhead).UnixMicro(), idOf("evil password"), s.keys(append(names, 3)...))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.nodes[1].Receive(evil.key, o.message("evil password"), s.now); err != nil {
			t.Fatal(err)
		}
		for range rng.IntN(40) {
			s.round()
			s.now = s.now.Add(100 * time.Millisecond)
		}
		s.nodes, s.banned, evil.voter = s.nodes[:3], map[peer.KeyID]bool{evil.key: true}, false
		for _, n := range s.nodes {
			if _, _, ok := n.Resumable(); ok {
				t.Error("the change of the banned peer can go on")
			}
		}
		for range rng.IntN(10) { // some drop its password before the next order
			s.round()
			s.now = s.now.Add(100 * time.Millisecond)
		}
		if err := s.nodes[0].Start(pw("new password"), s.all(), s.now); err != nil {
			t.Fatal(err)
		}
		for range 120 {
			s.round()
			s.now = s.now.Add(time.Second)
		}
		if !s.everyone("new password") {
			t.Errorf("order for %v: %q, %q, %q", names, s.nodes[0].Passwords(), s.nodes[1].Passwords(), s.nodes[2].Passwords())
		}
	}
}

// However often the password changes, a host goes on after a restart with the configuration of
// its launch.
func TestManyRotations(t *testing.T) {
	s := newSim(t, seed.Rand(t), 3, 0)
	s.run(DefaultSettle)
	for i := range maxReplaced + 2 {
		if err := s.nodes[0].Start(pw(fmt.Sprintf("password %d", i)), s.all(), s.now); err != nil {
			t.Fatal(err)
		}
		s.run(30 * time.Second)
	}
	s.boot(1)
	if want := fmt.Sprintf("password %d", maxReplaced+1); !s.everyone(want) {
		t.Errorf("after a restart %q, want %q", s.nodes[1].Passwords(), want)
	}
}

// A change that was stuck is extended while another one begins elsewhere.
func TestExtendedOrderAndAnotherOne(t *testing.T) {
	s := newSim(t, seed.Rand(t), 4, 0)
	s.run(DefaultSettle)
	start := func(i int, text string, peers []peer.KeyID) {
		t.Helper()
		if err := s.nodes[i].Start(pw(text), peers, s.now); err != nil {
			t.Fatal(err)
		}
	}
	start(0, "first password", s.keys(0, 1))
	s.run(10 * time.Second)
	start(3, "second password", s.all())
	s.now = s.now.Add(300 * time.Millisecond)
	start(0, "first password", s.all())
	s.run(2 * time.Minute)
	if !s.everyone("first password") {
		t.Errorf("%q, %q", s.nodes[0].Passwords(), s.nodes[3].Passwords())
	}
}

func TestSavedIsRefusedIfDamaged(t *testing.T) {
	s := newSim(t, seed.Rand(t), 2, 0)
	s.run(DefaultSettle)
	if err := s.nodes[0].Start(pw("new password"), s.all(), s.now); err != nil {
		t.Fatal(err)
	}
	s.run(time.Second)
	n := s.nodes[0]
	for cut := range len(n.disk) {
		m, _, err := New(n.cfg, n.config, n.disk[:cut], s.now)
		if p := m.Passwords(); cut > 0 && err == nil || len(p) != 1 || p[0].Text != "old password" {
			t.Fatalf("cut after %d bytes: %q, %v", cut, p, err)
		}
	}
}

func FuzzOrder(f *testing.F) {
	k := peer.Cheap{ID: peer.Key{1}}
	o, err := newOrder(k, 1, idOf("a password"), []peer.KeyID{{1}, {2}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(o.message("a password"))
	f.Fuzz(func(t *testing.T, b []byte) {
		o, text, err := parseOrder(b)
		if err != nil {
			return
		}
		if got := o.message(text); string(got) != string(b) {
			t.Errorf("order %x became %x", b, got)
		}
		o.verify(peer.Cheap{})
	})
}

func FuzzState(f *testing.F) {
	f.Add(State{[]Accepted{{idOf("a password"), 5}, {idOf("another"), 0}}}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := ParseState(b); err == nil && string(s.Append(nil)) != string(b) {
			t.Errorf("state %x became %x", b, s.Append(nil))
		}
	})
}

func FuzzSaved(f *testing.F) {
	f.Add([]byte(`{"passwords":[{"text":"a password","id":[1,2,3,4,5,6,7,8],"time":5,"line":0}],"offered":[1,2,3,4,5,6,7,8],"floor":{},"replaced":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, _, _ := New(Config{Signer: peer.Cheap{}, Verifier: peer.Cheap{}, IDOf: idOf, Clock: func() time.Time { return epoch }}, []Password{{"a password", ID{1, 2, 3, 4, 5, 6, 7, 8}}}, b, epoch)
		m.Tick(epoch.Add(time.Hour))
		if p := m.Passwords(); len(p) == 0 || len(p) != len(m.State().Accepts) {
			t.Errorf("passwords %q, state %v", p, m.State())
		}
		m.Status()
	})
}
