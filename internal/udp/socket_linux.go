package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bufferSize is the requested size of the socket's buffers in bytes, about ten
// milliseconds at 5 Gb/s, so that a reader that waited for a CPU loses nothing. It includes
// overhead of the kernel.
const bufferSize = 8 << 20

// Socket is the Conn of the kernel.
type Socket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	six  bool // whether it is an IPv6 socket, which IPv4 is mapped into
	k    Kernel

	// segment reports that writers pass several datagrams as one. It becomes false
	// when the kernel refuses that.
	segment atomic.Bool
	gro     bool // whether readers may be given several as one
}

// Kernel has the system calls of a Socket. Tests replace it by a lesser one.
type Kernel struct {
	// Offloads allows UDP_SEGMENT and UDP_GRO.
	Offloads bool
	// SetGRO sets the option UDP_GRO.
	SetGRO func(fd int) error
	// Mmsg is sendmmsg(2) and recvmmsg(2), by number: n structures at p, without
	// waiting. It is a raw system call, without notifying the scheduler of Go, which
	// would hand the processor to another thread during calls of more than 20
	// microseconds. Under bulk load that cost a fifth of the CPU.
	Mmsg func(trap, fd uintptr, p unsafe.Pointer, n int) (int, syscall.Errno)
}

// Linux is the Kernel of this host.
var Linux = Kernel{
	Offloads: true,
	SetGRO:   func(fd int) error { return unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1) },
	Mmsg: func(trap, fd uintptr, p unsafe.Pointer, n int) (int, syscall.Errno) {
		done, _, errno := unix.RawSyscall6(trap, fd, uintptr(p), uintptr(n), unix.MSG_DONTWAIT, 0, 0)
		return int(done), errno
	},
}

// Listen opens a socket. An empty host is all addresses of both families, and port 0 any
// port.
func Listen(host string, port int, k Kernel) (*Socket, error) {
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
	s := &Socket{conn: pc.(*net.UDPConn), k: k}
	s.segment.Store(k.Offloads)
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		pc.Close()
		return nil, fmt.Errorf("listen on UDP %s: %w", addr, err)
	}
	if e := s.raw.Control(func(fd uintptr) {
		var domain int
		domain, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		s.six = domain == unix.AF_INET6
		// Since Linux 5.0. Without it datagrams come one by one.
		s.gro = k.Offloads && k.SetGRO(int(fd)) == nil
	}); e != nil || err != nil {
		pc.Close()
		return nil, fmt.Errorf("listen on UDP %s: ask for the family: %w", addr, errors.Join(e, err))
	}
	return s, nil
}

// setOptions makes the buffers large and sets DF on all packets. It uses PROBE instead of
// DO, because the kernel learns its path MTU from ICMP, which anybody may send.
func setOptions(fd int, six bool) error {
	for _, o := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, o[0], bufferSize) != nil {
			// Without the right to exceed the limit of the system, use the limit.
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
	// An IPv6 socket may carry IPv4, too, and has both options then.
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

// Backlog implements Backlogger.
func (s *Socket) Backlog() (some bool) {
	_ = s.raw.Control(func(fd uintptr) {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
		some = n > 0 && err == nil
	}) // a closed socket has none
	return some
}

// Close implements Conn.
func (s *Socket) Close() error { return s.conn.Close() }

// Offloads returns the offloads in use, for status.
func (s *Socket) Offloads() string {
	switch seg := s.segment.Load(); {
	case seg && s.gro:
		return "segment, gro"
	case seg:
		return "segment"
	case s.gro:
		return "gro"
	}
	return "none"
}
