package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// policies stands for the process that enforces policies, and records what the
// plugin reports about pods.
type policies struct {
	netns string // of the pod

	mu       sync.Mutex
	refuse   bool
	reported []string
}

func (p *policies) ExpectPod(_ context.Context, r api.PolicyPodRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	plugged := netdev.Do(p.netns, func() error { _, err := netlink.LinkByName("eth0"); return err }) == nil
	p.reported = append(p.reported, fmt.Sprintf("expect %s %s %s, plugged in %v", r.Pod, r.UID, r.Addresses, plugged))
	if p.refuse {
		return &api.Error{Class: api.Unavailable, Text: "the cluster is not known yet"}
	}
	return nil
}

func (p *policies) ForgetPod(_ context.Context, r api.PolicyPodRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reported = append(p.reported, fmt.Sprintf("forget %s %s", r.Pod, r.Addresses))
	return nil
}

func (*policies) ShowPolicy(context.Context, api.PolicyShowRequest) (api.PolicyReply, error) {
	return api.PolicyReply{}, errors.ErrUnsupported
}

func (*policies) TracePolicy(context.Context, api.PolicyTraceRequest) (api.PolicyReply, error) {
	return api.PolicyReply{}, errors.ErrUnsupported
}

func (p *policies) want(t *testing.T, words ...string) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if !slices.Equal(p.reported, words) {
		t.Errorf("reported\n%q\nwant\n%q", p.reported, words)
	}
	p.reported = nil
}

// Policies apply to a pod before it is plugged in, and a pod to which they cannot be
// applied is not plugged in. Containers that are not pods, and hosts without policies,
// are not affected.
func TestCNIPodsAreIsolatedFirst(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1})
	h := newCNIHost(t, lab, 1, "1.0.0", nil)
	rc := h.pod("web")
	rc.Args = [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", "shop"}, {"K8S_POD_NAME", "web-0"}, {"K8S_POD_UID", "u1"}}
	h.mustAdd(rc) // nobody enforces policies
	if err := h.del(rc); err != nil {
		t.Fatal(err)
	}

	p := &policies{netns: rc.NetNS, refuse: true}
	l, err := api.ListenUnix(filepath.Join(filepath.Dir(lab.Socket(1)), "policy.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- api.Serve(ctx, l, api.Handler(api.PolicyRoutes(p)), slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	_, err = h.add(rc)
	if code(err) != 11 {
		t.Errorf("add where policies cannot be enforced: %v", err)
	}
	h.wantLeases(0)
	p.mu.Lock()
	reported := p.reported
	p.reported, p.refuse = nil, false
	p.mu.Unlock()
	if len(reported) != 2 {
		t.Errorf("reported %q, want a pod that was expected and forgotten", reported)
	}

	addr := h.mustAdd(rc).IPs[0].Address.IP
	expect := fmt.Sprintf("expect shop/web-0 u1 [%s], plugged in ", addr)
	p.want(t, expect+"false", expect+"true")
	for range 2 {
		if err := h.del(rc); err != nil {
			t.Fatal(err)
		}
	}
	p.want(t, fmt.Sprintf("forget shop/web-0 [%s]", addr))

	other := newCNIHost(t, lab, 1, "1.0.0", map[string]any{"ipam": map[string]any{"type": "fixed"}})
	said := other.givesFixed("10.77.0.5/24")
	if r := other.mustAdd(rc); len(r.IPs) != 1 || r.IPs[0].Address.String() != "10.77.0.5/24" {
		t.Errorf("addresses %v, want what the other plugin gave", r.IPs)
	}
	if err := other.del(rc); err != nil {
		t.Fatal(err)
	}
	expect = "expect shop/web-0 u1 [10.77.0.5], plugged in "
	p.want(t, expect+"false", expect+"true", "forget shop/web-0 [10.77.0.5]")
	if b, err := os.ReadFile(said); err != nil || string(b) != "ADD\nDEL\n" {
		t.Errorf("the other plugin was told %q, %v", b, err)
	}

	rc.Args = nil
	h.mustAdd(rc)
	p.want(t)
}

// givesFixed makes a plugin of that name that always allocates one address, and returns the
// file with its input.
func (h *cniHost) givesFixed(address string) (said string) {
	h.t.Helper()
	dir := h.cni.Path[0]
	said = filepath.Join(dir, "said")
	script := fmt.Sprintf(`#!/bin/sh
echo "$CNI_COMMAND" >>%q
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0","ips":[{"address":%q}]}'
`, said, address)
	if err := os.WriteFile(filepath.Join(dir, "fixed"), []byte(script), 0o755); err != nil {
		h.t.Fatal(err)
	}
	return said
}
