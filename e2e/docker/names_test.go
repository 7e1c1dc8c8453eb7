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

// Containers are found by name from other hosts, by those
// that ask weft, and are found no more when they are gone.
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
				return errors.Join(fmt.Errorf("the container finds %q", out), err)
			}
			return nil
		})
	}
	// What the proxy makes asks weft without being told, by short names too.
	for _, name := range []string{"web", "web.weft.internal"} {
		if out := b.viaProxy(t, "run", "--rm", sandbox.Image, "nslookup", name); !strings.Contains(out, want["web.weft.internal"]) {
			t.Errorf("a container of the proxy finds %q", out)
		}
	}
	a.docker(t, "rm", "-f", "web", "db")
	for name := range want {
		eventually(t, name+" is gone", func() error {
			if out := b.weft(t, "dns-lookup", name); out != "" {
				return fmt.Errorf("still found: %s", out)
			}
			return nil
		})
	}
}

// knows waits until h answers a name with those addresses and no others.
func (h *host) waitName(t *testing.T, name string, addrs ...string) {
	t.Helper()
	slices.Sort(addrs)
	eventually(t, fmt.Sprintf("%s knows %s as %s", h.Name, name, addrs), func() error {
		got := strings.Fields(h.weft(t, "dns-lookup", name+".weft.internal"))
		if slices.Sort(got); !slices.Equal(got, addrs) {
			return fmt.Errorf("found %q", got)
		}
		return nil
	})
}

// Item 1: names are given to containers by their ids, the beginnings of those and
// their names, however they came onto the switch, and taken away; they are there
// again when the container or the router was started again, and go with it.
func TestNamesGivenToContainers(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
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
	a.launch(t, hs)
	all()

	// One that is to get no more work keeps its address, until its next run.
	a.weft(t, "dns-remove", "web")
	b.waitName(t, "web")
	b.waitName(t, "shop")
	a.weft(t, "stop")
	a.launch(t, hs)
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
		"can be reached": {"dns-add", "web", "224.0.0.1", "-h", "x"},
	} {
		if text := a.mustFail(t, "weft", args...); !strings.Contains(text, words) {
			t.Errorf("%s: %s", args, text)
		}
	}
}

// Item 2: names follow what becomes of a container while it runs.
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
