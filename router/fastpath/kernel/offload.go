package kernel

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// SumInSoftware makes the kernel compute the checksums of packets, and segment GSO
// packets, before they enter VXLAN. Until then the card that sends the packet does
// both. Frames that bypass the VXLAN device (express) are not affected.
func (d *Datapath) SumInSoftware() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.software = true
	return d.in(func() error { return setOffload(d.opts.VXLAN, unix.ETHTOOL_STXCSUM, false) })
}

// setOffload switches an offload of an interface, by an ETHTOOL_S... command of
// linux/ethtool.h that takes one value.
//
// github.com/safchain/ethtool 0.7.0 is not used: it has no ETHTOOL_STXCSUM, its way by
// names of features takes four calls instead of one, and it passes pointers to Go memory
// as uintptr through its functions, so that a growing stack makes them dangle.
func setOffload(name string, cmd uint32, on bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket for ethtool: %w", err)
	}
	defer unix.Close(fd)
	value := struct{ cmd, data uint32 }{cmd: cmd}
	if on {
		value.data = 1
	}
	var req struct { // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	req.data = unsafe.Pointer(&value)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
		return fmt.Errorf("ethtool command %d on %s: %w", cmd, name, errno)
	}
	return nil
}
