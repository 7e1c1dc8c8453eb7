package fastdp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// ErrUnsupported is the cause when the kernel, or the rights of the process, do
// not allow what every use of the datapath needs; the error says what was
// refused.
var ErrUnsupported = errors.New("the kernel refuses the fast datapath")

// Options say what Open makes.
type Options struct {
	// PinDir is where programs and maps are pinned, like /run/weft/bpf. If it is
	// not on a file system of type bpf, one is mounted on it.
	PinDir   string
	Bridge   string // it must be there
	Port     string // name of the bridge's port, one end of a veth pair
	PortPeer string // and of its other end
	TAP      string // it must be there, open, and no port of the bridge
	VXLAN    string // name of the VXLAN device
	// VXLANPort is the UDP port, which is the same on all hosts.
	VXLANPort int
	MTU       int // of the overlay, in bytes of IP packet
	// Self is the own short id. With 0 it is what an earlier process has set.
	Self    uint16
	Express bool
	Log     *slog.Logger

	noTCX bool // for tests of the other way to attach
}

// Datapath is the kernel's part of the switch. Its methods may be called from
// any goroutine, at once; they work in the network namespace that Open was
// called in.
//
// Entries of the maps are written word by word while programs read them: a
// program may see the old flags with a new address for the length of the write.
// PutPeer keeps frames from going to an address that never was an entry's.
type Datapath struct {
	// Constant.
	opts Options
	dir  string // of the pins of this layout
	c    *collection
	ns   netns.NsHandle
	fast error

	mu     sync.Mutex // guards what follows, and read-modify-write of maps
	config Config
	links  map[hook]link.Link // nil for one by clsact
	noTCX  bool
	closed bool
}

// Open makes the devices, loads and attaches the programs, or takes over what an
// earlier process left, without a moment in which frames are lost: devices stay,
// maps keep their content, programs are exchanged. It works in the network
// namespace of the calling thread. It sets the TAP up and attaches to it.
//
// If it fails for something other than the TAP or the bridge not being there,
// nothing is left, neither of this process nor of an earlier one; so that the
// portable path can take over. errors.Is(err, ErrUnsupported) then says that
// there is no use in trying again.
func Open(o Options) (_ *Datapath, err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("open fast datapath: %s: %w", what, cause)
	}
	refuse := func(what string, cause error) error {
		return fmt.Errorf("open fast datapath: %w: %s: %w", ErrUnsupported, what, cause)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Self >= MaxPeers {
		return nil, fmt.Errorf("open fast datapath: short id %d has more than 12 bits", o.Self)
	}
	if o.VXLANPort < 1 || o.VXLANPort > 65535 {
		return nil, fmt.Errorf("open fast datapath: %d is no UDP port", o.VXLANPort)
	}
	for _, name := range []string{o.Bridge, o.TAP} {
		if _, err := netlink.LinkByName(name); err != nil {
			return nil, wrap(fmt.Sprintf("look up %q", name), err)
		}
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, wrap("read programs", err)
	}
	d := &Datapath{opts: o, links: make(map[hook]link.Link), noTCX: o.noTCX}
	if d.ns, err = netns.Get(); err != nil {
		return nil, wrap("open network namespace", err)
	}
	defer func() {
		if err != nil {
			d.release()
			err = errors.Join(err, Remove(o))
		}
	}()

	version := layoutVersion(spec)
	d.dir = filepath.Join(o.PinDir, version)
	if err := os.MkdirAll(o.PinDir, 0o700); err != nil {
		return nil, wrap("make folder of pins", err)
	}
	if err := mountBPF(o.PinDir); err != nil {
		return nil, refuse("folder of pins", err)
	}
	if err := removeOthers(o.PinDir, version); err != nil {
		return nil, wrap("remove pins of another layout", err)
	}
	adopted := true
	if _, err := os.Stat(d.dir); err != nil {
		adopted = false
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, wrap("make folder of pins", err)
	}
	if d.c, err = load(spec, d.dir); err != nil {
		return nil, refuse("load programs and maps", err)
	}

	var port, tap, vxlan int
	if port, err = makePort(o); err != nil {
		return nil, wrap("make the bridge's port", err)
	}
	if tap, err = setUp(o.TAP, o.MTU); err != nil {
		return nil, wrap("set up the TAP", err)
	}
	if vxlan, d.fast = makeVXLAN(o); d.fast != nil {
		d.fast = fmt.Errorf("make VXLAN device %s on port %d: %w", o.VXLAN, o.VXLANPort, d.fast)
	}

	var old Config
	if err := d.c.Config.Lookup(uint32(0), &old); err != nil {
		return nil, wrap("read map config", err)
	}
	d.config = Config{Port: uint32(port), TAP: uint32(tap), VXLAN: uint32(vxlan), Self: o.Self, VXLANPort: uint16(o.VXLANPort)}
	if o.Self == 0 {
		d.config.Self = old.Self
	}
	if o.Express {
		d.config.Flags = ConfigExpress
	}
	if err := d.putConfig(d.config); err != nil {
		return nil, wrap("set up", err)
	}

	if err := d.attach(hook{onPort, port}, d.c.fromPort); err != nil {
		return nil, refuse("attach", err)
	}
	if err := d.attach(hook{onTAP, tap}, d.c.fromTap); err != nil {
		return nil, refuse("attach", err)
	}
	if d.fast == nil {
		if err := d.attach(hook{onVXLAN, vxlan}, d.c.fromVxlan); err != nil {
			return nil, refuse("attach", err)
		}
	}
	d.adoptExpress()
	o.Log.Debug("fast datapath", "pins", d.dir, "adopted", adopted, "tcx", !d.noTCX)
	return d, nil
}

// Fast returns nil if frames can go by VXLAN, else why not: the kernel has no
// VXLAN device, or its port is taken. Port and TAP work nevertheless.
func (d *Datapath) Fast() error { return d.fast }

// Express returns nil if frames can pass by bridge and VXLAN device, else why not:
// the kernel lacks something.
func (d *Datapath) Express() error { return d.c.express }

// Mend makes the VXLAN device anew if others removed it, and sets it up if they set it
// down. It tells whether it did; checksums are left to the cards then, as by Open.
func (d *Datapath) Mend() (mended bool, err error) {
	if d.fast != nil {
		return false, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	err = d.in(func() error {
		l, err := find(d.opts.VXLAN)
		old := hook{onVXLAN, int(d.config.VXLAN)}
		if err != nil || l != nil && l.Attrs().Index == old.ifindex && l.Attrs().Flags&net.FlagUp != 0 {
			return err
		}
		mended = true
		index, err := makeVXLAN(d.opts)
		if err != nil {
			return err
		}
		if index != old.ifindex {
			_ = d.detach(old) // the interface is gone
		}
		if err := d.attach(hook{onVXLAN, index}, d.c.fromVxlan); err != nil {
			return err
		}
		c := d.config
		c.VXLAN = uint32(index)
		return d.putConfig(c)
	})
	if err != nil {
		return mended, fmt.Errorf("mend the fast datapath: %s: %w", d.opts.VXLAN, err)
	}
	return mended, nil
}

// Close leaves everything in the kernel at work, but for the TAP, to which no
// frame goes any more. Methods must not be called after it, but for Close.
func (d *Datapath) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	c := d.config
	c.TAP = 0
	err := d.putConfig(c)
	for h := range d.links {
		if h.at == onTAP {
			err = errors.Join(err, d.detach(h))
		}
	}
	d.release()
	return err
}

// release closes what the process holds.
func (d *Datapath) release() {
	d.closed = true
	for _, l := range d.links {
		if l != nil {
			_ = l.Close()
		}
	}
	clear(d.links)
	if d.c != nil {
		d.c.close()
	}
	_ = d.ns.Close()
}

// in runs f in the network namespace of the datapath.
func (d *Datapath) in(f func() error) error {
	return netdev.DoIn(d.ns, f)
}

func (d *Datapath) putConfig(c Config) error {
	if err := d.c.Config.Put(uint32(0), &c); err != nil {
		return fmt.Errorf("write map config, %+v: %w", c, err)
	}
	d.config = c
	return nil
}

// SetSelf sets the own short id, 0 for none.
func (d *Datapath) SetSelf(id uint16) error {
	if id >= MaxPeers {
		return fmt.Errorf("set own short id %d: it has more than 12 bits", id)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.config
	c.Self = id
	return d.putConfig(c)
}

// Self returns the own short id, also one that was taken over.
func (d *Datapath) Self() uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config.Self
}

// SetExpress allows or forbids that frames pass by bridge and VXLAN device. It
// changes no attachment.
func (d *Datapath) SetExpress(on bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.config
	c.Flags &^= ConfigExpress
	if on {
		c.Flags |= ConfigExpress
	}
	return d.putConfig(c)
}

// PutMAC says where a station is. Counters of an entry that is there are kept,
// but for what is counted during the call, and so is the time of last use, which
// for a new entry is now unless e says it.
func (d *Datapath) PutMAC(mac [6]byte, e MACEntry) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	key := MACKey{Addr: mac}
	var old MACEntry
	switch err := d.c.Macs.Lookup(&key, &old); {
	case err == nil:
		if old.Peer == e.Peer && old.Flags == e.Flags && old.Ifindex == e.Ifindex && e.Seen <= old.Seen {
			return nil
		}
		old.Peer, old.Flags, old.Ifindex, old.Seen = e.Peer, e.Flags, e.Ifindex, max(e.Seen, old.Seen)
		e = old
	case errors.Is(err, ebpf.ErrKeyNotExist):
		if e.Seen == 0 {
			e.Seen = BootTime()
		}
	default:
		return fmt.Errorf("read station %x: %w", mac, err)
	}
	if err := d.c.Macs.Put(&key, &e); err != nil {
		return fmt.Errorf("write station %x, peer %d: %w", mac, e.Peer, err)
	}
	return nil
}

// BootTime is the kernel's clock in MACEntry.Seen, nanoseconds since boot with the
// time asleep; 0 if it can not be read.
func BootTime() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0
	}
	return uint64(ts.Nano())
}

// DeleteMAC forgets a station. One that is not there is no error.
func (d *Datapath) DeleteMAC(mac [6]byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return deleted(d.c.Macs.Delete(&MACKey{Addr: mac}), "station", fmt.Sprintf("%x", mac))
}

func deleted(err error, what, key string) error {
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return fmt.Errorf("delete %s %s: %w", what, key, err)
}

// PutPeer says how frames for a peer leave. When the address changes, frames go
// to the TAP in between.
func (d *Datapath) PutPeer(id uint16, e PeerEntry) error {
	if id == 0 || id >= MaxPeers {
		return fmt.Errorf("write peer %d: ids are 1 to %d", id, MaxPeers-1)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	wrap := func(err error) error { return fmt.Errorf("write peer %d, next hop %s: %w", id, ToAddr(e.Remote), err) }
	var old PeerEntry
	if err := d.c.Peers.Lookup(uint32(id), &old); err != nil {
		return wrap(err)
	}
	if old == e {
		return nil
	}
	const ways = PeerFast | PeerExpress | PeerDirect
	if old.Flags&ways != 0 && (old.Remote != e.Remote || old.Local != e.Local || old.Gateway != e.Gateway || old.Ifindex != e.Ifindex) {
		old.Flags &^= ways
		if err := d.c.Peers.Put(uint32(id), &old); err != nil {
			return wrap(err)
		}
	}
	if old.Flags&ways == 0 && e.Flags&ways != 0 {
		quiet := e
		quiet.Flags &^= ways
		if err := d.c.Peers.Put(uint32(id), &quiet); err != nil {
			return wrap(err)
		}
	}
	if err := d.c.Peers.Put(uint32(id), &e); err != nil {
		return wrap(err)
	}
	return nil
}

// DeletePeer forgets a peer and its counters, so that the id may become
// another's.
func (d *Datapath) DeletePeer(id uint16) error {
	if id >= MaxPeers {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.c.Peers.Put(uint32(id), &PeerEntry{}); err != nil {
		return fmt.Errorf("delete peer %d: %w", id, err)
	}
	zero := make([]Traffic, ebpf.MustPossibleCPU())
	if err := d.c.Traffic.Put(uint32(id), zero); err != nil {
		return fmt.Errorf("delete counters of peer %d: %w", id, err)
	}
	return nil
}

// PutRemote says which neighbour an outer address is.
func (d *Datapath) PutRemote(a netip.Addr, r Remote) error {
	key := AddrOf(a)
	if err := d.c.Remotes.Put(&key, &r); err != nil {
		return fmt.Errorf("write remote %s, peer %d: %w", a, r.Peer, err)
	}
	return nil
}

// DeleteRemote forgets an outer address. One that is not there is no error.
func (d *Datapath) DeleteRemote(a netip.Addr) error {
	key := AddrOf(a)
	return deleted(d.c.Remotes.Delete(&key), "remote", a.String())
}

// MACs calls yield with each station until it returns false. Stations that come
// or go meanwhile may be missed; yield may change them.
func (d *Datapath) MACs(yield func(mac [6]byte, e MACEntry) bool) error {
	err := each(d.c.Macs, func(k MACKey, e MACEntry) bool { return yield(k.Addr, e) })
	if err != nil {
		return fmt.Errorf("read stations: %w", err)
	}
	return nil
}

// Peers calls yield with each peer that was put until it returns false.
func (d *Datapath) Peers(yield func(id uint16, e PeerEntry) bool) error {
	err := each(d.c.Peers, func(k uint32, e PeerEntry) bool { return e == (PeerEntry{}) || yield(uint16(k), e) })
	if err != nil {
		return fmt.Errorf("read peers: %w", err)
	}
	return nil
}

// Remotes calls yield with each remote until it returns false.
func (d *Datapath) Remotes(yield func(a netip.Addr, r Remote) bool) error {
	err := each(d.c.Remotes, func(k Addr, r Remote) bool { return yield(ToAddr(k), r) })
	if err != nil {
		return fmt.Errorf("read remotes: %w", err)
	}
	return nil
}

// each reads a map in batches: a plain iteration begins again where the entry it
// stands on is deleted meanwhile.
func each[K, V any](m *ebpf.Map, yield func(K, V) bool) error {
	const batch = 4096 // no bucket has more, and the kernel gives whole buckets
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if !yield(keys[i], values[i]) {
				return nil
			}
		}
		if err != nil {
			return nil
		}
	}
}

// Traffic returns what went by VXLAN to and from a peer since it was put.
func (d *Datapath) Traffic(id uint16) (sum Traffic, err error) {
	var cpus []Traffic
	if err := d.c.Traffic.Lookup(uint32(id), &cpus); err != nil {
		return Traffic{}, fmt.Errorf("read counters of peer %d: %w", id, err)
	}
	for _, t := range cpus {
		sum.TxPackets += t.TxPackets
		sum.TxBytes += t.TxBytes
		sum.RxPackets += t.RxPackets
		sum.RxBytes += t.RxBytes
		sum.RelayedPackets += t.RelayedPackets
		sum.RelayedBytes += t.RelayedBytes
	}
	return sum, nil
}

// Drops returns the number of frames dropped by reason, without zeros. It is
// nil if it can not be read.
func (d *Datapath) Drops() map[string]uint64 {
	m := make(map[string]uint64)
	for r := range numDrops {
		var cpus []uint64
		if d.c.Drops.Lookup(uint32(r), &cpus) != nil {
			return nil
		}
		for _, n := range cpus {
			if n > 0 {
				m[r.String()] += n
			}
		}
	}
	return m
}

// Events calls f with each station that the kernel sees where the maps do not
// have it, until ctx ends; then it returns nil. It is to be called once at a
// time.
func (d *Datapath) Events(ctx context.Context, f func(Event)) error {
	r, err := ringbuf.NewReader(d.c.Events)
	if err != nil {
		return fmt.Errorf("read events: %w", err)
	}
	defer r.Close()
	defer context.AfterFunc(ctx, func() { r.Close() })()
	var rec ringbuf.Record
	for {
		if err := r.ReadInto(&rec); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read events: %w", err)
		}
		if e, ok := parseEvent(rec.RawSample); ok {
			f(e)
		}
	}
}

func parseEvent(b []byte) (e Event, ok bool) {
	if len(b) < binary.Size(e) {
		return e, false
	}
	return Event{
		Addr:    [6]byte(b),
		Peer:    binary.NativeEndian.Uint16(b[6:]),
		Ifindex: binary.NativeEndian.Uint32(b[8:]),
		Old:     binary.NativeEndian.Uint16(b[12:]),
	}, true
}
