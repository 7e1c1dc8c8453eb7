//go:build docker

package docker

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

// spoofs reports whether a container reaches an address from another one than its own, which it
// gives itself. That has a number, as caches know where the last one was.
func (h *host) spoofs(t *testing.T, container, iface, to string, n int) bool {
	t.Helper()
	foreign := fmt.Sprintf("10.40.0.%d", 100+n)
	h.ping(t, container, to)
	h.docker(t, "exec", container, "ip", "addr", "add", foreign+"/32", "dev", iface)
	_, err := h.try(t, "docker", "exec", container, "ping", "-c2", "-W1", "-I", foreign, to)
	h.docker(t, "exec", container, "ip", "addr", "del", foreign+"/32", "dev", iface)
	return err == nil
}

// However a container is connected, it sends with its own addresses only, unless its user says
// that it may send with others. Its image cannot say that.
func TestContainersAreGuarded(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	h.run(t, "--name", "victim", "--net", "weft")
	victim := h.addresses(t, "victim", "ethwe0")[0].Addr().String()
	h.docker(t, "network", "create", "-d", "weft", "--ipam-driver", "weft", "--subnet", "10.40.0.0/16", "-o", "weft.allow-spoof=true", "free")
	h.run(t, "--name", "other", "--net", "free")
	onFree := h.addresses(t, "other", "ethwe0")[0].Addr().String()
	h.run(t, "--name", "sly", "--net", "none", "-e", "WEFT_ALLOW_SPOOF=true")
	h.docker(t, "commit", "sly", "sly")

	admin := []string{"--cap-add", "NET_ADMIN"}
	run := func(args ...string) string { return h.run(t, append(admin, args...)...) }
	proxied := func(image string, args ...string) string {
		return h.viaProxy(t, append(append([]string{"run", "-d", "--init", "--cap-add", "NET_ADMIN"}, args...), image, "sleep", "10000")...)
	}
	attach := func(options ...string) string {
		id := run("--net", "none")
		h.weft(t, append(append([]string{"attach"}, options...), strings.TrimSpace(id))...)
		return id
	}
	for i, c := range []struct {
		what  string
		id    string
		iface string
		to    string
		want  bool
	}{
		{"driver", run("--net", "weft"), "ethwe0", victim, false},
		{"driver, option of the endpoint", run("--network", "name=weft,driver-opt=weft.allow-spoof=true"), "ethwe0", victim, true},
		{"driver, option of the network", run("--net", "free"), "ethwe0", onFree, true},
		{"proxy", proxied(sandbox.Image, "--net", "none"), "ethwe0", victim, false},
		{"proxy, variable", proxied(sandbox.Image, "--net", "none", "-e", "WEFT_ALLOW_SPOOF=true"), "ethwe0", victim, true},
		{"proxy, variable, Docker's network too", proxied(sandbox.Image, "-e", "WEFT_ALLOW_SPOOF=true"), "ethwe0", victim, true},
		{"proxy, variable, weft's network", proxied(sandbox.Image, "--net", "weft", "-e", "WEFT_ALLOW_SPOOF="), "ethwe0", victim, true},
		{"proxy, variable of the image", proxied("sly", "--net", "none"), "ethwe0", victim, false},
		{"attach", attach(), "ethwe", victim, false},
		{"attach, option", attach("--allow-spoof"), "ethwe", victim, true},
	} {
		id := strings.TrimSpace(c.id)
		if got := h.spoofs(t, id, c.iface, c.to, i); got != c.want {
			t.Errorf("%s: it reaches others from another address: %v, want %v", c.what, got, c.want)
		}
		// It is the same after a restart of the container.
		if c.what == "attach, option" || c.what == "driver, option of the endpoint" || c.what == "driver" {
			h.docker(t, "restart", "-t", "0", id)
			if got := h.spoofs(t, id, c.iface, c.to, 100+i); got != c.want {
				t.Errorf("%s, restarted: it reaches others from another address: %v, want %v", c.what, got, c.want)
			}
		}
	}
}
