package datapath

import (
	"errors"
	"testing"

	"github.com/cilium/ebpf"
	ebpflink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// limited is a container with a bandwidth limit, and a connection to it that never pauses.
type limited struct {
	t    *testing.T
	lab  *testbed.Lab
	host int
	veth int // the host's end
	s    *harness.Stream
}

// onVeth runs f on the host.
func (l *limited) onVeth(f func(veth netlink.Link) error) {
	l.t.Helper()
	err := netdev.Do(l.lab.Netns(harness.At(l.host, "")), func() error {
		veth, err := netlink.LinkByIndex(l.veth)
		return errors.Join(err, f(veth))
	})
	if err != nil {
		l.t.Fatal(err)
	}
}

// transfer lets the connection run for a while. It returns how many bytes crossed the
// host's end of the veth on their way in, and how many arrived.
func (l *limited) transfer() (crossed, received uint64) {
	l.t.Helper()
	count := func() (n uint64) {
		l.onVeth(func(veth netlink.Link) error { n = veth.Attrs().Statistics.TxBytes; return nil })
		return n
	}
	crossed, received = count(), l.s.Received.Load()
	harness.Eventually(l.t, "the connection carries", func() bool { return l.s.Received.Load() > received+1<<19 })
	received = l.s.Received.Load() - received
	return count() - crossed, received
}

func (l *limited) express() bool { crossed, received := l.transfer(); return crossed < received/10 }
func (l *limited) held() bool    { crossed, received := l.transfer(); return crossed > received/10*9 }

// limit puts a token bucket on the veth, and free removes it.
func (l *limited) limit() {
	l.t.Helper()
	l.onVeth(func(netlink.Link) error { return netlink.QdiscAdd(l.bucket()) })
}

func (l *limited) free() {
	l.t.Helper()
	l.onVeth(func(netlink.Link) error { return netlink.QdiscDel(l.bucket()) })
}

func (l *limited) bucket() *netlink.Tbf {
	return &netlink.Tbf{Rate: 100e6, Limit: 1 << 20, Buffer: 1 << 20, QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: l.veth, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT,
	}}
}

// programs returns how many programs other than the spoof guard see the container's frames before
// a queue does.
func (l *limited) programs() (n int) {
	l.t.Helper()
	l.onVeth(func(veth netlink.Link) error {
		r, err := ebpflink.QueryPrograms(ebpflink.QueryOptions{Target: l.veth, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			n = len(r.Programs)
			return nil
		}
		filters, err := netdev.Dump(func() ([]netlink.Filter, error) { return netlink.FilterList(veth, netlink.HANDLE_MIN_INGRESS) })
		n = len(filters)
		return err
	})
	return n - 1
}

// Site, "Express and netfilter": a bandwidth limit on a container's interface is effective
// while it is there, even if it was added while no router ran. When it is removed express
// returns. Connections survive all of this.
func TestLimitsOfOthersHoldExpressBack(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2})
	harness.AddContainer(t, lab, 2, "far")
	near := harness.AddContainer(t, lab, 1, "near")[0].Addr()
	harness.Eventually(t, "express", func() bool { return harness.Link(t, lab, 1, "h2").Express && harness.Link(t, lab, 2, "h1").Express })
	l := &limited{t: t, lab: lab, host: 1}
	if err := netdev.Do(lab.Netns(harness.At(1, "near")), func() error {
		inside, err := netlink.LinkByName(netdev.IfaceName)
		if err == nil {
			l.veth = inside.Attrs().ParentIndex
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	l.s = harness.StartStream(t, lab, harness.At(2, "far"), harness.At(1, "near"), near)
	harness.Eventually(t, "frames pass by the bridge", l.express)

	l.limit()
	harness.Eventually(t, "frames cross the token bucket", l.held)
	l.free()
	harness.Eventually(t, "frames pass by the bridge again", l.express)

	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	l.limit()
	harness.Launch(t, lab, 1)
	harness.Eventually(t, "frames cross a token bucket that came without a router", l.held)
	harness.Eventually(t, "no program is left in front of it", func() bool { return l.programs() == 0 })
	if !l.held() {
		t.Error("not all frames cross the token bucket")
	}
	l.free()
	harness.Eventually(t, "frames pass by the bridge at last", l.express)
	if l.programs() == 0 {
		t.Error("nothing lets the container's frames pass by the bridge")
	}
	l.s.Whole(t)
}
