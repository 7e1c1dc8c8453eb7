package ipam

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// hostile is a sim in which some nodes lie. A liar has a real core, so it founds the ring,
// votes and owns addresses like the others. Besides, it sends lies drawn from a grammar of
// all messages, signed with its own key and those of peers that it made up.
type hostile struct {
	*sim
	seed    uint64
	liars   map[*node]bool
	heard   []packet                      // messages of others, to be sent again
	owned   map[*node]map[netip.Addr]bool // what each honest node uses and owned once
	madeUp  int
	quarrel bool // whether lies are told
}

func newHostile(t testing.TB, seed uint64, honest, liars int) *hostile {
	w := &hostile{sim: newSim(t, seed), seed: seed, liars: make(map[*node]bool), owned: make(map[*node]map[netip.Addr]bool), quarrel: true}
	w.lies, w.duplicatesExpected = true, true // checkHonest looks at the honest ones
	n := honest + liars
	for range n {
		w.add(churnRange, Init{Mode: Consensus, Expect: n})
	}
	for _, n := range w.nodes {
		// Nobody is removed because it was away for a moment.
		n.cfg.Absence = time.Hour
		n.launch()
	}
	for len(w.liars) < liars {
		w.liars[w.nodes[w.rng.IntN(n)]] = true
	}
	return w
}

func (w *hostile) honest() (out []*node) {
	for _, n := range w.nodes {
		if !w.liars[n] {
			out = append(out, n)
		}
	}
	return out
}

// madeUpKey returns the key of a peer that does not exist.
func (w *hostile) madeUpKey() (ring.Holder, peer.Cheap) {
	w.madeUp++
	s := peer.Cheap{ID: peer.Key{99, byte(w.madeUp), byte(w.madeUp >> 8)}}
	return ring.HolderOf(peer.Name{2, 9, 0, 0, byte(w.madeUp >> 8), byte(w.madeUp)}, s.Key()), s
}

// any returns any holder: of a node, or one that is made up.
func (w *hostile) any() ring.Holder {
	if w.rng.IntN(4) == 0 {
		h, _ := w.madeUpKey()
		return h
	}
	return w.nodes[w.rng.IntN(len(w.nodes))].self()
}

func (n *node) self() ring.Holder { return ring.HolderOf(n.cfg.Self, n.cfg.Signer.Key()) }

// lie makes a liar tell one lie to some others.
func (w *hostile) lie(n *node) {
	c := n.core
	if c == nil {
		return
	}
	kind, data := w.lieOf(n)
	if data == nil {
		return
	}
	if w.rng.IntN(4) == 0 { // damaged on purpose
		data = bytes.Clone(data)
		data[w.rng.IntN(len(data))] ^= byte(1 + w.rng.IntN(255))
	}
	for _, m := range w.nodes {
		if m != n && w.rng.IntN(2) == 0 {
			w.post(n, m, kind, data)
		}
	}
}

func (w *hostile) action(n *node) *ring.Action {
	r := n.core.ring
	rng := w.rng
	entries := r.Entries()
	switch k := rng.IntN(8); {
	case len(entries) == 0 || k == 0:
		return &ring.Action{Kind: ring.Remove, From: w.any(), To: n.self()}
	case k == 1:
		return &ring.Action{Kind: ring.Ban, From: w.any(), To: n.self()}
	case k == 2: // voters that it made up
		voters := []ring.Holder{n.self()}
		for range rng.IntN(6) {
			voters = append(voters, w.any())
		}
		slices.SortFunc(voters, ring.Holder.Compare)
		return &ring.Action{Kind: ring.Voters, Voters: slices.Compact(voters)}
	case k == 3: // a ring of its own
		h, s := w.madeUpKey()
		g, err := ring.NewGenesis(n.cfg.Range, []ring.Holder{n.self(), h})
		if err != nil {
			w.t.Fatal(err)
		}
		var votes []ring.Vote
		for _, v := range g.Voters() {
			var signer peer.Signer = s
			if v == n.self() {
				signer = n.cfg.Signer
			}
			vote, _ := g.Sign(signer, v)
			votes = append(votes, vote)
		}
		return &ring.Action{Kind: ring.Adopt, Genesis: g.WithVotes(votes)}
	case k == 4:
		return r.Leaving(n.cfg.Signer, w.any(), n.self())
	default: // a transfer, often of what it does not own
		e := entries[rng.IntN(len(entries))]
		from := e.Owner
		if rng.IntN(2) == 0 {
			from = n.self()
		}
		part := addr.Of(e.Range.Block(addr.N(uint64(1 + rng.IntN(16)))))
		a, _ := r.Give(n.cfg.Signer, from, w.any(), part)
		return a
	}
}

// lieOf returns a message or delta.
func (w *hostile) lieOf(n *node) (kind byte, data []byte) {
	c, rng := n.core, w.rng
	unicast := func(m message) (byte, []byte) { return 'u', m.encode() }
	if len(w.heard) > 0 && rng.IntN(5) == 0 {
		p := w.heard[rng.IntN(len(w.heard))]
		return p.kind, p.data
	}
	switch k := rng.IntN(14); {
	case k == 0:
		return unicast(message{kind: msgSpaceAsk, id: rng.Uint64(), prefix: c.cfg.Range})
	case k == 1:
		a := addr.Of(c.cfg.Range).First
		for range rng.IntN(255) {
			a = a.Next()
		}
		return unicast(message{kind: msgClaimAsk, id: rng.Uint64(), addr: a})
	case k == 2:
		return unicast(message{kind: msgSpaceAnswer, id: uint64(rng.IntN(1000)), status: byte(rng.IntN(3)), free: addr.N(rng.Uint64())})
	case k == 3:
		return unicast(message{kind: msgClaimAnswer, id: uint64(rng.IntN(1000)), status: byte(rng.IntN(3))})
	case k == 4:
		return unicast(message{kind: msgBehind, slot: rng.Uint64() >> rng.IntN(64)})
	case k < 8:
		a := w.action(n)
		kind := msgWish
		if a.Kind == ring.Leave {
			kind = msgLeave
		}
		return unicast(message{kind: kind, body: a.Encode()})
	case k < 11 && c.ring.Ready():
		return unicast(message{kind: msgRound, body: w.vote(n)})
	case k == 11:
		return 'd', append([]byte{deltaElection}, w.electionLie(n)...)
	case c.ring.Ready(): // a decision without a quorum
		body := c.ring.Body([]*ring.Action{w.action(n)})
		if body == nil {
			return 0, nil
		}
		var votes []ring.Vote
		for i := range c.ring.Voters() {
			msg := ring.VoteMessage(c.ring.Genesis().ID(), c.ring.Slot()+1, 0, ring.BodyID(body))
			votes = append(votes, ring.Vote{Voter: i, Key: n.cfg.Signer.Key(), Sig: n.cfg.Signer.Sign(ring.VoteDomain, msg)})
		}
		return 'd', append([]byte{deltaRing}, ringDeltaOf(c.ring.Genesis().ID(), ring.NewDecision(body, 0, votes))...)
	}
	return 0, nil
}

// ringDeltaOf encodes a record as package ring draws a delta.
func ringDeltaOf(id ring.ID, raw []byte) []byte {
	b := append([]byte{1}, id[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(raw)))
	return append(b, raw...)
}

// vote returns a message of a voter, as package consensus draws it: a proposal and votes
// that contradict others of the same voter.
func (w *hostile) vote(n *node) []byte {
	r := n.core.ring
	id, slot, round := r.Genesis().ID(), r.Slot()+1, uint32(w.rng.IntN(4))
	if w.rng.IntN(8) == 0 {
		round = w.rng.Uint32()
	}
	key := n.cfg.Signer.Key()
	b := binary.BigEndian.AppendUint64([]byte{1}, slot)
	b = binary.BigEndian.AppendUint32(b, round)
	body := r.Body([]*ring.Action{w.action(n)})
	if body == nil {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
		b = append(b, body...)
		b = append(b, 0, 0, 0, 0, 0)
		msg := append(ring.VoteMessage(id, slot, round, ring.BodyID(body)), 0, 0, 0, 0)
		sig := n.cfg.Signer.Sign("weft ipam proposal", msg)
		b = append(append(b, key[:]...), sig[:]...)
	}
	self := slices.Index(r.Voters(), n.self())
	if self < 0 {
		return append(b, 0)
	}
	b = append(b, 2)
	for step, domain := range []string{"weft ipam prevote", ring.VoteDomain} {
		var vote ring.ID
		if body != nil && w.rng.IntN(3) > 0 {
			vote = ring.BodyID(body)
		}
		sig := n.cfg.Signer.Sign(domain, ring.VoteMessage(id, slot, round, vote))
		b = append(b, byte(step+1), byte(self))
		b = append(append(append(b, vote[:]...), key[:]...), sig[:]...)
	}
	return b
}

// electionLie returns a delta of the election: an entry that claims to have accepted a value that
// the liar made up.
func (w *hostile) electionLie(n *node) []byte {
	value := encodeFounders([]ring.Holder{n.self(), w.any()})
	round := uint32(1 + w.rng.IntN(4))
	if w.rng.IntN(4) == 0 {
		round = w.rng.Uint32()
	}
	ballot := paxos.Ballot{Round: round, Proposer: w.any().Name}
	e := paxos.Entry{Expect: uint16(w.rng.Uint32()),
		State: paxos.Acceptor[paxos.ValueID]{Promised: ballot, Accepted: ballot, Value: paxos.IDOf(value)}}
	return n.electionDelta(e, value)
}

// electionDelta returns a delta of the election, as package paxos draws it: an entry of n as a voter and
// a value.
func (n *node) electionDelta(e paxos.Entry, value []byte) (b []byte) {
	e.Node, e.Voter, e.Key = n.cfg.Self, true, n.cfg.Signer.Key()
	raw := e.Append(nil)
	unsigned := raw[:len(raw)-peer.SignatureLen]
	e.Sig = n.cfg.Signer.Sign("weft ipam election", append([]byte("first ring of "+n.cfg.Range.String()), unsigned...))
	for kind, item := range [][]byte{e.Append(nil), value} {
		b = append(b, byte(kind+1))
		b = binary.BigEndian.AppendUint16(b, uint16(len(item)))
		b = append(b, item...)
	}
	return b
}

// event makes one random thing happen.
func (w *hostile) event(step int) {
	for _, n := range w.nodes {
		if !w.liars[n] {
			continue
		}
		for range w.rng.IntN(4) {
			if w.quarrel {
				w.lie(n)
			}
		}
	}
	n := w.nodes[w.rng.IntN(len(w.nodes))]
	switch k := w.rng.IntN(24); {
	case n.core == nil:
		n.launch()
	case k < 10:
		n.begin(func(c *core, id uint64) { c.allocate(id, fmt.Sprint(w.seed, step), pfx(churnRange)) })
	case k < 13:
		if owners := slices.Sorted(maps.Keys(n.core.byOwner)); len(owners) > 0 {
			a := n.core.byOwner[owners[0]][0]
			delete(w.owned[n], a)
			n.do(func(c *core) { c.release(owners[0], a) })
		}
	case k == 13 && !w.liars[n]:
		n.diesInNextStep = true
	case k == 14:
		split := w.rng.IntN(len(w.nodes) + 1)
		w.cut = func(a, b *node) bool { return (a.number < split) != (b.number < split) }
	case k < 19:
		w.cut = func(a, b *node) bool { return false }
	}
	if len(w.wire) > 0 {
		w.heard = append(w.heard, w.wire[w.rng.IntN(len(w.wire))])
		w.heard = w.heard[max(0, len(w.heard)-200):]
	}
	w.run(time.Duration(w.rng.IntN(300)) * time.Millisecond)
	w.checkHonest()
}

// checkHonest fails the test if an honest node lost an address, shares one with another
// honest node, or grew beyond a bound.
func (w *hostile) checkHonest() {
	w.t.Helper()
	users := make(map[netip.Addr]*node)
	for _, n := range w.honest() {
		c := n.core
		if c == nil {
			continue
		}
		if w.owned[n] == nil {
			w.owned[n] = make(map[netip.Addr]bool)
		}
		for a := range c.allocations {
			if m := users[a]; m != nil {
				w.t.Fatalf("seed %d: %s is in use on %s and on %s", w.seed, a, m.cfg.Self, n.cfg.Self)
			}
			users[a] = n
			if c.space.Owns(a) {
				w.owned[n][a] = true
			} else if w.owned[n][a] && c.ring.Ready() && c.epoch == c.ring.Epoch() {
				h, _ := c.ring.Owner(a)
				for _, o := range c.offers {
					w.t.Logf("it offered %s to %s: %v", o.action.Range, o.to, c.ring.Check(o.action))
				}
				w.t.Fatalf("seed %d: %s lost %s to %s", w.seed, n.cfg.Self, a, h)
			}
		}
		for what, got := range map[string][2]int{
			"wishes": {len(c.wishes), maxWishes + 64}, "voices": {len(c.voices), maxVoicesBy * ring.MaxVoters}, "offers": {len(c.offers), maxOffers},
			"askers": {len(c.askers), maxAskers}, "other rings": {len(c.diverged), maxDiverged}, "helped": {len(c.helped), maxWishes},
		} {
			if got[0] > got[1] {
				w.t.Fatalf("seed %d: %d %s, at most %d", w.seed, got[0], what, got[1])
			}
		}
	}
}

// Up to a third of the peers lie, with losses, partitions, kills and restarts: no honest
// peer loses or shares an address, all stay within their bounds, and once the lies end the
// honest peers agree and serve every request. WEFT_SOAK=10m runs for longer. A round is a subtest
// with the name of its seed, and -seed with that number begins with it.
func TestLiarsTakeNothing(t *testing.T) {
	first := seed.New(t)
	until, rounds := time.Time{}, 6
	if v := os.Getenv("WEFT_SOAK"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil {
			t.Fatal(err)
		}
		until, rounds = time.Now().Add(d), 1<<30
	}
	done := 0
	for ; done < rounds && (until.IsZero() || time.Now().Before(until)); done++ {
		s := first + uint64(done)
		t.Run(fmt.Sprint(s), func(t *testing.T) { liarsRound(t, s).play() })
	}
	t.Logf("%d rounds", done)
}

// liarsRound returns the world of one round of TestLiarsTakeNothing.
func liarsRound(t testing.TB, seed uint64) *hostile {
	sizes := [][2]int{{3, 1}, {5, 2}, {7, 3}}
	size := sizes[seed%uint64(len(sizes))]
	return newHostile(t, seed, size[0], size[1])
}

// play lets some peers lie for a while, and then expects that the honest ones agree and serve.
func (w *hostile) play() {
	w.t.Helper()
	w.loss = 0.1
	for step := range 150 {
		w.event(step)
	}
	w.quarrel, w.loss = false, 0
	w.cut = func(a, b *node) bool { return false }
	for _, n := range w.nodes {
		if n.diesInNextStep = false; n.core == nil {
			n.launch()
		}
	}
	w.agree(60 * time.Second)
	for i, n := range w.honest() {
		n.allocate(fmt.Sprint("after", i), churnRange)
	}
	w.checkHonest()
}

// A round plays the same each time, so that the seed of a failed one is enough to find the cause.
func TestEqualSeedsGiveEqualRounds(t *testing.T) {
	s := seed.New(t)
	var runs [2]history
	for i := range runs {
		w := liarsRound(t, s)
		w.watcher = &runs[i]
		w.play()
	}
	a, b := runs[0], runs[1]
	t.Logf("%d steps, %x", len(a), sha256.Sum256(fmt.Append(nil, a)))
	equal := 0
	for equal < min(len(a), len(b)) && a[equal] == b[equal] {
		equal++
	}
	if len(a) < 200 {
		t.Errorf("only %d steps", len(a))
	}
	if equal < max(len(a), len(b)) {
		t.Errorf("of %d and %d steps the first %d are equal; then come\n%v\n%v",
			len(a), len(b), equal, a[equal:min(equal+1, len(a))], b[equal:min(equal+1, len(b))])
	}
}

// history is a watcher that writes down all steps of a sim.
type history []string

func (h *history) stepped(n *node, writes []store.Write, effects []effect) {
	if len(writes)+len(effects) == 0 {
		return
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%v node %d writes", n.s.now.UTC(), n.number)
	var lines []string // in any order, as they are one transaction
	for _, w := range writes {
		lines = append(lines, fmt.Sprintf(" %s %x %x", w.Bucket, w.Key, w.Value))
	}
	slices.Sort(lines)
	b.WriteString(strings.Join(lines, ","))
	for _, e := range effects {
		switch e := e.(type) {
		case effSend:
			fmt.Fprintf(&b, "; sends %s %x", e.to, e.msg)
		case effAnnounce:
			fmt.Fprintf(&b, "; announces %x", e.delta)
		case effReply:
			fmt.Fprintf(&b, "; replies %d %s %v", e.id, replyText(e), e.err)
		case effWarn:
			fmt.Fprintf(&b, "; warns %s %s", e.msg, fmt.Sprintln(e.args...))
		default:
			fmt.Fprintf(&b, "; %v", e)
		}
	}
	*h = append(*h, b.String())
}

func (h *history) repaired(from, to *node, delta []byte) {
	*h = append(*h, fmt.Sprintf("%v node %d repairs %d with %x", from.s.now.UTC(), from.number, to.number, delta))
}

// agree lets time pass until all honest nodes have one ring.
func (w *hostile) agree(d time.Duration) {
	w.t.Helper()
	for end := w.now.Add(d); w.now.Before(end); w.run(500 * time.Millisecond) {
		var first []byte
		same := true
		for _, n := range w.honest() {
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
	for _, n := range w.honest() {
		w.t.Logf("%s: slot %d, %s, %s", n.cfg.Self, n.core.ring.Slot(), n.core.status().State, n.core.undecided())
	}
	w.t.Fatalf("seed %d: the honest peers do not agree", w.seed)
}

// Two of seven peers send what could keep the others from the first ring, ten times a second.
func TestProposalsWithoutEndDoNotPreventTheFirstRing(t *testing.T) {
	const hosts, liars = 7, 2
	highest := func(w *sim) (r uint32) { // round that an honest peer has promised
		for _, n := range w.nodes[liars:] {
			if own, _ := n.core.election.Own(); own != nil {
				r = max(r, paxos.BallotFrom(own[9:]).Round)
			}
		}
		return r
	}
	for _, c := range []struct {
		name string
		// lie returns what a liar sends to a peer as its i-th lie.
		lie func(w *sim, liar, to *node, i int) (ballot paxos.Ballot, send bool)
	}{
		{"proposals that outbid all others", func(w *sim, liar, _ *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: highest(w) + 1, Proposer: liar.cfg.Self}, true
		}},
		{"proposals to one peer after the other", func(w *sim, liar, to *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: highest(w) + 1, Proposer: liar.cfg.Self}, i/10%hosts == to.number-1
		}},
		{"proposals in the names of others", func(w *sim, liar, _ *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: highest(w) + 1, Proposer: w.nodes[i%hosts].cfg.Self}, true
		}},
		{"proposals in the names of peers that do not exist", func(w *sim, liar, _ *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: highest(w) + 1, Proposer: peer.Name{2, 9, byte(i >> 8), byte(i)}}, true
		}},
		{"the last round", func(_ *sim, liar, _ *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: 1<<31 - 1, Proposer: liar.cfg.Self}, true
		}},
		{"rounds far ahead", func(w *sim, liar, _ *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: highest(w) + 1<<10, Proposer: liar.cfg.Self}, true
		}},
		{"the same again and again", func(_ *sim, liar, _ *node, i int) (paxos.Ballot, bool) {
			return paxos.Ballot{Round: 1, Proposer: liar.cfg.Self}, true
		}},
	} {
		for _, wanting := range []int{1, hosts - liars} { // honest hosts that want an address
			t.Run(fmt.Sprintf("%s/%d", c.name, wanting), func(t *testing.T) {
				w := newSim(t, seed.New(t))
				w.tickEvery = tickEvery
				w.addAll(hosts, addrRange)
				for _, n := range w.nodes[:liars] {
					n.core, n.pretends = nil, true
				}
				lie := func(i int) {
					for _, liar := range w.nodes[:liars] {
						for _, to := range w.nodes[liars:] {
							if b, send := c.lie(w, liar, to, i); send {
								e := paxos.Entry{Expect: hosts, State: paxos.Acceptor[paxos.ValueID]{Promised: b}}
								delta := append([]byte{deltaElection}, liar.electionDelta(e, fmt.Append(nil, liar.number, i))...)
								w.wire = append(w.wire, packet{w.now, liar, to, 'd', delta})
							}
						}
					}
				}
				for i := range 50 {
					lie(i)
					w.run(100 * time.Millisecond)
				}
				honest := w.nodes[liars:]
				for _, n := range honest[:wanting] {
					n.begin(func(c *core, id uint64) { c.allocate(id, "c", pfx(addrRange)) })
				}
				start := w.now
				for i := 50; slices.ContainsFunc(honest, func(n *node) bool { return !n.core.ring.Ready() }); i++ {
					if w.now.Sub(start) > 5*time.Minute {
						t.Fatal("there is no ring")
					}
					lie(i)
					w.run(100 * time.Millisecond)
				}
				t.Logf("it took %v", w.now.Sub(start))
			})
		}
	}
}

// Too few hosts for the first ring wait for hours. It is made as soon as one more comes.
func TestHostThatComesLateCompletesTheFirstQuorum(t *testing.T) {
	s := newSim(t, seed.New(t))
	s.tickEvery = tickEvery
	for range 2 {
		s.add(addrRange, Init{Mode: Consensus, Expect: 4}).begin(func(c *core, id uint64) { c.allocate(id, "c", pfx(addrRange)) })
	}
	s.run(3 * time.Hour)
	s.add(addrRange, Init{Mode: Consensus, Expect: 4}).allocate("c", addrRange)
}

// One host makes up a thousand peers, all at its own address, against five real hosts.
func TestThousandMadeUpPeersGetNoVote(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(5, addrRange)
	for i, n := range nodes {
		n.allocate(fmt.Sprint("c", i), addrRange)
	}
	s.converged(10 * time.Second)
	evil := s.add(addrRange, Init{Mode: Observer})
	evil.allocate("evil", addrRange)
	const count = 1000
	for range count {
		m := s.add(addrRange, Init{Mode: Observer})
		m.at = evil
		m.kill() // it only exists as a name
		m.pretends = true
	}
	// They all ask for addresses.
	before := addr.Total(nodes[0].core.space.Free(addr.Of(pfx(addrRange)))).Float()
	for _, m := range s.nodes[6:] {
		ask := message{kind: msgSpaceAsk, id: uint64(m.number), prefix: pfx(addrRange)}
		nodes[0].do(func(c *core) { _ = c.receive(m.cfg.Self, ask.encode()) })
	}
	if after := addr.Total(nodes[0].core.space.Free(addr.Of(pfx(addrRange)))).Float(); after < before/2 {
		t.Errorf("%.0f of %.0f free addresses are left", after, before)
	}
	s.nodes = slices.DeleteFunc(s.nodes, func(m *node) bool { return m.pretends })
	s.run(time.Minute)
	voters := nodes[0].core.ring.Voters()
	if len(voters) > 6 {
		t.Errorf("%d voters", len(voters))
	}
	for _, n := range nodes {
		if !slices.Contains(voters, n.self()) {
			t.Errorf("%s has no vote", n.cfg.Self)
		}
		n.allocate("more", addrRange)
	}
}

// A real host that asks again and again gets about as much as every other host has, and
// not everything. A host that needs more addresses than it has still gets them.
func TestHostThatAsksAgainAndAgainGetsAShare(t *testing.T) {
	const addrRange = "10.32.0.0/12"
	s := newSim(t, seed.New(t))
	nodes := s.addAll(3, addrRange)
	for i, n := range nodes {
		n.allocate(fmt.Sprint("c", i), addrRange)
	}
	s.converged(10 * time.Second)
	evil := s.add(addrRange, Init{Mode: Observer})
	evil.allocate("evil", addrRange)
	for i := range 60 {
		ask := message{kind: msgSpaceAsk, id: uint64(1000 + i), prefix: pfx(addrRange)}
		for _, n := range nodes {
			n.do(func(c *core) { _ = c.receive(evil.cfg.Self, ask.encode()) })
		}
		s.run(500 * time.Millisecond)
	}
	total := addr.Of(pfx(addrRange)).Size().Float()
	if got := nodes[0].core.ring.Owners()[evil.self()].Float() / total; got > 0.5 {
		t.Errorf("it owns %.0f %% of the addresses", 100*got)
	}
	for i, n := range nodes {
		n.allocate(fmt.Sprint("more", i), addrRange)
	}
}

// signedAsOf returns a transfer of r from n to itself that is signed as of a slot.
func (n *node) signedAsOf(r addr.Range, slot uint64) []byte {
	a, err := n.core.ring.Give(n.cfg.Signer, n.self(), n.self(), r)
	if err != nil {
		n.s.t.Fatal(err)
	}
	raw := slices.Clone(a.Encode())
	unsigned := raw[:len(raw)-len(peer.Key{})-peer.SignatureLen]
	binary.BigEndian.PutUint64(raw[2+2*len(r.First.AsSlice()):], slot)
	id := n.core.ring.Genesis().ID()
	sig := n.cfg.Signer.Sign("weft ipam action", append(id[:], unsigned...))
	copy(raw[len(raw)-peer.SignatureLen:], sig[:])
	return raw
}

// A voter that lies signs a transfer as of a slot far ahead. If that could be decided again and again,
// there would be decisions without end, and none of those that have no others next to them: a change of
// the voters, or the ban of the voter.
func TestTransferAsOfALaterSlotIsNotDecidedWithoutEnd(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	liar, honest := nodes[4], nodes[:4]
	before := honest[0].core.ring.Slot()
	raw := liar.signedAsOf(liar.core.ring.Owned(liar.self())[0], 1<<40)
	flood := func(d time.Duration, done func() bool) bool {
		for end := s.now.Add(d); s.now.Before(end) && !done(); s.run(time.Second) {
			for _, n := range nodes {
				s.post(liar, n, 'u', (&message{kind: msgWish, id: before, body: raw}).encode())
			}
		}
		return done()
	}
	joined := s.add(keepRange, Init{Mode: Observer})
	joined.allocate("c", keepRange)
	if !flood(30*time.Second, func() bool { return slices.Contains(honest[0].core.ring.Voters(), joined.self()) }) {
		t.Error("a host that has joined gets no vote")
	}
	for _, n := range append(slices.Clone(honest), joined) {
		n.bans(liar, false)
	}
	if !flood(30*time.Second, func() bool { return honest[0].core.ring.IsBanned(liar.self()) }) {
		t.Errorf("it is not banned: %v", honest[0].core.status().Waiting)
	}
	if after := honest[0].core.ring.Slot(); after > before+10 {
		t.Errorf("%d decisions", after-before)
	}
}

// An action that must be alone in its decision has its turn, although there are always others that are
// older.
func TestActionThatMustBeAloneHasItsTurn(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, used := s.fiveInUse(keepRange, 1)
	voter, dead := nodes[0], nodes[4]
	proposed := make(map[ring.Kind]int)
	dead.kill()
	voter.do(func(c *core) {
		c.deciding = true // not yet
		if !c.give(nodes[1].self(), addr.Single(c.space.Free(addr.Of(pfx(keepRange)))[0].First), 1) {
			t.Fatal("it gives nothing")
		}
		gone, _ := c.ring.Owner(used[0])
		c.consents[consent{ring.Remove, gone}] = c.now.Add(time.Second)
		c.wish(c.removalOf(gone))
		for range 4 {
			actions, err := c.ring.CheckBody(c.propose())
			if err != nil {
				t.Fatal(err)
			}
			proposed[actions[0].Kind]++
		}
	})
	if proposed[ring.Transfer] != 2 || proposed[ring.Remove] != 2 {
		t.Errorf("proposed were %v", proposed)
	}
}

// Peers that own one address each, and never answer, are no heirs of a host that leaves as long as there
// is a voter; and if that does not answer either, another one is.
func TestPeersThatDoNotAnswerKeepNobodyFromLeaving(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	host := nodes[4]
	for _, n := range nodes {
		n.core.cfg.Settle = time.Hour // the others get no votes
	}
	for range 5 {
		m := s.add(keepRange, Init{Mode: Observer})
		m.core, m.pretends = nil, true
		host.do(func(c *core) {
			if !c.give(m.self(), addr.Single(c.space.Free(addr.Of(pfx(keepRange)))[0].Last), 1) {
				t.Fatal("it gives nothing")
			}
		})
		s.run(2 * time.Second)
		if host.core.ring.Owners()[m.self()].IsZero() {
			t.Fatal("it owns nothing")
		}
	}
	first, _ := host.core.pickHeir(nil)
	for _, n := range nodes {
		if n.self() == first { // it hears nothing
			n.core, n.pretends = nil, true
		}
	}
	if r := host.reset(); !r.Unreachable.IsZero() || !slices.ContainsFunc(nodes, func(n *node) bool { return n.cfg.Self == r.Heir && n.core != nil }) {
		t.Errorf("%+v", r)
	}
}

// No peer answers for a while, and one never does. The host that leaves asks those again that it has
// asked before.
func TestHostThatLeavesAsksHeirsAgain(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	host, others := nodes[4], nodes[:4]
	for _, n := range others {
		n.core, n.pretends = nil, true
	}
	id := host.begin(func(c *core, id uint64) { c.handover(id) })
	s.run((heirTimeout + 2*resendEvery) * time.Duration(len(others)))
	silent := host.core.leaving.heir
	for _, n := range others {
		if n.cfg.Self != silent {
			n.pretends = false
			n.launch()
		}
	}
	if r, ok := host.await(id, time.Minute); !ok || !r.handover.Unreachable.IsZero() || r.handover.Heir == silent {
		t.Errorf("%+v", r.handover)
	}
}

// The heir ends as soon as the handover is decided, before the host that leaves hears from it. The host
// goes as soon as another peer knows of the decision.
func TestHostLeavesAlthoughItsHeirEnds(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	host, others := nodes[4], nodes[:4]
	id := host.begin(func(c *core, id uint64) { c.handover(id) })
	knows := func(n *node) bool { return n.core.ring.Owners()[host.self()].IsZero() }
	for end := s.now.Add(10 * time.Second); !slices.ContainsFunc(others, knows); s.run(simStep) {
		if !s.now.Before(end) {
			t.Fatal("nothing was decided")
		}
	}
	heir := others[slices.IndexFunc(others, func(n *node) bool { return n.cfg.Self == host.core.leaving.heir })]
	heir.kill()
	if r, ok := host.await(id, 20*time.Second); !ok || r.err != nil || !r.handover.Unreachable.IsZero() {
		t.Errorf("%v %+v", r.err, r.handover)
	}
}

// Too few voters can be reached to decide a handover, and the host that leaves ends. Its heir does not
// ask for the handover for ever.
func TestHeirDoesNotAskForAHandoverForEver(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	host := nodes[4]
	nodes[0].kill()
	nodes[1].kill()
	host.begin(func(c *core, id uint64) { c.handover(id) })
	s.run(heirTimeout / 2)
	host.kill()
	asked := func() (n int) {
		for _, m := range nodes[2:4] {
			n += m.core.leavesOf(host.self())
		}
		return n
	}
	s.run(consentTTL / 2)
	if n := asked(); n != 1 {
		t.Errorf("%d heirs ask for the handover", n)
	}
	s.run(consentTTL/2 + time.Second)
	if n := asked(); n != 0 {
		t.Errorf("%d heirs still ask for the handover", n)
	}
}

// Made-up peers that begin to leave and never end take the heir no place for a host.
func TestMadeUpPeersThatLeaveKeepNobodyFromLeaving(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	heir, host := nodes[0], nodes[4]
	heir.do(func(c *core) {
		for i := range maxLeaves {
			a := &ring.Action{Kind: ring.Leave, From: ring.Holder{Name: peer.Name{2, 9, 0, 0, 0, byte(i)}, Key: peer.KeyID{9}}, To: c.self}
			c.wish(a) // no host, as it is not alone at its address
		}
		body := host.core.ring.Leaving(host.cfg.Signer, host.self(), heir.self()).Encode()
		if err := c.receive(host.cfg.Self, (&message{kind: msgLeave, body: body}).encode()); err != nil {
			t.Fatal(err)
		}
	})
	s.run(5 * time.Second)
	if got := nodes[1].core.ring.Owners()[host.self()]; !got.IsZero() {
		t.Errorf("it still owns %v addresses", got)
	}
}

// A host that leaves asks one heir after the other, and the handover to the first one is decided in the
// end. The host reports the heir that owns its addresses.
func TestHostThatLeavesReportsTheHeirThatWasDecided(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes, _ := s.fiveInUse(keepRange, 1)
	host := nodes[4]
	sample := host.core.ring.Owned(host.self())[0].First
	var alone peer.Name // only the host reaches it, and so nothing is decided
	s.cut = func(a, b *node) bool { return a.cfg.Self == alone && b != host }
	heir, _ := host.core.pickHeir(nil)
	alone = heir.Name
	id := host.begin(func(c *core, id uint64) { c.handover(id) })
	for end := s.now.Add(time.Minute); host.core.leaving.heir == alone; s.run(simStep) {
		if !s.now.Before(end) {
			t.Fatal("it asks no second heir")
		}
	}
	alone = host.core.leaving.heir
	r, ok := host.await(id, time.Minute)
	if !ok || r.handover.Heir != heir.Name {
		t.Errorf("the heir is %s by the report %+v, %v", heir.Name, r.handover, r.err)
	}
	if owner, _ := nodes[0].core.ring.Owner(sample); owner != heir {
		t.Errorf("%s belongs to %s", sample, owner)
	}
}

// Five hosts made a ring and left it for that of a sixth one. What they signed then does not bring them
// back, whoever shows it.
func TestRingThatWasLeftIsNotAdoptedAgain(t *testing.T) {
	s := newSim(t, seed.New(t))
	for range 5 {
		s.add(addrRange, Init{Mode: Consensus, Expect: 5})
	}
	liar := s.add(addrRange, Init{Mode: Consensus, Expect: 1})
	s.cut = func(a, b *node) bool { return (a == liar) != (b == liar) }
	for _, n := range s.nodes {
		n.begin(func(c *core, id uint64) { c.prime(id) })
	}
	s.run(10 * time.Second)
	old, now := s.nodes[0].core.ring.Genesis(), liar.core.ring.Genesis()
	s.cut = func(a, b *node) bool { return false }
	s.run(3 * time.Second)
	for _, n := range s.nodes[:4] {
		for n.adopt(now.ID()) != nil { // until its genesis is here
			s.run(time.Second)
		}
	}
	s.converged(20 * time.Second)
	for _, n := range s.nodes {
		n.allocate("c", addrRange)
	}
	s.run(20 * time.Second)
	voters := liar.core.ring.Voters()
	if len(voters) != 6 || liar.core.ring.Genesis().ID() != now.ID() {
		t.Fatalf("ring %s has the voters %v", liar.core.ring.Genesis().ID(), voters)
	}
	a := &ring.Action{Kind: ring.Adopt, Genesis: old}
	liar.do(func(c *core) { c.asked[c.voiceKey(a)] = &wish{action: a, own: true, at: c.now} })
	s.run(20 * time.Second)
	for _, n := range s.nodes[:5] {
		if !n.core.ring.Ready() || n.core.ring.Genesis().ID() != now.ID() {
			t.Errorf("%s left its ring for %s: %v", n.cfg.Self, old.ID(), n.core.noRing())
		}
	}
}
