// Package enginetest is the environment for tests of policy engines: a host with a bridge, and an
// API server with a cluster. An API is safe for concurrent use; a Wire is not.
package enginetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	mdnetlink "github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/policy/model"
)

// Wire is a host with a bridge, and the far ends of the bridge's ports. The far ends are
// interfaces without addresses in one namespace; tests only send and receive frames on them.
type Wire struct {
	Host  string
	NS    netns.NsHandle // the namespace of Host
	Ends  []FarEnd       // the pods' ends; the last end is for World
	Ports []uint32       // interface index of the bridge port of each end
}

// FarEnd is the far end of a bridge port.
type FarEnd struct {
	FD  int
	MAC net.HardwareAddr
	Got map[uint32]bool // the IDs of the received probes
	// marks is the number of the last received mark.
	marks uint32
}

// etherMark is the EtherType of marks (IEEE 802 local experimental), which netfilter does not
// filter. When a mark arrives, every earlier frame has either arrived or been dropped.
const etherMark = 0x88b5

// NewWire makes a wire with ends for pods pods. It is removed when the test ends.
func NewWire(t testing.TB, pods int) *Wire {
	t.Helper()
	w := &Wire{Host: nstest.New(t, "host")}
	far := nstest.New(t, "pods")
	var err error
	if w.NS, err = netns.GetFromPath(w.Host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.NS.Close() })
	farNS, err := netns.GetFromPath(far)
	if err != nil {
		t.Fatal(err)
	}
	defer farNS.Close()
	for _, path := range []string{w.Host, far} {
		inNamespace(t, path, func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
		})
	}
	inNamespace(t, w.Host, func() error {
		if err := netdev.ProcSys.Set("1", "net", "bridge", "bridge-nf-call-iptables"); err != nil {
			return err
		}
		return w.build(pods+1, farNS)
	})
	inNamespace(t, far, func() error { return w.open(pods + 1) })
	t.Cleanup(w.close)
	return w
}

// WireInThread makes a wire entirely in the calling thread's namespace; Host is not set.
func WireInThread(t testing.TB, pods int) *Wire {
	t.Helper()
	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	w := &Wire{NS: here}
	t.Cleanup(func() { w.close(); here.Close() })
	if err := errors.Join(w.build(pods+1, here), w.open(pods+1)); err != nil {
		t.Fatal(err)
	}
	return w
}

// open opens the far ends, in the calling thread's namespace.
func (w *Wire) open(n int) error {
	for i := range n {
		e, err := openEnd(endName(i))
		if err != nil {
			return err
		}
		w.Ends = append(w.Ends, e)
	}
	return nil
}

func (w *Wire) close() {
	for _, e := range w.Ends {
		unix.Close(e.FD)
	}
}

func inNamespace(t testing.TB, path string, f func() error) {
	t.Helper()
	if err := netdev.Do(path, f); err != nil {
		t.Fatal(err)
	}
}

func endName(i int) string { return fmt.Sprintf("end%d", i) }

// build makes the bridge and its ports.
func (w *Wire) build(n int, far netns.NsHandle) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = netdev.BridgeName
	off := false
	br := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}
	if err := netlink.LinkAdd(br); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return err
	}
	for i := range n {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = fmt.Sprintf("port%d", i)
		v := netlink.NewVeth(attrs)
		v.PeerName, v.PeerNamespace = endName(i), netlink.NsFd(int(far))
		if err := netlink.LinkAdd(v); err != nil {
			return err
		}
		l, err := netlink.LinkByName(attrs.Name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetMaster(l, br); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		w.Ports = append(w.Ports, uint32(l.Attrs().Index))
	}
	return nil
}

func openEnd(name string) (FarEnd, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return FarEnd{}, err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return FarEnd{}, err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		return FarEnd{}, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return FarEnd{}, err
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	return FarEnd{FD: fd, MAC: l.Attrs().HardwareAddr, Got: make(map[uint32]bool)}, err
}

// read receives all pending frames.
func (e *FarEnd) read() {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(e.FD, b, 0)
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if n >= 18 && binary.BigEndian.Uint16(b[12:]) == etherMark {
			e.marks = max(e.marks, binary.BigEndian.Uint32(b[14:]))
		} else if id := ProbeID(b[:n]); id != 0 {
			e.Got[id] = true
		}
	}
}

// mark sends a mark from one end to all others.
func (w *Wire) mark(from int, number uint32) error {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, w.Ends[from].MAC...)
	b = binary.BigEndian.AppendUint16(b, etherMark)
	b = append(binary.BigEndian.AppendUint32(b, number), make([]byte, 46)...)
	return unix.Send(w.Ends[from].FD, b, 0)
}

// Settle waits until every frame that was sent has arrived or been dropped, with the help of
// marks. The calling thread must have sent all frames on one CPU, which keeps their order.
func (w *Wire) Settle(t testing.TB, number uint32) {
	t.Helper()
	markAll := func() {
		for from := range w.Ends {
			if err := w.mark(from, number); err != nil {
				t.Fatal(err)
			}
		}
	}
	markAll()
	deadline := time.Now().Add(20 * time.Second)
	for i := range w.Ends {
		for w.Ends[i].read(); w.Ends[i].marks < number; w.Ends[i].read() {
			if time.Now().After(deadline) {
				t.Fatalf("end %d: mark %d did not arrive", i, number)
			}
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(w.Ends[i].FD), Events: unix.POLLIN}}, 100)
			if n == 0 {
				markAll() // a new port of a bridge forwards only after a moment
			}
		}
	}
}

// OnOneCPU pins the calling goroutine to one CPU until the test ends.
func OnOneCPU(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	var all, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	for cpu := range 1024 {
		if all.IsSet(cpu) {
			one.Set(cpu)
			break
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
}

// Time sends packets of a flow's protocol, each the first of a new flow, and returns the time per
// packet in the best of a few rounds.
func (w *Wire) Time(b *testing.B, f model.Flow) time.Duration {
	b.Helper()
	const packets = 20000
	from := w.Ends[0]
	frames := make([][]byte, packets)
	for i := range frames {
		// The source port and the ID make each packet the first of a new flow.
		frames[i] = Probe{Flow: f, Sport: uint16(1024 + i), ID: 1}.Frame(from.MAC, w.Ends[1].MAC)
	}
	conn, err := conntrack.Dial(&mdnetlink.Config{NetNS: int(w.NS)})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	best := time.Duration(math.MaxInt64)
	for range 5 {
		if err := conn.Flush(); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		for _, frame := range frames {
			if err := unix.Send(from.FD, frame, 0); err != nil {
				b.Fatal(err)
			}
		}
		best = min(best, time.Since(start)/packets)
	}
	return best
}
