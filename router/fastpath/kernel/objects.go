package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/hostfile"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/owned"
)

// Objects returns the devices and the pins as objects to keep. Their functions work in the
// network namespace of the caller, which must be that of the datapath.
func (d *Datapath) Objects() []keeper.Object {
	list := []keeper.Object{
		{ID: owned.ID{Kind: owned.RouterPort, Name: d.opts.Port}, Look: d.lookAtPort, Make: d.locked(d.makePort)},
		{ID: owned.ID{Kind: owned.Pin, Name: "in " + d.opts.PinDir}, Look: d.lookAtPins, Make: d.locked(d.makePins)},
	}
	if d.fast == nil {
		list = append(list, keeper.Object{
			ID: owned.ID{Kind: owned.VXLAN, Name: d.opts.VXLAN}, Look: d.lookAtVXLAN, Make: d.locked(d.makeVXLAN),
		})
	}
	return list
}

// locked returns a function that calls f with mu held, unless the datapath is closed.
func (d *Datapath) locked(f func() error) func() error {
	return func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.closed {
			return owned.ErrWaits
		}
		return f()
	}
}

func (d *Datapath) lookAtPort(v *netdev.View) (faults []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o := &d.opts
	if v.Links[o.Bridge] == nil {
		return nil, owned.ErrWaits
	}
	port, peer := v.Links[o.Port], v.Links[o.PortPeer]
	switch {
	case port == nil || peer == nil:
		return []string{"it does not exist"}, nil
	case port.Kind != "veth" || peer.Kind != "veth" || port.Peer != peer.Index:
		return []string{"it is not a veth pair with " + o.PortPeer}, nil
	case port.Index != int(d.config.Port):
		return []string{"another interface has its place"}, nil
	}
	faults = netdev.BridgePort{Name: o.Port, Bridge: o.Bridge, MTU: o.MTU}.Faults(v)
	if !peer.Up {
		faults = append(faults, "its other end "+o.PortPeer+" is down")
	}
	if peer.MTU != o.MTU {
		faults = append(faults, fmt.Sprintf("the MTU of its other end %s is %d, not %d", o.PortPeer, peer.MTU, o.MTU))
	}
	return faults, nil
}

// makePort makes the port again, or takes over what there is. mu is held.
func (d *Datapath) makePort() error {
	index, err := makePort(d.opts)
	if err != nil {
		return err
	}
	if err := d.reattach(hook{onPort, int(d.config.Port)}, index, d.c.fromPort); err != nil {
		return err
	}
	c := d.config
	c.Port = uint32(index)
	return d.putConfig(c)
}

func (d *Datapath) lookAtVXLAN(v *netdev.View) (faults []string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := v.Links[d.opts.VXLAN]
	switch {
	case l == nil:
		return []string{"it does not exist"}, nil
	case l.Kind != "vxlan" || l.Index != int(d.config.VXLAN):
		return []string{"another interface has its place"}, nil
	}
	if !l.Up {
		faults = append(faults, "it is down")
	}
	if l.MTU != vxlanMTU {
		faults = append(faults, fmt.Sprintf("its MTU is %d, not %d", l.MTU, vxlanMTU))
	}
	return faults, nil
}

// makeVXLAN makes the device again, or sets it up. mu is held.
func (d *Datapath) makeVXLAN() error {
	index, err := makeVXLAN(d.opts)
	if err != nil {
		return err
	}
	if d.software {
		if err := setOffload(d.opts.VXLAN, unix.ETHTOOL_STXCSUM, false); err != nil {
			return err
		}
	}
	if err := d.reattach(hook{onVXLAN, int(d.config.VXLAN)}, index, d.c.fromVxlan); err != nil {
		return err
	}
	c := d.config
	c.VXLAN = uint32(index)
	return d.putConfig(c)
}

// reattach attaches a program to the interface with an index, which replaced an old one or
// is the same.
func (d *Datapath) reattach(old hook, index int, prog *ebpf.Program) error {
	if index != old.ifindex {
		_ = d.detach(old) // the interface is gone
	}
	return d.attach(hook{old.at, index}, prog)
}

// Programs returns the attached programs as objects to keep: one for each interface in v
// that has one.
func (d *Datapath) Programs(v *netdev.View) (list []keeper.Object) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	for h := range d.links {
		if h.at == onTAP {
			continue // below, as the TAP may be another one by now
		}
		if l := v.ByIndex(h.ifindex); l != nil {
			list = append(list, keeper.Object{
				ID:   owned.ID{Kind: owned.Program, Name: string(h.at) + " " + l.Name},
				Look: func(*netdev.View) ([]string, error) { return d.lookAtProgram(h) },
				Make: d.locked(func() error { return d.makeProgram(h) }),
			})
		}
	}
	return append(list, keeper.Object{
		ID: owned.ID{Kind: owned.Program, Name: string(onTAP) + " " + d.opts.TAP}, Look: d.lookAtTAP, Make: d.locked(d.makeTAP),
	})
}

func (d *Datapath) lookAtProgram(h hook) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l, ok := d.links[h]
	switch {
	case !ok:
		return nil, owned.ErrWaits // detached meanwhile
	case l != nil && alive(l, h.ifindex), l == nil && hasFilter(h):
		return nil, nil
	}
	return []string{"it is not attached"}, nil
}

// makeProgram attaches a program again. mu is held.
func (d *Datapath) makeProgram(h hook) error {
	l, ok := d.links[h]
	if !ok {
		return owned.ErrWaits
	}
	prog := d.program(h)
	var err error
	if l == nil {
		err = attachClsact(h, prog)
	} else {
		err = d.attach(h, prog)
	}
	if errors.Is(err, unix.ENODEV) {
		return owned.ErrWaits // the interface is gone
	}
	return err
}

// program returns the program of a hook.
func (d *Datapath) program(h hook) *ebpf.Program {
	switch h.at {
	case onPort:
		return d.c.fromPort
	case onTAP:
		return d.c.fromTap
	case onVXLAN:
		return d.c.fromVxlan
	}
	return d.expressProgram(h)
}

// lookAtTAP compares the TAP that the programs know with that which exists.
func (d *Datapath) lookAtTAP(v *netdev.View) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	l := v.Links[d.opts.TAP]
	if l == nil || d.closed {
		return nil, owned.ErrWaits
	}
	h := hook{onTAP, l.Index}
	have, ok := d.links[h]
	if l.Index != int(d.config.TAP) || !ok || have != nil && !alive(have, h.ifindex) || have == nil && !hasFilter(h) {
		return []string{"it is not attached"}, nil
	}
	return nil, nil
}

// makeTAP attaches the program of the TAP to the interface that has its name. mu is held.
func (d *Datapath) makeTAP() error {
	index, err := d.opts.setUp(d.opts.TAP, d.opts.MTU)
	if err != nil {
		return err
	}
	if index == int(d.config.TAP) && d.links[hook{onTAP, index}] == nil {
		delete(d.links, hook{onTAP, index}) // attach believes that the filter is there
	}
	if err := d.reattach(hook{onTAP, int(d.config.TAP)}, index, d.c.fromTap); err != nil {
		return err
	}
	c := d.config
	c.TAP = uint32(index)
	return d.putConfig(c)
}

// hasFilter reports whether an interface has the clsact filter of a hook, and true if the
// kernel cannot be asked.
func hasFilter(h hook) bool {
	l, err := netlink.LinkByIndex(h.ifindex)
	if err != nil {
		return true
	}
	all, err := netdev.Dump(func() ([]netlink.Filter, error) { return netlink.FilterList(l, h.parent()) })
	return err != nil || slices.ContainsFunc(all, func(f netlink.Filter) bool {
		b, ok := f.(*netlink.BpfFilter)
		return ok && b.Priority == h.priority() && b.Name == filterPrefix+string(h.at)
	})
}

// pin is what is pinned under a name.
type pin interface {
	Pin(path string) error
	Unpin() error
}

// pins returns what must be pinned, by path. mu is held.
func (d *Datapath) pins() map[string]pin {
	all := make(map[string]pin)
	for name, m := range map[string]*ebpf.Map{
		bpfMapBinding: d.c.Binding, bpfMapConfig: d.c.Config, bpfMapDrops: d.c.Drops, bpfMapEvents: d.c.Events, bpfMapMacs: d.c.Macs,
		bpfMapPeers: d.c.Peers, bpfMapPending: d.c.Pending, bpfMapRemotes: d.c.Remotes, bpfMapTraffic: d.c.Traffic,
	} {
		all[filepath.Join(d.dir, name)] = m
	}
	for h, l := range d.links {
		if l != nil && h.at != onTAP && alive(l, h.ifindex) {
			all[filepath.Join(d.dir, h.String())] = l
		}
	}
	return all
}

func (d *Datapath) lookAtPins(*netdev.View) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, owned.ErrWaits
	}
	var missing []string
	all := d.pins()
	for path := range all {
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			missing = append(missing, filepath.Base(path))
		} else if err != nil {
			return nil, err
		}
	}
	if len(missing) == 0 {
		return nil, nil
	}
	slices.Sort(missing)
	const most = 3
	words := strings.Join(missing[:min(most, len(missing))], ", ")
	return []string{fmt.Sprintf("%d of %d %s missing: %s", len(missing), len(all), count.Form(len(missing), "is", "are"), words)}, nil
}

// makePins pins again what is not pinned any more. mu is held.
func (d *Datapath) makePins() error {
	if err := hostfile.Private(d.opts.PinDir); err != nil {
		return err
	}
	if err := mountBPF(d.opts.PinDir); err != nil {
		return err
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return err
	}
	for path, p := range d.pins() {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := errors.Join(p.Unpin(), p.Pin(path)); err != nil {
			return fmt.Errorf("pin %s: %w", path, err)
		}
	}
	return nil
}
