package udp

import (
	"net"
	"net/netip"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// toRaw writes a in the form that the kernel needs for this socket, and returns the
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
		// Zones are numbers, as fromRaw makes them.
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
