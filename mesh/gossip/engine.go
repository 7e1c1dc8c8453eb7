// Package gossip replicates state between neighbours: changes are flooded, and digests
// repair losses.
//
// An Engine is a step machine. Its methods take events. The driver calls Next for a
// neighbour whenever it can write to that neighbour, and sends the message that Next
// returns. Messages are made at that moment, so changes that wait for a slow neighbour
// are joined into few messages. For each neighbour and channel an Engine holds at most
// one digest and a bounded number of deltas. If there are more it drops the newest
// deltas and sends a sum after the others, so that digests repair the loss.
//
// A message is, in this order:
//
//	kind u8 | channel u8 | body
//
//	0 sum     body: the first 8 bytes of SHA-256 of the sender's digest. The
//	          receiver answers with its digest if its own sum differs.
//	1 digest  body: the sender's digest. The receiver answers with the deltas that
//	          the sender lacks, and with a final digest if it lacks something itself.
//	2 final   as digest, but the answer is deltas only.
//	3 delta   body: a delta of the channel. The receiver passes on the part that is
//	          new to it.
//
// Kinds and channel numbers are append-only. A message of an unknown kind or channel
// is ignored, so that newer peers can join.
package gossip

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

const (
	kindSum = iota
	kindDigest
	kindFinal
	kindDelta
)

// MaxMessage is the size limit of the messages that Next returns, in bytes.
const MaxMessage = MaxDelta + 2

const (
	// maxQueued is how many deltas that cannot be joined wait for one neighbour on
	// one channel.
	maxQueued = 64
	// floodAll is the largest number of neighbours that all get a change.
	floodAll = 12
	// spares is how many neighbours get a change that its author has sent to them too. With 3, a
	// peer that the author does not reach gets it from nobody once in 20 changes, and then by
	// digests; with more, a full mesh sends more copies that nobody needs.
	spares = 3
	// repairEvery is how often a peer compares its state with some neighbours. If it
	// is longer, a delta that a full queue dropped is repaired later. Each time costs
	// ten bytes for each channel.
	repairEvery = 10 * time.Second
)

// Stats counts what an Engine did since it was made.
type Stats struct {
	Sent, Received         uint64 // messages
	SentBytes, RecvdBytes  uint64
	Dropped                uint64 // deltas dropped because a neighbour's queue was full
	Refused                uint64 // messages that a channel or the parser refused
	Repairs                uint64 // digests received that differed
	QueuedDeltas, MaxQueue int    // deltas that wait now; the limit for each neighbour and channel
}

// Engine replicates its channels. It is not safe for concurrent use.
type Engine struct {
	channels   map[uint8]Channel
	ids        []uint8 // of channels, in order
	neighbours map[peer.Name]*neighbour
	order      []peer.Name // the neighbours in the order of arrival, so that equal seeds give equal runs
	relays     map[peer.Name]bool
	rng        *rand.Rand
	nextRepair time.Time
	dirty      map[peer.Name]bool
	stats      Stats
}

type neighbour struct{ out map[uint8]*outbox }

// outbox is the messages that wait for one neighbour on one channel, in order of
// sending.
type outbox struct {
	digest bool
	final  bool
	deltas [][]byte
	sum    bool
}

// NewEngine returns an Engine without channels or neighbours.
func NewEngine(rng *rand.Rand) *Engine {
	return &Engine{
		channels:   make(map[uint8]Channel),
		neighbours: make(map[peer.Name]*neighbour),
		dirty:      make(map[peer.Name]bool),
		rng:        rng,
	}
}

// Register adds a channel under its number, which is the same on all peers.
func (e *Engine) Register(id uint8, c Channel) {
	if e.channels[id] != nil {
		panic(fmt.Sprintf("gossip: channel %d registered twice", id))
	}
	e.channels[id] = c
	e.ids = append(e.ids, id)
	slices.Sort(e.ids)
}

// NeighbourUp adds a neighbour.
func (e *Engine) NeighbourUp(n peer.Name) {
	e.forget(n)
	nb := &neighbour{out: make(map[uint8]*outbox, len(e.ids))}
	for _, id := range e.ids {
		nb.out[id] = &outbox{sum: true}
	}
	if e.neighbours[n] == nil {
		e.order = append(e.order, n)
	}
	e.neighbours[n] = nb
	e.dirty[n] = true
}

// NeighbourDown removes a neighbour and drops the messages that wait for it.
func (e *Engine) NeighbourDown(n peer.Name) {
	e.forget(n)
	delete(e.neighbours, n)
	delete(e.dirty, n)
	e.order = slices.DeleteFunc(e.order, func(m peer.Name) bool { return m == n })
}

// forget no longer counts the deltas that wait for a neighbour.
func (e *Engine) forget(n peer.Name) {
	if nb := e.neighbours[n]; nb != nil {
		for _, o := range nb.out {
			e.stats.QueuedDeltas -= len(o.deltas)
		}
	}
}

// SetRelays sets the neighbours through which other peers are reached. They get every
// change, even if only a sample of the other neighbours does.
func (e *Engine) SetRelays(names map[peer.Name]bool) { e.relays = names }

// Announce spreads a change that this peer made to its own state.
func (e *Engine) Announce(id uint8, delta []byte) {
	if len(delta) > 0 && e.channels[id] != nil {
		e.flood(id, delta, peer.Name{})
	}
}

// Compare asks every neighbour whether it has the same state of channel id. Call it
// after a change that is too large for Announce.
func (e *Engine) Compare(id uint8) {
	for _, n := range e.order {
		e.neighbours[n].out[id].sum = true
		e.dirty[n] = true
	}
}

// CompareWith is Compare for one neighbour. Call it after a message of the neighbour was
// lost.
func (e *Engine) CompareWith(id uint8, n peer.Name) {
	if nb := e.neighbours[n]; nb != nil && nb.out[id] != nil {
		nb.out[id].sum = true
		e.dirty[n] = true
	}
}

// Tick compares the state with two neighbours every repairEvery.
func (e *Engine) Tick(now time.Time) {
	if now.Before(e.nextRepair) {
		return
	}
	first := e.nextRepair.IsZero()
	// At a whole second, so that engines with equal seeds wake the router together.
	e.nextRepair = now.Add(repairEvery/2 + time.Duration(e.rng.Int64N(int64(repairEvery)))).Truncate(time.Second)
	if first || len(e.order) == 0 {
		return
	}
	for _, n := range e.sample(2, func(peer.Name) bool { return true }) {
		for _, o := range e.neighbours[n].out {
			o.sum = true
		}
		e.dirty[n] = true
	}
}

// NextTick returns the time at which Tick has work to do.
func (e *Engine) NextTick() time.Time { return e.nextRepair }

// sample returns up to k random neighbours for which ok is true.
func (e *Engine) sample(k int, ok func(peer.Name) bool) []peer.Name {
	var s []peer.Name
	for _, i := range e.rng.Perm(len(e.order)) {
		if n := e.order[i]; len(s) < k && ok(n) {
			s = append(s, n)
		}
	}
	return s
}

// flood queues a delta for all neighbours except from. If there are many, only a random
// sample of 2 log2 n gets it and passes it on. Each change then costs a peer O(log n)
// messages, and digests repair the peers that were missed.
//
// Of a Spreader, the author sends its change to all neighbours. The others pass it on to a sample of
// the neighbours that the author does not reach, and to spares of the rest, because a session may
// be broken that nobody has noticed yet. So a change costs each peer of a full mesh few messages.
func (e *Engine) flood(id uint8, delta []byte, from peer.Name) {
	if len(delta) > MaxDelta { // digests bring it in parts
		e.Compare(id)
		return
	}
	to := e.order
	if s, ok := e.channels[id].(Spreader); len(to) > floodAll && !(ok && from.IsZero()) {
		relay := func(n peer.Name) bool { return e.relays[n] }
		sent := func(peer.Name) bool { return false }
		if ok {
			sent = s.Sent(delta)
		}
		to = e.sample(2*bits.Len(uint(len(e.order))), func(n peer.Name) bool { return !relay(n) && !sent(n) })
		to = append(to, e.sample(spares, func(n peer.Name) bool { return !relay(n) && sent(n) })...)
		for _, n := range e.order {
			if relay(n) {
				to = append(to, n)
			}
		}
	}
	for _, n := range to {
		if n != from {
			e.queue(n, id, delta)
		}
	}
}

func (e *Engine) queue(n peer.Name, id uint8, delta []byte) {
	o := e.neighbours[n].out[id]
	e.dirty[n] = true
	if last := len(o.deltas) - 1; last >= 0 {
		if joined := e.channels[id].Join(o.deltas[last], delta); joined != nil {
			o.deltas[last] = joined
			return
		}
	}
	if len(o.deltas) >= maxQueued {
		e.stats.Dropped++
		o.sum = true
		return
	}
	// Clip it: the same delta may wait for other neighbours too, and Join may append
	// to its argument.
	o.deltas = append(o.deltas, slices.Clip(delta))
	e.stats.QueuedDeltas++
}

// Dirty returns the neighbours that got new messages since the last call of Dirty.
func (e *Engine) Dirty() []peer.Name {
	names := slices.Collect(maps.Keys(e.dirty))
	clear(e.dirty)
	return names
}

// Next returns the next message for n, or nil if there is none now. The caller
// owns it.
func (e *Engine) Next(n peer.Name) []byte {
	nb := e.neighbours[n]
	if nb == nil {
		return nil
	}
	for _, id := range e.ids {
		o, c := nb.out[id], e.channels[id]
		var msg []byte
		switch {
		case o.digest:
			o.digest, o.final = false, false
			msg = append([]byte{kindDigest, id}, c.Digest()...)
		case o.final:
			o.final = false
			msg = append([]byte{kindFinal, id}, c.Digest()...)
		case len(o.deltas) > 0:
			msg = append([]byte{kindDelta, id}, o.deltas[0]...)
			o.deltas = slices.Delete(o.deltas, 0, 1)
			e.stats.QueuedDeltas--
		case o.sum: // last, after everything else that waits
			o.sum = false
			msg = append([]byte{kindSum, id}, sum(c.Digest())...)
		default:
			continue
		}
		e.stats.Sent++
		e.stats.SentBytes += uint64(len(msg))
		return msg
	}
	return nil
}

func sum(digest []byte) []byte {
	h := sha256.Sum256(digest)
	return h[:8]
}

var errTooShort = errors.New("shorter than its header")

// Receive handles a message from neighbour n, and reports whether the state of a
// channel changed. It returns an error for an invalid message; the state is then
// unchanged unless changed is true.
func (e *Engine) Receive(n peer.Name, msg []byte) (changed bool, err error) {
	nb := e.neighbours[n]
	if nb == nil {
		return false, nil // it went down in the meantime
	}
	e.stats.Received++
	e.stats.RecvdBytes += uint64(len(msg))
	if len(msg) < 2 {
		e.stats.Refused++
		return false, fmt.Errorf("message: %w: %w", ErrMalformed, errTooShort)
	}
	kind, id, body := msg[0], msg[1], msg[2:]
	c := e.channels[id]
	if c == nil {
		return false, nil
	}
	o := nb.out[id]
	switch kind {
	case kindSum:
		if !bytes.Equal(body, sum(c.Digest())) {
			o.digest = true
			e.dirty[n] = true
		}
	case kindDigest, kindFinal:
		deltas, wants, err := c.Missing(body)
		if err != nil {
			e.stats.Refused++
			return false, fmt.Errorf("digest: %w", err)
		}
		e.stats.Repairs++
		for _, d := range deltas {
			e.queue(n, id, d)
		}
		if wants && kind == kindDigest {
			o.final = true
		}
		e.dirty[n] = true
	case kindDelta:
		news, err := c.Merge(n, body)
		if len(news) > 0 {
			e.flood(id, news, n)
			changed = true
		}
		if err != nil {
			e.stats.Refused++
			return changed, fmt.Errorf("delta: %w", err)
		}
	}
	return changed, nil
}

// Stats returns the counts so far.
func (e *Engine) Stats() Stats {
	s := e.stats
	s.MaxQueue = maxQueued
	return s
}
