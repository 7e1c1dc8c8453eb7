package rules_test

import (
	"fmt"
	"runtime"
	"testing"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/policy/model"
	"github.com/weft-net/weft/policy/policytest"
	"github.com/weft-net/weft/policy/rules"
)

// sizes returns a cluster of the intended size, and one whose pods are all on one node, which is
// far more than a kubelet allows.
func sizes() []policytest.Size {
	one := policytest.Cluster
	one.Local = one.Pods
	return []policytest.Size{policytest.Cluster, one}
}

func BenchmarkCompile(b *testing.B) {
	for _, size := range sizes() {
		b.Run(fmt.Sprintf("local=%d", size.Local), func(b *testing.B) {
			s := policytest.Large(size)
			for b.Loop() {
				rules.Compile(s, nil)
			}
		})
	}
}

// BenchmarkMemory reports the memory that a cluster and its rules take.
func BenchmarkMemory(b *testing.B) {
	for _, size := range sizes() {
		b.Run(fmt.Sprintf("local=%d", size.Local), func(b *testing.B) {
			for b.Loop() {
				before := heap()
				c := rules.New(model.Load(policytest.Large(size)))
				c.Change()
				b.ReportMetric(float64(heap()-before)/1e6, "MB")
				runtime.KeepAlive(c)
			}
		})
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func BenchmarkPodChange(b *testing.B) {
	for _, size := range sizes() {
		b.Run(fmt.Sprintf("local=%d", size.Local), func(b *testing.B) {
			c := rules.New(model.Load(policytest.Large(size)))
			c.Change()
			for i := 0; b.Loop(); i++ {
				p := policytest.LargePod(size, 7)
				p.Labels = labels.Set{"app": fmt.Sprintf("app-%d", i%5)}
				c.SetPod(p.Key, p)
				c.Change()
			}
		})
	}
}
