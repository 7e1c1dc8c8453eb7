package ipam

import (
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// removes begins a removal on n, which its operator asks for, and returns its request.
func (n *node) removes(gone *node) uint64 { return n.removesBy(ByOperator, gone) }

func (n *node) removesBy(by Requester, gone *node) uint64 {
	return n.begin(func(c *core, id uint64) { c.remove(id, []peer.Name{gone.cfg.Self}, by) })
}

// removedBy waits until gone is removed by what the operators of nodes ask for, and returns
// the heir.
func (s *sim) removedBy(gone *node, nodes ...*node) (heir *node) {
	s.t.Helper()
	return s.removed(ByOperator, gone, nodes...)
}

func (s *sim) removed(by Requester, gone *node, nodes ...*node) (heir *node) {
	s.t.Helper()
	var ids []uint64
	for _, n := range nodes {
		ids = append(ids, n.removesBy(by, gone))
	}
	for i, id := range ids {
		r, ok := nodes[i].await(id, 20*time.Second)
		if !ok || r.err != nil {
			s.t.Fatalf("%s removes %s: %v %s", nodes[i].cfg.Self, gone.cfg.Self, r.err, nodes[i].reason(id))
		}
		for _, n := range s.nodes {
			if n.cfg.Self == r.removed[0].Heir {
				heir = n
			}
		}
	}
	return heir
}

// One host asks again and again for the removal of a host that restarts, also in the names
// of peers that it made up. The host is back before that is enough.
func TestOneHostCannotRemoveAHostThatRestarts(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(4, addrRange)
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	victim, liar := nodes[3], nodes[2]
	owned := nodes[0].core.ring.Owners()[victim.self()]
	var madeUp []*node
	for range 5 {
		m := s.add(addrRange, Init{Mode: Observer})
		m.at, m.pretends = liar, true
		m.kill()
		madeUp = append(madeUp, m)
	}
	victim.kill()
	for range 50 { // Absence is 2 s
		id := liar.removes(victim)
		wish := message{kind: msgWish, id: nodes[0].core.ring.Slot(), body: (&ring.Action{Kind: ring.Remove, From: victim.self(), To: liar.self()}).Encode()}
		for _, m := range madeUp {
			for _, n := range nodes[:2] {
				n.do(func(c *core) { _ = c.receive(m.cfg.Self, wish.encode()) })
			}
		}
		s.run(time.Second)
		liar.reason(id)
	}
	if got := nodes[0].core.ring.Owners()[victim.self()]; got != owned {
		t.Fatalf("it owns %v of %v addresses after a restart", got, owned)
	}
	victim.launch()
	s.run(5 * time.Second)
	victim.allocate("more", addrRange)
}

// What operators asked for ends when the peer is back: it does not hold for the next time
// that it is away.
func TestRemovalIsNotCarriedOutAfterThePeerWasBack(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(4, addrRange)
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	back := nodes[3]
	s.cut = func(a, b *node) bool { return a.number == 4 || b.number == 4 }
	nodes[2].kill() // so that there is no quorum
	id := nodes[0].removes(back)
	nodes[1].removes(back)
	s.run(10 * time.Second)
	s.cut = func(a, b *node) bool { return false }
	if r, ok := nodes[0].await(id, 10*time.Second); !ok || r.err == nil {
		t.Errorf("the request of the operator ends with %v", r.err)
	}
	nodes[2].launch()
	s.run(5 * time.Second)
	back.kill()
	s.run(20 * time.Second)
	if nodes[0].core.ring.Owners()[back.self()].IsZero() {
		t.Error("it was removed the next time that it was away")
	}
}

// Programs on all hosts that ask for the removal of a host that restarts remove nothing: no voter
// agrees before it has missed the host for a while. After that two of them are enough.
func TestProgramsRemoveOnlyAHostThatIsAway(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(4, addrRange)
	for _, n := range nodes {
		n.allocate("c", addrRange)
	}
	s.converged(20 * time.Second)
	host := nodes[3]
	owned := nodes[0].core.ring.Owners()[host.self()]
	host.kill()
	var ids []uint64
	for _, n := range nodes[:3] {
		ids = append(ids, n.removesBy(ByProgram, host))
	}
	s.run(host.cfg.Absence / 2)
	host.launch()
	for i, id := range ids {
		if r, ok := nodes[i].await(id, 5*time.Second); !ok || r.err == nil {
			t.Errorf("the removal of a host that is back ends with %v, %v", ok, r.err)
		}
	}
	if got := nodes[0].core.ring.Owners()[host.self()]; got != owned {
		t.Fatalf("it owns %v of %v addresses after a restart", got, owned)
	}
	host.kill()
	s.removed(ByProgram, host, nodes[:2]...)
}

// One operator is enough in the end: a peer that is away for long is dead.
func TestOneHostRemovesAPeerThatIsAwayForLong(t *testing.T) {
	s := newSim(t, seed.New(t))
	nodes := s.addAll(4, addrRange)
	nodes[3].allocate("c", addrRange)
	s.converged(20 * time.Second)
	nodes[3].kill()
	id := nodes[0].removes(nodes[3])
	if r, ok := nodes[0].await(id, (aloneAfter+10)*nodes[0].cfg.Absence); !ok || r.err != nil {
		t.Fatal(ok, r.err, nodes[0].reason(id))
	}
}
