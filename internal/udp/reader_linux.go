package udp

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// readerSlots is the number of messages of up to 64 KB that a reader holds: one
	// or two milliseconds of a full link, in 2 MB.
	readerSlots = 32
	// A batch of datagrams that are not urgent has at most unitBytes, so that there is
	// much to join, but only quickBytes while urgent ones come, which wait for the
	// batch. There are none any more after urgentGone batches without one, some
	// milliseconds of a full link. So probes of links, and forged packets, cost little
	// throughput.
	unitBytes  = 256 << 10
	quickBytes = 64 << 10
	urgentGone = 32
)

// reader reads ahead, so that it can return urgent datagrams first.
type reader struct {
	*vector
	bufs   []byte // of bufferLen each, one behind the other
	slots  []slot
	urgent func(b []byte) bool // nil: none is

	// Numbers of slots: empty ones, full ones in the order of arrival, and those of
	// the caller.
	free, first, rest, lent []int
	held                    int // slots of rest with urgent datagrams
	wasUrgent               bool
	sinceUrgent             int    // batches since there was an urgent message
	seq                     uint64 // of the last message that came
	out                     []Message
}

// slot is a message of the kernel: datagrams of one size from one address, of which the
// last may be shorter.
type slot struct {
	n, size int
	addr    netip.AddrPort
	held    bool   // it has urgent datagrams, but is in rest
	seq     uint64 // it came as the seq-th
}

// NewReader implements Conn.
func (s *Socket) NewReader(batch int) Reader {
	r := &reader{vector: newVector(s, unix.SYS_RECVMMSG, batch, batch), bufs: make([]byte, readerSlots*bufferLen),
		slots: make([]slot, readerSlots), sinceUrgent: urgentGone, out: make([]Message, 0, readerSlots*maxSegments)}
	for _, list := range []*[]int{&r.free, &r.first, &r.rest, &r.lent} {
		*list = make([]int, 0, readerSlots)
	}
	for i := range r.slots {
		r.free = append(r.free, i)
	}
	return r
}

// Prioritize implements Prioritizer.
func (r *reader) Prioritize(urgent func(b []byte) bool) { r.urgent = urgent }

// ReadBatch implements Reader.
func (r *reader) ReadBatch() ([]Message, error) {
	r.free, r.lent = append(r.free, r.lent...), r.lent[:0]
	for len(r.free) > 0 {
		asked := min(len(r.msgs), len(r.free))
		if err := r.receive(asked); err != nil {
			return nil, err
		}
		if r.done < asked {
			break // there are no more
		}
	}
	r.choose()
	r.out = r.out[:0]
	for _, i := range r.lent {
		s := &r.slots[i]
		b := r.buf(i)[:s.n]
		for {
			n := min(s.size, len(b))
			r.out = append(r.out, Message{Buf: b[:n:n], N: n, Addr: s.addr})
			if b = b[n:]; len(b) == 0 {
				break
			}
		}
	}
	return r.out, nil
}

// choose moves the messages of the next batch to lent. Urgent ones go first, but take
// turns with messages that came before them, which would else starve. Messages that came
// after them never go before them: they may be of a flow whose packets were urgent until
// then.
func (r *reader) choose() {
	var bound uint64 = math.MaxUint64
	if len(r.first) > 0 {
		bound = r.slots[r.first[0]].seq
	}
	if r.wasUrgent = len(r.first) > 0 && (!r.wasUrgent || len(r.rest) == 0 || r.slots[r.rest[0]].seq > bound); r.wasUrgent {
		r.lent, r.first = append(r.lent, r.first...), r.first[:0]
		r.sinceUrgent = 0
		return
	}
	unit := unitBytes
	if r.sinceUrgent++; r.sinceUrgent < urgentGone {
		unit = quickBytes
	}
	n, size := 0, 0
	for n < len(r.rest) && size < unit && r.slots[r.rest[n]].seq < bound {
		s := &r.slots[r.rest[n]]
		if size += s.n; s.held {
			r.held--
		}
		n++
	}
	r.lent = append(r.lent, r.rest[:n]...)
	r.rest = r.rest[:copy(r.rest, r.rest[n:])]
}

func (r *reader) buf(i int) []byte { return r.bufs[i*bufferLen:][:bufferLen] }

// receive fills up to n free slots. It waits only if no slot is full.
func (r *reader) receive(n int) error {
	free := r.free[len(r.free)-n:]
	for i, at := range free {
		h := &r.msgs[i].hdr
		h.Iov = &r.iovs[i]
		h.SetIovlen(1)
		r.iovs[i].Base = &r.bufs[at*bufferLen]
		r.iovs[i].SetLen(bufferLen)
		h.Namelen = unix.SizeofSockaddrInet6
		if r.s.gro {
			h.Control = (*byte)(unsafe.Pointer(&r.controls[i]))
			h.SetControllen(int(unsafe.Sizeof(control{})))
		}
	}
	r.from, r.to, r.poll = 0, n, len(r.first)+len(r.rest) > 0
	if err := r.s.raw.Read(r.call); err != nil {
		return err
	}
	if r.errno != 0 {
		return fmt.Errorf("receive on UDP %s: %w", r.s.LocalAddr(), r.errno)
	}
	for i, at := range free[:r.done] {
		s := &r.slots[at]
		r.seq++
		s.n, s.addr, s.seq = int(r.msgs[i].n), fromRaw(&r.names[i]), r.seq
		s.size = s.n
		if r.s.gro {
			s.size = r.segmentSize(i, s.n)
		}
		some, all := r.areUrgent(r.buf(at)[:s.n], s.size)
		// Urgent datagrams stay behind others in the same message, and behind urgent
		// ones that do: they may be of one flow.
		if s.held = some && (!all || r.held > 0); s.held {
			r.held++
		}
		if some && !s.held {
			r.first = append(r.first, at)
		} else {
			r.rest = append(r.rest, at)
		}
	}
	r.free = append(r.free[:len(r.free)-n], free[r.done:]...)
	return nil
}

// areUrgent reports whether some of the datagrams in b are urgent, and whether all are.
// Each has size bytes, the last may have fewer. A message may have both kinds, as a network
// card may join all datagrams of a peer.
func (r *reader) areUrgent(b []byte, size int) (some, all bool) {
	if r.urgent == nil {
		return false, false
	}
	for all = true; ; b = b[size:] {
		if r.urgent(b[:min(size, len(b))]) {
			some = true
		} else {
			all = false
		}
		if len(b) <= size {
			return some, all
		}
	}
}

// segmentSize returns the length of each datagram in message i of n bytes. The last may
// be shorter.
func (r *reader) segmentSize(i, n int) int {
	c := &r.controls[i]
	if int(r.msgs[i].hdr.Controllen) < unix.CmsgLen(4) || c.hdr.Level != unix.IPPROTO_UDP || c.hdr.Type != unix.UDP_GRO {
		return n
	}
	size := int(int32(binary.NativeEndian.Uint32(c.data[:])))
	if size <= 0 {
		return n
	}
	return size
}
