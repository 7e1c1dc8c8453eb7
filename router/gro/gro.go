// Package gro joins consecutive frames of one flow into GSO packets, as the kernel's
// generic receive offload does, so that a batch of packets costs the host one pass
// through its bridge and its stack.
//
// Package offload would segment the GSO packet into the same frames again, byte for
// byte. The rules are those of
// tcp_gro_receive, udp_gro_receive, inet_gro_receive and ipv6_gro_receive of
// the kernel, and stricter in places:
//
//   - all headers are equal, VLAN tags, TOS with its ECN bits, TTL and flow label
//     included; IPv4 options and IPv6 extension headers never join
//   - IPv4 identifications count up by one, or, with DF, are all the same
//   - TCP: the sequence numbers follow each other, acknowledgement, window,
//     urgent pointer, options (so timestamps) and flags are equal, except that CWR
//     may be on the first only, and PSH or FIN end the GSO packet; SYN, RST and
//     URG never join, nor does a segment without payload
//   - each payload has the length of the first, and a shorter one is the last;
//     the same for datagrams, and those without a checksum never join
//   - every checksum is right, or was left to the kernel on the host the frame
//     comes from and is authenticated since
//
// Other frames pass unchanged. Frames of one flow keep their order, and so do frames
// whose flow cannot be determined.
package gro

import (
	"bytes"
	"encoding/binary"

	"github.com/weft-net/weft/router/offload"
)

// Bounds of a Coalescer and of the packets that it makes.
const (
	maxFrames   = 1024  // added until Reset
	maxOpen     = 32    // flows that may still grow
	maxPacket   = 65535 // IP packet
	maxSegments = 256   // of a GSO packet, each of which is a part to write
	maxUDP      = 64    // of a datagram GSO packet: UDP_GRO_CNT_MAX of the kernel
)

// TCP flags (RFC 9293 section 3.1, RFC 3168).
const (
	flagFIN = 0x01
	flagSYN = 0x02
	flagRST = 0x04
	flagPSH = 0x08
	flagURG = 0x20
	flagCWR = 0x80
)

// Coalescer collects the frames of a batch. Make it with New. It is not safe for
// concurrent use. After New it allocates nothing.
type Coalescer struct {
	// TCP and UDP enable joining for the protocol; New sets both.
	TCP, UDP bool

	items []item
	segs  []segment
	open  []int // items that may still grow, each of another flow
	parts [][]byte
}

// item is an ordinary frame, or a GSO packet in the making.
type item struct {
	frame   []byte // the first one
	layout  offload.Layout
	flow    bool // whether layout counts
	partial bool // the transport checksum is the pseudo-header's only
	checked bool // the transport checksum is known to be right
	sameID  bool // IPv4 identifications do not count up

	count       int
	size        int // payload of the first, and of each but the last
	total       int // payload of all
	flags       byte
	first, last int // in segs, of what follows the first frame; -1 for none
}

// segment is a payload that was joined to an item.
type segment struct {
	payload []byte
	next    int
}

// New returns an empty Coalescer.
func New() *Coalescer {
	return &Coalescer{
		TCP: true, UDP: true,
		items: make([]item, 0, maxFrames), segs: make([]segment, 0, maxFrames),
		open: make([]int, 0, maxOpen), parts: make([][]byte, 0, maxFrames+1),
	}
}

// Full reports whether Reset must be called before the next Add.
func (c *Coalescer) Full() bool { return len(c.items)+len(c.segs) == maxFrames }

// Add adds a frame. The frame is borrowed until Reset, and its headers may be
// changed. If partial, its TCP or UDP checksum is that of the pseudo-header only.
func (c *Coalescer) Add(frame []byte, partial bool) {
	it := item{frame: frame, partial: partial, checked: partial, count: 1, first: -1, last: -1}
	if !c.TCP && !c.UDP && !partial {
		c.items = append(c.items, it)
		return
	}
	l, ok := offload.Parse(frame)
	if !ok {
		// Perhaps a fragment, which belongs between two frames of its flow.
		c.open = c.open[:0]
		c.items = append(c.items, it)
		return
	}
	it.layout, it.flow = l, true
	it.size = l.End - l.Payload
	it.total = it.size
	if l.Proto == offload.ProtoTCP {
		it.flags = frame[l.L4+13]
	}
	able := it.joinable() && (c.TCP && l.Proto == offload.ProtoTCP || c.UDP && l.Proto == offload.ProtoUDP)
	for i, at := range c.open {
		old := &c.items[at]
		if !sameFlow(old, &it) {
			continue
		}
		joined := false
		if able {
			joined = c.join(old, &it)
		}
		if joined && !old.ended() {
			return
		}
		// It cannot grow any more, or what follows it must not overtake.
		c.open[i] = c.open[len(c.open)-1]
		c.open = c.open[:len(c.open)-1]
		if joined {
			return
		}
		break
	}
	c.items = append(c.items, it)
	if able && !it.ended() {
		if len(c.open) == maxOpen {
			copy(c.open, c.open[1:])
			c.open = c.open[:maxOpen-1]
		}
		c.open = append(c.open, len(c.items)-1)
	}
}

// joinable reports whether the frame can be part of a GSO packet at all.
func (it *item) joinable() bool {
	l := &it.layout
	if it.size == 0 || !l.Plain || !l.ValidIP(it.frame) {
		return false
	}
	if l.Proto == offload.ProtoUDP {
		return it.partial || binary.BigEndian.Uint16(it.frame[l.SumAt():]) != 0
	}
	return it.flags&(flagSYN|flagRST|flagURG) == 0
}

// ended reports whether nothing may be joined to the item any more.
func (it *item) ended() bool {
	return it.flags&(flagPSH|flagFIN) != 0 || it.total < it.count*it.size || it.count == maxSegments ||
		it.layout.Proto == offload.ProtoUDP && it.count == maxUDP
}

// sameFlow reports whether two frames have the same protocol, addresses and ports
// in the same VLAN.
func sameFlow(a, b *item) bool {
	x, y := &a.layout, &b.layout
	if x.IP != y.IP || x.Six != y.Six || x.Proto != y.Proto {
		return false
	}
	// Ports first: they differ most often.
	if [4]byte(a.frame[x.L4:]) != [4]byte(b.frame[y.L4:]) {
		return false
	}
	at, end := x.IP+12, x.IP+20
	if x.Six {
		at, end = x.IP+8, x.IP+40
	}
	return bytes.Equal(a.frame[at:end], b.frame[at:end]) && bytes.Equal(a.frame[12:x.IP], b.frame[12:x.IP])
}

// join appends segment next to old if next follows it in sequence. next is joinable and
// of old's flow.
func (c *Coalescer) join(old, next *item) bool {
	l := &old.layout
	if next.size > old.size || l.Payload != next.layout.Payload || l.Payload-l.IP+old.total+next.size > maxPacket {
		return false
	}
	a, b := old.frame[:l.Payload], next.frame[:l.Payload]
	if [12]byte(a) != [12]byte(b) {
		return false
	}
	sameID := false
	if l.Six {
		// Version, traffic class, flow label; next header, hop limit.
		if [4]byte(a[l.IP:]) != [4]byte(b[l.IP:]) || [2]byte(a[l.IP+6:]) != [2]byte(b[l.IP+6:]) {
			return false
		}
	} else {
		// Version, header length, TOS; flags and offset, TTL, protocol.
		if [2]byte(a[l.IP:]) != [2]byte(b[l.IP:]) || [4]byte(a[l.IP+6:]) != [4]byte(b[l.IP+6:]) {
			return false
		}
		first, id := binary.BigEndian.Uint16(a[l.IP+4:]), binary.BigEndian.Uint16(b[l.IP+4:])
		switch df := a[l.IP+6]&0x40 != 0; {
		case id == first+uint16(old.count) && !old.sameID:
		case id == first && df && (old.sameID || old.count == 1):
			sameID = true
		default:
			return false
		}
	}
	if l.Proto == offload.ProtoTCP {
		x, y := a[l.L4:], b[l.L4:]
		if binary.BigEndian.Uint32(y[4:]) != binary.BigEndian.Uint32(x[4:])+uint32(old.total) ||
			[4]byte(x[8:]) != [4]byte(y[8:]) || // acknowledgement
			x[12] != y[12] || // header length
			y[13]&flagCWR != 0 || (x[13]^y[13])&^(flagCWR|flagFIN|flagPSH) != 0 ||
			[2]byte(x[14:]) != [2]byte(y[14:]) || // window
			[2]byte(x[18:]) != [2]byte(y[18:]) || // urgent pointer
			!bytes.Equal(x[20:], y[20:]) {
			return false
		}
	}
	if !old.check() || !next.check() {
		return false
	}
	c.segs = append(c.segs, segment{payload: next.frame[l.Payload:next.layout.End], next: -1})
	if last := len(c.segs) - 1; old.first < 0 {
		old.first, old.last = last, last
	} else {
		c.segs[old.last].next, old.last = last, last
	}
	old.count++
	old.total += next.size
	old.flags |= next.flags
	old.sameID = sameID
	return true
}

// check makes sure that the transport checksum is right. Frames that are not merged
// are not checked here; the receiver checks them.
func (it *item) check() bool {
	it.checked = it.checked || it.layout.Valid(it.frame)
	return it.checked
}

// Len returns the number of packets, ordinary or GSO, that the batch became.
func (c *Coalescer) Len() int { return len(c.items) }

// Frame returns packet i of the batch: its parts, which are valid until the next
// call, the offloads that remain for the kernel, and the number of frames that it
// consists of. It may be called once for each i.
func (c *Coalescer) Frame(i int) (h offload.Header, parts [][]byte, frames int) {
	it := &c.items[i]
	l := &it.layout
	if it.count == 1 {
		if it.partial && it.flow {
			h = l.Partial()
		}
		return h, append(c.parts[:0], it.frame), 1
	}
	f := it.frame
	parts = append(c.parts[:0], f[:l.End])
	for s := it.first; s >= 0; s = c.segs[s].next {
		parts = append(parts, c.segs[s].payload)
	}
	end := l.Payload + it.total
	l.SetLen(f, end)
	h = l.Partial()
	h.Kind, h.HeaderLen, h.Size = offload.UDP, uint16(l.Payload), uint16(it.size)
	if l.Proto == offload.ProtoTCP {
		h.Kind = offload.TCP4
		if l.Six {
			h.Kind = offload.TCP6
		}
		f[l.L4+13] = it.flags
		h.ECN = it.flags&flagCWR != 0
	}
	binary.BigEndian.PutUint16(f[l.SumAt():], l.PseudoSum(f, end-l.L4))
	return h, parts, it.count
}

// Reset forgets the batch.
func (c *Coalescer) Reset() {
	clear(c.items)
	clear(c.segs)
	c.items, c.segs, c.open = c.items[:0], c.segs[:0], c.open[:0]
}
