//go:build docker

package docker

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/lab/sandbox"
	"github.com/weft-net/weft/internal/poll"
)

// 200 short-lived containers, 50 at once, through the driver and through the proxy, do not
// exhaust a /24.
func TestManyShortLivedContainers(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1, "--ipalloc-default-subnet", "10.32.0.0/24")[0]
	h.waitNetwork(t)
	var mu sync.Mutex
	seen := make(map[string]int)
	run := func(args ...string) error {
		out, err := h.try(t, "docker", append(args, sandbox.Image, "sh", "-c", "ip -o -4 addr show dev ethwe0")...)
		if err != nil {
			return err
		}
		words := strings.Fields(out)
		if len(words) < 4 {
			return fmt.Errorf("the first process sees %q", out)
		}
		mu.Lock()
		seen[words[3]]++
		mu.Unlock()
		return nil
	}
	const total, atOnce = 200, 50
	limit := make(chan struct{}, atOnce)
	var runs sync.WaitGroup
	for i := range total {
		limit <- struct{}{}
		runs.Go(func() {
			defer func() { <-limit }()
			args := []string{"run", "--rm", "--net", "weft"}
			if i%2 == 1 {
				args = []string{"-H", proxySocket, "run", "--rm"}
			}
			if err := run(args...); err != nil {
				t.Errorf("container %d: %v", i, err)
			}
		})
	}
	runs.Wait()
	h.waitActive(t, 0)
	// The subnet still has free addresses.
	for range 3 {
		if err := run("run", "--rm", "--net", "weft"); err != nil {
			t.Error(err)
		}
	}
	h.waitActive(t, 0)
	for a := range seen {
		if p, err := netip.ParsePrefix(a); err != nil || p.Bits() != 24 {
			t.Errorf("a container had address %s", a)
		}
	}
}

// A container that exits at once frees its addresses, attached or on a network.
func TestContainerThatExitsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	for range 10 {
		h.docker(t, "run", "--rm", "--net", "weft", sandbox.Image, "true")
		h.viaProxy(t, "run", "--rm", "-e", "WEFT_CIDR=net:default 10.40.1.5/24", sandbox.Image, "true")
	}
	if text := h.mustFail(t, "docker", "-H", proxySocket, "run", "--rm", sandbox.Image, "/nowhere"); !strings.Contains(text, "no such file") {
		t.Errorf("a missing program: %s", text)
	}
	h.waitActive(t, 0)
	id := h.docker(t, "run", "-d", "--restart", "on-failure:3", "--net", "weft", sandbox.Image, "false")
	h.mustFail(t, "weft", "attach", id)
	h.docker(t, "rm", "-f", id)
	h.waitActive(t, 0)
}

// Docker cannot start a container while no router answers. The next router starts it, if
// Docker was to keep it running, and with its address.
func TestStartsThatFailedWhileTheRouterWasAway(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	for _, c := range []struct{ name, policy string }{{"kept", "always"}, {"once", "no"}} {
		h.viaProxy(t, "run", "-d", "--name", c.name, "--restart", c.policy, sandbox.Image, "sleep", "1000")
	}
	h.weft(t, "stop")
	var starts sync.WaitGroup
	for _, name := range []string{"kept", "once"} {
		starts.Go(func() {
			if out, err := h.try(t, "docker", "restart", "-t", "0", name); err == nil {
				t.Errorf("docker started %s without a router: %s", name, out)
			}
		})
	}
	starts.Wait()
	h.launch(t, []*host{h})
	eventually(t, "it runs again", func() error {
		if got := h.docker(t, "inspect", "-f", "{{.State.Running}}", "kept"); got != "true" {
			return fmt.Errorf("running: %s", got)
		}
		return nil
	})
	if got := h.addresses(t, "kept", "ethwe0"); len(got) != 1 {
		t.Errorf("its addresses are %v", got)
	}
	if got := h.docker(t, "inspect", "-f", "{{.State.Running}} {{.State.Error}}", "once"); !strings.HasPrefix(got, "false ") {
		t.Errorf("a container that nobody wanted to be kept runs: %s", got)
	} else {
		t.Log(got)
	}
}

// An engine hangs, sends a flood of events, and is killed during starts of containers. The
// router keeps answering, and no address is lost.
func TestEngineFailures(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	ctx := t.Context()
	h.run(t, "--name", "web")
	h.weft(t, "attach", "10.40.0.5/24", "web")

	// The engine hangs.
	if err := h.engine.Signal(ctx, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "status shows that docker hangs", func() error {
		began := time.Now()
		r := h.report(t)
		if d := time.Since(began); d > 5*time.Second {
			return fmt.Errorf("a report took %v", d)
		}
		if r.Docker == nil || !strings.Contains(r.Docker.State, "does not answer") {
			return fmt.Errorf("%+v", r.Docker)
		}
		return nil
	})
	began := time.Now()
	h.weft(t, "stop")
	h.launch(t, []*host{h})
	if d := time.Since(began); d > 30*time.Second {
		t.Errorf("stop and launch took %v while the engine hung", d)
	}
	if err := h.engine.Signal(ctx, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.waitNetwork(t)

	// The engine sends a flood of events.
	h.must(t, "bash", "-c", "for i in $(seq 40); do docker create --name flood$i weft-test/busybox true >/dev/null & docker exec web true & wait; done; docker rm -f $(docker ps -aq --filter name=flood) >/dev/null")
	h.docker(t, "restart", "-t0", "web")
	eventually(t, "attached again after a flood", func() error {
		if got := sortedStrings(h.addresses(t, "web", "ethwe")); !slices.Equal(got, []string{"10.40.0.5/24"}) {
			return fmt.Errorf("it has %v", got)
		}
		return nil
	})

	// The engine is killed during starts of containers.
	for range 3 {
		var starts sync.WaitGroup
		starting, stop := context.WithCancel(ctx)
		for range 8 {
			starts.Go(func() {
				h.Command(starting, "docker", "run", "--rm", "--net", "weft", sandbox.Image, "sleep", "1").Run()
			})
		}
		eventually(t, "a container is starting", func() error {
			if n := h.activeAddresses(t); n < 3 {
				return fmt.Errorf("%d addresses are in use", n)
			}
			return nil
		})
		if err := h.engine.Kill(ctx); err != nil {
			t.Fatal(err)
		}
		stop()
		starts.Wait()
		h.startEngine(t)
	}
	h.must(t, "sh", "-c", "docker rm -f $(docker ps -aq)")
	h.waitNoLeases(t)
}

// waitNoLeases waits until no address is in use. Addresses of interrupted starts are kept for
// two minutes.
func (h *host) waitNoLeases(t *testing.T) {
	t.Helper()
	if poll.Until(4*time.Minute, time.Second, poll.True(func() bool { return h.activeAddresses(t) == 0 })) != nil {
		t.Fatalf("%d addresses are in use: %s", h.activeAddresses(t), h.weft(t, "ps"))
	}
}
