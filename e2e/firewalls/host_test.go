//go:build firewalls

package firewalls

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/internal/lab/sandbox"
	"github.com/weft-net/weft/internal/leak"
	"github.com/weft-net/weft/internal/poll"
)

const runAsWeftVar = "BE_THE_WEFT_PROGRAM"

// TestMain runs weft if the test binary is started in a sandbox host.
func TestMain(h *testing.M) {
	sandbox.Main()
	if os.Getenv(runAsWeftVar) != "" {
		os.Exit(cmd.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv(runAsWeftVar, "1")
	os.Exit(leak.Run(h))
}

const timeout = 60 * time.Second

// host is a sandbox host that may run a router and two containers on its bridge.
type host struct {
	*sandbox.Host
	t *testing.T
}

func newHost(t *testing.T) host {
	t.Helper()
	network, err := sandbox.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	h, err := network.Add("h1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if b, err := os.ReadFile(h.Path("/var/lib/weft/weft.log")); err == nil && t.Failed() {
			t.Logf("router:\n%s", b[max(0, len(b)-8<<10):])
		}
	})
	return host{h, t}
}

func (h host) try(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(h.t.Context(), timeout)
	defer cancel()
	if name == "weft" {
		exe, err := os.Executable()
		if err != nil {
			return "", err
		}
		name = exe
	}
	out, err := h.Run(ctx, name, args...)
	return strings.TrimSpace(out), err
}

func (h host) must(name string, args ...string) string {
	h.t.Helper()
	out, err := h.try(name, args...)
	if err != nil {
		h.t.Fatal(err)
	}
	return out
}

func (h host) sh(script string) string {
	h.t.Helper()
	return h.must("bash", "-ec", script)
}

// start starts a daemon, which ends with the test.
func (h host) start(name string, args ...string) *bytes.Buffer {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c := h.Command(ctx, name, args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		cancel()
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		cancel()
		if err := c.Wait(); h.t.Failed() {
			h.t.Logf("%s: %v\n%s", name, err, out.Bytes()[max(0, out.Len()-4<<10):])
		} else if errors.As(err, new(*exec.Error)) {
			h.t.Error(err)
		}
	})
	return &out
}

// bus starts D-Bus.
func (h host) bus() {
	h.t.Helper()
	h.sh("mkdir -p /run/dbus")
	h.start("dbus-daemon", "--system", "--nofork", "--nopidfile")
	h.eventually("D-Bus", func() error { _, err := h.try("test", "-S", "/run/dbus/system_bus_socket"); return err })
}

// launch starts the router, and attaches two containers.
func (h host) launch() {
	h.t.Helper()
	h.sh("sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1")
	h.must("weft", "launch", "--docker-api", "")
	for _, name := range []string{"a", "b"} {
		h.sh("ip netns add " + name)
		h.must("weft", "attach", "--netns", "/run/netns/"+name)
	}
}

// reaches returns nil if container a reaches container b.
func (h host) reaches() error {
	_, err := h.try("bash", "-ec", `to=$(ip -n b -o -4 addr show dev ethwe | awk '{print $4}'); ip netns exec a ping -c1 -W1 "${to%/*}"`)
	return err
}

// What becomes of a TCP connection to a closed port.
const (
	refused = "refused by the container"
	dropped = "dropped on the way"
)

// dial connects from container a to a closed port of container b.
func (h host) dial() string {
	h.t.Helper()
	return h.sh(`to=$(ip -n b -o -4 addr show dev ethwe | awk '{print $4}')
code=0; ip netns exec a timeout 2 bash -c "exec 3<>/dev/tcp/${to%/*}/9" 2>/dev/null || code=$?
[ $code = 124 ] && echo "` + dropped + `" || echo "` + refused + `"`)
}

func (h host) eventually(what string, f func() error) {
	h.t.Helper()
	if err := poll.Until(timeout, 50*time.Millisecond, f); err != nil {
		h.t.Fatalf("%s: %v", what, err)
	}
}

// says waits until status and doctor say some words.
func (h host) says(words ...string) {
	h.t.Helper()
	for _, command := range []string{"status", "doctor"} {
		h.eventually("weft "+command+" says it", func() error {
			out, _ := h.try("weft", command) // doctor fails if something is wrong
			for _, w := range words {
				if !strings.Contains(out, w) {
					return fmt.Errorf("no %q in\n%s", w, out)
				}
			}
			return nil
		})
	}
}

// saysNothing waits until status has no warning about the firewall.
func (h host) saysNothing() {
	h.t.Helper()
	h.eventually("no warning", func() error {
		if out := h.must("weft", "status"); strings.Contains(out, "the host's firewall") {
			return errors.New(out)
		}
		return nil
	})
}

// install puts a file of the packages in a place of the host.
func install(t *testing.T, h host, name, to string) {
	t.Helper()
	b, err := os.ReadFile("../../prog/packages/" + name)
	if err != nil {
		t.Fatal(err)
	}
	c := h.Command(t.Context(), "bash", "-ec", `mkdir -p "${0%/*}" && cat >"$0"`, to)
	c.Stdin = bytes.NewReader(b)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// quiet checks that containers reach each other, and that weft had nothing to repair.
func (h host) quiet() {
	h.t.Helper()
	if err := h.reaches(); err != nil {
		h.t.Error(err)
	}
	if out := h.must("weft", "report", "-f", "{{json .Kernel}}"); strings.Contains(out, `:1`) {
		h.t.Errorf("weft had to repair: %s", out)
	}
}
