package udp

import (
	"encoding/binary"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// maxUDP is the largest UDP payload that both IP versions carry.
	maxUDP = 65535 - 20 - 8
	// maxSegments is the largest number of datagrams that the kernel accepts as one:
	// UDP_MAX_SEGMENTS, which newer kernels doubled.
	maxSegments = 64
	// bufferLen holds any message of recvmsg.
	bufferLen = 65536
)

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// control is one control message with an integer of two bytes (UDP_SEGMENT) or
// four (UDP_GRO).
type control struct {
	hdr  unix.Cmsghdr
	data [8]byte
}

// vector is the memory that recvmmsg and sendmmsg work on.
type vector struct {
	s        *Socket
	trap     uintptr
	msgs     []mmsghdr
	iovs     []unix.Iovec
	names    []unix.RawSockaddrInet6 // large enough for both families
	controls []control
	from, to int  // of the call: first and behind the last
	poll     bool // do not wait: none done is a result, too
	done     int
	errno    syscall.Errno
	call     func(fd uintptr) bool // made once, so that a system call allocates nothing
}

func newVector(s *Socket, trap uintptr, batch, iovs int) *vector {
	v := &vector{s: s, trap: trap, msgs: make([]mmsghdr, batch), iovs: make([]unix.Iovec, iovs),
		names: make([]unix.RawSockaddrInet6, batch), controls: make([]control, batch)}
	for i := range v.msgs {
		v.msgs[i].hdr.Name = (*byte)(unsafe.Pointer(&v.names[i]))
	}
	v.call = v.run
	return v
}

// run makes one system call for msgs[from:to]. It is false if it must wait.
func (v *vector) run(fd uintptr) bool {
	for {
		n, errno := v.s.k.Mmsg(v.trap, fd, unsafe.Pointer(&v.msgs[v.from]), v.to-v.from)
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN:
			v.done, v.errno = 0, 0
			return v.poll
		default:
			v.done, v.errno = n, errno
			return true
		}
	}
}

type writer struct {
	*vector
	counts []int // of datagrams in each message
	alone  int   // number of the next datagrams to send one by one
	single bool  // send all one by one
}

// NewWriter implements Conn.
func (s *Socket) NewWriter(batch int) Writer {
	w := &writer{vector: newVector(s, unix.SYS_SENDMMSG, batch, batch*maxSegments), counts: make([]int, batch)}
	for i := range w.controls {
		w.controls[i].hdr.Level, w.controls[i].hdr.Type = unix.IPPROTO_UDP, unix.UDP_SEGMENT
		w.controls[i].hdr.SetLen(unix.CmsgLen(2))
	}
	return w
}

// NewSingleWriter implements Conn.
func (s *Socket) NewSingleWriter(batch int) Writer {
	return &writer{vector: newVector(s, unix.SYS_SENDMMSG, batch, batch), counts: make([]int, batch), single: true}
}

// WriteBatch implements Writer.
func (w *writer) WriteBatch(m []Message) (sent int, err error) {
	w.alone = 0
	refused := syscall.Errno(0) // why the kernel refused to segment
	for sent < len(m) {
		n := w.prepare(m[sent:])
		for w.from, w.to = 0, n; w.from < w.to; w.from += w.done {
			if err := w.s.raw.Write(w.call); err != nil {
				return sent, err
			}
			if w.errno == 0 {
				for _, c := range w.counts[w.from : w.from+w.done] {
					sent += c
					w.alone = max(0, w.alone-c)
				}
				continue
			}
			if w.counts[w.from] == 1 {
				return sent, w.errno
			}
			// Either a datagram is too big for the interface, or the kernel or the
			// interface does not segment. Sending one by one finds out.
			w.alone, refused = w.counts[w.from], w.errno
			break
		}
		if refused != 0 && w.alone == 0 {
			if refused == unix.EINVAL || refused == unix.EIO || refused == unix.ENOPROTOOPT || refused == unix.EOPNOTSUPP {
				w.s.segment.Store(false)
			}
			refused = 0
		}
	}
	return sent, nil
}

// prepare fills messages with the first datagrams of m, as many as fit, and returns the
// number of messages.
func (w *writer) prepare(m []Message) (n int) {
	segment := !w.single && w.s.segment.Load()
	if w.alone > 0 {
		// Find out about these first.
		segment, m = false, m[:w.alone]
	}
	iovs := w.iovs
	for at := 0; at < len(m) && n < len(w.msgs); n++ {
		count := 1
		if segment {
			count = gsoRun(m[at:])
		}
		for i := range count {
			iovs[i].Base = unsafe.SliceData(m[at+i].Buf)
			iovs[i].SetLen(m[at+i].N)
		}
		h := &w.msgs[n].hdr
		h.Iov = &iovs[0]
		h.SetIovlen(count)
		h.Namelen = w.s.toRaw(&w.names[n], m[at].Addr)
		h.Control = nil
		h.SetControllen(0)
		if count > 1 {
			c := &w.controls[n]
			binary.NativeEndian.PutUint16(c.data[:], uint16(m[at].N))
			h.Control = (*byte)(unsafe.Pointer(c))
			h.SetControllen(unix.CmsgSpace(2))
		}
		w.counts[n] = count
		iovs = iovs[count:]
		at += count
	}
	return n
}

// gsoRun returns the number of datagrams at the beginning of m that the kernel can accept
// as one: to one address and of one length, of which the last may be shorter.
func gsoRun(m []Message) int {
	size, total := m[0].N, m[0].N
	n := 1
	for n < len(m) && n < maxSegments && m[n-1].N == size && m[n].N <= size && m[n].N > 0 && total+m[n].N <= maxUDP && m[n].Addr == m[0].Addr {
		total += m[n].N
		n++
	}
	return n
}
