package netdev

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNotReady is the cause of an error if a namespace, or an interface in it, does not
// exist yet or is not up.
var ErrNotReady = errors.New("it is not ready yet")

// AddAddresses adds the missing addresses to the interface with that MAC address in the
// namespace at path, and announces them.
func AddAddresses(path string, mac net.HardwareAddr, addrs []netip.Prefix) error {
	wrap := func(cause error) error {
		return fmt.Errorf("add addresses to interface %s in %s: %w", mac, path, cause)
	}
	in, err := at(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EINVAL) {
		return wrap(ErrNotReady) // no file yet, or nothing mounted on it yet
	}
	if err != nil {
		return wrap(err)
	}
	defer in.Close()
	links, err := in.links()
	if err != nil {
		return wrap(err)
	}
	i := slices.IndexFunc(links, func(l netlink.Link) bool { return bytes.Equal(l.Attrs().HardwareAddr, mac) })
	if i < 0 || links[i].Attrs().Flags&net.FlagUp == 0 {
		return wrap(ErrNotReady)
	}
	if err := enableIPv6(path, links[i].Attrs().Name, addrs); err != nil {
		return wrap(err)
	}
	added, err := addAddrs(in, links[i], addrs)
	if err != nil {
		return wrap(err)
	}
	if err := announce(path, links[i].Attrs().Index, mac, added); err != nil {
		return wrap(err)
	}
	return nil
}
