package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
)

// find looks up an interface by name; nil if there is none.
func find(name string) (netlink.Link, error) {
	l, err := netdev.Dump(func() (netlink.Link, error) { return netlink.LinkByName(name) })
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up %s: %w", name, err)
	}
	return l, nil
}

// remove deletes the interface if it is of type kind.
func remove(name, kind string) error {
	l, err := find(name)
	if err != nil || l == nil {
		return err
	}
	if l.Type() != kind {
		return fmt.Errorf("delete %s: it is of type %s, not %s", name, l.Type(), kind)
	}
	if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete %s: %w", name, err)
	}
	return nil
}

// setUp sets an interface up, without an IPv6 address, and returns its index.
func (o Options) setUp(name string, mtu int) (int, error) {
	if err := (netdev.Interface{Name: name, MTU: mtu, Sysctls: o.Sysctls}).Ensure(); err != nil {
		return 0, err
	}
	l, err := find(name)
	if err == nil && l == nil {
		err = fmt.Errorf("look up %s: %w", name, unix.ENODEV)
	}
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, nil
}

// makePort makes the veth pair and makes one end a port of the bridge, or takes over
// an existing pair. It returns the index of the port.
func makePort(o Options) (int, error) {
	port, err := find(o.Port)
	if err != nil {
		return 0, err
	}
	peer, err := find(o.PortPeer)
	if err != nil {
		return 0, err
	}
	if port == nil || peer == nil || port.Type() != "veth" || peer.Type() != "veth" || port.Attrs().ParentIndex != peer.Attrs().Index {
		for _, name := range []string{o.Port, o.PortPeer} {
			if err := remove(name, "veth"); err != nil {
				return 0, err
			}
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = o.Port, o.MTU
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerMTU = o.PortPeer, uint32(o.MTU)
		if err := netlink.LinkAdd(v); err != nil {
			return 0, fmt.Errorf("make veth pair %s and %s: %w", o.Port, o.PortPeer, err)
		}
	}
	if _, err := o.setUp(o.PortPeer, o.MTU); err != nil {
		return 0, err
	}
	if err := (netdev.BridgePort{Name: o.Port, Bridge: o.Bridge, MTU: o.MTU, Sysctls: o.Sysctls}).Ensure(); err != nil {
		return 0, err
	}
	return o.setUp(o.Port, o.MTU)
}

// vxlanMTU is the largest that the kernel allows. The programs check what fits.
const vxlanMTU = 65535

// makeVXLAN makes the VXLAN device, or takes over an existing one. It returns its
// index. On error there is none.
func makeVXLAN(o Options) (int, error) {
	l, err := find(o.VXLAN)
	if err != nil {
		return 0, err
	}
	if v, ok := l.(*netlink.Vxlan); !ok || !v.FlowBased || v.Learning || v.Port != o.VXLANPort {
		if err := remove(o.VXLAN, "vxlan"); err != nil {
			return 0, err
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name = o.VXLAN
		if err := netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: attrs, FlowBased: true, Port: o.VXLANPort}); err != nil {
			return 0, err
		}
	}
	// Each process finds out again whether the cards compute right checksums.
	if err := setOffload(o.VXLAN, unix.ETHTOOL_STXCSUM, true); err != nil {
		return 0, errors.Join(err, remove(o.VXLAN, "vxlan"))
	}
	index, err := o.setUp(o.VXLAN, vxlanMTU)
	if err != nil {
		return 0, errors.Join(err, remove(o.VXLAN, "vxlan"))
	}
	return index, nil
}

// Remove removes what Open and Datapath made, in this process and in earlier ones,
// in the network namespace of the calling thread: attachments, pins, the mounted
// file system, the veth pair and the VXLAN device. The TAP stays, and so does the spoof
// guard, with the file system in which it is pinned. It continues after
// errors and returns all of them.
func Remove(o Options) error {
	errs := []error{removePins(o.PinDir), removeFilters(filterPriority)}
	for _, dev := range []struct{ name, kind string }{{o.Port, "veth"}, {o.PortPeer, "veth"}, {o.VXLAN, "vxlan"}} {
		errs = append(errs, remove(dev.name, dev.kind))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove fast path: %w", err)
	}
	return nil
}

// removePins empties and removes the folder of pins. This detaches links that
// nothing else holds.
func removePins(dir string) error {
	is, err := isBPF(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case is:
		if err := removeOthers(dir, ""); err != nil {
			return fmt.Errorf("remove pins in %s: %w", dir, err)
		}
		ours, err := mountedByWeft(dir)
		if err != nil {
			return err
		}
		if _, err := os.Lstat(filepath.Join(dir, guardDir)); ours && err != nil {
			if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
				return fmt.Errorf("unmount %s: %w", dir, err)
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove folder of pins: %w", err)
	}
	return nil
}

// mountSource is the source of a file system that weft mounted.
const mountSource = "weft"

// mountedByWeft reports whether dir is the mount point of a file system that
// mountBPF mounted.
func mountedByWeft(dir string) (bool, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return false, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return false, err
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, fmt.Errorf("read mounts: %w", err)
	}
	return mountedIn(string(b), dir), nil
}

// mountedIn searches the text of /proc/self/mountinfo for the mount. Before Linux
// 5.17 the kernel says "none" for the source of every file system of type bpf. There
// it is weft's if it is a whole one: a folder of the host that is bound there, as
// into a pod, has another root.
func mountedIn(mountinfo, dir string) bool {
	// 36 35 98:0 / /mount/point options ... - type source options
	for line := range strings.Lines(mountinfo) {
		head, tail, ok := strings.Cut(line, " - ")
		f, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(f) < 5 || len(t) < 2 || f[4] != dir || t[0] != "bpf" {
			continue
		}
		if t[1] == mountSource || t[1] == "none" && f[3] == "/" {
			return true
		}
	}
	return false
}
