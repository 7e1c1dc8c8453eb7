//go:build docker

package docker

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

// Containers can be looked up by name from other hosts, and can no longer once they are removed.
func TestNamesOfContainers(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	for _, h := range hs {
		h.waitNetwork(t)
	}
	a, b := hs[0], hs[1]
	a.run(t, "--name", "web", "--net", "weft", "--network-alias", "www")
	a.run(t, "--name", "db")
	b.run(t, append(strings.Fields(b.weft(t, "dns-args")), "--name", "client", "--net", "weft")...)
	want := map[string]string{
		"web.weft.internal": a.address(t, "web", "weft"),
		"www.weft.internal": a.address(t, "web", "weft"),
		"db.weft.internal":  strings.TrimSpace(a.weft(t, "attach", "db")),
	}
	for name, addr := range want {
		eventually(t, name+" is known", func() error {
			if out := b.weft(t, "dns-lookup", name); strings.TrimSpace(out) != addr {
				return fmt.Errorf("found %q, want %s", out, addr)
			}
			out, err := b.try(t, "docker", "exec", "client", "nslookup", name)
			if err != nil || !strings.Contains(out, addr) {
				return errors.Join(fmt.Errorf("nslookup in the container: %q", out), err)
			}
			return nil
		})
	}
	// Containers of the proxy use weft's name server without further options, and short names.
	for _, name := range []string{"web", "web.weft.internal"} {
		if out := b.viaProxy(t, "run", "--rm", sandbox.Image, "nslookup", name); !strings.Contains(out, want["web.weft.internal"]) {
			t.Errorf("nslookup in a container of the proxy: %q", out)
		}
	}
	a.docker(t, "rm", "-f", "web", "db")
	for name := range want {
		eventually(t, name+" is removed", func() error {
			if out := b.weft(t, "dns-lookup", name); out != "" {
				return fmt.Errorf("it is still %s", out)
			}
			return nil
		})
	}
}

// waitName waits until h resolves a name to exactly those addresses.
func (h *host) waitName(t *testing.T, name string, addrs ...string) {
	t.Helper()
	slices.Sort(addrs)
	eventually(t, fmt.Sprintf("%s resolves %s to %s", h.Name, name, addrs), func() error {
		got := strings.Fields(h.weft(t, "dns-lookup", name+".weft.internal"))
		if slices.Sort(got); !slices.Equal(got, addrs) {
			return fmt.Errorf("found %q", got)
		}
		return nil
	})
}

// Names can be added to and removed from containers by id, prefix of the id or name, whether
// attached, on a network or from the proxy. Such names survive restarts of the container and the
// router, and are removed with the container.
func TestAddedNames(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2, "--dns-external")
	a, b := hs[0], hs[1]
	a.waitNetwork(t)
	id := a.run(t, "--name", "web", "--net", "weft")
	web := a.address(t, "web", "weft")
	a.run(t, "--name", "db")
	db := oneAddress(t, a.weft(t, "attach", "--hostname", "store", "db"))
	more := oneAddress(t, a.weft(t, "attach", "10.40.0.5/24", "db"))
	proxied := a.viaProxy(t, "run", "-d", "--init", "--name", "two", "-e", "WEFT_CIDR=10.40.0.8/24 10.40.1.8/24", sandbox.Image, "sleep", "10000")
	a.weft(t, "dns-add", "web", "-h", "shop")
	a.weft(t, "dns-add", id[:12], "192.0.2.9", "-h", "shop")
	a.weft(t, "dns-add", "db", "-h", "pg.prod.weft.internal")
	a.weft(t, "dns-add", "10.40.1.8", proxied, "-h", "one")
	all := func() {
		t.Helper()
		b.waitName(t, "shop", web, "192.0.2.9")
		b.waitName(t, "store", db, more)
		b.waitName(t, "pg.prod", db, more)
		b.waitName(t, "one", "10.40.1.8")
		b.waitName(t, "two", "10.40.0.8", "10.40.1.8")
		b.waitName(t, "web", web)
		b.waitName(t, "db", db, more)
	}
	all()
	a.docker(t, "restart", "-t0", "db", "two")
	all()
	a.weft(t, "stop")
	a.launch(t, hs, "--dns-external")
	all()

	// A removed name stays removed until the container's next start.
	a.weft(t, "dns-remove", "web")
	b.waitName(t, "web")
	b.waitName(t, "shop")
	a.weft(t, "stop")
	a.launch(t, hs, "--dns-external")
	a.waitName(t, "db", db, more)
	a.waitName(t, "web")
	a.weft(t, "dns-add", "web")
	b.waitName(t, "web", web)
	a.weft(t, "dns-remove", "10.40.1.8", "two", "-h", "two")
	b.waitName(t, "two", "10.40.0.8")
	a.docker(t, "restart", "-t0", "two")
	b.waitName(t, "two", "10.40.0.8", "10.40.1.8")

	a.weft(t, "detach", "db")
	b.waitName(t, "store")
	a.docker(t, "rm", "-f", "two")
	b.waitName(t, "one")
	for words, args := range map[string][]string{
		"no address on the switch": {"dns-add", "db", "-h", "x"}, "no such container": {"dns-add", "nobody", "-h", "x"},
		"not attached": {"dns-add", "/run/netns/nobody", "-h", "x"}, "not in the domain": {"dns-add", "web", "-h", "x.example.com"},
		"want a unicast address": {"dns-add", "web", "224.0.0.1", "-h", "x"},
	} {
		if text := a.mustFail(t, "weft", args...); !strings.Contains(text, words) {
			t.Errorf("%s: %s", args, text)
		}
	}
}

// Names follow renames of a running container and changes of its networks.
func TestNamesFollowNetworks(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	id := h.run(t, "--name", "late")
	h.docker(t, "network", "connect", "--ip", "10.40.0.9", "--alias", "other", "weft", "late")
	h.waitName(t, "late", "10.40.0.9")
	h.waitName(t, "other", "10.40.0.9")
	if ps := h.weft(t, "ps", "late"); !strings.HasPrefix(ps, id[:12]) {
		t.Errorf("ps: %q", ps)
	}
	h.docker(t, "rename", "late", "early")
	h.waitName(t, "early", "10.40.0.9")
	h.waitName(t, "late")
	h.docker(t, "network", "disconnect", "weft", "early")
	h.waitName(t, "early")
	h.waitName(t, "other")
	h.docker(t, "network", "connect", "--ip", "10.40.0.10", "weft", "early")
	h.waitName(t, "early", "10.40.0.10")
}
