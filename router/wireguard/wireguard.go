package wireguard

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/weft-net/weft/internal/count"
)

// Config describes the interface.
type Config struct {
	Name   string
	Port   int          // UDP
	MTU    int          // of packets inside, in bytes
	Inside netip.Prefix // addresses of neighbours, and of nobody else
}

// Peer is a neighbour. It is comparable.
type Peer struct {
	Key      [32]byte       // its public key
	Secret   [32]byte       // pre-shared
	Endpoint netip.AddrPort // on the underlay
	Inside   netip.Addr
}

// Device is the interface. Make it with Open. It is not safe for concurrent use.
type Device struct {
	cfg   Config
	ctl   *wgctrl.Client
	h     *netlink.Handle
	link  netlink.Link
	key   [32]byte   // public
	self  netip.Addr // of this host inside the tunnel; invalid if not known
	peers map[netip.Addr]Peer
}

// Open makes the interface in the network namespace of the calling thread, or takes over
// an existing one with its key and peers. If the kernel has no WireGuard it returns an
// error that says so, and leaves nothing.
func Open(c Config) (_ *Device, err error) {
	d := &Device{cfg: c, peers: make(map[netip.Addr]Peer)}
	defer func() {
		if err != nil {
			d.Close()
		}
	}()
	if d.h, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	if err := d.make(); err != nil {
		return nil, err
	}
	if d.ctl, err = wgctrl.New(); err != nil {
		return nil, fmt.Errorf("open WireGuard's netlink: %w", err)
	}
	if err := d.configure(); err != nil {
		return nil, err
	}
	return d, nil
}

// make makes the interface, and the route that keeps its packets from leaving in clear
// text.
func (d *Device) make() error {
	// The route first: while it exists nothing leaves in clear text. The kernel does
	// not report an existing one as a change.
	err := d.h.RouteReplace(&netlink.Route{
		Dst: ipNet(d.cfg.Inside), Type: unix.RTN_UNREACHABLE, Priority: lastResort, Protocol: unix.RTPROT_STATIC,
	})
	if err != nil {
		return fmt.Errorf("make %s unreachable except by %s: %w", d.cfg.Inside, d.cfg.Name, err)
	}
	link, err := d.h.LinkByName(d.cfg.Name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = d.cfg.Name
		if err := d.h.LinkAdd(&netlink.Wireguard{LinkAttrs: attrs}); err != nil {
			_ = d.removeRoute()
			if errors.Is(err, unix.EOPNOTSUPP) {
				return errors.New("this kernel has no WireGuard")
			}
			return fmt.Errorf("make WireGuard interface %s: %w", d.cfg.Name, err)
		}
		link, err = d.h.LinkByName(d.cfg.Name)
	}
	switch {
	case err != nil:
		return fmt.Errorf("look up %s: %w", d.cfg.Name, err)
	case link.Type() != "wireguard":
		return fmt.Errorf("take over %s: it is of type %s, not wireguard", d.cfg.Name, link.Type())
	}
	d.link = link
	if d.link.Attrs().MTU != d.cfg.MTU {
		if err := d.h.LinkSetMTU(d.link, d.cfg.MTU); err != nil {
			return fmt.Errorf("set mtu %d of %s: %w", d.cfg.MTU, d.cfg.Name, err)
		}
	}
	return nil
}

// lastResort is the metric of a route that every other one is better than.
const lastResort = 1<<31 - 1

// configure sets the port and, if there is none, a key, and reads the peers that an
// earlier process made.
func (d *Device) configure() error {
	dev, err := d.ctl.Device(d.cfg.Name)
	if err != nil {
		return fmt.Errorf("read WireGuard interface %s: %w", d.cfg.Name, err)
	}
	var change wgtypes.Config
	private := dev.PrivateKey
	if private == (wgtypes.Key{}) {
		if private, err = wgtypes.GeneratePrivateKey(); err != nil {
			return fmt.Errorf("make a key for %s: %w", d.cfg.Name, err)
		}
		change.PrivateKey = &private
	}
	d.key = private.PublicKey()
	if dev.ListenPort != d.cfg.Port {
		change.ListenPort = &d.cfg.Port
	}
	for _, p := range dev.Peers {
		q := Peer{Key: p.PublicKey, Secret: p.PresharedKey}
		if p.Endpoint != nil {
			q.Endpoint = unmap(p.Endpoint.AddrPort())
		}
		one := len(p.AllowedIPs) == 1
		if one {
			q.Inside, one = netip.AddrFromSlice(p.AllowedIPs[0].IP)
			q.Inside = q.Inside.Unmap()
		}
		if _, twice := d.peers[q.Inside]; twice || !one || !d.cfg.Inside.Contains(q.Inside) {
			change.Peers = append(change.Peers, wgtypes.PeerConfig{PublicKey: p.PublicKey, Remove: true})
			continue
		}
		d.peers[q.Inside] = q
	}
	if err := d.ctl.ConfigureDevice(d.cfg.Name, change); err != nil {
		return fmt.Errorf("configure WireGuard interface %s, UDP port %d: %w", d.cfg.Name, d.cfg.Port, err)
	}
	if err := d.h.LinkSetUp(d.link); err != nil {
		return fmt.Errorf("set %s up: %w", d.cfg.Name, err) // for instance because the port is taken
	}
	return nil
}

// Faults returns how the interface, its address and its routes differ from the desired
// state, in words.
func (d *Device) Faults() (faults []string, err error) {
	l, err := d.h.LinkByName(d.cfg.Name)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return []string{"it does not exist"}, nil
	case err != nil:
		return nil, fmt.Errorf("look up %s: %w", d.cfg.Name, err)
	case l.Type() != "wireguard" || l.Attrs().Index != d.link.Attrs().Index:
		return []string{"another interface has its place"}, nil
	}
	fault := func(is bool, format string, args ...any) {
		if is {
			faults = append(faults, fmt.Sprintf(format, args...))
		}
	}
	fault(l.Attrs().Flags&net.FlagUp == 0, "it is down")
	fault(l.Attrs().MTU != d.cfg.MTU, "its MTU is %d, not %d", l.Attrs().MTU, d.cfg.MTU)
	addr, err := d.hasAddr()
	if err != nil {
		return nil, err
	}
	fault(!addr, "it does not have the address %s", d.self)
	there, err := d.routes()
	if err != nil {
		return nil, err
	}
	missing := 0
	for _, p := range d.peers {
		if !there[d.route(p).Dst.String()] {
			missing++
		}
	}
	fault(missing > 0, "%d of %s %s missing", missing, count.Of(len(d.peers), "route", "routes"), count.Form(missing, "is", "are"))
	last, err := d.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(d.cfg.Inside), Type: unix.RTN_UNREACHABLE},
		netlink.RT_FILTER_DST|netlink.RT_FILTER_TYPE)
	if err != nil {
		return nil, fmt.Errorf("list routes to %s: %w", d.cfg.Inside, err)
	}
	fault(len(last) == 0, "the route that makes %s unreachable without it is missing", d.cfg.Inside)
	return faults, nil
}

// Mend restores what other programs removed or switched off: the interface, its address
// and its routes. An interface that had to be made again has another Key, and no
// neighbours until the next Apply. Everything else stays untouched.
func (d *Device) Mend() error {
	old := d.link.Attrs().Index
	if err := d.make(); err != nil {
		return err
	}
	if d.link.Attrs().Index != old || d.link.Attrs().Flags&net.FlagUp == 0 {
		clear(d.peers)
		if err := d.configure(); err != nil {
			return err
		}
	}
	return errors.Join(d.mendAddr(), d.mendRoutes())
}

func (d *Device) mendAddr() error {
	if has, err := d.hasAddr(); err != nil || has {
		return err // the kernel would report writing it again as a change
	}
	return d.SetSelf(d.self)
}

// hasAddr reports whether the interface has the address of this host, or needs none.
func (d *Device) hasAddr() (bool, error) {
	if !d.self.IsValid() {
		return true, nil
	}
	have, err := d.h.AddrList(d.link, netlink.FAMILY_V4)
	if err != nil {
		return false, fmt.Errorf("list addresses of %s: %w", d.cfg.Name, err)
	}
	return slices.ContainsFunc(have, func(a netlink.Addr) bool { return a.IP.Equal(d.self.AsSlice()) }), nil
}

// routes returns the destinations of the routes by the interface.
func (d *Device) routes() (map[string]bool, error) {
	have, err := d.h.RouteList(d.link, netlink.FAMILY_V4)
	if err != nil {
		return nil, fmt.Errorf("list routes by %s: %w", d.cfg.Name, err)
	}
	there := make(map[string]bool)
	for _, r := range have {
		if r.Dst != nil {
			there[r.Dst.String()] = true
		}
	}
	return there, nil
}

func (d *Device) mendRoutes() error {
	there, err := d.routes()
	if err != nil {
		return err
	}
	for _, p := range d.peers {
		if r := d.route(p); !there[r.Dst.String()] {
			if err := d.h.RouteReplace(r); err != nil {
				return fmt.Errorf("route %s by %s: %w", p.Inside, d.cfg.Name, err)
			}
		}
	}
	return nil
}

// Close closes the sockets. The interface keeps working.
func (d *Device) Close() {
	if d.ctl != nil {
		d.ctl.Close()
	}
	if d.h != nil {
		d.h.Close()
	}
}

// Key returns the public key of the interface.
func (d *Device) Key() [32]byte { return d.key }

// Index returns the index of the interface.
func (d *Device) Index() int { return d.link.Attrs().Index }

// Peers returns the neighbours by their addresses inside. The map is a copy.
func (d *Device) Peers() map[netip.Addr]Peer { return maps.Clone(d.peers) }

// SetSelf makes addr the only address of this host inside the tunnel.
func (d *Device) SetSelf(addr netip.Addr) error {
	d.self = addr // Mend tries again
	old, err := d.h.AddrList(d.link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", d.cfg.Name, err)
	}
	want := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, addr.BitLen())), Scope: unix.RT_SCOPE_LINK}
	if err := d.h.AddrReplace(d.link, want); err != nil {
		return fmt.Errorf("give %s to %s: %w", addr, d.cfg.Name, err)
	}
	for _, a := range old {
		if !a.IP.Equal(want.IP) {
			if err := d.h.AddrDel(d.link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("take %s from %s: %w", a.IP, d.cfg.Name, err)
			}
		}
	}
	return nil
}

// Apply sets the peers of the interface to want. No two of them may have the same key. Neighbours that
// do not change are not touched, and those that change keep their session keys until
// WireGuard agrees on new ones. The next call retries what failed.
func (d *Device) Apply(want map[netip.Addr]Peer) error {
	var errs []error
	for _, a := range slices.SortedFunc(maps.Keys(d.peers), netip.Addr.Compare) {
		if old := d.peers[a]; want[a].Key != old.Key {
			errs = append(errs, d.remove(old))
		}
	}
	for _, a := range slices.SortedFunc(maps.Keys(want), netip.Addr.Compare) {
		if p, old := want[a], d.peers[a]; p != old { // old.Inside is a
			errs = append(errs, d.put(p, old.Key == p.Key))
		}
	}
	return errors.Join(errs...)
}

func (d *Device) remove(p Peer) error {
	err := d.h.RouteDel(d.route(p))
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the route to %s by %s: %w", p.Inside, d.cfg.Name, err)
	}
	err = d.ctl.ConfigureDevice(d.cfg.Name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{PublicKey: p.Key, Remove: true}}})
	if err != nil {
		return fmt.Errorf("remove %s from %s: %w", p.Inside, d.cfg.Name, err)
	}
	delete(d.peers, p.Inside)
	return nil
}

// put adds a peer, or changes the secret and the endpoint of one that is there. Of such a peer it does
// not replace the address inside: the kernel would remove it first, and drop packets until it has
// added it again (set_peer in drivers/net/wireguard/netlink.c). Adding an address that is there
// changes nothing.
func (d *Device) put(p Peer, there bool) error {
	secret := wgtypes.Key(p.Secret)
	err := d.ctl.ConfigureDevice(d.cfg.Name, wgtypes.Config{Peers: []wgtypes.PeerConfig{{
		PublicKey: p.Key, PresharedKey: &secret, Endpoint: net.UDPAddrFromAddrPort(p.Endpoint), ReplaceAllowedIPs: !there,
		AllowedIPs: []net.IPNet{*ipNet(netip.PrefixFrom(p.Inside, p.Inside.BitLen()))},
	}}})
	if err != nil {
		return fmt.Errorf("put %s at %s into %s: %w", p.Inside, p.Endpoint, d.cfg.Name, err)
	}
	if err := d.h.RouteReplace(d.route(p)); err != nil {
		return fmt.Errorf("route %s by %s: %w", p.Inside, d.cfg.Name, err)
	}
	d.peers[p.Inside] = p
	return nil
}

func (d *Device) route(p Peer) *netlink.Route {
	return &netlink.Route{
		LinkIndex: d.link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(p.Inside, p.Inside.BitLen())),
		Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_STATIC,
	}
}

func (d *Device) removeRoute() error {
	err := d.h.RouteDel(&netlink.Route{Dst: ipNet(d.cfg.Inside), Type: unix.RTN_UNREACHABLE, Priority: lastResort})
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove the unreachable route to %s: %w", d.cfg.Inside, err)
	}
	return nil
}

// Remove removes what Open made, in this process or an earlier one, in the network
// namespace of the calling thread.
func Remove(c Config) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink: %w", err)
	}
	defer h.Close()
	d := &Device{cfg: c, h: h}
	l, err := h.LinkByName(c.Name)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
	case err != nil:
		return fmt.Errorf("look up %s: %w", c.Name, err)
	case l.Type() == "wireguard":
		if err := h.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete %s: %w", c.Name, err)
		}
	}
	return d.removeRoute()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }
