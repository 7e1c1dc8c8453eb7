//go:build docker

package docker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Containers are attached by id, unique prefix or name, and reach each other between hosts.
func TestAttachByNameIDAndPrefix(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	a, b := hs[0], hs[1]
	id := a.run(t, "--name", "web")
	first := oneAddress(t, a.weft(t, "attach", "web"))
	if again := a.weft(t, "attach", id); again != first {
		t.Errorf("attach by id gives %s, by name %s", again, first)
	}
	more := a.weft(t, "attach", "10.40.0.5/24", "net:10.40.1.0/24", id[:10])
	if !strings.HasPrefix(more, "10.40.0.5 10.40.1.") {
		t.Errorf("attach printed %q", more)
	}
	ps := a.weft(t, "ps", "web")
	if want := id[:12] + " "; !strings.HasPrefix(ps, want) || strings.Count(ps, "/") != 3 || ps != a.weft(t, "ps", id[:12]) {
		t.Errorf("ps: %q", ps)
	}
	b.run(t, "--name", "client")
	oneAddress(t, b.weft(t, "attach", "client"))
	b.ping(t, "client", first)
	b.weft(t, "attach", "10.40.0.6/24", "client")
	b.ping(t, "client", "10.40.0.5")

	if detached := a.weft(t, "detach", "10.40.0.5/24", "web"); detached != "10.40.0.5" {
		t.Errorf("detach printed %q", detached)
	}
	b.noPing(t, "client", "10.40.0.5")
	a.weft(t, "detach", "web")
	if out := a.weft(t, "ps"); out != "" || a.activeAddresses(t) != 0 {
		t.Errorf("after detach there is %q, %d in use", out, a.activeAddresses(t))
	}
}

// Attach refuses containers in the host's or another container's network, and stopped and
// unknown ones, with a clear error.
func TestAttachRefuses(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.run(t, "--name", "onhost", "--net", "host")
	h.run(t, "--name", "base")
	h.run(t, "--name", "joined", "--net", "container:base")
	h.docker(t, "create", "--name", "made", "weft-test/busybox", "true")
	for container, words := range map[string]string{
		"onhost": "network of the host", "joined": "network of another", "made": "does not run", "nobody": "no such container",
	} {
		if text := h.mustFail(t, "weft", "attach", container); !strings.Contains(text, words) || strings.Count(text, "\n") > 0 {
			t.Errorf("attach %s: %s", container, text)
		}
	}
	if err := h.engine.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text := h.mustFail(t, "weft", "attach", "base"); !strings.Contains(text, "does not run on this host") {
		t.Errorf("attach without an engine: %s", text)
	}
}

// When Docker restarts an attached container, it is attached again with the same addresses and
// options. Removing the container frees its addresses.
func TestRestartOfAttachedContainer(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	id := h.run(t, "--name", "web", "--hostname", "web", "--restart", "always")
	h.weft(t, "attach", "--rewrite-hosts", "--add-host", "db:10.1.2.3", "net:default", "10.40.0.5/24", "web")
	had := sortedStrings(h.addresses(t, "web", "ethwe"))
	check := func(when string) {
		t.Helper()
		eventually(t, when, func() error {
			if got := sortedStrings(h.addresses(t, "web", "ethwe")); !slices.Equal(got, had) {
				return fmt.Errorf("it has %v, want %v", got, had)
			}
			text, err := h.try(t, "docker", "exec", "web", "cat", "/etc/hosts")
			if err != nil || !strings.Contains(text, "10.1.2.3\tdb") || !strings.Contains(text, "10.40.0.5\tweb") || strings.Contains(text, "172.17.") {
				return errors.Join(fmt.Errorf("its /etc/hosts is %s", text), err)
			}
			return nil
		})
	}
	check("attached")
	h.docker(t, "restart", "-t0", "web")
	check("restarted by hand")
	h.must(t, "sh", "-c", "kill -9 "+h.docker(t, "inspect", "-f", "{{.State.Pid}}", "web"))
	check("restarted by its policy")

	ctx := t.Context()
	if err := h.engine.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	h.startEngine(t)
	check("engine restarted")
	if err := h.engine.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	h.startEngine(t)
	check("engine killed")
	h.weft(t, "stop")
	h.docker(t, "restart", "-t0", "web")
	h.launch(t, []*host{h})
	check("restarted while the router was stopped")

	h.docker(t, "rm", "-f", id)
	h.waitActive(t, 0)
}

// While the engine hangs, attach by container fails with an error, and everything that needs no
// engine works.
func TestAttachWhileEngineHangs(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.run(t, "--name", "web")
	first := h.weft(t, "attach", "web")
	pid := h.docker(t, "inspect", "-f", "{{.State.Pid}}", "web")
	ctx := t.Context()
	if err := h.engine.Signal(ctx, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if text := h.mustFail(t, "weft", "attach", "web"); !strings.Contains(text, "does not answer") {
		t.Errorf("attach: %s", text)
	}
	if got := h.weft(t, "attach", "--pid", pid, "10.40.0.7/24"); got != "10.40.0.7" {
		t.Errorf("attach by pid: %s", got)
	}
	if got := h.weft(t, "detach", "10.40.0.7/24", "--pid", pid); got != "10.40.0.7" {
		t.Errorf("detach by pid: %s", got)
	}
	if got := h.weft(t, "detach", "web"); got != first {
		t.Errorf("detach by name while docker hangs: %q, want %s", got, first)
	}
	h.must(t, "sh", "-c", "kill -9 "+pid)
	if err := h.engine.Signal(ctx, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	h.docker(t, "rm", "-f", "web")
	h.run(t, "--name", "web")
	if again := h.weft(t, "attach", "web"); again == "" || first == "" {
		t.Error("attach gave no address")
	}
}
