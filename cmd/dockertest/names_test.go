//go:build docker

package dockertest

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/testbed/machine"
)

// Issue 5, items 2 and 4: containers are found by name from other hosts, by those
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
				return fmt.Errorf("the container finds %q: %v", out, err)
			}
			return nil
		})
	}
	// What the proxy makes asks weft without being told, by short names too.
	for _, name := range []string{"web", "web.weft.internal"} {
		if out := b.through(t, "run", "--rm", machine.Image, "nslookup", name); !strings.Contains(out, want["web.weft.internal"]) {
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
