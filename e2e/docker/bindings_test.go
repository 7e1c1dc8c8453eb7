//go:build docker

package docker

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/poll"
)

const (
	// bindingTime is how long a change of a binding may take until all hosts know it, and
	// bindingSlack what a busy machine may add: less than the ten seconds after which routers
	// look at everything.
	bindingTime  = 2 * time.Second
	bindingSlack = 7 * time.Second
)

// bound wants hosts to know soon where an address is: at a MAC address of a container on h, or
// nowhere if mac is "".
func (h *host) bound(t *testing.T, hosts []*host, what, addr, mac string) {
	t.Helper()
	start := time.Now()
	for _, at := range hosts {
		err := poll.Until(timeout, 20*time.Millisecond, func() error {
			out, err := at.try(t, "weft", "status", "bindings", addr)
			if want := mac + "  container  "; mac != "" && (!strings.HasPrefix(out, want) || !strings.Contains(out, addr) || !strings.HasSuffix(out, "("+h.Name+")")) {
				return fmt.Errorf("%q, want %s with %s on %s: %w", out, mac, addr, h.Name, err)
			} else if mac == "" && err == nil {
				return fmt.Errorf("%q, want none", out)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("%s: bindings of %s on %s: %v", what, addr, at.Name, err)
		}
	}
	took := time.Since(start)
	t.Logf("%s: %v", what, took.Round(time.Millisecond))
	if took > bindingTime+bindingSlack {
		t.Errorf("%s: all hosts knew it after %v, want %v", what, took, bindingTime)
	}
}

// mac returns the MAC address of a container's interface.
func (h *host) mac(t *testing.T, container, iface string) string {
	t.Helper()
	return h.docker(t, "exec", container, "cat", "/sys/class/net/"+iface+"/address")
}

// All hosts know the addresses of Docker's containers, whichever way they got them, and forget them
// with the containers.
func TestBindings(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	for _, h := range hs {
		h.waitNetwork(t)
	}
	a, b := hs[0], hs[1]

	a.run(t, "--name", "web", "--net", "weft")
	web := a.address(t, "web", "weft")
	a.bound(t, hs, "docker run", web, a.mac(t, "web", "ethwe0"))

	b.run(t, "--name", "plain")
	plain := oneAddress(t, b.weft(t, "attach", "plain"))
	b.bound(t, hs, "attach", plain, b.mac(t, "plain", "ethwe"))
	b.viaProxy(t, "run", "-d", "--init", "--name", "proxied", "-e", "WEFT_CIDR=10.40.1.5/24", "weft-test/busybox", "sleep", "10000")
	b.bound(t, hs, "docker run over the proxy", "10.40.1.5", b.mac(t, "proxied", "ethwe0"))

	// The router of a host starts again, and its containers go on.
	a.weft(t, "stop")
	a.bound(t, hs[1:], "its router is away", web, "")
	mac := a.mac(t, "web", "ethwe0")
	a.launch(t, hs, b.Addr.String())
	eventually(t, "the routers have a session again", func() error {
		if got := len(b.report(t).Router.UnicastRoutes); got != 1 {
			return fmt.Errorf("%d routes", got)
		}
		return nil
	})
	a.bound(t, hs, "its router is back", web, mac)

	a.docker(t, "rm", "-f", "web")
	a.bound(t, hs, "docker rm", web, "")
	b.docker(t, "kill", "plain")
	b.bound(t, hs, "docker kill of an attached container", plain, "")
	b.docker(t, "stop", "-t", "0", "proxied")
	b.bound(t, hs, "docker stop", "10.40.1.5", "")
	b.docker(t, "start", "proxied")
	b.bound(t, hs, "docker start", "10.40.1.5", b.mac(t, "proxied", "ethwe0"))
}
