package cni

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/policy"
	"github.com/weft-net/weft/policy/policytest"
)

// enforcePolicies enforces the policies of a large cluster on a host until the benchmark
// ends, and makes the plugin wait for those of its pods.
func enforcePolicies(b *testing.B, lab *testbed.Lab, host int) {
	b.Helper()
	var engine *policy.Engine
	err := netdev.Do(lab.Netns(harness.At(host, "")), func() (err error) {
		engine, err = policy.New(policy.Config{Node: policytest.Node, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	o := policytest.LargeObjects(policytest.Cluster)
	for _, ns := range o.Namespaces {
		engine.SetNamespace(ns)
	}
	for _, p := range o.Pods {
		engine.SetPod(p)
	}
	// The plugin's pod is known to the API server and has no address yet.
	joining := policytest.LargePodObject(policytest.Cluster, 0)
	joining.Name, joining.UID = "joining", "joining"
	joining.Status.PodIP, joining.Status.PodIPs = "", nil
	engine.SetPod(joining)
	for _, p := range o.Policies {
		engine.SetPolicy(p)
	}
	engine.Synced()
	ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
	ended := make(chan error, 2)
	socket := filepath.Join(filepath.Dir(lab.Socket(host)), filepath.Base(api.DefaultPolicySocket))
	go func() { ended <- engine.Run(ctx) }()
	go func() { ended <- engine.Serve(ctx, socket) }()
	b.Cleanup(func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				b.Error(err)
			}
		}
		if err := engine.Close(); err != nil {
			b.Error(err)
		}
	})
	if err := poll.Until(harness.ConvergeTimeout, 50*time.Millisecond, engine.Enforced); err != nil {
		b.Fatal(err)
	}
}

// useShipped makes the host's runtime call the plugin as it ships, and lets it find the
// plugins of others.
func (h *cniHost) useShipped(rivals string) {
	h.t.Helper()
	dir := h.t.TempDir()
	cmd := exec.CommandContext(h.t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, "github.com/weft-net/weft/prog/weft-cni")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("build weft-cni: %v\n%s", err, out)
	}
	h.cni.Path = []string{dir, rivals}
}

// BenchmarkCNI measures ADD and DEL of a pod's interface through libcni: by the plugin as
// it ships, on a host of a mesh of two; the same for a pod under the policies of a large
// cluster, for which ADD waits; and by the CNI project's bridge and host-local without
// masquerading, from the directory that WEFT_RIVALS names. The three take turns, so that a
// disturbance affects all of them. It reports medians in milliseconds, and weft's as
// ratios to the other's.
func BenchmarkCNI(b *testing.B) {
	const rounds = 50
	rivals := os.Getenv("WEFT_RIVALS")
	if rivals == "" {
		b.Skip("WEFT_RIVALS names no directory with bridge and host-local; run: make bench-cni")
	}
	lab := harness.New(b, testbed.Config{Hosts: 2})
	lab.Exe = harness.Shipped(b)
	ctx, cancel := context.WithTimeout(b.Context(), harness.ConvergeTimeout)
	defer cancel()
	if err := lab.Up(ctx); err != nil {
		b.Fatal(err)
	}
	weft := newCNIHost(b, lab, 1, "1.0.0", nil)
	weft.useShipped(rivals)
	bridge, err := libcni.ConfListFromBytes(fmt.Appendf(nil, `{"cniVersion": "1.0.0", "name": "rival", "plugins": [{
		"type": "bridge", "bridge": "rival0", "isDefaultGateway": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.99.0.0/16"}]]}}]}`, b.TempDir()))
	if err != nil {
		b.Fatal(err)
	}
	other := *weft
	other.list = bridge
	enforcePolicies(b, lab, 1)
	ways := []struct {
		name string
		by   *cniHost
		args [][2]string
	}{
		{"weft", weft, nil},
		{"policies", weft, [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "namespace-0"}, {"K8S_POD_NAME", "joining"}, {"K8S_POD_UID", "joining"}}},
		{"bridge", &other, nil},
	}
	took := make(map[string][]time.Duration)
	for range b.N {
		for round := range rounds + 1 {
			for _, w := range ways {
				rc := w.by.pod(fmt.Sprintf("%s%d", w.name, round))
				rc.Args = w.args
				began := time.Now()
				w.by.mustAdd(rc)
				added := time.Now()
				if err := w.by.del(rc); err != nil {
					b.Fatal(err)
				}
				if round > 0 { // the first fills caches
					took[w.name+"-add"] = append(took[w.name+"-add"], added.Sub(began))
					took[w.name+"-del"] = append(took[w.name+"-del"], time.Since(added))
				}
			}
		}
	}
	median := func(name string) float64 {
		d := took[name]
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	for _, verb := range []string{"-add", "-del"} {
		for _, w := range ways {
			b.ReportMetric(median(w.name+verb), w.name+verb+"-ms")
			if w.name != "bridge" {
				b.ReportMetric(median(w.name+verb)/median("bridge"+verb), w.name+verb+"-ratio")
			}
		}
	}
	b.ReportMetric(0, "ns/op")
}
