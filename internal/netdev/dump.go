package netdev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// dumpTries bounds how often a dump is repeated because the kernel reports that the
// table changed meanwhile and entries may be missing. On a busy host that happens now
// and then; many times in a row mean that something is wrong.
const dumpTries = 20

// Dump calls a netlink list function until its result is consistent.
func Dump[T any](list func() (T, error)) (T, error) {
	for range dumpTries - 1 {
		v, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return v, err
		}
	}
	return list()
}

// handle is a netlink socket in one namespace whose dumps are repeated until they are
// consistent.
type handle struct{ *netlink.Handle }

// LinkAdd makes a link, which may be a port of a bridge at once.
func (h handle) LinkAdd(l netlink.Link) error { return portError(h.Handle.LinkAdd(l)) }

// LinkSetMasterByIndex makes a link a port of a bridge.
func (h handle) LinkSetMasterByIndex(l netlink.Link, bridge int) error {
	return portError(h.Handle.LinkSetMasterByIndex(l, bridge))
}

// portError says in words why a bridge accepts no more ports.
func portError(err error) error {
	if errors.Is(err, unix.EXFULL) {
		return fmt.Errorf("the bridge has %d ports, and the kernel allows no more; connect further containers on other hosts: %w", maxPorts, err)
	}
	return err
}

// here opens a handle in the calling thread's namespace.
func here() (handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return handle{}, fmt.Errorf("open netlink: %w", err)
	}
	return handle{h}, nil
}

// at opens a handle in the namespace at path. If nothing is mounted there, or was not when the
// file was opened, the cause is EINVAL.
func at(path string) (handle, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return handle{}, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer ns.Close()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(ns), &fs); err != nil {
		return handle{}, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		// The library does not say why it cannot enter it.
		return handle{}, fmt.Errorf("open network namespace %s: nothing is mounted there: %w", path, unix.EINVAL)
	}
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return handle{}, fmt.Errorf("open netlink in %s: %w", path, err)
	}
	return handle{h}, nil
}

func (h handle) links() ([]netlink.Link, error) {
	return Dump(h.Handle.LinkList)
}

func (h handle) addrs(l netlink.Link) ([]netlink.Addr, error) {
	return Dump(func() ([]netlink.Addr, error) { return h.Handle.AddrList(l, netlink.FAMILY_ALL) })
}

func (h handle) routes(family int) ([]netlink.Route, error) {
	return Dump(func() ([]netlink.Route, error) { return h.Handle.RouteList(nil, family) })
}

// link finds an interface by name; ok reports whether there is one.
func (h handle) link(name string) (l netlink.Link, ok bool, err error) {
	l, err = Dump(func() (netlink.Link, error) { return h.Handle.LinkByName(name) })
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("look up interface %s: %w", name, err)
	}
	return l, true, nil
}

// requireLink finds an interface by name. If there is none the error is ENODEV.
func (h handle) requireLink(name string) (netlink.Link, error) {
	l, ok, err := h.link(name)
	if err == nil && !ok {
		err = unix.ENODEV
	}
	return l, err
}

// delete removes an interface that may be gone already.
func (h handle) delete(l netlink.Link) error {
	err := h.Handle.LinkDel(l)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete interface %s: %w", l.Attrs().Name, err)
	}
	return nil
}

func toIPNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// fromIPNet returns false if n is not a prefix, like one whose mask has holes.
func fromIPNet(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	a = a.Unmap()
	ones, bits := n.Mask.Size()
	if bits != a.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, ones), true
}
