package router

import (
	"time"

	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/frag"
	"github.com/weft-net/weft/router/icmp"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/udp"
	"github.com/weft-net/weft/router/wire"
)

const (
	// batchSize is how many frames or packets one system call or one round of
	// a lane handles.
	batchSize = 64
	// smallFrame is the largest frame that shares a packet with others: below
	// it, a packet of its own costs more than the copy.
	smallFrame = 256
	// maxPacket is the largest UDP payload.
	maxPacket = 65535
	// scratchLen holds the largest packet, and headroom in front of the frame.
	scratchLen = tap.Headroom + maxPacket + tap.Tailroom
)

// lane is one goroutine's way of sending: everything it needs without asking
// another. Not safe for concurrent use.
type lane struct {
	r   *Router
	id  uint8
	w   udp.Writer
	tap tap.Queue
	now time.Duration // since the router's start, read once a batch

	nonce seal.Nonce
	out   []udp.Message // sealed, to be written by flush
	links []*sleeve     // of out
	// scratch are buffers for packets that can not be made where the frame is.
	// Those before used are referred to by out or batch until flush.
	scratch [][]byte
	used    int

	// batch collects small frames for one link.
	batch struct {
		link *sleeve
		buf  []byte // scratch, beginning with the packet's header
		n    int    // bytes, header included
		num  int    // frames
	}
	// deliver collects frames for the TAP, borrowed from the caller until
	// flush.
	deliver [][]byte
	answer  [icmp.MaxLen]byte
	seq     uint32 // of fragmented frames
}

func (r *Router) newLane(id int, q tap.Queue) *lane {
	ln := &lane{
		r: r, id: uint8(id), w: r.conn.NewWriter(batchSize), tap: q,
		out: make([]udp.Message, 0, batchSize), links: make([]*sleeve, 0, batchSize),
		scratch: make([][]byte, batchSize), deliver: make([][]byte, 0, batchSize),
	}
	for i := range ln.scratch {
		ln.scratch[i] = make([]byte, scratchLen)
	}
	return ln
}

// buffer returns a scratch buffer, sending what waits if there is none left.
func (ln *lane) buffer() []byte {
	if ln.used == len(ln.scratch) {
		ln.flush()
	}
	b := ln.scratch[ln.used]
	ln.used++
	return b
}

// frame is an Ethernet frame in a buffer: buf[at:end]. If own, the bytes of
// buf around it may be written until flush, tap.Headroom before or what the
// head and header took on arrival, and wire.TagLen behind.
type frame struct {
	buf     []byte
	at, end int
	own     bool
}

func (f *frame) bytes() []byte { return f.buf[f.at:f.end] }

// send puts a frame on a link, behind all that was sent on it before.
func (ln *lane) send(l *sleeve, h *wire.Head, f frame) {
	room := int(l.room.Load())
	if room == 0 {
		l.drops.add(DropLinkDown)
		return
	}
	hl := h.Len()
	n := hl + f.end - f.at
	l.txFrames.Add(1)
	switch {
	case n > room:
		ln.oversize(l, h, f, room)
	case n <= smallFrame && wire.BatchLen+n <= room:
		ln.coalesce(l, h, f.bytes(), room)
	default:
		if ln.batch.link == l {
			ln.endBatch() // to keep the order
		}
		if !f.own {
			b := ln.buffer()
			f.end = tap.Headroom + copy(b[tap.Headroom:], f.bytes())
			f.buf, f.at = b, tap.Headroom
		}
		start := f.at - hl - wire.HeaderLen
		h.Put(f.buf[f.at-hl:])
		ln.seal(l, wire.Data, f.buf[start:f.end])
	}
}

// coalesce adds a small frame to the batch of its link.
func (ln *lane) coalesce(l *sleeve, h *wire.Head, b []byte, room int) {
	t := &ln.batch
	hl := h.Len()
	n := wire.BatchLen + hl + len(b)
	if t.link != l || t.n+n > wire.HeaderLen+room {
		ln.endBatch()
	}
	if t.link == nil {
		t.buf, t.link, t.n, t.num = ln.buffer(), l, wire.HeaderLen, 0
	}
	wire.PutBatchLen(t.buf[t.n:], hl+len(b))
	h.Put(t.buf[t.n+wire.BatchLen:])
	copy(t.buf[t.n+wire.BatchLen+hl:], b)
	t.n += n
	t.num++
}

// endBatch seals the batch. A single frame goes as if it had never waited.
func (ln *lane) endBatch() {
	t := &ln.batch
	l := t.link
	if l == nil {
		return
	}
	t.link = nil
	if t.num == 1 {
		// The header moves over the length.
		ln.seal(l, wire.Data, t.buf[wire.BatchLen:t.n])
		return
	}
	ln.seal(l, wire.Batch, t.buf[:t.n])
}

// seal makes a packet in place and queues it. The memory stays untouched until
// flush.
func (ln *lane) seal(l *sleeve, typ wire.Type, b []byte) {
	tx, addr := l.tx.Load(), l.addr.Load()
	if tx == nil || addr == nil {
		l.drops.add(DropLinkDown)
		return
	}
	p, err := tx.Seal(typ, ln.id, b, &ln.nonce)
	if err != nil {
		l.drops.add(DropSend)
		return
	}
	ln.out = append(ln.out, udp.Message{Buf: p, N: len(p), Addr: *addr})
	ln.links = append(ln.links, l)
	if len(ln.out) == cap(ln.out) {
		ln.write()
	}
}

// oversize handles a frame that does not fit a packet: its sender is told, if
// it asked for that; else it goes in parts. What goes to every peer goes in
// parts too, as there is no one path that its sender could learn of.
func (ln *lane) oversize(l *sleeve, h *wire.Head, f frame, room int) {
	if _, offset, ok := ethernet.Payload(f.bytes()); ok && !h.ToAll() {
		if a := icmp.TooBig(ln.answer[:0], f.bytes(), room-h.Len()-offset); a != nil {
			l.drops.add(DropTooBig)
			if l.complain.Allow() {
				ln.complain(h, a)
			}
			return
		}
	}
	hl := h.Len()
	n := hl + f.end - f.at
	size, count, ok := frag.Parts(n, room)
	if !ok || n > wire.MaxTotal {
		l.drops.add(DropTooBig)
		return
	}
	if ln.batch.link == l {
		ln.endBatch()
	}
	var head [wire.MaxHeadLen]byte
	h.Put(head[:])
	ln.seq++
	fh := wire.FragmentHead{ID: uint32(ln.id)<<24 | ln.seq&0xffffff, Total: n}
	for i := range count {
		fh.Offset = i * size
		b := ln.buffer()
		fh.Put(b[wire.HeaderLen:])
		end := wire.HeaderLen + wire.FragmentHeadLen
		from, to := fh.Offset, min(fh.Offset+size, n)
		if from < hl {
			c := copy(b[end:], head[from:min(hl, to)])
			end, from = end+c, from+c
		}
		if from < to {
			end += copy(b[end:], f.buf[f.at+from-hl:f.at+to-hl])
		}
		ln.seal(l, wire.Fragment, b[:end])
	}
}

// complain sends an ICMP answer to where the frame with head h came from. It
// pretends to come from behind the peer that the frame was for, where its
// source address lives, so that nobody learns that address to be elsewhere.
func (ln *lane) complain(h *wire.Head, answer []byte) {
	fib := ln.r.fib.Load()
	src, dst := fib.self, fib.self
	switch h.Kind {
	case wire.Routed:
		src, dst = fib.routes.ByID[h.SrcID], fib.routes.ByID[h.DstID]
	case wire.RoutedLong:
		src, dst = h.Src, h.Dst
	}
	if src == fib.self {
		ln.r.countTAP(ln.tap, answer)
		return
	}
	p, ok := fib.paths[src]
	if !ok || dst.IsZero() {
		ln.r.drops.add(DropNoRoute)
		return
	}
	back := fib.head(dst, src)
	b := ln.buffer() // the answer's own memory may be needed for the next
	end := tap.Headroom + copy(b[tap.Headroom:], answer)
	ln.send(p.link, &back, frame{buf: b, at: tap.Headroom, end: end, own: true})
}

// flush sends everything that waits. After it no buffer is referred to.
func (ln *lane) flush() {
	ln.flushTAP()
	ln.endBatch()
	ln.write()
	ln.used = 0
}

func (ln *lane) flushTAP() {
	if len(ln.deliver) > 0 {
		ln.r.countTAP(ln.tap, ln.deliver...)
		ln.deliver = ln.deliver[:0]
	}
}

// write hands the queue to the kernel. A packet that the kernel refuses is
// counted at its link and holds up none behind it.
func (ln *lane) write() {
	for first := 0; first < len(ln.out); {
		n, err := ln.w.WriteBatch(ln.out[first:])
		for i := first; i < first+n; i++ {
			l := ln.links[i]
			l.txPackets.Add(1)
			l.txBytes.Add(uint64(ln.out[i].N))
		}
		first += n
		if err != nil && first < len(ln.out) {
			l := ln.links[first]
			l.drops.add(DropSend)
			if udp.IsTooBig(err) {
				ln.r.notify(event{kind: tooBig, link: l, size: ln.out[first].N + outerLen(ln.out[first].Addr)})
			}
			first++
		}
	}
	ln.out, ln.links = ln.out[:0], ln.links[:0]
}
