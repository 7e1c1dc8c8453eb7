// Package kerneltest is the kernel of one host in memory, for tests of the controller of
// the fast path. It follows the rules of the real one where the controller relies on
// them: pinned programs and maps outlive the controller, an interface that goes takes its
// program along, one WireGuard key has one entry, and rules and devices that another
// program removes are gone until somebody reinstalls them. TestContract holds it against
// the real kernel.
//
// Its clock is that of package time, so that it runs inside testing/synctest.
package kerneltest

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/wireguard"
)

// Machine is the kernel of one host. Make it with New. It is a fastpath.System, whose
// interfaces one controller after the other may open. Its methods are safe for
// concurrent use.
type Machine struct {
	t    testing.TB
	boot time.Time

	mu      sync.Mutex
	stalled chan struct{} // not nil: calls to the kernel wait until it is closed
	log     []string      // writes to the kernel, see Log

	refusal error // of OpenKernel
	device  error // of Kernel.Fast
	express error // of Kernel.Express
	noWG    error // of OpenTunnel

	interfaces map[int]*iface
	routes     map[netip.Addr]netdev.Hop
	ownRoutes  map[netip.Addr]netdev.OwnHop // that only packets between hosts use
	guarded    bool
	guards     netdev.Guarded // what was guarded last
	filter     netdev.Filter
	filterErr  error
	ipsec      []netip.Prefix
	watchers   []func() // of interfaces and routes
	observers  []func() // of rules

	pins   *pins // nil: nothing is pinned
	tunnel *tunnel
	users  int // that have the kernel open
}

type iface struct {
	port     netdev.Port     // of the bridge, if it is a container's
	underlay netdev.Underlay // if not
	program  bool
}

// pins is what outlives the process.
type pins struct {
	macs       map[[6]byte]kernel.MACEntry
	peers      map[uint16]kernel.PeerEntry
	remotes    map[netip.Addr]kernel.Remote
	neighbours map[netip.Addr]kernel.Neighbour
	plain      bool // a peer may send plain packets
	traffic    map[uint16]kernel.Traffic
	binding    kernel.Binding
	self       uint16
	express    bool
	until      time.Duration // on the clock of BootTime, 0 for never: when it stops forwarding
	devices    bool          // port and VXLAN device are there
	software   bool          // the kernel computes the checksums
	events     chan kernel.Event
}

// expired reports whether the router has been away for too long.
func (p *pins) expired(m *Machine) bool { return p.until != 0 && m.BootTime() >= p.until }

// New returns the kernel of a host that supports everything and has one interface of
// the underlay, with index Uplink.
func New(t testing.TB) *Machine {
	return &Machine{
		t: t, boot: time.Now().Add(-time.Hour), routes: make(map[netip.Addr]netdev.Hop),
		interfaces: map[int]*iface{Uplink: {underlay: netdev.Underlay{Ethernet: true, MTU: 1500}}},
	}
}

// Uplink is the index of the interface of the underlay that New makes, and TunnelIndex
// that of WireGuard's.
const (
	Uplink      = 2
	TunnelIndex = 6785
)

var _ fastpath.System = (*Machine)(nil)

// BootTime implements fastpath.System.
func (m *Machine) BootTime() time.Duration { return time.Since(m.boot) }

// Overlapping implements fastpath.System: the host has no route that overlaps.
func (m *Machine) Overlapping(netip.Prefix, ...string) ([]netdev.Route, error) { return nil, nil }

// Watch implements fastpath.System.
func (m *Machine) Watch() (fastpath.Watch, error) { return watch{m}, nil }

// OpenKernel implements fastpath.System.
func (m *Machine) OpenKernel(o kernel.Options) (fastpath.Kernel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refusal != nil {
		m.pins = nil // as the real one, it leaves nothing
		return nil, fmt.Errorf("open fast path: %w", m.refusal)
	}
	if m.users++; m.users > 1 {
		m.t.Error("the kernel is opened twice")
	}
	adopted := m.pins != nil
	if adopted && !o.Binding.Covers(m.pins.binding) {
		m.pins, adopted = nil, false
	}
	if m.pins == nil {
		m.pins = &pins{
			macs: make(map[[6]byte]kernel.MACEntry), peers: make(map[uint16]kernel.PeerEntry),
			neighbours: make(map[netip.Addr]kernel.Neighbour),
			remotes:    make(map[netip.Addr]kernel.Remote), traffic: make(map[uint16]kernel.Traffic), events: make(chan kernel.Event, 64),
		}
	}
	m.pins.devices, m.pins.software, m.pins.express = true, false, o.Express
	m.note("open, express %v", o.Express)
	m.pins.binding = o.Binding
	return &datapath{m: m, adopted: adopted}, nil
}

// SetBinding implements fastpath.Kernel.
func (d *datapath) SetBinding(b kernel.Binding) error {
	d.m.mu.Lock()
	defer d.m.mu.Unlock()
	d.m.pins.binding = b
	return nil
}

// RemoveKernel implements fastpath.System.
func (m *Machine) RemoveKernel(kernel.Options) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.pins = nil
	for _, i := range m.interfaces {
		i.program = false
	}
	m.note("remove")
	return nil
}

// OpenTunnel implements fastpath.System.
func (m *Machine) OpenTunnel(c wireguard.Config) (fastpath.Tunnel, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.noWG != nil {
		return nil, m.noWG
	}
	if m.tunnel == nil {
		m.tunnel = newTunnel(m, c)
	}
	return m.tunnel, nil
}

// RemoveTunnel implements fastpath.System.
func (m *Machine) RemoveTunnel(wireguard.Config) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tunnel = nil
	return nil
}

// RefuseKernel makes OpenKernel fail for this reason.
func (m *Machine) RefuseKernel(why error) { m.change(func() { m.refusal = why }) }

// RefuseVXLAN leaves the kernel without a VXLAN device for this reason.
func (m *Machine) RefuseVXLAN(why error) { m.change(func() { m.device = why }) }

// RefuseExpress leaves the kernel without express for this reason.
func (m *Machine) RefuseExpress(why error) { m.change(func() { m.express = why }) }

// RefuseTunnel leaves the kernel without WireGuard for this reason.
func (m *Machine) RefuseTunnel(why error) { m.change(func() { m.noWG = why }) }

// AddContainer adds the host's end of a container's veth to the bridge.
func (m *Machine) AddContainer(ifindex int) {
	m.change(func() {
		m.interfaces[ifindex] = &iface{port: netdev.Port{Name: fmt.Sprintf("veth%d", ifindex), Ifindex: ifindex}}
	})
}

// LimitContainer puts a queueing discipline that holds frames back on a veth.
func (m *Machine) LimitContainer(ifindex int) {
	m.change(func() { m.interfaces[ifindex].port.RateLimited = true })
}

// RemoveInterface removes an interface, with the program on it.
func (m *Machine) RemoveInterface(ifindex int) { m.change(func() { delete(m.interfaces, ifindex) }) }

// SetRoute sets the way to an address of the underlay.
func (m *Machine) SetRoute(to netip.Addr, h netdev.Hop) { m.change(func() { m.routes[to] = h }) }

// SetUnderlay sets the properties of an interface of the underlay.
func (m *Machine) SetUnderlay(ifindex int, u netdev.Underlay) {
	m.change(func() { m.interfaces[ifindex] = &iface{underlay: u} })
}

// change changes interfaces or routes, and reports it.
func (m *Machine) change(f func()) {
	m.mu.Lock()
	f()
	calls := slices.Clone(m.watchers)
	m.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// SetFilter sets what filters bridged frames; an error if that cannot be read.
func (m *Machine) SetFilter(f netdev.Filter, err error) {
	m.changeRules(func() { m.filter, m.filterErr = f, err })
}

// SetIPsec sets the networks of peers that IPsec applies to.
func (m *Machine) SetIPsec(p ...netip.Prefix) { m.changeRules(func() { m.ipsec = p }) }

// FlushRules removes the rules that guard the port, as another program may.
func (m *Machine) FlushRules() { m.changeRules(func() { m.guarded = false }) }

func (m *Machine) changeRules(f func()) {
	m.mu.Lock()
	f()
	calls := slices.Clone(m.observers)
	m.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// RemoveDevices removes the bridge's port and the VXLAN device, as another program may.
func (m *Machine) RemoveDevices() { m.change(func() { m.pins.devices = false }) }

// RemovePeer deletes the entry of a short id from the map of peers, as another program may.
func (m *Machine) RemovePeer(id uint16) { m.change(func() { delete(m.pins.peers, id) }) }

// RemoveTunnelDevice removes WireGuard's interface, as another program may.
func (m *Machine) RemoveTunnelDevice() { m.change(func() { m.tunnel.gone = true }) }

// Stall makes every call to the kernel wait until the function that it returns is
// called.
func (m *Machine) Stall() (resume func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	stalled := make(chan struct{})
	m.stalled = stalled
	return func() {
		m.mu.Lock()
		m.stalled = nil
		m.mu.Unlock()
		close(stalled)
	}
}

// lock locks mu when nothing stalls the kernel.
func (m *Machine) lock() {
	m.mu.Lock()
	for m.stalled != nil {
		wait := m.stalled
		m.mu.Unlock()
		<-wait
		m.mu.Lock()
	}
}

// See makes the kernel see a frame from a MAC address behind the peer with a short id,
// on the interface of a container of this host or on 0. If the map has the address
// elsewhere, an event reports it.
func (m *Machine) See(mac [6]byte, id uint16, ifindex int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, known := m.pins.macs[mac]
	if known && e.Peer == id && (ifindex == 0 || int(e.Ifindex) == ifindex) {
		e.Seen = uint64(time.Since(m.boot))
		m.pins.macs[mac] = e
		return
	}
	select {
	case m.pins.events <- kernel.Event{Addr: mac, Peer: id, Ifindex: uint32(ifindex), Old: e.Peer}:
	default: // as a ring buffer that is full
	}
}

// Carry counts frames that containers sent to the peer with a short id.
func (m *Machine) Carry(id uint16, frames uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.pins.traffic[id]
	t.TxPackets += frames
	m.pins.traffic[id] = t
}

// OwnRoutes returns the routes that only packets between hosts use.
func (m *Machine) OwnRoutes() map[netip.Addr]netdev.OwnHop {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.ownRoutes)
}

// Way is how the kernel forwards frames for a peer.
type Way string

// Ways.
const (
	ToRouter Way = "router"  // to the TAP
	Device   Way = "device"  // by the VXLAN device
	Bridged  Way = "bridged" // past the VXLAN device, across the bridge
	Express  Way = "express" // past both
)

// Way returns how a container's frames to the peer with a short id are forwarded.
func (m *Machine) Way(id uint16) Way {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pins == nil || m.device != nil {
		return ToRouter
	}
	e := m.pins.peers[id]
	switch {
	case e.Flags&kernel.PeerFast == 0, m.pins.expired(m):
		return ToRouter
	case e.Flags&kernel.PeerExpress != 0 && m.pins.express && m.express == nil:
		return Express
	case e.Flags&kernel.PeerDirect != 0:
		return Bridged
	}
	return Device
}

// NextHop returns the outer address that frames for a peer go to.
func (m *Machine) NextHop(id uint16) netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return kernel.ToAddr(m.pins.peers[id].Remote)
}

// Self returns the short id of the host.
func (m *Machine) Self() uint16 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pins.self
}

// Peer returns the entry of a short id.
func (m *Machine) Peer(id uint16) kernel.PeerEntry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pins.peers[id]
}

// Plain reports whether plain packets may come.
func (m *Machine) Plain() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pins.plain
}

// Echoes reports whether a probe to an address gets there and its echo back: the
// devices are there, and the address is that of a neighbour.
func (m *Machine) Echoes(to netip.Addr) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pins == nil || !m.pins.devices || m.pins.expired(m) {
		return false
	}
	_, known := m.pins.remotes[to]
	return known
}

// Remote returns the neighbour that an outer address is; false if it is none.
func (m *Machine) Remote(a netip.Addr) (uint16, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pins == nil || m.pins.expired(m) {
		return 0, false
	}
	r, ok := m.pins.remotes[a]
	return r.Peer, ok
}

// MAC returns an entry of the kernel's table; false if there is none.
func (m *Machine) MAC(mac [6]byte) (kernel.MACEntry, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pins == nil {
		return kernel.MACEntry{}, false
	}
	e, ok := m.pins.macs[mac]
	return e, ok
}

// Programs returns the interfaces that have a program of express, in order.
func (m *Machine) Programs() (list []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, f := range m.interfaces {
		if f.program {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}

// Guarded reports whether the rules that guard the port are installed.
func (m *Machine) Guarded() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guarded
}

// Guards returns what the rules are to guard.
func (m *Machine) Guards() netdev.Guarded {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.guards
}

// SoftwareChecksums reports whether the kernel computes the checksums inside VXLAN.
func (m *Machine) SoftwareChecksums() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.pins != nil && m.pins.software
}

// TunnelPeers returns WireGuard's entries by their addresses inside.
func (m *Machine) TunnelPeers() map[netip.Addr]wireguard.Peer {
	m.mu.Lock()
	t := m.tunnel
	m.mu.Unlock()
	if t == nil {
		return nil
	}
	return t.Peers()
}

// Log returns what was written to the kernel since the last call, a line for each
// change of how frames are forwarded.
func (m *Machine) Log() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.log
	m.log = nil
	return l
}

// note adds a line to Log. mu is held.
func (m *Machine) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

var errID = errors.New("ids have 12 bits and are not zero")
