//go:build docker

package docker

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

// waitNetwork waits until the engine has the default network.
func (h *host) waitNetwork(t testing.TB) {
	t.Helper()
	eventually(t, "the network weft on "+h.Name, func() error {
		_, err := h.try(t, "docker", "network", "inspect", "weft")
		return err
	})
}

// address returns the address of a container on one of the engine's networks.
func (h *host) address(t *testing.T, container, network string) string {
	t.Helper()
	return oneAddress(t, h.docker(t, "inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), container))
}

// Launch creates a default network, and stop removes it. Containers on it reach each other
// between hosts, and the outside through docker's own bridge. `weft ps` shows them.
func TestDefaultNetwork(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	for _, h := range hs {
		h.waitNetwork(t)
	}
	a, b := hs[0], hs[1]
	id := a.run(t, "--name", "web", "--net", "weft")
	b.run(t, "--name", "client", "--net", "weft")
	to := a.address(t, "web", "weft")
	b.ping(t, "client", to)
	b.ping(t, "client", b.Addr.String()) // through docker_gwbridge
	if got := sortedStrings(a.addresses(t, "web", "ethwe0")); !slices.Equal(got, []string{to + "/12"}) {
		t.Errorf("the interface has %v, docker says %s", got, to)
	}
	if ps := a.weft(t, "ps", "web"); !strings.HasPrefix(ps, id[:12]+" 02:42:") || !strings.HasSuffix(ps, " "+to+"/12") {
		t.Errorf("ps: %q", ps)
	}
	if routes := a.docker(t, "exec", "web", "ip", "route"); !strings.Contains(routes, "224.0.0.0/4 dev ethwe0") || strings.Contains(routes, "default via 10.32") {
		t.Errorf("routes: %s", routes)
	}
	// Published ports use docker_gwbridge too.
	a.docker(t, "run", "-d", "--name", "site", "--net", "weft", "-p", "8080:80", "weft-test/busybox", "httpd", "-f", "-p", "80")
	eventually(t, "a published port answers", func() error {
		_, err := b.try(t, "curl", "-s", "-m2", "-o", "/dev/null", "http://"+a.Addr.String()+":8080/")
		return err
	})
	// A running container can be connected and disconnected.
	b.run(t, "--name", "late")
	b.docker(t, "network", "connect", "--ip", "10.40.0.9", "weft", "late")
	a.ping(t, "web", "10.40.0.9")
	b.docker(t, "network", "disconnect", "weft", "late")
	a.noPing(t, "web", "10.40.0.9")
	b.docker(t, "rm", "-f", "late")
	a.docker(t, "rm", "-f", "web", "site")
	a.waitActive(t, 0)
	a.weft(t, "stop")
	if out := a.docker(t, "network", "ls", "--format", "{{.Name}}"); slices.Contains(strings.Fields(out), "weft") {
		t.Errorf("networks after stop: %s", out)
	}
	b.weft(t, "stop")
	if out := b.docker(t, "network", "ls", "--format", "{{.Name}}"); !slices.Contains(strings.Fields(out), "weft") {
		t.Errorf("the network of a running container was removed; networks are %s", out)
	}
	b.launch(t, hs[1:])
	b.docker(t, "rm", "-f", "client")
	b.waitActive(t, 0)
}

// Networks of users: --subnet, --ip-range, --gateway, isolation, docker run --ip and the option
// weft.multicast.
func TestUserNetworks(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	create := func(h *host, args ...string) {
		t.Helper()
		h.docker(t, append([]string{"network", "create", "--driver", "weft", "--ipam-driver", "weft"}, args...)...)
	}
	for _, h := range hs {
		create(h, "--subnet", "10.40.1.0/24", "--ip-range", "10.40.1.128/25", "red")
		create(h, "--subnet", "10.40.2.0/24", "--gateway", "10.40.2.1", "-o", "weft.multicast=true", "blue")
	}
	a, b := hs[0], hs[1]
	create(a, "--subnet", "10.40.4.0/30", "--aux-address", "printer=10.40.4.1", "aux")
	a.run(t, "--name", "aux1", "--net", "aux")
	if got := a.address(t, "aux1", "aux"); got != "10.40.4.2" {
		t.Errorf("address in 10.40.4.0/30 without 10.40.4.1: %s", got)
	}
	a.run(t, "--name", "red1", "--net", "red")
	a.run(t, "--name", "blue1", "--net", "blue", "--ip", "10.40.2.77")
	b.run(t, "--name", "red2", "--net", "red", "--ip", "10.40.1.5")
	b.run(t, "--name", "blue2", "--net", "blue")
	red1 := a.address(t, "red1", "red")
	if !netip.MustParsePrefix("10.40.1.128/25").Contains(netip.MustParseAddr(red1)) {
		t.Errorf("address in the range 10.40.1.128/25: %s", red1)
	}
	if got := a.address(t, "blue1", "blue"); got != "10.40.2.77" {
		t.Errorf("requested 10.40.2.77, got %s", got)
	}
	b.ping(t, "red2", red1)
	b.ping(t, "blue2", "10.40.2.77")
	a.ping(t, "red1", "10.40.1.5")
	b.noPing(t, "red2", "10.40.2.77")
	a.noPing(t, "blue1", red1)
	if routes := b.docker(t, "exec", "blue2", "ip", "route"); !strings.Contains(routes, "default via 10.40.2.1 dev ethwe0") || !strings.Contains(routes, "224.0.0.0/4 dev ethwe0") {
		t.Errorf("routes: %s", routes)
	}
	if routes := b.docker(t, "exec", "red2", "ip", "route"); strings.Contains(routes, "224.") {
		t.Errorf("routes: %s", routes)
	}
	// An address that another host uses is refused.
	if text := a.mustFail(t, "docker", "run", "--rm", "--net", "blue", "--ip", b.address(t, "blue2", "blue"), "weft-test/busybox", "true"); !strings.Contains(text, "in use") {
		t.Errorf("an address of the other host: %s", text)
	}
	for text, args := range map[string][]string{
		"outside":                  {"--ipam-driver", "weft", "--subnet", "192.168.7.0/24", "bad"},
		"--ipam-driver weft":       {"bad"},
		"option":                   {"--ipam-driver", "weft", "-o", "weft.bogus=1", "bad"},
		"want true or false":       {"--ipam-driver", "weft", "-o", "weft.multicast=2", "bad"},
		"without an address range": {"--ipam-driver", "weft", "--ipv6", "bad"},
	} {
		if got := a.mustFail(t, "docker", append([]string{"network", "create", "--driver", "weft"}, args...)...); !strings.Contains(got, text) {
			t.Errorf("network create %v: %s", args, got)
		}
	}
	// Addresses that docker chooses are claimed, so that two hosts never use the same one.
	for _, h := range hs {
		h.docker(t, "network", "create", "--driver", "weft", "--subnet", "10.40.3.0/24", "plain")
	}
	a.run(t, "--name", "plain1", "--net", "plain", "--ip", "10.40.3.5")
	b.run(t, "--name", "plain2", "--net", "plain", "--ip", "10.40.3.6")
	b.ping(t, "plain2", "10.40.3.5")
	if text := b.mustFail(t, "docker", "run", "--rm", "--net", "plain", "--ip", "10.40.3.5", "weft-test/busybox", "true"); !strings.Contains(text, "--ipam-driver weft") {
		t.Errorf("an address of the other host: %s", text)
	}
	for _, h := range hs {
		h.must(t, "sh", "-c", "docker rm -f $(docker ps -aq)")
		h.docker(t, "network", "rm", "red", "blue", "plain")
	}
	a.docker(t, "network", "rm", "aux")
	a.waitActive(t, 0)
	b.waitActive(t, 0)
}

// With a second address range, a network has IPv6 in addition to IPv4.
func TestNetworkWithIPv6(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2, "--ipalloc-range6", "fd00:77::/64")
	for _, h := range hs {
		h.docker(t, "network", "create", "--driver", "weft", "--ipam-driver", "weft", "--ipv6", "--subnet", "10.40.6.0/24", "--subnet", "fd00:77::/64", "six")
		h.run(t, "--name", "box", "--net", "six")
	}
	has := sortedStrings(hs[0].addresses(t, "box", "ethwe0"))
	if len(has) != 2 || !strings.HasPrefix(has[0], "10.40.6.") || !strings.HasPrefix(has[1], "fd00:77:") {
		t.Fatalf("the container has %v", has)
	}
	six, _, _ := strings.Cut(has[1], "/")
	hs[1].ping(t, "box", six)
	for _, h := range hs {
		h.docker(t, "rm", "-f", "box")
		h.waitActive(t, 0)
	}
}

// Containers keep their addresses when the engine or the router is restarted, in either order
// and with --live-restore.
func TestDriverSurvivesRestarts(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"plain": nil, "live-restore": {"--live-restore"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := t.Context()
			hs := newBareHosts(t, 2)
			a, b := hs[0], hs[1]
			for _, h := range hs {
				h.startEngine(t, flags...)
				h.launch(t, hs)
				h.waitNetwork(t)
			}
			a.run(t, "--name", "web", "--net", "weft", "--restart", "always", "--ip", "10.40.0.5")
			b.run(t, "--name", "client", "--net", "weft")
			check := func(when string) {
				t.Helper()
				eventually(t, when, func() error {
					_, err := b.try(t, "docker", "exec", "client", "ping", "-c1", "-W1", "10.40.0.5")
					return err
				})
				if got := a.activeAddresses(t); got != 1 {
					t.Errorf("%s: %d addresses are in use: %s", when, got, a.weft(t, "ps"))
				}
			}
			check("at first")
			a.weft(t, "stop")
			a.launch(t, hs)
			check("router restarted")
			if err := a.engine.Stop(ctx); err != nil {
				t.Fatal(err)
			}
			a.startEngine(t, flags...)
			check("engine restarted")
			if err := a.engine.Kill(ctx); err != nil {
				t.Fatal(err)
			}
			a.startEngine(t, flags...)
			check("engine killed")
			a.docker(t, "rm", "-f", "web")
			a.waitActive(t, 0)
			a.run(t, "--name", "web", "--net", "weft", "--ip", "10.40.0.5")
			check("created again")
		})
	}
}

// After a power cut router and engine may start in either order.
func TestBootOrder(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"router first", "engine first"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHosts(t, 1)[0]
			h.waitNetwork(t)
			h.run(t, "--name", "web", "--net", "weft", "--restart", "always", "--ip", "10.40.0.5")
			h.run(t, "--name", "other", "--net", "weft")
			if err := h.PowerOff(); err != nil {
				t.Fatal(err)
			}
			if err := h.Boot(); err != nil {
				t.Fatal(err)
			}
			if name == "router first" {
				began := time.Now()
				h.launch(t, []*host{h})
				if d := time.Since(began); d > 20*time.Second {
					t.Errorf("launch without an engine took %v", d)
				}
				h.startEngine(t)
			} else {
				engine, err := h.BeginDockerd()
				if err != nil {
					t.Fatal(err)
				}
				h.engine = engine
				h.launch(t, []*host{h})
				ctx, cancel := context.WithTimeout(t.Context(), 2*timeout)
				defer cancel()
				if err := engine.Wait(ctx); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the container has its address again", func() error {
				if got := sortedStrings(h.addresses(t, "web", "ethwe0")); !slices.Equal(got, []string{"10.40.0.5/12"}) {
					return fmt.Errorf("it has %v", got)
				}
				return nil
			})
			h.waitActive(t, 1)
			h.run(t, "--name", "more", "--net", "weft")
			h.docker(t, "rm", "-f", "web", "more", "other")
			h.waitActive(t, 0)
		})
	}
}

// On hosts that did not forward before, Docker sets the policy of the forward chain to drop, and
// br_netfilter passes bridged packets through it. Weft adds a rule, or warns.
func TestForwardPolicyDrop(t *testing.T) {
	t.Parallel()
	hs := newBareHosts(t, 2)
	for _, h := range hs {
		h.must(t, "iptables", "-P", "FORWARD", "DROP")
		h.startEngine(t)
	}
	for _, h := range hs {
		h.launch(t, hs)
		h.waitNetwork(t)
	}
	const warning, open = "so containers on this host do not reach others", "iptables -I FORWARD -i weft -o weft -j ACCEPT"
	for _, h := range hs {
		if _, err := h.try(t, "iptables", "-n", "-L", "DOCKER-USER"); err != nil {
			// With nftables the engine has no chain for users, so weft can only warn.
			eventually(t, "status warns", func() error {
				if out := h.weft(t, "status"); !strings.Contains(out, warning) || !strings.Contains(out, open) {
					return errors.New(out)
				}
				return nil
			})
			h.must(t, "sh", "-c", open)
		}
		eventually(t, "status does not warn", func() error {
			if out := h.weft(t, "status"); strings.Contains(out, warning) {
				return errors.New(out)
			}
			return nil
		})
	}
	hs[0].run(t, "--name", "web", "--net", "weft")
	hs[0].run(t, "--name", "near", "--net", "weft")
	hs[1].run(t, "--name", "client", "--net", "weft")
	to := hs[0].address(t, "web", "weft")
	hs[0].ping(t, "near", to)
	hs[1].ping(t, "client", to)
	// Other software flushes the chain for users.
	if _, err := hs[0].try(t, "iptables", "-F", "DOCKER-USER"); err == nil {
		eventually(t, "the rule is there again", func() error {
			_, err := hs[0].try(t, "iptables", "-C", "DOCKER-USER", "-i", "weft", "-o", "weft", "-j", "ACCEPT")
			return err
		})
		hs[0].ping(t, "near", to)
	}
}

// Addresses of containers that ended while the engine was down are freed.
func TestContainersThatEndUnnoticed(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	killBoth := func() {
		t.Helper()
		h.run(t, "--name", "web", "--net", "weft")
		h.waitName(t, "web", h.address(t, "web", "weft"))
		pid := h.docker(t, "inspect", "-f", "{{.State.Pid}}", "web")
		if err := h.engine.Kill(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.must(t, "sh", "-c", "pkill -9 containerd-shim; kill -9 "+pid+" || true")
	}
	killBoth()
	h.waitName(t, "web")
	h.startEngine(t) // the engine has a record of the container and reports its end
	h.waitActive(t, 0)
	h.docker(t, "rm", "-f", "web")

	killBoth()
	h.must(t, "sh", "-c", "umount /run/docker/netns/* 2>/dev/null; true") // now the namespace is missing too
	h.waitActive(t, 0)
	h.startEngine(t)
	h.docker(t, "start", "web")
	h.waitActive(t, 1)
	h.docker(t, "rm", "-f", "web")
	h.waitActive(t, 0)
}

// The engine can remove containers and networks while the router does not run. The next router
// frees their addresses.
func TestRemoveWithoutRouter(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.docker(t, "network", "create", "--driver", "weft", "--ipam-driver", "weft", "--subnet", "10.40.1.0/24", "--gateway", "10.40.1.1", "--aux-address", "a=10.40.1.2", "red")
	h.run(t, "--name", "web", "--net", "red", "--ip", "10.40.1.5")
	h.waitActive(t, 3)
	h.weft(t, "stop")
	h.docker(t, "rm", "-f", "web")
	h.docker(t, "network", "rm", "red")
	h.launch(t, []*host{h})
	h.waitNetwork(t)
	eventually(t, "its address is free again", func() error {
		_, err := h.try(t, "docker", "run", "--rm", "--net", "weft", "--ip", "10.40.1.5", sandbox.Image, "true")
		return err
	})
	h.waitActive(t, 0)
	if out := h.must(t, "ip", "-br", "link"); strings.Contains(out, "c@vethwe") {
		t.Errorf("interfaces of containers are left:\n%s", out)
	}
}

// A router that lost its state takes over the engine's networks and endpoints. Reset removes
// everything of weft from the engine.
func TestResetAndLostState(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	h.run(t, "--name", "web", "--net", "weft")
	at := h.address(t, "web", "weft")
	h.must(t, "sh", "-c", "pkill -9 -f '[l]aunch --foreground'; rm -rf /var/lib/weft")
	eventually(t, "launch after the killed router has ended", func() error {
		_, err := h.try(t, "weft", "launch", "--ipalloc-init", "consensus=1")
		return err
	})
	eventually(t, "the container is known", func() error {
		if ps := h.weft(t, "ps"); !strings.Contains(ps, at) {
			return fmt.Errorf("ps shows %q", ps)
		}
		return nil
	})
	h.waitActive(t, 1)
	h.run(t, "--name", "other", "--net", "weft")
	if got := h.address(t, "other", "weft"); got == at {
		t.Errorf("two containers have %s", got)
	}
	h.must(t, "sh", "-c", "docker rm -f web other")
	h.waitActive(t, 0)
	h.weft(t, "reset", "--force")
	left := h.must(t, "sh", "-c", "docker network ls -q --filter driver=weft; ls /run/docker/plugins; ls /run/weft 2>/dev/null; ip -o link | grep -e vethwe -e ' weft:'; iptables -S | grep weft || true")
	if left != "" {
		t.Errorf("left after reset:\n%s", left)
	}
}

// Somebody prunes the networks of Docker or removes weft's: it is made again on the event of
// the engine, and containers can use it.
func TestPrunedNetworkIsMadeAgain(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	for _, remove := range [][]string{{"network", "prune", "-f"}, {"network", "rm", "weft"}} {
		before := h.docker(t, "network", "inspect", "-f", "{{.Id}}", "weft")
		h.docker(t, remove...)
		eventually(t, "another network weft", func() error {
			after, err := h.try(t, "docker", "network", "inspect", "-f", "{{.Id}}", "weft")
			if err == nil && after == before {
				err = errors.New("it is the old one")
			}
			return err
		})
		h.docker(t, "run", "--rm", "--net", "weft", sandbox.Image, "true")
	}
	h.weft(t, "stop")
	if text := h.mustFail(t, "docker", "network", "inspect", "weft"); !strings.Contains(text, "not found") {
		t.Errorf("after stop: %s", text)
	}
}

// Docker makes the MAC address from the IP address, so a fixed address that moves to another host
// takes its MAC address along. Others reach it there at once, although they need not ask for it
// and it says nothing by itself.
func TestFixedAddressMovesToAnotherHost(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	for _, h := range hs {
		h.waitNetwork(t)
		h.run(t, "--name", "client", "--net", "weft")
	}
	hs[0].run(t, "--name", "web", "--net", "weft", "--ip", "10.40.77.7")
	for _, h := range hs {
		h.ping(t, "client", "10.40.77.7")
	}
	for i := range 4 {
		from, to := hs[i%2], hs[(i+1)%2]
		from.docker(t, "rm", "-f", "web")
		from.waitActive(t, 1) // the address is free
		to.run(t, "--name", "web", "--net", "weft", "--ip", "10.40.77.7")
		began := time.Now()
		for _, h := range hs {
			h.ping(t, "client", "10.40.77.7")
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("move %d: reached after %v", i, took)
		} else {
			t.Logf("move %d: reached after %v", i, took)
		}
	}
}
