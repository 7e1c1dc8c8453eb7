package router

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// With Config.SealRelayed, a unicast frame to a peer without a direct link is sealed for
// that peer before it is sealed for the next hop, so relays cannot read it:
//
//	| header | head: from A to B, sealed | header | frame | tag | tag |
//	  for R                                for B            B     R
//
// The inner packet is that of a link between A and B, whose keys the two agree on over a
// session that relays carry (package mesh). Such a link has no address, and so no packets
// of its own, unless hole punching succeeds. Keys are renewed, and replays refused, as on
// every link.
//
// The first frame to a peer asks the mesh for the session. Frames wait for the keys for a
// second at most. None leaves unsealed, and none is accepted unsealed from a relay. Frames
// to all peers are not sealed in this way: every peer may read them.

// Bounds of the frames that wait for keys.
const (
	heldFor    = time.Second
	heldPeers  = 64
	heldFrames = 16 // of one peer
	heldBytes  = 256 << 10
)

// wantEvery is how often the mesh hears that keys with a peer are used.
const wantEvery = 5 * time.Second

// heldQueue has the frames that wait for keys.
type heldQueue struct {
	mu    sync.Mutex
	peers map[peer.Name]*heldPeer
	bytes int
}

// heldPeer has the frames for one peer.
type heldPeer struct {
	frames [][]byte
	until  time.Duration // when they are dropped
}

// add keeps a copy of a frame. It is false if there is no space.
func (q *heldQueue) add(dst peer.Name, f frame, now time.Duration) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	h := q.peers[dst]
	n := f.end - f.at
	if h == nil && len(q.peers) >= heldPeers || h != nil && len(h.frames) >= heldFrames || q.bytes+n > heldBytes {
		return false
	}
	if h == nil {
		h = &heldPeer{until: now + heldFor}
		q.peers[dst] = h
	}
	b := bytes.Clone(f.bytes())
	if f.partial {
		complete(b)
	}
	h.frames = append(h.frames, b)
	q.bytes += n
	return true
}

// take removes the frames for a peer and returns them.
func (q *heldQueue) take(dst peer.Name) [][]byte {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.remove(dst)
}

// remove needs mu.
func (q *heldQueue) remove(dst peer.Name) (frames [][]byte) {
	if h := q.peers[dst]; h != nil {
		frames = h.frames
		delete(q.peers, dst)
		for _, b := range frames {
			q.bytes -= len(b)
		}
	}
	return frames
}

// expire removes frames that waited too long and returns their number, and when the next
// ones will have; 0 for never.
func (q *heldQueue) expire(now time.Duration) (dropped int, next time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for dst, h := range maps.Clone(q.peers) {
		switch {
		case now >= h.until:
			dropped += len(q.remove(dst))
		case next == 0 || h.until < next:
			next = h.until
		}
	}
	return dropped, next
}

// want is what the mesh is told: keys with a peer are used.
type want struct {
	peer  peer.Name
	sends bool // frames go to the peer; otherwise they come from it
}

// want tells the mesh that keys with a peer are used. asked is when it was told last.
func (r *Router) want(w want, asked *atomic.Int64, now time.Duration) {
	last := asked.Load()
	if last != 0 && now-time.Duration(last) < wantEvery || !asked.CompareAndSwap(last, int64(max(now, 1))) {
		return
	}
	select {
	case r.wants <- w:
	default:
		asked.Store(0) // the next frame tells
	}
}

// forwardSealed is forward for a frame that relays carry and must not read.
func (ln *lane) forwardSealed(dst peer.Name, p *path, f frame, h offload.Header) {
	r := ln.r
	r.want(want{dst, true}, &p.asked, ln.now)
	var tx *seal.Tx
	if p.seal != nil {
		tx = p.seal.tx.Load()
	}
	if tx == nil {
		// A GSO packet is not the first of a flow: its sender repeats it.
		switch {
		case h.Kind != offload.None:
			r.drops[DropNoKey].Add(uint64(ln.split.Count()))
		case !r.held.add(dst, f, ln.now):
			r.drops.add(DropNoKey)
		}
		return
	}
	space := int(p.link.maxBody.Load()) - p.sealHead.Len() - wire.Overhead
	if space <= 0 {
		p.link.drops.add(DropLinkDown)
		return
	}
	if h.Kind != offload.None {
		ln.sealGSO(p, tx, space)
		return
	}
	typ := wire.Data
	if f.partial {
		typ = wire.Partial
	}
	n := f.end - f.at
	if n <= space {
		b := ln.sealedBuffer(p, n)
		copy(b[wire.HeaderLen:], f.bytes())
		ln.sendSealed(p, tx, typ, b)
		return
	}
	if ln.refuseTooBig(p.link, &p.head, f.bytes(), space+p.head.Len()) {
		p.link.drops.add(DropTooBig)
		return
	}
	b := ln.segment(wire.Overhead + n)[:wire.HeaderLen+n]
	copy(b[wire.HeaderLen:], f.bytes())
	if f.partial {
		complete(b[wire.HeaderLen:])
	}
	ln.sendApart(p, tx, b)
}

// sealGSO seals the segments of the GSO packet in split. space is how many bytes of frame
// fit into a packet.
func (ln *lane) sealGSO(p *path, tx *seal.Tx, space int) {
	s := &ln.split
	for i := range s.Count() {
		n := s.Len(i)
		if n <= space {
			b := ln.sealedBuffer(p, n)
			s.PutPartial(b[wire.HeaderLen:], i)
			ln.sendSealed(p, tx, wire.Partial, b)
			continue
		}
		b := ln.segment(wire.Overhead + n)[:wire.HeaderLen+n]
		s.PutComplete(b[wire.HeaderLen:], i)
		if i == 0 && ln.refuseTooBig(p.link, &p.head, b[wire.HeaderLen:], space+p.head.Len()) {
			p.link.drops[DropTooBig].Add(uint64(s.Count()))
			return
		}
		ln.sendApart(p, tx, b)
	}
}

// sealedBuffer returns memory for a sealed frame of n bytes behind its header, in which
// sendSealed makes the packet for the next hop in place.
func (ln *lane) sealedBuffer(p *path, n int) []byte {
	front := wire.HeaderLen + p.sealHead.Len()
	b := ln.buffer(front + wire.Overhead + n + wire.AuthTagLen)
	return b[front : front+wire.HeaderLen+n]
}

// sendSealed seals a frame in the memory of sealedBuffer, which was the last call of
// buffer, and sends it.
func (ln *lane) sendSealed(p *path, tx *seal.Tx, typ wire.Type, b []byte) {
	inner, ok := ln.sealInner(p, tx, typ, b)
	if !ok {
		return
	}
	front := wire.HeaderLen + p.sealHead.Len()
	whole := ln.arena[ln.used-front-len(inner)-wire.AuthTagLen : ln.used : ln.used]
	ln.send(p.link, &p.sealHead, frame{buf: whole, at: front, end: front + len(inner), own: true})
}

// sendApart seals a frame that does not fit into a packet, in memory outside the arena. It
// is sent in fragments.
func (ln *lane) sendApart(p *path, tx *seal.Tx, b []byte) {
	if inner, ok := ln.sealInner(p, tx, wire.Data, b); ok {
		ln.send(p.link, &p.sealHead, frame{buf: inner, end: len(inner)})
	}
}

func (ln *lane) sealInner(p *path, tx *seal.Tx, typ wire.Type, b []byte) (inner []byte, ok bool) {
	id := ln.id
	if ln.sparse {
		id++
	}
	inner, err := tx.Seal(typ, id, b, &ln.nonce)
	if err != nil {
		p.seal.drops.add(DropSend)
		return nil, false
	}
	p.seal.txFrames.Add(1)
	return inner, true
}

// openSealed handles a sealed frame of the peer src for this host, which came over l.
func (r *Router) openSealed(ln *lane, l *sleeve, src peer.Name, f frame) {
	if p := r.fib.Load().paths[src]; p != nil {
		// Also if there is no key: then the peer still has that of an earlier process.
		r.want(want{src, false}, &p.heard, ln.now)
	}
	h, err := wire.ParseHeader(f.bytes())
	if err != nil || h.Type != wire.Data && h.Type != wire.Partial {
		l.drops.add(DropMalformed)
		return
	}
	key := (*r.keys.Load())[h.Index]
	if key == nil || key.link.peer != src {
		l.drops.add(DropUnknownKey)
		return
	}
	body, _, ok := r.open(ln, key, h, f.bytes())
	if !ok {
		return
	}
	f.at += wire.HeaderLen
	f.end = f.at + len(body)
	f.partial = h.Type == wire.Partial
	if _, ok := r.learn(ln, f.bytes(), src, &key.link.drops); !ok {
		return
	}
	key.link.rxFrames.Add(1)
	l.rxFrames.Add(1)
	ln.toHost(f)
}

// sendHeld sends the frames that waited for keys with a peer. Control goroutine only.
func (r *Router) sendHeld(dst peer.Name) {
	frames := r.held.take(dst)
	p := r.fib.Load().paths[dst]
	ln := r.ctl.held
	ln.now = r.since()
	for _, b := range frames {
		f := frame{buf: b, end: len(b)}
		switch {
		case p == nil:
			r.drops.add(DropNoRoute)
		case p.relayed:
			ln.forwardSealed(dst, p, f, offload.Header{})
		default:
			ln.send(p.link, &p.head, f)
		}
	}
	ln.flush()
}

// RelayedStatus is the status of the path to a peer without a direct link.
type RelayedStatus struct {
	Peer peer.Name
	Via  peer.Name // the next hop
	// Cipher is that of the frames that relays cannot read; "" if there are no keys, and so
	// no frames.
	Cipher string
	// Wanted reports that frames to the peer wait, or were sent lately.
	Wanted bool
}

// Relayed returns the peers that are reached over other peers, in order.
func (r *Router) Relayed() (all []RelayedStatus) {
	fib, now := r.fib.Load(), r.since()
	for n, p := range fib.paths {
		if n == p.link.peer {
			continue
		}
		s := RelayedStatus{Peer: n, Via: p.link.peer}
		if p.seal != nil {
			if tx := p.seal.tx.Load(); tx != nil {
				s.Cipher = tx.Suite.String()
			}
		}
		last := p.asked.Load()
		s.Wanted = last != 0 && now-time.Duration(last) < time.Minute
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b RelayedStatus) int { return a.Peer.Compare(b.Peer) })
	return all
}
