package policy

import (
	"fmt"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/policy/enginetest"
	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
	"github.com/weft-net/weft/policy/rules"
)

func newKernel(b *testing.B) kernel {
	b.Helper()
	ns, err := netns.GetFromPath(nstest.New(b, "bench"))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ns.Close() })
	return &nft{ns: ns}
}

// BenchmarkStart writes all rules of a large cluster to a kernel without rules.
func BenchmarkStart(b *testing.B) {
	k := newKernel(b)
	c := rules.New(model.Load(policytest.Large(policytest.Cluster)))
	c.Change()
	for b.Loop() {
		if err := k.replace(c.Rules(), hooked); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCheck compares the rules of a large cluster with the kernel's. The engine does this
// whenever another program has changed nftables.
func BenchmarkCheck(b *testing.B) {
	k := newKernel(b)
	c := rules.New(model.Load(policytest.Large(policytest.Cluster)))
	c.Change()
	if err := k.replace(c.Rules(), hooked); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if diff, err := k.differs(c.Rules(), hooked); diff != "" || err != nil {
			b.Fatal(diff, err)
		}
	}
}

// BenchmarkPodChange writes the change of one pod of a large cluster to the kernel.
func BenchmarkPodChange(b *testing.B) {
	k := newKernel(b)
	c := rules.New(model.Load(policytest.Large(policytest.Cluster)))
	c.Change()
	if err := k.replace(c.Rules(), hooked); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		p := policytest.LargePod(policytest.Cluster, 7)
		p.Labels = labels.Set{"app": fmt.Sprintf("app-%d", i%5)}
		c.SetPod(p.Key, p)
		if err := k.apply(c.Change(), hooked, hooked); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPacket sends first packets of flows between two pods under policies, over a bridge.
// First packets are the expensive ones: later packets match the established state. It compares a
// cluster of ten policies with no policies, and a cluster of a thousand policies with one of ten.
func BenchmarkPacket(b *testing.B) {
	w := enginetest.NewWire(b, 1)
	enginetest.OnOneCPU(b)
	k := &nft{ns: w.NS}
	cost := func(policies int) time.Duration {
		namespaces := max(1, policies/2)
		size := policytest.Size{Namespaces: namespaces, Pods: 10 * namespaces, Policies: policies, Local: 10 * namespaces}
		s := policytest.Large(size)
		c := rules.New(model.Load(s))
		c.Change()
		if err := k.replace(c.Rules(), hooksFor(c)); err != nil {
			b.Fatal(err)
		}
		// Both pods are in one namespace, and its two policies allow the flow.
		f := model.Flow{Src: s.Pods[0].Addrs[0], Dst: s.Pods[namespaces].Addrs[0], Protocol: model.UDP, Port: 53}
		if !c.Cluster().Judge(f, model.Ingress).Allowed() || !c.Cluster().Judge(f, model.Egress).Allowed() {
			b.Fatal("the flow is not allowed")
		}
		return w.Time(b, f)
	}
	for b.Loop() {
		none, ten, thousand := cost(0), cost(10), cost(1000)
		b.ReportMetric(float64(thousand)/float64(ten), "1000/10-policies")
		b.ReportMetric(float64(ten)/float64(none), "10/0-policies")
		b.ReportMetric(float64(thousand.Nanoseconds()), "ns/packet")
	}
}
