package policy

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/policy/enginetest"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
	"github.com/weft-net/weft/policy/rules"
)

// TestKernelAgreesWithModel applies random changes to the rules of random clusters and sends the
// first packets of random flows over a bridge. Exactly those packets must arrive that the model
// allows.
func TestKernelAgreesWithModel(t *testing.T) {
	const pods, steps, flows = 9, 20, 400
	w := enginetest.NewWire(t, pods)
	enginetest.OnOneCPU(t)
	first := seed.New(t)
	r := policytest.Random{Rand: rand.New(rand.NewPCG(first, 0))}
	c := rules.New(model.Load(r.Snapshot(pods, 6)))
	k := &nft{ns: w.NS, logRules: first%2 == 0}
	state := unhooked
	id, mark := uint32(1), uint32(1)
	w.Settle(t, mark) // and makes the bridge learn the port of each MAC address
	for step := range steps {
		if step > 0 {
			for range 1 + r.IntN(3) {
				r.Step(c, pods, 8)
			}
		}
		c.SetPorts(podPorts(w, c.Cluster(), pods))
		change := c.Change()
		want := hooksFor(c)
		if err := k.apply(change, state, want); err != nil {
			t.Fatalf("step %d: %v\n%s", step, err, c.Rules())
		}
		state = want
		if diff, err := k.differs(c.Rules(), want); diff != "" || err != nil {
			t.Fatalf("step %d: %s %v\n%s", step, diff, err, c.Rules())
		}
		var probes []enginetest.Probe
		for range flows {
			p := enginetest.Probe{Flow: r.Flow(pods), Sport: uint16(20000 + id%40000), ID: id<<8 | 0xa5}
			id++
			probes = append(probes, p)
			from := endOf(p.Src, pods)
			to := w.Ends[endOf(p.Dst, pods)].MAC
			if policytest.IsGroup(p.Dst) {
				to = enginetest.GroupMAC(p.Dst)
			}
			if err := unix.Send(w.Ends[from].FD, p.Frame(w.Ends[from].MAC, to), 0); err != nil {
				t.Fatal(err)
			}
		}
		mark++
		w.Settle(t, mark)
		for _, p := range probes {
			check(t, w, c.Cluster(), p, pods, step)
		}
		if t.Failed() {
			t.Fatalf("step %d\n%s", step, c.Rules())
		}
	}
}

// endOf returns the number of the wire's end that has an address.
func endOf(a netip.Addr, pods int) int {
	for i := range pods {
		if slices.Contains(policytest.Addrs(i), a) || a == policytest.LinkLocal(i) {
			return i
		}
	}
	return pods
}

func podPorts(w *enginetest.Wire, c *model.Cluster, pods int) map[netip.Addr]uint32 {
	all := make(map[netip.Addr]uint32)
	for i := range pods {
		for _, a := range policytest.Addrs(i) {
			if c.Local(c.Owner(a)) {
				all[a] = w.Ports[i]
			}
		}
	}
	return all
}

// check compares the ends at which a probe arrived with the model.
func check(t *testing.T, w *enginetest.Wire, c *model.Cluster, p enginetest.Probe, pods, step int) {
	t.Helper()
	passes := func(f model.Flow, d model.Direction) bool {
		j := c.Judge(f, d)
		return j.Allowed() || !c.Local(j.Pod)
	}
	if p.Src.IsLinkLocalUnicast() {
		p.Sender = policytest.AddrOf(c, endOf(p.Src, pods))
	}
	out := passes(p.Flow, model.Egress)
	many := policytest.IsGroup(p.Dst)
	for i := range w.Ends {
		if i == endOf(p.Src, pods) || !many && i != endOf(p.Dst, pods) {
			continue
		}
		f := p.Flow
		if i < pods && (many || f.Dst.IsLinkLocalUnicast()) {
			f.Receiver = policytest.AddrOf(c, i)
		}
		if got, want := w.Ends[i].Got[p.ID], out && passes(f, model.Ingress); got != want {
			t.Errorf("step %d: %+v at end %d: passed %v, want %v by the model", step, f, i, got, want)
		}
	}
}

// generationAt returns the generation of a namespace, for when the engine's socket is closed.
func generationAt(path string) (uint32, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return 0, err
	}
	defer ns.Close()
	return (&nft{ns: ns}).generation()
}

func do(t testing.TB, path string, f func() error) {
	t.Helper()
	if err := netdev.Do(path, f); err != nil {
		t.Fatal(err)
	}
}
