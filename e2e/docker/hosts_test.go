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

// TestMain runs weft if the test binary is started in a sandbox host, so that the hosts run the
// code under test.
func TestMain(h *testing.M) {
	sandbox.Main()
	if os.Getenv(runAsWeftVar) != "" {
		os.Exit(cmd.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv(runAsWeftVar, "1")
	os.Exit(leak.Run(h))
}

// timeout is how long a test waits for an expected event. It is longer than the grace period
// of addresses whose container disappeared.
const timeout = 90 * time.Second

// host is a sandbox host with an engine and a router.
type host struct {
	*sandbox.Host
	engine *sandbox.Dockerd
}

// newBareHosts makes sandbox hosts without engines.
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

// newHosts makes sandbox hosts with engines and routers that form a mesh.
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

// startEngine starts the engine of h and loads the image.
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
	var lines []string
	for line := range strings.Lines(h.engine.LogTail()) {
		if !strings.Contains(line, "level=info") {
			lines = append(lines, line)
		}
	}
	t.Logf("engine of %s:\n%s", h.Name, strings.Join(lines, ""))
}

// try runs a command on the host.
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

// run starts a container that sleeps, and returns its id.
func (h *host) run(t testing.TB, args ...string) string {
	t.Helper()
	return h.docker(t, append(append([]string{"run", "-d", "--init"}, args...), sandbox.Image, "sleep", "10000")...)
}

// mustFail runs a command that must fail and returns its error text.
func (h *host) mustFail(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := h.try(t, name, args...)
	if err == nil {
		t.Fatalf("%s %s: succeeded with output %q", name, strings.Join(args, " "), out)
	}
	return err.Error()
}

// addresses returns the addresses of an interface of a container, without link-local ones.
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

// ping pings an address from a container until it answers.
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
	if h.answers(t, container, to) {
		t.Errorf("%s answers %s on %s", to, container, h.Name)
	}
}

// answers reports whether an address answers one of two pings of a container.
func (h *host) answers(t testing.TB, container, to string) bool {
	_, err := h.try(t, "docker", "exec", container, "ping", "-c2", "-W1", to)
	return err == nil
}

// report returns the report of the router of h.
func (h *host) report(t testing.TB) api.Report {
	t.Helper()
	var r api.Report
	if err := json.Unmarshal([]byte(h.weft(t, "report")), &r); err != nil {
		t.Fatal(err)
	}
	return r
}

// activeAddresses returns how many addresses are in use on h.
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

// oneAddress checks that the output of a command is one address, and returns it.
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

// lockedBuffer collects the output of a running command.
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
