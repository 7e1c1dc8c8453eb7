package kernel

import (
	"fmt"
	"net"

	"github.com/cilium/ebpf"
)

// Mend restores what other programs changed: it makes the VXLAN device or the
// bridge's port again, sets the device up, and makes the port a port of the bridge.
// It reports whether it changed anything. Then the card computes checksums again, as
// after Open.
func (d *Datapath) Mend() (mended bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	err = d.in(func() error {
		port, err := d.mendPort()
		if err != nil {
			return fmt.Errorf("%s: %w", d.opts.Port, err)
		}
		vxlan, err := d.mendVXLAN()
		if err != nil {
			return fmt.Errorf("%s: %w", d.opts.VXLAN, err)
		}
		mended = port || vxlan
		return nil
	})
	if err != nil {
		return mended, fmt.Errorf("mend the fast path: %w", err)
	}
	return mended, nil
}

// mendPort is Mend for the port. mu is held.
func (d *Datapath) mendPort() (mended bool, err error) {
	port, err := find(d.opts.Port)
	if err != nil {
		return false, err
	}
	bridge, err := find(d.opts.Bridge)
	if err != nil || bridge == nil {
		return false, err // without the bridge there is nothing to be a port of
	}
	if port != nil && port.Attrs().Index == int(d.config.Port) && port.Attrs().MasterIndex == bridge.Attrs().Index {
		return false, nil
	}
	index, err := makePort(d.opts)
	if err != nil {
		return false, err
	}
	if err := d.reattach(hook{onPort, int(d.config.Port)}, index, d.c.fromPort); err != nil {
		return false, err
	}
	c := d.config
	c.Port = uint32(index)
	return true, d.putConfig(c)
}

// mendVXLAN is Mend for the VXLAN device. mu is held.
func (d *Datapath) mendVXLAN() (mended bool, err error) {
	if d.fast != nil {
		return false, nil
	}
	l, err := find(d.opts.VXLAN)
	old := hook{onVXLAN, int(d.config.VXLAN)}
	if err != nil || l != nil && l.Attrs().Index == old.ifindex && l.Attrs().Flags&net.FlagUp != 0 {
		return false, err
	}
	index, err := makeVXLAN(d.opts)
	if err != nil {
		return false, err
	}
	if err := d.reattach(old, index, d.c.fromVxlan); err != nil {
		return false, err
	}
	c := d.config
	c.VXLAN = uint32(index)
	return true, d.putConfig(c)
}

// reattach attaches a program to the interface with an index, which replaced an old
// one or is the same.
func (d *Datapath) reattach(old hook, index int, prog *ebpf.Program) error {
	if index != old.ifindex {
		_ = d.detach(old) // the interface is gone
	}
	return d.attach(hook{old.at, index}, prog)
}
