package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

// register is the simplest channel: a map of keys to numbers. The larger number wins.
type register map[uint16]uint16

func (r register) encode(keys ...uint16) []byte {
	slices.Sort(keys)
	var b []byte
	for _, k := range keys {
		b = binary.BigEndian.AppendUint16(b, k)
		b = binary.BigEndian.AppendUint16(b, r[k])
	}
	return b
}

func decode(b []byte) (register, error) {
	r := register{}
	for ; len(b) >= 4; b = b[4:] {
		r[binary.BigEndian.Uint16(b)] = binary.BigEndian.Uint16(b[2:])
	}
	if len(b) > 0 {
		return nil, errors.New("odd bytes at the end")
	}
	return r, nil
}

func (r register) Digest() []byte { return r.encode(slices.Collect(maps.Keys(r))...) }

func (r register) Missing(d []byte) (deltas [][]byte, wants bool, err error) {
	theirs, err := decode(d)
	if err != nil {
		return nil, false, err
	}
	for k, v := range r {
		if v > theirs[k] {
			deltas = append(deltas, r.encode(k))
		}
	}
	for k, v := range theirs {
		wants = wants || v > r[k]
	}
	return deltas, wants, nil
}

func (r register) Merge(_ peer.Name, d []byte) ([]byte, error) {
	in, err := decode(d)
	if err != nil {
		return nil, err
	}
	var news []uint16
	for k, v := range in {
		if v > r[k] {
			r[k] = v
			news = append(news, k)
		}
	}
	return r.encode(news...), nil
}

func (r register) Join(a, b []byte) []byte {
	if len(a)+len(b) > 16 { // small, so that the tests reach the bounds
		return nil
	}
	return append(slices.Clone(a), b...)
}

// net is a graph of engines. Messages are delivered only when step is called.
type net struct {
	t     *testing.T
	rng   *rand.Rand
	nodes []*Engine
	state []register
	loss  float64
}

func node(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func index(n peer.Name) int { return int(n[4])<<8 | int(n[5]) }

func newNet(t *testing.T, n int, loss float64) *net {
	first := seed.New(t)
	w := &net{t: t, rng: rand.New(rand.NewPCG(first, 1)), loss: loss}
	for i := range n {
		e := NewEngine(rand.New(rand.NewPCG(first, uint64(i))))
		w.state = append(w.state, register{})
		e.Register(1, w.state[i])
		w.nodes = append(w.nodes, e)
	}
	return w
}

func (w *net) link(i, j int) {
	w.nodes[i].NeighbourUp(node(j))
	w.nodes[j].NeighbourUp(node(i))
}

// run delivers messages until none is left, and returns how many there were.
func (w *net) run() (messages int) {
	for {
		moved := false
		for i, e := range w.nodes {
			for _, n := range e.Dirty() {
				for msg := e.Next(n); msg != nil; msg = e.Next(n) {
					moved = true
					messages++
					if w.rng.Float64() < w.loss {
						continue
					}
					if _, err := w.nodes[index(n)].Receive(node(i), msg); err != nil {
						w.t.Fatal(err)
					}
				}
			}
		}
		if !moved {
			return messages
		}
	}
}

func (w *net) set(i int, k, v uint16) {
	w.state[i][k] = v
	w.nodes[i].Announce(1, w.state[i].encode(k))
}

func (w *net) agree() error {
	for i, s := range w.state {
		if !maps.Equal(s, w.state[0]) {
			return fmt.Errorf("node %d holds %v, node 0 holds %v", i, s, w.state[0])
		}
	}
	return nil
}

func TestChangeFloodsOverALine(t *testing.T) {
	w := newNet(t, 20, 0)
	for i := range 19 {
		w.link(i, i+1)
	}
	w.run()
	w.set(0, 7, 7)
	if w.run(); w.state[19][7] != 7 {
		t.Error("the change did not reach the far end")
	}
}

func TestNewNeighboursExchangeAll(t *testing.T) {
	w := newNet(t, 2, 0)
	w.state[0][1], w.state[1][2], w.state[0][3], w.state[1][3] = 1, 2, 3, 4
	w.link(0, 1)
	w.run()
	if err := w.agree(); err != nil {
		t.Error(err)
	}
}

func TestEqualNeighboursExchangeSumsOnly(t *testing.T) {
	w := newNet(t, 2, 0)
	for k := range uint16(1000) {
		w.state[0][k], w.state[1][k] = 1, 1
	}
	w.link(0, 1)
	w.run()
	if s := w.nodes[0].Stats(); s.SentBytes != 10 {
		t.Errorf("%d bytes sent, want one sum of 10", s.SentBytes)
	}
}

func TestRepairAfterLoss(t *testing.T) {
	w := newNet(t, 30, 0.2)
	for i := range 30 {
		for range 3 {
			if j := w.rng.IntN(30); j != i {
				w.link(i, j)
			}
		}
		w.link(i, (i+1)%30)
	}
	for i := range 30 {
		w.set(i, uint16(i), uint16(i+1))
	}
	now := time.Unix(0, 0)
	for range 100 {
		w.run()
		if w.agree() == nil {
			return
		}
		now = now.Add(repairEvery)
		for _, e := range w.nodes {
			e.Tick(now)
		}
	}
	t.Error(w.agree())
}

func TestOneChangeCostsLogarithmicMessagesAPeer(t *testing.T) {
	for _, n := range []int{50, 200} {
		w := newNet(t, n, 0)
		for i := range n {
			for j := range i {
				w.link(i, j)
			}
		}
		w.run()
		w.set(0, 1, 1)
		messages := w.run()
		if most := n * 2 * 9; messages > most {
			t.Errorf("%d peers: %d messages, want at most %d", n, messages, most)
		}
		reached := 0
		for _, s := range w.state {
			reached += int(s[1])
		}
		if reached < n*99/100 {
			t.Errorf("%d peers: the flood reached %d", n, reached)
		}
	}
}

// spreader is a register whose changes all have one author, which is linked with everyone.
type spreader struct{ register }

func (spreader) Sent([]byte) func(peer.Name) bool { return func(peer.Name) bool { return true } }

// In a full mesh a change of a Spreader costs a peer few messages, and reaches all of them.
func TestAuthorReachesItsNeighbours(t *testing.T) {
	const peers = 60
	w := newNet(t, peers, 0)
	for i, e := range w.nodes {
		e.channels[1] = spreader{w.state[i]}
		for j := range i {
			w.link(i, j)
		}
	}
	w.run()
	w.set(0, 1, 1)
	if messages, most := w.run(), peers*(1+spares); messages > most {
		t.Errorf("%d messages, want at most %d", messages, most)
	}
	if err := w.agree(); err != nil {
		t.Error(err)
	}
	// The author's session with one of them is broken, and nobody knows that.
	reached := 0
	for v := range uint16(200) {
		w.nodes[0].NeighbourDown(node(peers - 1))
		w.set(0, 1, v+2)
		w.run()
		if w.state[peers-1][1] == v+2 {
			reached++
		}
	}
	if reached < 160 {
		t.Errorf("%d of 200 changes reached a peer behind a broken session", reached)
	}
}

func TestRelaysGetEveryChange(t *testing.T) {
	w := newNet(t, 102, 0)
	for i := 1; i <= 100; i++ {
		w.link(0, i)
	}
	w.link(100, 101)
	w.run()
	w.nodes[0].SetRelays(map[peer.Name]bool{node(100): true})
	for v := range uint16(20) {
		w.set(0, 1, v+1)
		if w.run(); w.state[101][1] != v+1 {
			t.Fatal("the peer behind the relay did not get the change")
		}
	}
}

func TestSlowNeighbourIsBoundedAndRepaired(t *testing.T) {
	w := newNet(t, 2, 0)
	w.link(0, 1)
	w.run()
	for k := range uint16(5000) {
		w.set(0, k, 1)
	}
	s := w.nodes[0].Stats()
	if s.QueuedDeltas > maxQueued {
		t.Errorf("%d deltas wait, bound %d", s.QueuedDeltas, maxQueued)
	}
	if s.Dropped == 0 {
		t.Error("no drop was counted")
	}
	w.run()
	if err := w.agree(); err != nil {
		t.Errorf("after the digests repaired the dropped deltas: %v", err)
	}
}

func TestBadBytesAreAnErrorAndChangeNothing(t *testing.T) {
	w := newNet(t, 2, 0)
	w.link(0, 1)
	for _, msg := range [][]byte{{}, {kindDelta}, {kindDelta, 1, 9}, {kindDigest, 1, 9}} {
		if changed, err := w.nodes[0].Receive(node(1), msg); err == nil || changed {
			t.Errorf("message %x: changed %v, error %v", msg, changed, err)
		}
	}
	for _, msg := range [][]byte{{99, 1, 2}, {kindDelta, 99, 1}} {
		if _, err := w.nodes[0].Receive(node(1), msg); err != nil {
			t.Errorf("message of a newer peer %x: %v", msg, err)
		}
	}
	if got := w.nodes[0].Stats().Refused; got != 4 {
		t.Errorf("%d refusals counted", got)
	}
}

func FuzzReceive(f *testing.F) {
	f.Add([]byte{kindSum, 1, 0})
	f.Add([]byte{kindDigest, 1, 0, 1, 0, 2})
	f.Add([]byte{kindDelta, 1, 0, 1, 0, 2})
	f.Fuzz(func(t *testing.T, msg []byte) {
		e := NewEngine(rand.New(rand.NewPCG(1, 1)))
		e.Register(1, register{1: 2})
		e.NeighbourUp(node(1))
		e.Receive(node(1), msg)
		for m := e.Next(node(1)); m != nil; m = e.Next(node(1)) {
			if len(m) > MaxMessage {
				t.Fatalf("message of %d bytes", len(m))
			}
		}
	})
}
