package fastpath

import (
	"context"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/wireguard"
)

// Kernel is what the controller uses of *kernel.Datapath, whose comments are the
// contract. The methods may be called from any goroutine.
type Kernel interface {
	Adopted() bool
	Fast() error
	Express() error
	Self() uint16
	SetSelf(id uint16) error
	SetBinding(kernel.Binding) error
	Lease(forward time.Duration) error
	SetExpress(on bool) error
	Objects() []keeper.Object
	Programs(v *netdev.View) []keeper.Object
	SumInSoftware() error
	Events(ctx context.Context, f func(kernel.Event)) error
	Close() error

	AttachContainer(ifindex int) error
	DetachContainer(ifindex int) error
	Containers() []int
	AttachUnderlay(ifindex int) error
	DetachUnderlay(ifindex int) error
	Underlays() []int

	PutMAC(mac [6]byte, e kernel.MACEntry) error
	DeleteMAC(mac [6]byte) error
	MACs(yield func(mac [6]byte, e kernel.MACEntry) bool) error
	PutPeer(id uint16, e kernel.PeerEntry) error
	DeletePeer(id uint16) error
	Peers(yield func(id uint16, e kernel.PeerEntry) bool) error
	PutRemote(a netip.Addr, r kernel.Remote) error
	DeleteRemote(a netip.Addr) error
	Remotes(yield func(a netip.Addr, r kernel.Remote) bool) error
	Traffic(id uint16) (kernel.Traffic, error)
	Drops() map[string]uint64
	PutNeighbour(a netip.Addr, n kernel.Neighbour) error
	DeleteNeighbour(a netip.Addr) error
	Neighbours(yield func(a netip.Addr, n kernel.Neighbour) bool) error
	SetPlain(on bool) error
	Requests() kernel.Requests
}

// Tunnel is what the controller uses of *wireguard.Device, whose comments are the
// contract. It is not safe for concurrent use.
type Tunnel interface {
	Key() [32]byte
	Index() int
	Peers() map[netip.Addr]wireguard.Peer
	SetSelf(addr netip.Addr) error
	Apply(want map[netip.Addr]wireguard.Peer) error
	Faults() ([]string, error)
	Mend() error
	Close()
}

// Watch is what the controller uses of *netdev.Watch, whose comments are the
// contract. The methods may be called from any goroutine.
type Watch interface {
	Run(ctx context.Context, changed func()) error
	Rules(ctx context.Context, changed func()) error
	Guard(netdev.Guarded) (rebuilt bool, err error)
	GuardFaults(netdev.Guarded) ([]string, error)
	Filtered(bridge string) (netdev.Filter, error)
	IPsecPrefixes() ([]netip.Prefix, error)
	Containers(bridge string, but ...string) ([]netdev.Port, error)
	Underlay(ifindex int) netdev.Underlay
	Hop(to, from netip.Addr) (netdev.Hop, error)
	SetOwnRoutes(netdev.OwnRoutes) error
	OwnRouteFaults(netdev.OwnRoutes) ([]string, error)
	Close()
}

// System opens what the controller works with, in the network namespace of the
// calling thread.
type System interface {
	Watch() (Watch, error)
	OpenKernel(kernel.Options) (Kernel, error)
	RemoveKernel(kernel.Options) error
	OpenTunnel(wireguard.Config) (Tunnel, error)
	RemoveTunnel(wireguard.Config) error
	// Overlap is netdev.Overlap.
	Overlapping(p netip.Prefix, ours ...string) ([]netdev.Route, error)
	// BootTime is the clock of kernel.MACEntry.Seen.
	BootTime() time.Duration
}

// Linux is the System of this host.
var Linux System = linux{}

type linux struct{}

// Watch implements System. Like the others it returns no typed nil.
func (linux) Watch() (Watch, error) {
	w, err := netdev.NewWatch()
	if err != nil {
		return nil, err
	}
	return w, nil
}

func (linux) OpenKernel(o kernel.Options) (Kernel, error) {
	d, err := kernel.Open(o)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (linux) RemoveKernel(o kernel.Options) error { return kernel.Remove(o) }

func (linux) OpenTunnel(c wireguard.Config) (Tunnel, error) {
	d, err := wireguard.Open(c)
	if err != nil {
		return nil, err
	}
	return d, nil
}

func (linux) RemoveTunnel(c wireguard.Config) error { return wireguard.Remove(c) }

func (linux) Overlapping(p netip.Prefix, ours ...string) ([]netdev.Route, error) {
	return netdev.Overlapping(p, ours...)
}

func (linux) BootTime() time.Duration { return time.Duration(kernel.BootTime()) }
