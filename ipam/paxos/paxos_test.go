package paxos

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

func name(i int) peer.Name { return peer.Name{2, 0, 0, 0, 0, byte(i + 1)} }

// node is a peer with a disk.
type node struct {
	el               *Election
	cfg              Config
	diskOwn, diskVal []byte
	now              time.Time
}

func newNode(i, expect int, observer bool) *node {
	n := &node{cfg: Config{Self: name(i), Signer: peer.Cheap{ID: peer.Key{byte(i + 1)}}, Verifier: peer.Cheap{},
		Instance: []byte("test"), Expect: expect, Observer: observer,
		Eligible: func(ring.Holder) bool { return true }, Acceptable: func([]byte) error { return nil },
		Host:        func(h ring.Holder) netip.Addr { return netip.AddrFrom4([4]byte(h.Name[2:])) },
		SealMessage: func(value []byte) (string, []byte) { return "test", value },
		Value:       func(voters []ring.Holder) []byte { return fmt.Appendf(nil, "%v", voters) }}}
	n.now, n.cfg.Now = time.Unix(1e9, 0), func() time.Time { return n.now }
	n.restart()
	return n
}

func (n *node) restart() {
	el, err := NewElection(n.cfg, n.diskOwn, n.diskVal)
	if err != nil {
		panic(err)
	}
	n.el = el
}

// write puts the own entry on disk, which must happen before it is sent.
func (n *node) write() { n.diskOwn, n.diskVal = n.el.Own() }

func (n *node) propose() [][]byte {
	proposed := n.el.Propose()
	if hurried := n.el.Hurry(); !proposed && !hurried {
		return nil
	}
	n.write()
	return [][]byte{n.el.Delta()}
}

func (n *node) receive(t *testing.T, delta []byte) (out [][]byte) {
	news, changed, err := n.el.Merge(peer.Name{}, delta)
	if err != nil {
		t.Fatal(err)
	}
	if changed {
		n.write()
		out = append(out, n.el.Delta())
	}
	if news != nil {
		out = append(out, news)
	}
	return out
}

// network carries deltas between nodes in random order. It can lose and repeat them.
type network struct {
	t     *testing.T
	seed  uint64
	rng   *rand.Rand
	nodes []*node
	wire  []packet
	value []byte // the chosen one, nil before a node knows it
}

type packet struct {
	to    int
	delta []byte
}

// send queues deltas of a node for all others.
func (w *network) send(from int, deltas [][]byte) {
	for _, d := range deltas {
		for to := range w.nodes {
			if to != from && d != nil {
				w.wire = append(w.wire, packet{to, d})
			}
		}
	}
}

// check fails the test if two nodes know different chosen values, and reports whether all
// nodes know the value.
func (w *network) check() (all bool) {
	all = true
	for i, n := range w.nodes {
		v, ok := n.el.Chosen()
		if !ok {
			all = false
			continue
		}
		if w.value == nil {
			w.value = v
		}
		if !bytes.Equal(v, w.value) {
			w.t.Fatalf("seed %d: %s chose %s, another chose %s", w.seed, name(i), v, w.value)
		}
	}
	return all
}

// disturb makes one random event happen: a proposal, a restart or the arrival of a delta.
func (w *network) disturb() {
	i := w.rng.IntN(len(w.nodes))
	w.nodes[i].now = w.nodes[i].now.Add(time.Duration(w.rng.Int64N(int64(4 * attemptTime))))
	switch k := w.rng.IntN(20); {
	case k == 0:
		w.send(i, w.nodes[i].propose())
	case k == 1:
		w.nodes[i].restart()
	case len(w.wire) > 0:
		j := w.rng.IntN(len(w.wire))
		p := w.wire[j]
		if w.rng.IntN(8) > 0 { // otherwise it arrives again
			w.wire[j] = w.wire[len(w.wire)-1]
			w.wire = w.wire[:len(w.wire)-1]
		}
		if len(w.wire) > 200 {
			w.wire = w.wire[:100]
		}
		if w.rng.IntN(4) > 0 { // otherwise it is lost
			w.send(p.to, w.nodes[p.to].receive(w.t, p.delta))
		}
	}
}

// repair brings each node all that the others have.
func (w *network) repair() {
	for i, n := range w.nodes {
		for j, m := range w.nodes {
			if i == j {
				continue
			}
			deltas, _, err := n.el.Missing(m.el.Digest(), 40<<10)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, d := range deltas {
				m.receive(w.t, d)
			}
		}
	}
}

// Random delays, losses, duplicates, restarts, competing proposers and observers:
// there are never two values, and there is one once the network works.
func TestNeverTwoValues(t *testing.T) {
	first := seed.New(t)
	for seed := first; seed < first+300; seed++ {
		w := &network{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 1))}
		voters := 1 + w.rng.IntN(7)
		for i := range voters {
			w.nodes = append(w.nodes, newNode(i, voters, false))
		}
		if w.rng.IntN(2) == 0 {
			w.nodes = append(w.nodes, newNode(voters, voters, true))
		}
		for range 400 {
			w.disturb()
			w.check()
		}
		// The network works: digests repair losses, and one peer proposes.
		for round := 0; ; round++ {
			if round == 20 {
				t.Fatalf("seed %d: no value among %d voters", seed, voters)
			}
			w.repair()
			if w.check() {
				break
			}
			for _, n := range w.nodes {
				n.now = n.now.Add(attemptMost)
				if n.el.React() {
					n.write()
				}
			}
			if round%5 == 4 {
				n := w.nodes[round%len(w.nodes)]
				n.now = n.now.Add(waitForVoters)
				n.propose()
			}
		}
	}
}

func TestMergeIsAJoin(t *testing.T) {
	rng := seed.Rand(t)
	nodes := []*node{newNode(0, 5, false), newNode(1, 5, false), newNode(2, 5, false), newNode(3, 5, false)}
	var deltas [][]byte
	for range 60 {
		i := rng.IntN(len(nodes))
		if rng.IntN(3) == 0 {
			nodes[i].el.Propose()
		} else if len(deltas) > 0 {
			_, _, _ = nodes[i].el.Merge(peer.Name{}, deltas[rng.IntN(len(deltas))])
		}
		if d := nodes[i].el.Delta(); d != nil {
			deltas = append(deltas, d)
		}
	}
	// Observers only collect entries.
	var first []byte
	for i := range 10 {
		n := newNode(20, 5, true)
		rng.Shuffle(len(deltas), func(i, j int) { deltas[i], deltas[j] = deltas[j], deltas[i] })
		for _, d := range slices.Concat(deltas, deltas[:i]) {
			if _, _, err := n.el.Merge(name(rng.IntN(40)), d); err != nil {
				t.Fatal(err)
			}
		}
		if first == nil {
			first = n.el.Digest()
		}
		if !bytes.Equal(first, n.el.Digest()) {
			t.Fatal("copies differ with the order of arrival")
		}
	}
}

func TestMajorityIsOfTheLargestExpectation(t *testing.T) {
	a, b, c := newNode(0, 1, false), newNode(1, 3, false), newNode(2, 3, false)
	b.el.Propose()
	if _, _, err := a.el.Merge(name(1), b.el.Delta()); err != nil {
		t.Fatal(err)
	}
	if got := a.el.Needed(); got != 2 {
		t.Errorf("needs %d votes", got)
	}
	if _, _, err := b.el.Merge(name(0), a.el.Delta()); err != nil {
		t.Fatal(err)
	}
	if _, ok := b.el.Chosen(); ok {
		t.Error("chosen by one acceptance")
	}
	_ = c
	lone := newNode(5, 1, false)
	lone.el.Propose()
	if v, ok := lone.el.Chosen(); !ok || string(v) != "[02:00:00:00:00:06]" {
		t.Errorf("a lone peer chose %q", v)
	}
}

func TestObserverProposesAndDoesNotVote(t *testing.T) {
	o, a, b := newNode(0, 2, true), newNode(1, 2, false), newNode(2, 2, false)
	o.propose()
	for range 4 {
		for _, x := range []*node{o, a, b} {
			for _, y := range []*node{o, a, b} {
				if d := y.el.Delta(); d != nil {
					_, _, _ = x.el.Merge(y.cfg.Self, d)
				}
			}
		}
	}
	for _, n := range []*node{o, a, b} {
		if v, ok := n.el.Chosen(); !ok || string(v) != fmt.Sprint([]peer.Name{name(1), name(2)}) {
			t.Errorf("%s chose %q", n.cfg.Self, v)
		}
	}
	if got := o.el.Voters(); !slices.Equal(got, []peer.Name{name(1), name(2)}) {
		t.Errorf("voters %v", got)
	}
}

func TestForgedEntryIsRefused(t *testing.T) {
	a, b := newNode(0, 2, false), newNode(1, 2, false)
	a.el.Propose()
	d := a.el.Delta()
	d[len(d)-70]++
	before := b.el.Digest()
	if _, _, err := b.el.Merge(name(0), d); err == nil || !bytes.Equal(before, b.el.Digest()) {
		t.Errorf("merged a forged entry: %v", err)
	}
}

// A peer that says that a value was accepted is believed only if the proposer of the
// ballot says so too and a quorum has promised the ballot.
func TestMadeUpAcceptanceIsNotFollowed(t *testing.T) {
	liar, a, b := newNode(0, 4, false), newNode(1, 4, false), newNode(2, 4, false)
	liar.el.own.State = Acceptor[ValueID]{Promised: Ballot{900, name(0)}, Accepted: Ballot{900, name(0)}, Value: IDOf([]byte("mine"))}
	liar.el.values[IDOf([]byte("mine"))] = []byte("mine")
	liar.el.sign()
	for _, n := range []*node{a, b} {
		if _, _, err := n.el.Merge(name(0), liar.el.Delta()); err != nil {
			t.Fatal(err)
		}
		if got := n.el.own.State.Accepted; !got.IsZero() {
			t.Errorf("%s accepted ballot %s, which nobody promised", n.cfg.Self, got)
		}
	}
	// In the name of an honest proposer, which says nothing of it.
	a.el.Propose()
	ballot := a.el.own.State.Promised
	liar.el.own.State = Acceptor[ValueID]{Promised: ballot, Accepted: ballot, Value: IDOf([]byte("mine"))}
	liar.el.sign()
	for _, d := range [][]byte{a.el.Delta(), liar.el.Delta()} {
		_, _, _ = b.el.Merge(name(0), d)
	}
	if got := b.el.own.State.Accepted; got == ballot {
		t.Error("a value was accepted that its proposer did not propose")
	}
}

// No peer can use up the rounds, raise the quorum without end, or fill the memory.
func TestElectionIsBounded(t *testing.T) {
	a := newNode(1, 3, false)
	high := newNode(0, 65535, false)
	high.el.own.State.Promised = Ballot{maxRound, name(0)}
	high.el.sign()
	if _, _, _ = a.el.Merge(name(0), high.el.Delta()); a.el.own.State.Promised.Round > maxRound/2 {
		t.Error("a ballot that nobody can outbid was promised")
	}
	high.restart()
	high.el.own.State.Promised = Ballot{1, name(0)}
	high.el.sign()
	if _, _, err := a.el.Merge(name(0), high.el.Delta()); err != nil || a.el.Needed() > 3 {
		t.Errorf("%v; %d votes are needed", err, a.el.Needed())
	}
	for i := range 5000 {
		n := newNode(0, 3, false)
		n.cfg.Self, n.cfg.Signer = peer.Name{4, 0, 0, 0, byte(i >> 8), byte(i)}, peer.Cheap{ID: peer.Key{byte(i), byte(i >> 8), 7}}
		n.restart()
		n.el.own.State.Promised = Ballot{1, n.cfg.Self}
		n.el.sign()
		_, _, _ = a.el.Merge(name(0), appendItem(n.el.Delta(), itemValue, fmt.Appendf(nil, "value %d", i)))
	}
	if len(a.el.entries) > maxEntries || len(a.el.values) > maxValues {
		t.Errorf("%d entries, %d values", len(a.el.entries), len(a.el.values))
	}
}

func FuzzMerge(f *testing.F) {
	a := newNode(0, 1, false)
	a.el.Propose()
	f.Add(a.el.Delta())
	b := newNode(2, 3, true)
	b.el.Propose()
	f.Add(b.el.Delta())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, delta []byte) {
		n := newNode(1, 2, false)
		before := n.el.Digest()
		news, _, err := n.el.Merge(peer.Name{}, delta)
		if err != nil && !bytes.Equal(before, n.el.Digest()) {
			t.Fatal("changed on error")
		}
		if err == nil && news != nil {
			if again, _, _ := n.el.Merge(peer.Name{}, news); again != nil {
				t.Fatal("the news are new a second time")
			}
		}
		_, _, _ = n.el.Missing(delta, 40<<10)
		if e, err := parseEntry(delta); err == nil && !bytes.Equal(e.Append(nil), delta) {
			t.Fatal("entry does not round trip")
		}
	})
}

// A voter takes part in a proposal for its time, whatever others propose. Then it is the turn of the host
// whose last turn was first.
func TestHostsHaveTurns(t *testing.T) {
	liar, honest, voter := newNode(0, 3, false), newNode(1, 3, false), newNode(2, 3, false)
	show := func(n *node, round uint32) {
		n.el.own.State.Promised = Ballot{round, n.cfg.Self}
		n.el.sign()
		voter.receive(t, n.el.Delta())
	}
	expect := func(when string, round uint32, n *node) {
		t.Helper()
		if got, want := voter.el.own.State.Promised, (Ballot{round, n.cfg.Self}); got != want {
			t.Errorf("%s: it promised %s, want %s", when, got, want)
		}
	}
	wait := func(d time.Duration) {
		voter.now = voter.now.Add(d)
		voter.el.React()
	}
	show(liar, 1)
	show(liar, 2)
	expect("a host outbids itself", 1, liar)
	show(honest, 3)
	expect("a host proposes for the first time", 3, honest)
	show(liar, 4)
	expect("a host that had its turn outbids another", 3, honest)
	wait(attemptMost)
	expect("the turn is over", 4, liar)
	show(honest, 5)
	show(liar, 6)
	expect("two propose during the turn of one of them", 4, liar)
	if !voter.el.Waiting() {
		t.Error("it does not say that another proposal waits")
	}
	wait(attemptMost)
	expect("the turn is over, and two wait", 5, honest)
	show(liar, 7)
	wait(attemptTime)
	expect("before the turn is over", 5, honest)
}

// A host that comes late takes part, however many rounds the others have used. One host that lies about
// the round is not followed.
func TestRoundsFarAheadAreFollowedIfOthersConfirmThem(t *testing.T) {
	const far = 10 * maxRoundJump
	a, b, late := newNode(0, 3, false), newNode(1, 3, false), newNode(2, 3, false)
	a.el.own.State.Promised = Ballot{far, a.cfg.Self}
	a.el.sign()
	late.receive(t, a.el.Delta())
	if got := late.el.own.State.Promised; !got.IsZero() {
		t.Errorf("it promised %s, as one host says", got)
	}
	b.el.own.State.Promised = Ballot{far, a.cfg.Self}
	b.el.sign()
	late.receive(t, b.el.Delta())
	if got, want := late.el.own.State.Promised, (Ballot{far, a.cfg.Self}); got != want {
		t.Errorf("it promised %s, want %s", got, want)
	}
}

// A neighbour may pass on values of many peers, and a peer has one.
func TestEachPeerHasOneValue(t *testing.T) {
	a, liar := newNode(1, 4, false), newNode(0, 4, false)
	for i := range 100 {
		v := fmt.Appendf(nil, "value %d", i)
		b := Ballot{uint32(i + 1), liar.cfg.Self}
		liar.el.own.State = Acceptor[ValueID]{Promised: b, Accepted: b, Value: IDOf(v)}
		liar.el.values[IDOf(v)] = v
		liar.el.sign()
		a.receive(t, appendItem(liar.el.Delta(), itemValue, fmt.Appendf(nil, "not named %d", i)))
	}
	if n := len(a.el.values); n != 1 {
		t.Errorf("%d values", n)
	}
	for i := range 20 { // all by one neighbour
		n := newNode(2+i, 3, false)
		n.propose()
		v := fmt.Appendf(nil, "other value %d", i)
		n.el.own.State.Accepted, n.el.own.State.Value, n.el.values[IDOf(v)] = n.el.own.State.Promised, IDOf(v), v
		n.el.sign()
		a.receive(t, n.el.Delta())
		if a.el.values[IDOf(v)] == nil {
			t.Errorf("value %d is not known", i)
		}
	}
}

// While too few voters are there, a proposal stands and rounds do not grow.
func TestRoundsDoNotGrowWhileVotersAreMissing(t *testing.T) {
	a, b := newNode(0, 4, false), newNode(1, 4, false)
	for range 1000 {
		for _, n := range []*node{a, b} {
			other := a
			if n == a {
				other = b
			}
			n.now = n.now.Add(time.Second)
			n.propose()
			other.receive(t, n.el.Delta())
		}
	}
	if r, most := a.el.own.State.Promised.Round, uint32(2*1000*time.Second/waitForVoters)+2; r > most {
		t.Errorf("round %d after 1000 s, at most %d are needed", r, most)
	}
}

// Peers whose votes do not count take each other's places. What they signed goes with them.
func TestSealsAreBounded(t *testing.T) {
	n := newNode(0, 3, false)
	n.cfg.Eligible = func(h ring.Holder) bool { return h.Name == name(1) }
	n.restart()
	for i := range 3 * maxEntries {
		e := Entry{Node: peer.Name{2, 9, 0, 0, byte(i >> 8), byte(i)}, Voter: true, Key: peer.Key{9, byte(i >> 8), byte(i)}}
		if i == 0 {
			e.Node, e.Key = name(1), peer.Key{2} // its vote counts
		}
		e.State.Promised = Ballot{1, e.Node}
		e.Sig = peer.Cheap{ID: e.Key}.Sign(domainEntry, n.el.signed(&e))
		seal := Seal{Node: e.Node, Key: e.Key, Sig: peer.Cheap{ID: e.Key}.Sign("test", []byte("value"))}
		if _, _, err := n.el.Merge(e.Node, appendItem(appendItem(nil, itemEntry, e.Append(nil)), itemSeal, seal.Append(nil))); err != nil {
			t.Fatal(err)
		}
	}
	if len(n.el.entries) != maxEntries || len(n.el.seals) != maxEntries || n.el.seals[name(1)] == nil {
		t.Errorf("%d entries and %d seals, want %d of each, that of the voter too", len(n.el.entries), len(n.el.seals), maxEntries)
	}
}
