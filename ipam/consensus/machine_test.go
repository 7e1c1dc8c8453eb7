package consensus

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

func signer(i int) peer.Cheap { return peer.Cheap{ID: peer.Key{byte(i + 1)}} }

func holder(i int) ring.Holder {
	return ring.HolderOf(peer.Name{2, 5: byte(i + 1)}, signer(i).Key())
}

// world is some voters that decide one slot.
type world struct {
	t       *testing.T
	seed    uint64
	rng     *rand.Rand
	now     time.Time
	voters  []ring.Holder
	nodes   []*Machine
	disks   [][]byte
	dead    []bool
	loss    float64
	wire    []packet
	decided []byte
}

type packet struct {
	from, to int
	msg      []byte
}

func newWorld(t *testing.T, seed uint64, n int) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1)), now: time.Unix(1e9, 0),
		nodes: make([]*Machine, n), disks: make([][]byte, n), dead: make([]bool, n)}
	for i := range n {
		w.voters = append(w.voters, holder(i))
	}
	for i := range n {
		w.launch(i)
	}
	return w
}

func (w *world) launch(i int) {
	m, err := New(Config{Ring: ring.ID{7}, Slot: 5, Voters: w.voters, Self: holder(i), Signer: signer(i), Verifier: peer.Cheap{},
		SignedBy: func(h ring.Holder, k peer.Key) error {
			if peer.IDOf(k) != h.Key {
				return ring.ErrSignature
			}
			return nil
		},
		Propose:   func() []byte { return fmt.Appendf(nil, "body of %d", i) },
		Fits:      func([]byte) error { return nil },
		Agree:     func([]byte) error { return nil },
		Reachable: func(h ring.Holder) bool { return !w.dead[h.Name[5]-1] },
	}, w.disks[i])
	if err != nil {
		w.t.Fatal(err)
	}
	w.nodes[i] = m
}

// after writes the state of a node and sends its message.
func (w *world) after(i int, always bool) {
	m := w.nodes[i]
	if m.TakeChanged() || always {
		w.disks[i] = m.State()
		for j := range w.nodes {
			if j != i && w.rng.Float64() >= w.loss {
				for _, b := range m.Messages(w.now) {
					w.wire = append(w.wire, packet{i, j, b})
				}
			}
		}
	}
	if d := m.Decided(); d != nil {
		body := d[:bytes.LastIndex(d, []byte("body of "))+9]
		if w.decided == nil {
			w.decided = body
		}
		if !bytes.Equal(body, w.decided) {
			w.t.Fatalf("seed %d: %q and %q are decided", w.seed, w.decided, body)
		}
	}
}

func (w *world) step() {
	w.now = w.now.Add(50 * time.Millisecond)
	for i := range w.nodes {
		if !w.dead[i] {
			w.nodes[i].Tick(w.now)
			w.after(i, w.rng.IntN(20) == 0)
		}
	}
	wire := w.wire
	w.wire = nil
	w.rng.Shuffle(len(wire), func(i, j int) { wire[i], wire[j] = wire[j], wire[i] })
	for _, p := range wire {
		i := p.to
		if w.dead[i] {
			continue
		}
		if err := w.nodes[i].Receive(w.now, holder(p.from).Name, p.msg); err != nil {
			w.t.Fatal(err)
		}
		w.after(i, false)
	}
}

// With losses, restarts at any moment and as many dead voters as a quorum allows, one body
// is decided and no other.
func TestOneBodyIsDecided(t *testing.T) {
	first := seed.New(t)
	for i := range 150 {
		s := first + uint64(i)
		rng := rand.New(rand.NewPCG(s, 2))
		n := 1 + rng.IntN(10)
		w := newWorld(t, s, n)
		w.loss = 0.3
		for range rng.IntN(n - ring.Quorum(n) + 1) {
			w.dead[rng.IntN(n)] = true
		}
		for range 100 {
			w.step()
			if i := rng.IntN(n); rng.IntN(15) == 0 && !w.dead[i] {
				w.launch(i)
			}
		}
		w.loss = 0
		// One that decides tells the others by gossip.
		for steps := 0; w.decided == nil; steps++ {
			if steps == 3000 {
				t.Fatalf("seed %d: no decision of %d voters", s, n)
			}
			w.step()
		}
	}
}

// A voter that is locked on a body does not vote for another one, also after a restart.
func TestLockSurvivesARestart(t *testing.T) {
	w := newWorld(t, 1, 4)
	body := []byte("body of 1")
	id := ring.BodyID(body)
	p := w.nodes[0].proposer(0)
	prop := &proposal{body: body, id: id, valid: -1, key: signer(p).Key()}
	prop.sig = signer(p).Sign(domainProposal, proposalMessage(ring.ID{7}, 5, 0, prop))
	self := (p + 1) % 4
	msg := message{slot: 5, prop: prop}
	for i := range 4 {
		if i != self {
			msg.votes = append(msg.votes, stepVote{stepPrevote, i, vote{id, signer(i).Key(),
				signer(i).Sign(domainPrevote, ring.VoteMessage(ring.ID{7}, 5, 0, id))}})
		}
	}
	m := w.nodes[self]
	m.Tick(w.now)
	if err := m.Receive(w.now, holder(1).Name, msg.encode()); err != nil {
		t.Fatal(err)
	}
	if m.lockedID != id {
		t.Fatalf("locked %s in round %d", m.lockedID, m.locked)
	}
	w.disks[self] = m.State()
	w.launch(self)
	m = w.nodes[self]
	other := &proposal{body: []byte("body of 2"), id: ring.BodyID([]byte("body of 2")), valid: -1}
	if err := m.checkProposed(other); err == nil {
		t.Error("a locked voter agrees to another body")
	}
	if err := m.checkProposed(prop); err != nil {
		t.Errorf("it disagrees to its own body: %v", err)
	}
}

// A voter that claims to be in a round far ahead costs the others a few rounds, not time.
func TestJumpIsBounded(t *testing.T) {
	w := newWorld(t, 1, 3)
	m := w.nodes[0]
	m.Tick(w.now)
	const far = maxRound - 1
	msg := message{slot: 5, round: far, votes: []stepVote{{stepPrevote, 1, vote{ring.ID{}, signer(1).Key(),
		signer(1).Sign(domainPrevote, ring.VoteMessage(ring.ID{7}, 5, far, ring.ID{}))}}}}
	for range 100 {
		if err := m.Receive(w.now, holder(1).Name, msg.encode()); err != nil {
			t.Fatal(err)
		}
	}
	if m.Round() > maxJump {
		t.Errorf("round %d", m.Round())
	}
}

func FuzzReceive(f *testing.F) {
	w := newWorld(nil, 1, 4)
	for range 3 {
		for i := range w.nodes {
			w.nodes[i].Tick(w.now)
			f.Add(w.nodes[i].Messages(w.now)[0])
			f.Add(w.nodes[i].State())
			for j := range w.nodes {
				_ = w.nodes[j].Receive(w.now, holder(i).Name, w.nodes[i].Messages(w.now)[0])
			}
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parse(b); err == nil && !bytes.Equal(m.encode(), b) {
			t.Fatal("a message does not round trip")
		}
		w := newWorld(t, 1, 4)
		m := w.nodes[1]
		m.Tick(w.now)
		_ = m.Receive(w.now, holder(0).Name, b)
		m.Tick(w.now.Add(time.Minute))
		if len(m.rounds) > roundsAhead+2 {
			t.Fatalf("%d rounds are kept", len(m.rounds))
		}
		_ = m.restore(b)
		_ = m.State()
	})
}

// Too many voters are locked on a body for the others to decide another one. The round succeeds in
// which one of the locked ones proposes, and those before it take little time.
func TestRoundsBeforeThatOfALockedVoterAreShort(t *testing.T) {
	const voters, locked = 10, 4
	w := newWorld(t, seed.New(t), voters)
	body := []byte("body of 1")
	id := ring.BodyID(body)
	var proof []ring.Vote
	for i := range ring.Quorum(voters) {
		proof = append(proof, ring.Vote{Voter: i, Key: signer(i).Key(), Sig: signer(i).Sign(domainPrevote, ring.VoteMessage(ring.ID{7}, 5, 2, id))})
	}
	const round = 3
	for i := range locked {
		m := w.nodes[w.nodes[0].proposer(round+voters-1-uint32(i))] // they propose last
		m.locked, m.lockedID, m.valid, m.validBody, m.validProof = 2, id, 2, body, proof
	}
	for _, m := range w.nodes {
		m.enter(round, w.now)
	}
	start := w.now
	for w.decided == nil {
		if w.step(); w.now.Sub(start) > 12*time.Second {
			t.Fatalf("no decision; round %d", w.nodes[0].Round())
		}
	}
	if !bytes.Equal(w.decided, body) {
		t.Errorf("%q is decided", w.decided)
	}
}

// lie sends a vote of a voter for nothing in a round to another voter.
func (w *world) lie(from, to int, round uint32) {
	msg := message{slot: 5, round: round, votes: []stepVote{{stepPrevote, from, vote{ring.ID{}, signer(from).Key(),
		signer(from).Sign(domainPrevote, ring.VoteMessage(ring.ID{7}, 5, round, ring.ID{}))}}}}
	w.wire = append(w.wire, packet{from, to, msg.encode()})
}

// One of three voters lies: it tells another one all the time that it is in a round far ahead. So that one
// is far ahead of the third, which was cut off. The two honest voters are a quorum, and decide soon.
func TestLiarDoesNotKeepVotersInDifferentRounds(t *testing.T) {
	const liar, farther = 2, 1 << 30
	w := newWorld(t, seed.New(t), 3)
	w.dead[1], w.dead[liar] = true, true
	for i := range uint32(1200) { // a minute
		w.lie(liar, 0, farther+i)
		w.step()
	}
	if r := w.nodes[0].Round(); r < 50 {
		t.Fatalf("the voter is in round %d only", r)
	}
	w.dead[1] = false
	start := w.now
	for i := uint32(1200); w.decided == nil; i++ {
		w.lie(liar, 0, farther+i)
		w.lie(liar, 1, 0)
		if w.step(); w.now.Sub(start) > 10*time.Second {
			t.Fatalf("no decision; the honest voters are in rounds %d and %d", w.nodes[0].Round(), w.nodes[1].Round())
		}
	}
}

// Three of four voters were cut off from each other for long, and are in different rounds. All three are
// needed, as the fourth is dead, or lies about its round. They meet in one round.
func TestVotersInDifferentRoundsMeet(t *testing.T) {
	for _, liar := range []bool{false, true} {
		for _, rounds := range [][]uint32{{40, 30, 30}, {40, 38, 30}, {30, 40, 39}, {5, 0, 0}} {
			w := newWorld(t, seed.New(t), 4)
			w.dead[3] = true
			for i, r := range rounds {
				w.nodes[i].started = true
				w.nodes[i].enter(r, w.now)
			}
			start := w.now
			for w.decided == nil {
				for i, r := range rounds {
					if liar && r == slices.Max(rounds) {
						w.lie(3, i, r+1000)
					} else if liar {
						w.lie(3, i, w.nodes[i].Round()-min(1, w.nodes[i].Round()))
					}
				}
				if w.step(); w.now.Sub(start) > 5*time.Minute {
					t.Fatalf("rounds %v, liar %v: no decision; rounds now %d, %d and %d", rounds, liar,
						w.nodes[0].Round(), w.nodes[1].Round(), w.nodes[2].Round())
				}
			}
		}
	}
}
