//go:build docker

package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/sandbox"
	"github.com/weft-net/weft/internal/leak"
	"github.com/weft-net/weft/internal/poll"
)

const runAsWeftVar = "BE_THE_WEFT_PROGRAM"

// TestMain makes the test binary be weft when it is started in a machine, so
// that the machines run the code under test.
func TestMain(h *testing.M) {
	sandbox.Main()
	if os.Getenv(runAsWeftVar) != "" {
		os.Exit(cmd.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv(runAsWeftVar, "1")
	os.Exit(leak.Run(h))
}

// timeout is how long a test waits for what should come soon. It is longer than
// addresses of containers that are gone without a word are kept.
const timeout = 90 * time.Second

// host is a machine with an engine and a router.
type host struct {
	*sandbox.Host
	engine *sandbox.Dockerd
}

// newMachines makes machines without engines.
func newBareHosts(t testing.TB, n int) []*host {
	t.Helper()
	network, err := sandbox.New()
	if err != nil {
		t.Fatal(err)
	}
	var hs []*host
	t.Cleanup(func() {
		if t.Failed() {
			for _, h := range hs {
				h.showLogs(t)
			}
		}
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range n {
		h, err := network.Add(fmt.Sprintf("h%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		hs = append(hs, &host{Host: h})
	}
	return hs
}

// newHosts makes machines with engines and routers that form a mesh.
func newHosts(t testing.TB, n int, flags ...string) []*host {
	t.Helper()
	hs := newBareHosts(t, n)
	for _, h := range hs {
		h.startEngine(t)
	}
	for _, h := range hs {
		h.launch(t, hs, flags...)
	}
	hs[0].weft(t, "prime")
	return hs
}

// launch starts the router of h, one of hs.
func (h *host) launch(t testing.TB, hs []*host, flags ...string) {
	t.Helper()
	args := append([]string{"launch", "--ipalloc-init", fmt.Sprintf("consensus=%d", len(hs))}, flags...)
	if h != hs[0] {
		args = append(args, hs[0].Addr.String())
	}
	h.weft(t, args...)
}

// startEngine starts an engine that has the image.
func (h *host) startEngine(t testing.TB, flags ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	var err error
	if h.engine, err = h.StartDockerd(ctx, flags...); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Run(ctx, "docker", "image", "inspect", sandbox.Image); err == nil {
		return
	}
	if err := h.LoadImage(ctx); err != nil {
		t.Fatal(err)
	}
}

func (h *host) showLogs(t testing.TB) {
	const most = 8 << 10
	if b, err := os.ReadFile(h.Path("/var/lib/weft/weft.log")); err == nil {
		t.Logf("router of %s:\n%s", h.Name, b[max(0, len(b)-most):])
	}
	if h.engine == nil {
		return
	}
	var words []string
	for line := range strings.Lines(h.engine.LogTail()) {
		if !strings.Contains(line, "level=info") {
			words = append(words, line)
		}
	}
	t.Logf("engine of %s:\n%s", h.Name, strings.Join(words, ""))
}

// try runs a command in the machine.
func (h *host) try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
	defer cancel()
	if name == "weft" {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		name = exe
	}
	out, err := h.Run(ctx, name, args...)
	return strings.TrimSpace(out), err
}

func (h *host) must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.try(t, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (h *host) weft(t testing.TB, args ...string) string {
	t.Helper()
	return h.must(t, "weft", args...)
}

func (h *host) docker(t testing.TB, args ...string) string {
	t.Helper()
	return h.must(t, "docker", args...)
}

// run starts a container that does nothing, and returns its id.
func (h *host) run(t testing.TB, args ...string) string {
	t.Helper()
	return h.docker(t, append(append([]string{"run", "-d", "--init"}, args...), sandbox.Image, "sleep", "10000")...)
}

// refused runs a command that has to fail and returns the one line that it says.
func (h *host) mustFail(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.try(t, name, args...)
	if err == nil {
		t.Fatalf("%s %s: done, and said %q", name, strings.Join(args, " "), out)
	}
	return err.Error()
}

// addresses are what an interface of a container has, without link-local ones.
func (h *host) addresses(t testing.TB, container, iface string) []netip.Prefix {
	t.Helper()
	out, err := h.try(t, "docker", "exec", container, "ip", "addr", "show", "dev", iface)
	if err != nil {
		return nil
	}
	var ps []netip.Prefix
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		if len(words) < 2 || !strings.HasPrefix(words[0], "inet") {
			continue
		}
		if p, err := netip.ParsePrefix(words[1]); err == nil && !p.Addr().IsLinkLocalUnicast() {
			ps = append(ps, p)
		}
	}
	return ps
}

// ping pings an address from a container until there is an answer.
func (h *host) ping(t testing.TB, container, to string) {
	t.Helper()
	eventually(t, fmt.Sprintf("ping %s from %s on %s", to, container, h.Name), func() error {
		_, err := h.try(t, "docker", "exec", container, "ping", "-c1", "-W1", to)
		return err
	})
}

// noPing fails if an address answers a container.
func (h *host) noPing(t testing.TB, container, to string) {
	t.Helper()
	if out, err := h.try(t, "docker", "exec", container, "ping", "-c2", "-W1", to); err == nil {
		t.Errorf("%s answers %s on %s:\n%s", to, container, h.Name, out)
	}
}

// report is what the router of h says of itself.
func (h *host) report(t testing.TB) api.Report {
	t.Helper()
	var r api.Report
	if err := json.Unmarshal([]byte(h.weft(t, "report")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// active is how many addresses are in use on h.
func (h *host) activeAddresses(t testing.TB) int {
	t.Helper()
	return h.report(t).IPAM.ActiveIPs
}

// eventually waits until f returns nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	if err := poll.Until(timeout, 50*time.Millisecond, f); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// waitActive waits until n addresses are in use on h.
func (h *host) waitActive(t testing.TB, n int) {
	t.Helper()
	eventually(t, "addresses in use on "+h.Name, func() error {
		if got := h.activeAddresses(t); got != n {
			return fmt.Errorf("%d, want %d: %s", got, n, h.weft(t, "ps"))
		}
		return nil
	})
}

// one reads a command's output as one address.
func oneAddress(t testing.TB, out string) string {
	t.Helper()
	if _, err := netip.ParseAddr(out); err != nil {
		t.Fatalf("want one address: %v", err)
	}
	return out
}

func sortedStrings(ps []netip.Prefix) []string {
	var list []string
	for _, p := range ps {
		list = append(list, p.String())
	}
	slices.Sort(list)
	return list
}

// lockedBuffer collects what a command writes while it runs.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
