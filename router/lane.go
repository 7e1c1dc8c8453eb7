package router

import (
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/frag"
	"github.com/weft-net/weft/router/gro"
	"github.com/weft-net/weft/router/icmp"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

const (
	// sendBatch is the largest number of packets that wait for one system call:
	// those of a few GSO packets of 64 KB. A smaller one costs system calls, a
	// larger one delay.
	sendBatch = 256
	// readBatch is the number of messages that one system call reads. Each may be up
	// to 64 KB of packets.
	readBatch = 8
	// smallFrame is the largest frame that shares a packet with others. For a
	// smaller frame a packet of its own costs more than the copy.
	smallFrame = 256
	// maxPacket is the largest UDP payload.
	maxPacket = 65535
	// maxGSO is the largest frame that a lane copies, in bytes.
	maxGSO = 65535 + 64
	// arenaLen holds the packets of sendBatch, or a few of the largest.
	arenaLen = 512 << 10
)

// lane is what one goroutine needs to send without asking another. It is not safe
// for concurrent use.
type lane struct {
	r        *Router
	id       uint8 // odd; the even number behind it is for sparse flows
	w        udp.Writer
	tap      tap.Writer
	can      tap.Offloads
	now      time.Duration // since the router's start, read once a batch
	metadata bool          // frames from the TAP may begin with a metadata header
	// sparse reports that the frames that are sent now belong to sparse flows.
	sparse bool

	nonce seal.Nonce
	out   []udp.Message // sealed, to be written by flush
	links []*sleeve     // of out
	// arena is memory for packets that cannot be made in place. out or batch may
	// refer to what is before used until flush.
	arena []byte
	used  int

	// batch collects small frames for one link.
	batch struct {
		link   *sleeve
		sparse bool
		buf    []byte // beginning with the packet's header
		n      int    // bytes, header included
		num    int    // frames
	}
	// deliver collects frames for the TAP, which are borrowed until flush.
	deliver *gro.Coalescer
	split   offload.Splitter // of the GSO packet that is being sent
	small   [smallFrame]byte // one of its segments
	whole   []byte           // of segment
	answer  [icmp.MaxLen]byte
	parts   [1][]byte // of an answer
	seq     uint32    // of fragmented frames
}

func (r *Router) newLane(id int, q tap.Queue) *lane {
	ln := &lane{
		r: r, id: uint8(id), w: r.conn.NewWriter(64), tap: q.NewWriter(), can: q.Offloads(), metadata: r.fast.Attached(),
		out: make([]udp.Message, 0, sendBatch), links: make([]*sleeve, 0, sendBatch),
		arena: make([]byte, arenaLen), deliver: gro.New(),
	}
	ln.deliver.TCP, ln.deliver.UDP = ln.can.TCP, ln.can.UDP
	return ln
}

// buffer returns n bytes of the arena. If there are none left it sends what waits.
// The memory of two calls in a row is contiguous.
func (ln *lane) buffer(n int) []byte {
	if ln.used+n > len(ln.arena) {
		ln.flush()
	}
	b := ln.arena[ln.used : ln.used+n : ln.used+n]
	ln.used += n
	return b
}

// frame is an Ethernet frame in a buffer, buf[at:end]. If own, the lane may write to
// the bytes of buf around it until flush: before it tap.Headroom, or what head and
// header took on arrival; behind it wire.AuthTagLen. If partial, it is a TCP segment
// or a UDP datagram with a partial checksum.
type frame struct {
	buf     []byte
	at, end int
	own     bool
	partial bool
}

func (f *frame) bytes() []byte { return f.buf[f.at:f.end] }

// complete fills in the checksum of a partial frame. A frame that is none, from a
// faulty peer, stays as it is.
func complete(b []byte) {
	if l, ok := offload.Parse(b); ok {
		offload.Complete(l.Partial(), b[:l.End])
	}
}

// send sends a frame on a link, after all frames that were sent on it before.
func (ln *lane) send(l *sleeve, h *wire.Head, f frame) {
	maxBody := int(l.maxBody.Load())
	if maxBody == 0 {
		l.drops.add(DropLinkDown)
		return
	}
	hl := h.Len()
	n := hl + f.end - f.at
	ln.r.carries(l, h, 1)
	switch {
	case n > maxBody:
		ln.oversize(l, h, f, maxBody)
	case n <= smallFrame && wire.BatchLen+n <= maxBody:
		ln.coalesce(l, h, f, maxBody)
	default:
		if ln.batch.link == l {
			ln.endBatch() // to keep the order
		}
		if !f.own {
			b, at := ln.buffer(wire.HeaderLen+n+wire.AuthTagLen), wire.HeaderLen+hl
			f = frame{buf: b, at: at, end: at + copy(b[at:], f.bytes()), partial: f.partial}
		}
		start := f.at - hl - wire.HeaderLen
		h.Put(f.buf[f.at-hl:])
		typ := wire.Data
		if f.partial {
			typ = wire.Partial
		}
		ln.seal(l, typ, f.buf[start:f.end])
	}
}

// sendGSO sends the segments of the GSO packet in split on a link.
func (ln *lane) sendGSO(l *sleeve, h *wire.Head) {
	s := &ln.split
	count := s.Count()
	maxBody := int(l.maxBody.Load())
	if maxBody == 0 {
		l.drops[DropLinkDown].Add(uint64(count))
		return
	}
	ln.r.carries(l, h, uint64(count))
	hl := h.Len()
	if hl+s.Len(0) > maxBody {
		ln.oversizeGSO(l, h, maxBody)
		return
	}
	for i := range count {
		n := s.Len(i)
		if hl+n <= smallFrame && wire.BatchLen+hl+n <= maxBody {
			b := ln.small[:n]
			s.PutComplete(b, i)
			ln.coalesce(l, h, frame{buf: b, end: n}, maxBody)
			continue
		}
		if ln.batch.link == l {
			ln.endBatch()
		}
		b := ln.buffer(wire.HeaderLen + hl + n + wire.AuthTagLen)
		h.Put(b[wire.HeaderLen:])
		s.PutPartial(b[wire.HeaderLen+hl:], i)
		ln.seal(l, wire.Partial, b[:wire.HeaderLen+hl+n])
	}
}

// oversizeGSO handles a GSO packet whose segments do not fit into a packet of the
// link. They are not segmented again, as the sender and its peer agreed on their
// size. The sender gets at most one ICMP message.
func (ln *lane) oversizeGSO(l *sleeve, h *wire.Head, maxBody int) {
	s := &ln.split
	for i := range s.Count() {
		b := ln.segment(s.Len(i))
		s.PutComplete(b, i)
		if i == 0 && ln.refuseTooBig(l, h, b, maxBody) {
			l.txFrames.Add(uint64(s.Count()))
			l.drops[DropTooBig].Add(uint64(s.Count()))
			return
		}
		ln.send(l, h, frame{buf: b, end: len(b)})
	}
}

// segment returns memory for one frame outside the arena. It is valid until the next
// call.
func (ln *lane) segment(n int) []byte {
	if len(ln.whole) < n {
		ln.whole = make([]byte, maxGSO)
	}
	return ln.whole[:n:n]
}

// coalesce adds a small frame to the batch of its link.
func (ln *lane) coalesce(l *sleeve, h *wire.Head, f frame, maxBody int) {
	t, b := &ln.batch, f.bytes()
	hl := h.Len()
	n := wire.BatchLen + hl + len(b)
	if t.link != l || t.sparse != ln.sparse || t.n+n > wire.HeaderLen+maxBody {
		ln.endBatch()
	}
	if t.link == nil {
		t.buf = ln.buffer(wire.HeaderLen + maxBody + wire.AuthTagLen)
		t.link, t.sparse, t.n, t.num = l, ln.sparse, wire.HeaderLen, 0
	}
	wire.PutBatchLen(t.buf[t.n:], hl+len(b))
	h.Put(t.buf[t.n+wire.BatchLen:])
	to := t.buf[t.n+wire.BatchLen+hl : t.n+n]
	copy(to, b)
	if f.partial {
		complete(to)
	}
	t.n += n
	t.num++
}

// endBatch seals the batch. A batch of one frame becomes an ordinary packet.
func (ln *lane) endBatch() {
	t := &ln.batch
	l := t.link
	if l == nil {
		return
	}
	t.link = nil
	was := ln.sparse
	ln.sparse = t.sparse
	if t.num == 1 {
		// The header moves over the length.
		ln.seal(l, wire.Data, t.buf[wire.BatchLen:t.n])
	} else {
		ln.seal(l, wire.Batch, t.buf[:t.n])
	}
	ln.sparse = was
}

// seal makes a packet in place and queues it. The memory must not change until
// flush.
func (ln *lane) seal(l *sleeve, typ wire.Type, b []byte) {
	addr := l.addr.Load()
	if addr == nil {
		l.drops.add(DropLinkDown)
		return
	}
	ln.sealTo(l, *addr, typ, b)
}

// sealTo is seal for a packet to an address other than the link's.
func (ln *lane) sealTo(l *sleeve, addr netip.AddrPort, typ wire.Type, b []byte) {
	tx := l.tx.Load()
	if tx == nil {
		l.drops.add(DropLinkDown)
		return
	}
	id := ln.id
	if ln.sparse {
		id++
	}
	p, err := tx.Seal(typ, id, b, &ln.nonce)
	if err != nil {
		l.drops.add(DropSend)
		return
	}
	ln.out = append(ln.out, udp.Message{Buf: p, N: len(p), Addr: addr})
	ln.links = append(ln.links, l)
	if len(ln.out) == cap(ln.out) {
		ln.write()
	}
}

// oversize handles a frame that does not fit into a packet. If it must not be
// fragmented its sender gets an ICMP message, else it is fragmented.
func (ln *lane) oversize(l *sleeve, h *wire.Head, f frame, maxBody int) {
	// The sender of a sealed frame has handled that for the first hop.
	if !h.Sealed && ln.refuseTooBig(l, h, f.bytes(), maxBody) {
		l.drops.add(DropTooBig)
		return
	}
	b := f.bytes()
	if f.partial {
		b = ln.segment(len(b))
		copy(b, f.bytes())
		complete(b)
	}
	ln.sendFragments(l, h, b, maxBody)
}

// refuseTooBig sends an ICMP message to the sender of a frame that is too big. It is
// false if the frame must be fragmented instead. Broadcast frames always are,
// because there is no one path whose MTU the sender could learn; likewise those to groups.
func (ln *lane) refuseTooBig(l *sleeve, h *wire.Head, b []byte, maxBody int) bool {
	_, offset, ok := ethernet.Payload(b)
	if !ok || h.ToAll() || b[0]&1 != 0 {
		return false
	}
	a := icmp.TooBig(ln.answer[:0], b, maxBody-h.Len()-offset)
	if a == nil {
		return false
	}
	if l.icmpLimit.Allow() {
		ln.sendTooBig(h, a)
	}
	return true
}

// sendFragments sends a frame in fragments. The frame must not be in the arena.
func (ln *lane) sendFragments(l *sleeve, h *wire.Head, b []byte, maxBody int) {
	hl := h.Len()
	n := hl + len(b)
	size, count, ok := frag.Parts(n, maxBody)
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
		from, to := fh.Offset, min(fh.Offset+size, n)
		p := ln.buffer(wire.HeaderLen + wire.FragmentHeadLen + to - from + wire.AuthTagLen)
		fh.Put(p[wire.HeaderLen:])
		end := wire.HeaderLen + wire.FragmentHeadLen
		if from < hl {
			c := copy(p[end:], head[from:min(hl, to)])
			end, from = end+c, from+c
		}
		if from < to {
			end += copy(p[end:], b[from-hl:to-hl])
		}
		ln.seal(l, wire.Fragment, p[:end])
	}
}

// sendTooBig sends an ICMP message to where the frame with head h came from. Its
// source is the peer that the frame was for, where the ICMP message's source address
// is, so that nobody learns that address elsewhere.
func (ln *lane) sendTooBig(h *wire.Head, answer []byte) {
	fib := ln.r.fib.Load()
	src, dst := fib.self, fib.self
	switch h.Kind {
	case wire.Routed:
		src, dst = fib.routes.ByID[h.SrcID], fib.routes.ByID[h.DstID]
	case wire.RoutedLong:
		src, dst = h.Src, h.Dst
	}
	if src == fib.self {
		ln.hostAnswer(answer)
		return
	}
	p, ok := fib.paths[src]
	if !ok || dst.IsZero() {
		ln.r.drops.add(DropNoRoute)
		return
	}
	back := fib.head(dst, src)
	ln.send(p.link, &back, frame{buf: answer, end: len(answer)})
}

// flush sends everything that waits. Afterwards no buffer is referred to.
func (ln *lane) flush() {
	ln.flushTAP()
	ln.endBatch()
	ln.write()
	ln.used = 0
}

// write hands the queue to the kernel. A packet that the kernel refuses is counted
// at its link and does not hold up the next ones.
func (ln *lane) write() {
	for first := 0; first < len(ln.out); {
		n, err := ln.w.WriteBatch(ln.out[first:])
		for i := first; i < first+n; i++ {
			ln.links[i].countSent(ln.out[i].N)
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
