package policy

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
	"github.com/weft-net/weft/policy/rules"
)

// wire is a host with a bridge, and the other ends of its ports, which are in
// one namespace without addresses: whatever comes there is only looked at.
type wire struct {
	host  string
	ns    netns.NsHandle // of host
	ends  []farEnd       // of pods; the last is the world's
	ports []uint32       // ifindex of the bridge's port to each end
}

// farEnd is the far end of a port.
type farEnd struct {
	fd  int
	mac net.HardwareAddr
	got map[uint32]bool // the IDs of probes that came
	// marks is the number of the last mark that came.
	marks uint32
}

// etherMark is the type of frames that netfilter does not judge (IEEE 802 local
// experiments). They tell that what was sent before has come or will not.
const etherMark = 0x88b5

func newWire(t testing.TB, pods int) *wire {
	t.Helper()
	w := &wire{host: nstest.New(t, "host")}
	far := nstest.New(t, "pods")
	var err error
	if w.ns, err = netns.GetFromPath(w.host); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.ns.Close() })
	farNS, err := netns.GetFromPath(far)
	if err != nil {
		t.Fatal(err)
	}
	defer farNS.Close()
	for _, path := range []string{w.host, far} {
		do(t, path, func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644)
		})
	}
	do(t, w.host, func() error {
		if err := showBridgedPackets("/proc/sys"); err != nil {
			return err
		}
		return w.build(pods+1, farNS)
	})
	do(t, far, func() error {
		for i := range pods + 1 {
			e, err := openEnd(endName(i))
			if err != nil {
				return err
			}
			w.ends = append(w.ends, e)
		}
		return nil
	})
	t.Cleanup(func() {
		for _, e := range w.ends {
			unix.Close(e.fd)
		}
	})
	return w
}

func do(t testing.TB, path string, f func() error) {
	t.Helper()
	if err := netdev.Do(path, f); err != nil {
		t.Fatal(err)
	}
}

func endName(i int) string { return fmt.Sprintf("end%d", i) }

// build makes the bridge and its ports.
func (w *wire) build(n int, far netns.NsHandle) error {
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
		w.ports = append(w.ports, uint32(l.Attrs().Index))
	}
	return nil
}

func openEnd(name string) (farEnd, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return farEnd{}, err
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return farEnd{}, err
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(all))
	if err != nil {
		return farEnd{}, err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return farEnd{}, err
	}
	err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: l.Attrs().Index})
	return farEnd{fd: fd, mac: l.Attrs().HardwareAddr, got: make(map[uint32]bool)}, err
}

// read takes in what has come.
func (e *farEnd) read() {
	b := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(e.fd, b, 0)
		if err != nil {
			return
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if n >= 18 && binary.BigEndian.Uint16(b[12:]) == etherMark {
			e.marks = max(e.marks, binary.BigEndian.Uint32(b[14:]))
		} else if id := probeID(b[:n]); id != 0 {
			e.got[id] = true
		}
	}
}

// mark sends a mark from an end to all others.
func (w *wire) mark(from int, number uint32) error {
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, w.ends[from].mac...)
	b = binary.BigEndian.AppendUint16(b, etherMark)
	b = append(binary.BigEndian.AppendUint32(b, number), make([]byte, 46)...)
	return unix.Send(w.ends[from].fd, b, 0)
}

// settle marks that everything was sent, and waits until it has come. The calling
// thread must have sent it all, on one CPU, which then keeps the order.
func (w *wire) settle(t *testing.T, number uint32) {
	t.Helper()
	markAll := func() {
		for from := range w.ends {
			if err := w.mark(from, number); err != nil {
				t.Fatal(err)
			}
		}
	}
	markAll()
	deadline := time.Now().Add(20 * time.Second)
	for i := range w.ends {
		for w.ends[i].read(); w.ends[i].marks < number; w.ends[i].read() {
			if time.Now().After(deadline) {
				t.Fatalf("end %d: mark %d has not come", i, number)
			}
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(w.ends[i].fd), Events: unix.POLLIN}}, 100)
			if n == 0 {
				markAll() // a new port of a bridge takes a moment until it forwards
			}
		}
	}
}

// onOneCPU keeps the calling goroutine on one CPU until the test ends.
func onOneCPU(t testing.TB) {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
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

// TestKernelJudgesAsTheModel takes the rules of random clusters through random
// changes and sends the first packets of random flows over a bridge: those come
// through that the model allows.
func TestKernelJudgesAsTheModel(t *testing.T) {
	const pods, steps, flows = 9, 20, 400
	w := newWire(t, pods)
	onOneCPU(t)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := policytest.Random{Rand: rand.New(rand.NewPCG(seed, 0))}
	c := rules.New(model.Load(r.Snapshot(pods, 6)))
	k := kernel{ns: w.ns, mute: seed%2 == 0}
	hooked := false
	id, mark := uint32(1), uint32(1)
	w.settle(t, mark) // and the bridge knows whose ports are whose
	for step := range steps {
		if step > 0 {
			for range 1 + r.IntN(3) {
				r.Step(c, pods, 8)
			}
		}
		c.SetPorts(w.podPorts(c.Cluster(), pods))
		change := c.Change()
		hook := c.Isolates()
		if err := k.apply(change, hooked, hook); err != nil {
			t.Fatalf("step %d: %v\n%s", step, err, c.Rules())
		}
		hooked = hook
		if diff, err := k.differs(c.Rules(), hook); diff != "" || err != nil {
			t.Fatalf("step %d: %s %v\n%s", step, diff, err, c.Rules())
		}
		var probes []probe
		for range flows {
			p := probe{Flow: r.Flow(pods), sport: uint16(20000 + id%40000), id: id<<8 | 0xa5}
			id++
			probes = append(probes, p)
			from := w.endOf(p.Src, pods)
			to := w.ends[w.endOf(p.Dst, pods)].mac
			if policytest.ToMany(p.Dst) {
				to = groupMAC(p.Dst)
			}
			if err := unix.Send(w.ends[from].fd, p.frame(w.ends[from].mac, to), 0); err != nil {
				t.Fatal(err)
			}
		}
		mark++
		w.settle(t, mark)
		for _, p := range probes {
			w.check(t, c.Cluster(), p, pods, step)
		}
		if t.Failed() {
			t.Fatalf("step %d\n%s", step, c.Rules())
		}
	}
}

// endOf returns the end that has an address.
func (w *wire) endOf(a netip.Addr, pods int) int {
	for i := range pods {
		if slices.Contains(policytest.Addrs(i), a) || a == policytest.LinkLocal(i) {
			return i
		}
	}
	return pods
}

func (w *wire) podPorts(c *model.Cluster, pods int) map[netip.Addr]uint32 {
	all := make(map[netip.Addr]uint32)
	for i := range pods {
		for _, a := range policytest.Addrs(i) {
			if c.Local(c.Owner(a)) {
				all[a] = w.ports[i]
			}
		}
	}
	return all
}

// check compares where a probe came with the model.
func (w *wire) check(t *testing.T, c *model.Cluster, p probe, pods, step int) {
	t.Helper()
	passes := func(f model.Flow, d model.Direction) bool {
		j := c.Judge(f, d)
		return j.Allowed() || !c.Local(j.Pod)
	}
	if p.Src.IsLinkLocalUnicast() {
		p.Sender = policytest.AddrOf(c, w.endOf(p.Src, pods))
	}
	out := passes(p.Flow, model.Egress)
	many := policytest.ToMany(p.Dst)
	for i := range w.ends {
		if i == w.endOf(p.Src, pods) || !many && i != w.endOf(p.Dst, pods) {
			continue
		}
		f := p.Flow
		if i < pods && (many || f.Dst.IsLinkLocalUnicast()) {
			f.Receiver = policytest.AddrOf(c, i)
		}
		if got, want := w.ends[i].got[p.id], out && passes(f, model.Ingress); got != want {
			t.Errorf("step %d: %+v at end %d: passed %v, the model says %v", step, f, i, got, want)
		}
	}
}

// generationAt is generation in a namespace, for when the engine's is closed.
func (kernel) generationAt(path string) (uint32, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	return kernel{ns: ns}.generation()
}
