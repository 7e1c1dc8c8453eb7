package netdev

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureBridge makes the bridge name, or brings an existing one to the same state. The
// bridge has that MAC address and MTU (in bytes of IP packet), no multicast snooping
// (weft carries multicast to every peer, so no router answers queries), accepts no
// IPv6 address or route from router advertisements of containers, and is up. Ports
// stay. It fails if name is an interface of another type.
func EnsureBridge(name string, mac net.HardwareAddr, mtu int, sysctls Sysctls) (err error) {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("set up bridge %s: %s: %w", name, what, cause)
	}
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	l, ok, err := h.link(name)
	if err != nil {
		return wrap("look up", err)
	}
	if ok && l.Type() != "bridge" {
		return fmt.Errorf("set up bridge %s: an interface of that name exists and is of type %s", name, l.Type())
	}
	off := false
	if !ok {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = name, mtu, mac
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
			return wrap("create", err)
		}
		if l, ok, err = h.link(name); err != nil || !ok {
			return wrap("look up the new bridge", errors.Join(err, unix.ENODEV))
		}
		defer func() {
			if err != nil {
				_ = h.delete(l)
			}
		}()
	} else if b := l.(*netlink.Bridge); b.MulticastSnooping == nil || *b.MulticastSnooping {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = name, l.Attrs().Index
		if err := h.LinkModify(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
			return wrap("disable multicast snooping", err)
		}
	}
	if l.Attrs().HardwareAddr.String() != mac.String() {
		if err := h.LinkSetHardwareAddr(l, mac); err != nil {
			return wrap("set MAC address "+mac.String(), err)
		}
	}
	// Setting the MTU, even to its current value, stops the kernel from lowering it to
	// that of the smallest port.
	if err := h.LinkSetMTU(l, mtu); err != nil {
		return wrap(fmt.Sprintf("set mtu %d", mtu), err)
	}
	for _, key := range []string{"accept_ra", "autoconf"} {
		if err := sysctls.Set("0", "net", "ipv6", "conf", name, key); err != nil && !errors.Is(err, os.ErrNotExist) {
			return wrap("set "+key, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return wrap("set up", err)
	}
	return nil
}

// DeleteBridge removes the bridge; its ports become plain interfaces. A missing bridge
// is no error.
func DeleteBridge(name string) error { return deleteLink(name) }

func deleteLink(name string) error {
	h, err := here()
	if err != nil {
		return err
	}
	defer h.Close()
	l, ok, err := h.link(name)
	if err != nil || !ok {
		return err
	}
	return h.delete(l)
}

// AddPort makes the interface link a port of bridge, with the given MTU, and
// sets it up. The port gets no IPv6 address of its own.
func AddPort(bridge, link string, mtu int, sysctls Sysctls) error {
	wrap := func(what string, cause error) error {
		return fmt.Errorf("make %s a port of bridge %s: %s: %w", link, bridge, what, cause)
	}
	h, err := here()
	if err != nil {
		return wrap("connect", err)
	}
	defer h.Close()
	b, err := h.requireLink(bridge)
	if err != nil {
		return wrap("look up bridge", err)
	}
	l, err := h.requireLink(link)
	if err != nil {
		return wrap("look up port", err)
	}
	if err := disableIPv6(sysctls, link); err != nil {
		return wrap("disable ipv6", err)
	}
	if err := h.LinkSetMTU(l, mtu); err != nil {
		return wrap(fmt.Sprintf("set mtu %d", mtu), err)
	}
	if err := h.LinkSetMasterByIndex(l, b.Attrs().Index); err != nil {
		return wrap("set master", err)
	}
	if err := h.LinkSetUp(l); err != nil {
		return wrap("set up", err)
	}
	return nil
}

// disableIPv6 disables the host's IPv6 stack on a port. Otherwise each port would send
// duplicate address detection and router solicitations into the overlay.
func disableIPv6(sysctls Sysctls, name string) error {
	err := sysctls.Set("1", "net", "ipv6", "conf", name, "disable_ipv6")
	if errors.Is(err, os.ErrNotExist) {
		return nil // a kernel without IPv6
	}
	return err
}
