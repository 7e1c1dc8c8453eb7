package dns

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/weft-net/weft/internal/netdev"
)

// Port is the DNS port.
const Port = 53

// DockerBridge is the interface through which Docker's own containers reach the host.
const DockerBridge = "docker0"

// Listen is a place to listen at: an address, or all addresses of an interface. The interface and
// its addresses may appear and disappear.
type Listen struct {
	Interface string // "" if Addr is set
	Addr      netip.Addr
	Port      uint16
}

// ParseListen parses ADDRESS, INTERFACE, or either with :PORT. An IPv6 address with a port is in
// brackets.
func ParseListen(s string) (Listen, error) {
	bad := func() (Listen, error) {
		return Listen{}, fmt.Errorf("parse listen address %q: want an address or the name of an interface, with or without :PORT", s)
	}
	if a, err := parseAddr(s); err == nil {
		return Listen{Addr: a, Port: Port}, nil
	}
	host, port := s, uint16(Port)
	if h, p, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil || n == 0 {
			return bad()
		}
		host, port = h, uint16(n)
	}
	if a, err := parseAddr(host); err == nil {
		return Listen{Addr: a, Port: port}, nil
	}
	if !netdev.IsInterfaceName(host) || strings.Trim(host, "0123456789.") == "" { // it is a mistyped address
		return bad()
	}
	return Listen{Interface: host, Port: port}, nil
}

// parseAddr is netip.ParseAddr, except that a zone must be a valid interface name.
func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err == nil && a.Zone() != "" && !netdev.IsInterfaceName(a.Zone()) {
		err = fmt.Errorf("parse address %q: the zone is not a valid interface name", s)
	}
	return a.Unmap(), err
}

// String returns a form that ParseListen parses.
func (l Listen) String() string {
	if l.Interface != "" {
		return fmt.Sprintf("%s:%d", l.Interface, l.Port)
	}
	return netip.AddrPortFrom(l.Addr, l.Port).String()
}

// Listening is the state of a Listen.
type Listening struct {
	Listen
	Addrs []netip.AddrPort // the addresses where the server takes queries
	Fault string           // why it listens nowhere, or not at all addresses; "" if it does
	Idle  bool             // the Fault is only that there is no such interface, or no address of it
}

// resolve returns the current addresses of l. A missing interface is a Fault and not an error,
// because the interface may appear later.
func (l Listen) resolve() (v Listening) {
	v.Listen = l
	if l.Interface == "" {
		v.Addrs = []netip.AddrPort{netip.AddrPortFrom(l.Addr, l.Port)}
		return v
	}
	addrs, exists, err := netdev.InterfaceAddresses(l.Interface)
	switch {
	case err != nil:
		v.Fault = err.Error()
	case !exists:
		v.Fault, v.Idle = "there is no interface "+l.Interface, true
	case len(addrs) == 0:
		v.Fault, v.Idle = "interface "+l.Interface+" has no address", true
	}
	for _, a := range addrs {
		v.Addrs = append(v.Addrs, netip.AddrPortFrom(a, l.Port))
	}
	return v
}

// updateListeners makes the server listen at the current addresses of all Listens.
func (s *Service) updateListeners() {
	listening := make([]Listening, len(s.cfg.Listen))
	var all []netip.AddrPort
	for i, l := range s.cfg.Listen {
		listening[i] = l.resolve()
		for _, a := range listening[i].Addrs {
			if !slices.Contains(all, a) {
				all = append(all, a)
			}
		}
	}
	failed := s.server.Listen(all)
	for i := range listening {
		p := &listening[i]
		p.Addrs = slices.DeleteFunc(p.Addrs, func(a netip.AddrPort) bool {
			err := failed[a]
			if err != nil {
				p.Fault = err.Error()
			}
			return err != nil
		})
	}
	old := s.listening.Swap(&listening)
	for i, p := range listening {
		if old != nil && slices.Equal((*old)[i].Addrs, p.Addrs) && (*old)[i].Fault == p.Fault {
			continue
		}
		s.log.Info("listening for DNS queries", "listen", p.Listen, "addresses", p.Addrs, "fault", p.Fault)
	}
}
