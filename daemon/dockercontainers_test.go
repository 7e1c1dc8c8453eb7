package daemon

import (
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// dockerBench is a host with a container of Docker's, which needs no engine.
type dockerBench struct {
	*bench
	containers *dockerContainers
	place      place
}

func newDockerBench(t *testing.T) *dockerBench {
	t.Helper()
	b := newBench(t)
	return &dockerBench{bench: b, containers: newDockerContainers(b.as.attachConfig), place: place{owner: strings.Repeat("c", 64), netns: b.box, name: "web"}}
}

func (b *dockerBench) attach(t *testing.T, addrs ...string) {
	t.Helper()
	b.on(t, func() error {
		_, err := b.containers.attach(t.Context(), b.place, api.AttachRequest{Addresses: parse(t, addrs...), RewriteHosts: true})
		return err
	})
}

// onExit removes the port, as the kernel does when the container stops.
func (b *dockerBench) onExit(t *testing.T) {
	t.Helper()
	b.on(t, func() error {
		a, _ := b.containers.get(b.place.owner)
		l, err := netlink.LinkByName(a.Port)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
}

// A container of Docker's keeps its record over its runs, and its addresses unless
// another one takes them meanwhile.
func TestRecordOutlivesTheRunOfAContainer(t *testing.T) {
	t.Parallel()
	b := newDockerBench(t)
	b.attach(t, "net:default", "10.32.7.7/16")
	before, _ := b.containers.get(b.place.owner)
	if !slices.Equal(before.Requested, before.Addresses[1:]) || !before.Docker.RewriteHosts {
		t.Errorf("the record is %+v", before)
	}
	b.onExit(t)
	now := time.Now()
	b.on(t, func() error {
		b.containers.sweep(now)
		b.containers.sweep(now.Add(goneGrace))
		return nil
	})
	if a, known := b.containers.get(b.place.owner); !known || !a.Docker.Released || b.addresses.count() != 0 || len(b.containers.list()) != 0 {
		t.Errorf("after its run the record is %+v, and %d addresses are given", a, b.addresses.count())
	}
	b.addresses.given[before.Addresses[0].Addr()] = "another container"
	c := &docker.Container{ID: b.place.owner, Name: "web2", Running: true}
	b.on(t, func() error {
		// No namespace of a process: the addresses are given before that fails.
		if _, err := b.containers.rejoin(t.Context(), c); err == nil {
			t.Error("rejoined a container without a process")
		}
		return nil
	})
	if b.addresses.count() != 1 {
		t.Errorf("a run that could not be attached left %d addresses", b.addresses.count()-1)
	}
	delete(b.addresses.given, before.Addresses[0].Addr())
	b.attach(t)
	if after, _ := b.containers.get(b.place.owner); !slices.Equal(after.Addresses, before.Addresses) || after.Docker.Released {
		t.Errorf("in its next run the record is %+v, want the addresses %v", after, before.Addresses)
	}
}

func TestContainerIsFoundInTheRecords(t *testing.T) {
	t.Parallel()
	b := newDockerBench(t)
	b.attach(t)
	b.on(t, func() error {
		for ref, want := range map[string]bool{"web": true, "cccc": true, b.place.owner: true, "other": false} {
			p, ok := b.containers.recorded(ref)
			if ok != want || ok && p != b.place {
				t.Errorf("%s: %+v, %v", ref, p, ok)
			}
		}
		return nil
	})
	b.on(t, func() error { b.containers.keepOnly(nil); return nil })
	if b.addresses.count() != 0 || len(b.containers.list()) != 0 {
		t.Error("a container that was removed has a record or addresses")
	}
}

// Without Docker containers are named by their namespaces only.
func TestRequestsWithoutAnEngine(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	cs := &containers{gate: new(gate), namespaces: b.as, docker: newDockerContainers(b.as.attachConfig), engine: noEngine{}, exposures: b.newExposures(), leases: newTestLeases(t, b.store, b.addresses), kernel: b.keeper}
	none := func() []netip.Addr { return nil }
	ns := &nameRequests{
		dns: b.names, engine: noEngine{}, namespaces: b.as, external: newExternalNames(b.store, b.names, none, slog.New(slog.DiscardHandler)), attached: none,
	}
	for name, call := range map[string]func() error{
		"attach":     func() error { _, err := cs.Attach(t.Context(), api.AttachRequest{Container: "web"}); return err },
		"detach":     func() error { _, err := cs.Detach(t.Context(), api.AttachRequest{Container: "web"}); return err },
		"dns-add":    func() error { return ns.AddName(t.Context(), api.NameRequest{Container: "web", Hostname: "web"}) },
		"dns-remove": func() error { return ns.RemoveName(t.Context(), api.NameRequest{Container: "web"}) },
	} {
		if err := call(); api.ClassOf(err) != api.Unavailable {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.on(t, func() error {
		_, err := cs.Attach(t.Context(), api.AttachRequest{Netns: b.box})
		return err
	})
	if list := cs.list(); len(list) != 1 || list[0].Interface != netdev.IfaceName {
		t.Errorf("list: %+v", list)
	}
	cs.gate.closed.Store(true)
	if _, err := cs.Attach(t.Context(), api.AttachRequest{Netns: b.box}); api.ClassOf(err) != api.Unavailable {
		t.Errorf("attach while the router stops: %v", err)
	}
}
