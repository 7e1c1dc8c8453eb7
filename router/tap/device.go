package tap

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/router/offload"
)

// largestGSO is the largest frame that the kernel writes: an IP packet of 64 KB (its
// gso_max_size), an Ethernet header and VLAN tags.
const largestGSO = 65535 + 64

// Device is the only queue of a TAP device with virtio-net headers.
type Device struct {
	file
	name     string
	offloads Offloads
}

// ErrRefused is returned if the kernel has TAPs, but without the offloads that a Device
// needs. OpenPlain works then.
var ErrRefused = errors.New("the kernel refuses virtio-net headers or checksum offload")

// Kernel has the system calls of Open. Tests replace it by a lesser one.
type Kernel struct {
	// SetIff is ioctl TUNSETIFF; it returns the name that the device got.
	SetIff func(fd int, name string, flags uint16) (string, error)
	// SetOffload is ioctl TUNSETOFFLOAD.
	SetOffload func(fd int, flags int) error
}

// Linux is the Kernel of this host.
var Linux = Kernel{
	SetIff:     setIff,
	SetOffload: func(fd, flags int) error { return unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, flags) },
}

func setIff(fd int, name string, flags uint16) (string, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return "", err
	}
	req.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return "", err
	}
	return req.Name(), nil
}

// Open makes a TAP with this name, which exists as long as the Device. It is down. Open
// requests all offloads and, if the kernel refuses, fewer: those for datagrams need
// Linux 6.2.
func Open(name string, k Kernel) (*Device, error) {
	d := &Device{}
	d.open = func() (*os.File, error) {
		f, got, offloads, err := open(name, k)
		switch {
		case err != nil:
			return nil, err
		case d.name == "":
			d.name, d.offloads = got, offloads
			name = got // of a pattern like tap%d
		case got != d.name || offloads != d.offloads:
			f.Close()
			return nil, fmt.Errorf("make TAP %s with the offloads %s again: the kernel makes %s with %s", d.name, d.offloads, got, offloads)
		}
		return f, nil
	}
	if err := d.start(); err != nil {
		return nil, err
	}
	return d, nil
}

// open makes a TAP and returns its file, its name and its offloads.
func open(name string, k Kernel) (f *os.File, got string, is Offloads, err error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, "", is, fmt.Errorf("make TAP %s: open /dev/net/tun: %w", name, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	if got, err = k.SetIff(fd, name, unix.IFF_TAP|unix.IFF_NO_PI|unix.IFF_VNET_HDR); err != nil {
		return nil, "", is, fmt.Errorf("make TAP %s with virtio-net headers: %w", name, asRefused(err))
	}
	const tso = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	for _, try := range []struct {
		flags int
		is    Offloads
	}{
		{tso | unix.TUN_F_USO4 | unix.TUN_F_USO6, Offloads{true, true, true}},
		{tso, Offloads{true, true, false}},
		{unix.TUN_F_CSUM, Offloads{true, false, false}},
	} {
		if err = k.SetOffload(fd, try.flags); err == nil {
			return os.NewFile(uintptr(fd), "/dev/net/tun"), got, try.is, nil
		}
	}
	return nil, "", is, fmt.Errorf("make TAP %s: set TUNSETOFFLOAD: %w", name, asRefused(err))
}

// asRefused marks the errors of a kernel that does not know the request.
func asRefused(err error) error {
	switch {
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return err
}

// Name returns the name of the interface.
func (d *Device) Name() string { return d.name }

// Offloads implements Queue.
func (d *Device) Offloads() Offloads { return d.offloads }

// NewReader implements Queue.
func (d *Device) NewReader() Reader { return newReader(d.name, &d.file, offload.HeaderLen, largestGSO) }

// NewWriter implements Queue.
func (d *Device) NewWriter() Writer {
	w := &writer{d: d, iovs: make([]unix.Iovec, 0, maxParts)}
	w.call = w.writev
	return w
}

// maxParts is the largest number of parts of a frame with its header: UIO_MAXIOV of the
// kernel.
const maxParts = 1024

type writer struct {
	d     *Device
	head  [offload.HeaderLen]byte
	iovs  []unix.Iovec
	errno syscall.Errno
	call  func(fd uintptr) bool // made once, so that a system call allocates nothing
}

// Write implements Writer.
func (w *writer) Write(h offload.Header, parts [][]byte) error {
	h.Put(w.head[:])
	w.iovs = append(w.iovs[:0], unix.Iovec{Base: &w.head[0]})
	w.iovs[0].SetLen(len(w.head))
	for _, p := range parts {
		w.iovs = append(w.iovs, unix.Iovec{Base: unsafe.SliceData(p)})
		w.iovs[len(w.iovs)-1].SetLen(len(p))
	}
	if err := w.d.now.Load().raw.Write(w.call); err != nil {
		return fmt.Errorf("write TAP %s: %w", w.d.name, os.ErrClosed)
	}
	if w.errno != 0 {
		return fmt.Errorf("write TAP %s: %w", w.d.name, w.errno)
	}
	return nil
}

// writev never waits: the device drops a frame if its queue is full. rawRead explains
// why the system call is raw.
func (w *writer) writev(fd uintptr) bool {
	for {
		_, _, w.errno = unix.RawSyscall(unix.SYS_WRITEV, fd, uintptr(unsafe.Pointer(&w.iovs[0])), uintptr(len(w.iovs)))
		if w.errno != unix.EINTR {
			return true
		}
	}
}
