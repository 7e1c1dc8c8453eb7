package kerneltest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/wireguard"
)

// watch is a Machine's interfaces, routes and rules.
type watch struct{ m *Machine }

var _ fastpath.Watch = watch{}

func (w watch) Run(ctx context.Context, changed func()) error {
	return w.subscribe(ctx, &w.m.watchers, changed)
}

func (w watch) Rules(ctx context.Context, changed func()) error {
	return w.subscribe(ctx, &w.m.observers, changed)
}

func (w watch) subscribe(ctx context.Context, list *[]func(), changed func()) error {
	w.m.mu.Lock()
	*list = append(*list, func() {
		if ctx.Err() == nil {
			changed()
		}
	})
	w.m.mu.Unlock()
	<-ctx.Done()
	return nil
}

func (w watch) Guard(g netdev.Guarded) (rebuilt bool, err error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	rebuilt = !w.m.guarded && g.Port != 0
	w.m.guarded, w.m.guards = g.Port != 0, g
	return rebuilt, nil
}

func (w watch) GuardFaults(g netdev.Guarded) ([]string, error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	if w.m.guarded == (g.Port != 0) {
		return nil, nil
	}
	return []string{"they are missing"}, nil
}

func (w watch) Filtered(bridge string) (netdev.Filter, error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	return w.m.filter, w.m.filterErr
}

func (w watch) IPsecPrefixes() ([]netip.Prefix, error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	return slices.Clone(w.m.ipsec), nil
}

func (w watch) Containers(string, ...string) (ports []netdev.Port, err error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	for _, i := range w.m.interfaces {
		if i.port.Ifindex != 0 {
			ports = append(ports, i.port)
		}
	}
	slices.SortFunc(ports, func(a, b netdev.Port) int { return a.Ifindex - b.Ifindex })
	return ports, nil
}

// Underlay returns the pessimistic value for an interface that is not there.
func (w watch) Underlay(ifindex int) netdev.Underlay {
	w.m.lock()
	defer w.m.mu.Unlock()
	if i := w.m.interfaces[ifindex]; i != nil {
		return i.underlay
	}
	return netdev.Underlay{Netfilter: true}
}

// Hop leads addresses of the tunnel's peers into it, as WireGuard's routes do.
func (w watch) Hop(to, _ netip.Addr) (netdev.Hop, error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	if w.m.tunnel != nil {
		if _, ok := w.m.tunnel.peers[to]; ok {
			return netdev.Hop{Ifindex: TunnelIndex, Local: w.m.tunnel.self, Gateway: to}, nil
		}
	}
	h, ok := w.m.routes[to]
	if !ok {
		return netdev.Hop{}, unix.ENETUNREACH
	}
	return h, nil
}

func (w watch) SetOwnRoutes(o netdev.OwnRoutes) error {
	w.m.lock()
	defer w.m.mu.Unlock()
	w.m.ownRoutes = maps.Clone(o.Hops)
	return nil
}

func (w watch) OwnRouteFaults(o netdev.OwnRoutes) ([]string, error) {
	w.m.lock()
	defer w.m.mu.Unlock()
	if maps.Equal(w.m.ownRoutes, o.Hops) {
		return nil, nil
	}
	return []string{"some are missing or wrong"}, nil
}

func (w watch) Close() {}

// tunnel is a Machine's WireGuard interface.
type tunnel struct {
	m     *Machine
	cfg   wireguard.Config
	made  uint64 // how often it was made
	gone  bool   // another program removed it
	self  netip.Addr
	peers map[netip.Addr]wireguard.Peer
}

var _ fastpath.Tunnel = (*tunnel)(nil)

func newTunnel(m *Machine, c wireguard.Config) *tunnel {
	return &tunnel{m: m, cfg: c, made: 1, peers: make(map[netip.Addr]wireguard.Peer)}
}

// Key changes when the interface is made again.
func (t *tunnel) Key() [32]byte {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	return TunnelKey(t.made)
}

// TunnelKey is the public key of a tunnel that was made for the nth time.
func TunnelKey(n uint64) [32]byte {
	return sha256.Sum256(binary.BigEndian.AppendUint64([]byte("tunnel"), n))
}

func (t *tunnel) Index() int { return TunnelIndex }

func (t *tunnel) Peers() map[netip.Addr]wireguard.Peer {
	t.m.mu.Lock()
	defer t.m.mu.Unlock()
	return maps.Clone(t.peers)
}

func (t *tunnel) SetSelf(addr netip.Addr) error {
	t.m.lock()
	defer t.m.mu.Unlock()
	t.self = addr
	return nil
}

// Apply moves a key from the entry that had it, as the kernel does. Who relies on that
// takes the tunnel of another peer, so the test fails.
func (t *tunnel) Apply(want map[netip.Addr]wireguard.Peer) error {
	t.m.lock()
	defer t.m.mu.Unlock()
	if t.gone {
		return errors.New("configure WireGuard interface: no such device")
	}
	keys := make(map[[32]byte]netip.Addr)
	for a, p := range want {
		if b, twice := keys[p.Key]; twice {
			t.m.t.Errorf("one key for %s and %s: the kernel keeps one of them", a, b)
		}
		if p.Key == TunnelKey(t.made) {
			t.m.t.Errorf("%s has the key of the interface itself", a)
		}
		keys[p.Key] = a
	}
	t.peers = maps.Clone(want)
	return nil
}

// Faults says that the interface is gone, or that the kernel refuses WireGuard.
func (t *tunnel) Faults() ([]string, error) {
	t.m.lock()
	defer t.m.mu.Unlock()
	if t.gone || t.m.noWG != nil {
		return []string{"it does not exist"}, nil
	}
	return nil, nil
}

// Mend makes the interface again, with another key and without peers.
func (t *tunnel) Mend() error {
	t.m.lock()
	defer t.m.mu.Unlock()
	if t.m.noWG != nil {
		return t.m.noWG
	}
	if t.gone {
		t.gone = false
		t.made++
		clear(t.peers)
	}
	return nil
}

func (t *tunnel) Close() {}

// ParsePlainProbe reads what kernel.AppendPlainProbe made between addresses of IPv4; false if it is no such
// probe.
func ParsePlainProbe(frame []byte) (p kernel.PlainProbe, ok bool) {
	const ip, payload = 14, 14 + 20 + 8 // as doc.go of package kernel draws it
	if len(frame) < payload+28 || frame[5] != 3 || frame[ip] != 0x45 {
		return p, false
	}
	p.From, _ = netip.AddrFromSlice(frame[ip+12 : ip+16])
	p.To, _ = netip.AddrFromSlice(frame[ip+16 : ip+20])
	b := frame[payload:]
	p.Src, p.Dst, p.Encap = binary.BigEndian.Uint16(b[4:]), binary.BigEndian.Uint16(b[6:]), kernel.Encap(b[9])
	p.Nonce = [kernel.NonceLen]byte(b[12:])
	return p, true
}

// ParseProbe reads what kernel.AppendProbe made; false if it is no probe.
func ParseProbe(frame []byte) (p kernel.Probe, ok bool) {
	const nonce, to = 14 + 20 + 8, 14 + 20 + 8 + kernel.NonceLen // as doc.go of package kernel draws it
	if len(frame) < kernel.MinProbeLen || frame[5] != 1 {
		return p, false
	}
	p.Nonce = [kernel.NonceLen]byte(frame[nonce:])
	p.To = kernel.ToAddr(kernel.Addr(frame[to:]))
	p.Src, p.Dst = binary.BigEndian.Uint16(frame[to+16:]), binary.BigEndian.Uint16(frame[to+18:])
	return p, true
}
