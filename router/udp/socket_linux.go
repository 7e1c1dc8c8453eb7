package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bufferSize is what the socket's buffers are asked to hold in bytes: some ten
// milliseconds at 5 Gb/s, so that a reader that had to wait for a CPU loses
// nothing. The kernel counts its own overhead too.
const bufferSize = 8 << 20

// Socket is the Conn of the kernel.
type Socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	six  bool // whether it is an IPv6 socket, which IPv4 is mapped into
}

// Listen opens a socket at host, which may be empty for all addresses of both
// families, and port, which may be 0.
func Listen(host string, port int) (*Socket, error) {
	addr := net.JoinHostPort(host, strconv.Itoa(port))
	lc := net.ListenConfig{Control: func(network, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = setOptions(int(fd), network == "udp6") }); e != nil {
			return e
		}
		return err
	}}
	pc, err := lc.ListenPacket(context.Background(), "udp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %s: %w", addr, err)
	}
	s := &Socket{conn: pc.(*net.UDPConn)}
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		pc.Close()
		return nil, fmt.Errorf("listen on UDP %s: %w", addr, err)
	}
	if e := s.raw.Control(func(fd uintptr) {
		var domain int
		domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		s.six = domain == unix.AF_INET6
	}); e != nil || err != nil {
		pc.Close()
		return nil, fmt.Errorf("listen on UDP %s: ask for the family: %w", addr, errors.Join(e, err))
	}
	return s, nil
}

// setOptions makes buffers large and sets DF on all that is sent. PROBE, and
// not DO, as the kernel's idea of the path MTU comes from ICMP, which anybody
// may send.
func setOptions(fd int, six bool) error {
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], bufferSize) != nil {
			// Without the right to pass the system's limit, take the limit.
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[1], bufferSize); err != nil {
				return fmt.Errorf("set buffer of %d bytes: %w", bufferSize, err)
			}
		}
	}
	if six {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE); err != nil {
			return fmt.Errorf("set IPV6_MTU_DISCOVER: %w", err)
		}
	}
	// An IPv6 socket may carry IPv4 too, and then has both options.
	err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
	if err != nil && !six {
		return fmt.Errorf("set IP_MTU_DISCOVER: %w", err)
	}
	return nil
}

// LocalAddr implements Conn.
func (s *Socket) LocalAddr() netip.AddrPort {
	return s.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Close implements Conn.
func (s *Socket) Close() error { return s.conn.Close() }

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// vector is the memory that recvmmsg and sendmmsg work on.
type vector struct {
	s     *Socket
	msgs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrInet6 // large enough for both families
	from  int                     // of the call: first and behind the last
	to    int
	done  int
	errno syscall.Errno
	call  func(fd uintptr) bool // made once, so that a call allocates nothing
}

func newVector(s *Socket, batch int, call func(*vector, uintptr) bool) *vector {
	v := &vector{s: s, msgs: make([]mmsghdr, batch), iovs: make([]unix.Iovec, batch), names: make([]unix.RawSockaddrInet6, batch)}
	for i := range v.msgs {
		h := &v.msgs[i].hdr
		h.Iov = &v.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&v.names[i]))
	}
	v.call = func(fd uintptr) bool { return call(v, fd) }
	return v
}

// run makes one system call over msgs[from:to]; false means to wait.
func (v *vector) run(trap, fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(trap, fd, uintptr(unsafe.Pointer(&v.msgs[v.from])), uintptr(v.to-v.from), unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			v.done, v.errno = int(n), errno
			return true
		}
	}
}

type reader struct{ *vector }

// NewReader implements Conn.
func (s *Socket) NewReader(batch int) Reader {
	return reader{newVector(s, batch, func(v *vector, fd uintptr) bool { return v.run(unix.SYS_RECVMMSG, fd) })}
}

func (r reader) ReadBatch(m []Message) (int, error) {
	r.from, r.to = 0, min(len(m), len(r.msgs))
	for i := range r.to {
		r.iovs[i].Base = unsafe.SliceData(m[i].Buf)
		r.iovs[i].SetLen(len(m[i].Buf))
		r.msgs[i].hdr.Namelen = unix.SizeofSockaddrInet6
	}
	if err := r.s.raw.Read(r.call); err != nil {
		return 0, err
	}
	if r.errno != 0 {
		return 0, fmt.Errorf("receive on UDP %s: %w", r.s.LocalAddr(), r.errno)
	}
	for i := range r.done {
		m[i].N = int(r.msgs[i].n)
		m[i].Addr = fromRaw(&r.names[i])
	}
	return r.done, nil
}

type writer struct{ *vector }

// NewWriter implements Conn.
func (s *Socket) NewWriter(batch int) Writer {
	return writer{newVector(s, batch, func(v *vector, fd uintptr) bool { return v.run(unix.SYS_SENDMMSG, fd) })}
}

func (w writer) WriteBatch(m []Message) (sent int, err error) {
	for sent < len(m) {
		part := m[sent:min(len(m), sent+len(w.msgs))]
		for i := range part {
			w.iovs[i].Base = unsafe.SliceData(part[i].Buf)
			w.iovs[i].SetLen(part[i].N)
			w.msgs[i].hdr.Namelen = w.s.toRaw(&w.names[i], part[i].Addr)
		}
		for w.from, w.to = 0, len(part); w.from < w.to; w.from += w.done {
			if err := w.s.raw.Write(w.call); err != nil {
				return sent + w.from, err
			}
			if w.errno != 0 {
				return sent + w.from, w.errno
			}
		}
		sent += len(part)
	}
	return sent, nil
}

// toRaw writes a as the kernel wants it for this socket and returns the
// length.
func (s *Socket) toRaw(raw *unix.RawSockaddrInet6, a netip.AddrPort) uint32 {
	port := a.Port()<<8 | a.Port()>>8
	if bigEndian {
		port = a.Port()
	}
	if !s.six {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		*four = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port}
		if a.Addr().Is4() {
			four.Addr = a.Addr().As4()
		}
		return unix.SizeofSockaddrInet4
	}
	*raw = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: a.Addr().As16()}
	if z := a.Addr().Zone(); z != "" {
		// Zones are numbers here: fromRaw made them.
		if n, err := strconv.ParseUint(z, 10, 32); err == nil {
			raw.Scope_id = uint32(n)
		} else if i, err := net.InterfaceByName(z); err == nil {
			raw.Scope_id = uint32(i.Index)
		}
	}
	return unix.SizeofSockaddrInet6
}

func fromRaw(raw *unix.RawSockaddrInet6) netip.AddrPort {
	port := raw.Port<<8 | raw.Port>>8
	if bigEndian {
		port = raw.Port
	}
	if raw.Family == unix.AF_INET {
		four := (*unix.RawSockaddrInet4)(unsafe.Pointer(raw))
		return netip.AddrPortFrom(netip.AddrFrom4(four.Addr), port)
	}
	a := netip.AddrFrom16(raw.Addr).Unmap()
	if raw.Scope_id != 0 && a.IsLinkLocalUnicast() {
		a = a.WithZone(strconv.FormatUint(uint64(raw.Scope_id), 10))
	}
	return netip.AddrPortFrom(a, port)
}

var bigEndian = func() bool {
	x := uint16(1)
	return *(*byte)(unsafe.Pointer(&x)) == 0
}()
