package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/netdev"
)

// ErrUnsupported is the cause if the kernel, or the rights of the process, do not
// allow what every use of the datapath needs. The error says what was refused.
var ErrUnsupported = errors.New("the kernel refuses the fast path")

// Options configure Open.
type Options struct {
	// PinDir is the folder in which programs and maps are pinned, like
	// /run/weft/bpf. If it is not on a file system of type bpf, one is mounted
	// there.
	PinDir   string
	Bridge   string // it must exist
	Port     string // name of the bridge's port, one end of a veth pair
	PortPeer string // and of the other end
	TAP      string // it must exist, be open, and not be a port of the bridge
	VXLAN    string // name of the VXLAN device
	// VXLANPort is the UDP port, the same on all hosts.
	VXLANPort int
	MTU       int // of the overlay, in bytes of IP packet
	// Self is the short id of this host. With 0 it is that of an earlier process.
	Self    uint16
	Express bool
	// Binding is that of this process. State of an earlier process that it does not
	// cover is removed.
	Binding Binding
	Sysctls netdev.Sysctls
	// Guard puts the spoof guard of a container's port in front of a program that is attached there;
	// nil for none.
	Guard *Guard
	Log   *slog.Logger

	noTCX bool // for tests of clsact
}

// Datapath is the kernel's part of the switch. Its methods may be called from any
// goroutine. They work in the network namespace in which Open was called.
//
// Entries of the maps are written word by word while programs read them, so for the
// length of a write a program may see old flags with a new address. PutPeer prevents
// that frames go to an address that an entry never had.
type Datapath struct {
	// Constant.
	opts Options
	dir  string // of the pins of this layout
	c    *collection
	ns   netns.NsHandle
	fast error
	// adopted reports that the maps have the contents of an earlier process.
	adopted bool

	mu       sync.Mutex // guards what follows, and read-modify-write of maps
	config   Config
	links    map[hook]link.Link // nil if attached by clsact
	noTCX    bool
	software bool // SumInSoftware was called
	closed   bool
}

// Open makes the devices, and loads and attaches the programs. If an earlier process
// left them, it takes over without losing a frame: devices stay, maps keep their
// contents, and programs are replaced. It works in the network namespace of the
// calling thread. It sets the TAP up and attaches a program to it.
//
// If it fails, it removes everything, of this process and of earlier ones, so that
// the router can work without the fast path; except if the TAP or the bridge does
// not exist. If errors.Is(err, ErrUnsupported), there is no use in trying again.
func Open(o Options) (_ *Datapath, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if err := o.check(); err != nil {
		return nil, err
	}
	spec, err := loadBpf()
	if err != nil {
		return nil, failed("read programs", err)
	}
	d := &Datapath{opts: o, links: make(map[hook]link.Link), noTCX: o.noTCX}
	if d.ns, err = netns.Get(); err != nil {
		return nil, failed("open network namespace", err)
	}
	defer func() {
		if err != nil {
			d.release()
			err = errors.Join(err, Remove(o))
		}
	}()
	if err := d.load(spec); err != nil {
		return nil, err
	}
	if err := d.bind(); err != nil {
		return nil, failed("check for which configuration the state of an earlier process is valid", err)
	}
	if err := d.makeDevices(); err != nil {
		return nil, err
	}
	if err := d.attachDevices(); err != nil {
		return nil, err
	}
	d.adoptExpress()
	o.Log.Debug("fast path", "pins", d.dir, "adopted", d.adopted, "tcx", !d.noTCX)
	return d, nil
}

// failed returns an error of Open, refused one of kind ErrUnsupported.
func failed(what string, cause error) error {
	return fmt.Errorf("open fast path: %s: %w", what, cause)
}

func refused(what string, cause error) error {
	return fmt.Errorf("open fast path: %w: %s: %w", ErrUnsupported, what, cause)
}

// check returns what is wrong with the options, such as interfaces that do not
// exist.
func (o *Options) check() error {
	if o.Self >= MaxPeers {
		return fmt.Errorf("open fast path: short id %d has more than 12 bits", o.Self)
	}
	if o.VXLANPort < 1 || o.VXLANPort > 65535 {
		return fmt.Errorf("open fast path: %d is not a UDP port", o.VXLANPort)
	}
	for _, name := range []string{o.Bridge, o.TAP} {
		if _, err := netlink.LinkByName(name); err != nil {
			return failed(fmt.Sprintf("look up %q", name), err)
		}
	}
	return nil
}

// load loads the programs and the maps, or takes over the maps of an earlier process
// with this layout. It removes those of other layouts.
func (d *Datapath) load(spec *ebpf.CollectionSpec) error {
	version := layoutVersion(spec)
	d.dir = filepath.Join(d.opts.PinDir, version)
	if err := hostfile.Private(d.opts.PinDir); err != nil {
		return refused("make folder of pins", err)
	}
	if err := mountBPF(d.opts.PinDir); err != nil {
		return refused("folder of pins", err)
	}
	// Another program may have mounted what is there now.
	if err := hostfile.Private(d.opts.PinDir); err != nil {
		return refused("folder of pins", err)
	}
	if err := removeOthers(d.opts.PinDir, version); err != nil {
		return failed("remove pins of another layout", err)
	}
	_, err := os.Stat(d.dir)
	d.adopted = err == nil
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return failed("make folder of pins", err)
	}
	if d.c, err = load(spec, d.dir); err != nil {
		return refused("load programs and maps", err)
	}
	return nil
}

// bind removes the state of an earlier process that is not valid under the binding of this
// one. The programs of the earlier process still run, so nothing is carried from here on.
func (d *Datapath) bind() error {
	var old Binding
	if err := d.c.Binding.Lookup(uint32(0), &old); err != nil {
		return fmt.Errorf("read map binding: %w", err)
	}
	if !d.opts.Binding.Covers(old) {
		if d.adopted {
			d.opts.Log.Info("state of an earlier router removed from the kernel: its passwords or its settings were others")
		}
		d.adopted = false
		if err := d.clear(); err != nil {
			return err
		}
	}
	return d.SetBinding(d.opts.Binding)
}

// SetBinding says for which configuration the state in the kernel is valid from now on. A
// process that is opened later with another one removes the state. It may be called from any
// goroutine.
func (d *Datapath) SetBinding(b Binding) error {
	if err := d.c.Binding.Put(uint32(0), &b); err != nil {
		return fmt.Errorf("write map binding: %w", err)
	}
	return nil
}

// clear removes all peers, neighbours, MAC and IP addresses, what frames are sent by first.
func (d *Datapath) clear() error {
	var errs []error
	for id := range uint16(MaxPeers) {
		errs = append(errs, d.DeletePeer(id))
	}
	var remotes []netip.Addr
	var macs [][6]byte
	var addrs []netip.Addr
	errs = append(errs, d.Neighbours(func(a netip.Addr, _ Neighbour) bool { addrs = append(addrs, a); return true }),
		d.Remotes(func(a netip.Addr, _ Remote) bool { remotes = append(remotes, a); return true }),
		d.MACs(func(m [6]byte, _ MACEntry) bool { macs = append(macs, m); return true }))
	for _, a := range remotes {
		errs = append(errs, d.DeleteRemote(a))
	}
	for _, m := range macs {
		errs = append(errs, d.DeleteMAC(m))
	}
	for _, a := range addrs {
		errs = append(errs, d.DeleteNeighbour(a))
	}
	return errors.Join(errs...)
}

// Adopted reports whether the maps have the contents of an earlier process.
func (d *Datapath) Adopted() bool { return d.adopted }

// makeDevices makes the bridge's port and the VXLAN device, sets the TAP up, and
// writes their indexes to the config of the programs.
func (d *Datapath) makeDevices() error {
	o := &d.opts
	port, err := makePort(*o)
	if err != nil {
		return failed("make the bridge's port", err)
	}
	tap, err := o.setUp(o.TAP, o.MTU)
	if err != nil {
		return failed("set up the TAP", err)
	}
	vxlan, err := makeVXLAN(*o)
	if err != nil {
		d.fast = fmt.Errorf("make VXLAN device %s on port %d: %w", o.VXLAN, o.VXLANPort, err)
	}
	var old Config
	if err := d.c.Config.Lookup(uint32(0), &old); err != nil {
		return failed("read map config", err)
	}
	d.config = Config{Port: uint32(port), TAP: uint32(tap), VXLAN: uint32(vxlan), Self: o.Self, VXLANPort: uint16(o.VXLANPort), Until: old.Until}
	if o.Self == 0 {
		d.config.Self = old.Self
	}
	if o.Express {
		d.config.Flags = ConfigExpress
	}
	d.config.Flags |= old.Flags & ConfigPlain
	if err := d.putConfig(d.config); err != nil {
		return failed("set up", err)
	}
	return nil
}

// attachDevices attaches programs to the devices of makeDevices.
func (d *Datapath) attachDevices() error {
	hooks := []struct {
		hook
		prog *ebpf.Program
	}{
		{hook{onPort, int(d.config.Port)}, d.c.fromPort},
		{hook{onTAP, int(d.config.TAP)}, d.c.fromTap},
		{hook{onVXLAN, int(d.config.VXLAN)}, d.c.fromVxlan},
	}
	for _, h := range hooks {
		if h.at == onVXLAN && d.fast != nil {
			continue // there is none
		}
		if err := d.attach(h.hook, h.prog); err != nil {
			return refused("attach", err)
		}
	}
	return nil
}

// Fast returns nil if frames can use VXLAN. Else it says why not: the kernel has no
// VXLAN device, or its port is taken. The bridge's port and the TAP work
// nevertheless.
func (d *Datapath) Fast() error { return d.fast }

// Express returns nil if frames can bypass the bridge and the VXLAN device. Else it
// says what the kernel lacks.
func (d *Datapath) Express() error { return d.c.express }

// Close closes what the process holds. The kernel keeps forwarding, but sends no
// more frames to the TAP. No other method may be called after Close.
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

// release closes the handles of the process.
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

// SetSelf sets the short id of this host, 0 for none.
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

// Lease lets the programs forward frames between hosts for a time from now, also if this
// process ends. Without a call they forward for ever.
func (d *Datapath) Lease(forward time.Duration) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.config
	c.Until = BootTime() + uint64(forward)
	return d.putConfig(c)
}

// Self returns the short id of this host, also one of an earlier process.
func (d *Datapath) Self() uint16 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.config.Self
}

// SetExpress allows or forbids frames to bypass the bridge and the VXLAN device.
// Programs stay attached.
func (d *Datapath) SetExpress(on bool) error { return d.setFlag(ConfigExpress, on) }

// SetPlain says whether a peer has PeerPlain. If none has, other packets of this host pass the programs
// faster.
func (d *Datapath) SetPlain(on bool) error { return d.setFlag(ConfigPlain, on) }

func (d *Datapath) setFlag(f ConfigFlags, on bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := d.config
	c.Flags &^= f
	if on {
		c.Flags |= f
	}
	return d.putConfig(c)
}

// Events calls f for each MAC address that the kernel sees in another place than the
// maps have, until ctx ends, which is not an error. Only one call may run at a time.
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
