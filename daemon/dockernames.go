package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/docker"
)

// introduce makes a container known by the names that it has now, and by no
// others, unless the run that c is of has ended.
func (e *engine) introduce(c *docker.Container) {
	e.naming.Lock()
	defer e.naming.Unlock()
	if e.runs(c) {
		e.setNames(e.latest(c), e.given.get(c.ID))
	}
}

// setNames registers the names of a container. The lock naming is held.
func (e *engine) setNames(c *docker.Container, g given) error {
	err := e.names.Set(c.ID, e.namesFor(c, g))
	if err != nil {
		e.log.Warn("a container has not the names that it should have", "container", c.Name, "error", err)
	}
	return err
}

// namesFor returns the names, in full, that a container is to have: none unless it
// runs.
func (e *engine) namesFor(c *docker.Container, g given) map[string][]netip.Addr {
	have := make(map[string][]netip.Addr)
	domain := e.names.Domain()
	if domain == "" || !c.Running || ended(c) {
		return have
	}
	give := func(names []string, addrs []netip.Addr) {
		for _, name := range names {
			fqdn, err := e.names.Qualify(name)
			if err != nil {
				e.log.Warn("a container lacks a name that it should have", "container", c.Name, "error", err)
				continue
			}
			have[fqdn] = union(have[fqdn], addrs)
		}
	}
	var all []netip.Addr
	if a, live := e.attachments.live(c.ID); live {
		all = addrsOf(a.Addresses)
		if a.Docker != nil && !a.Docker.WithoutDNS {
			give(namesOf(c, domain, nil), all)
		}
	}
	for _, end := range e.endpoints(c) {
		addrs := addrsOf(end.Addresses)
		all = union(all, addrs)
		give(namesOf(c, domain, end.Aliases), addrs)
	}
	for _, n := range g.Names {
		addrs := n.Addresses
		if n.All {
			addrs = union(addrs, all)
		}
		give([]string{n.FQDN}, addrs)
	}
	for _, n := range g.Hidden {
		have[n.FQDN] = minus(have[n.FQDN], n.Addresses)
	}
	return have
}

// endpoints are where a container is on weft's networks, as the kernel has it, with
// all addresses that it has there.
func (e *engine) endpoints(c *docker.Container) (ends []docker.Endpoint) {
	if e.drivers == nil {
		return nil
	}
	for _, end := range c.Endpoints {
		if addrs, ours := e.drivers.AddressesOf(end.ID); ours && e.drivers.Lives(end.ID) {
			end.Addresses = addrs
			ends = append(ends, end)
		}
	}
	return ends
}

// ended tells whether the process of a container is gone.
func ended(c *docker.Container) bool { return errors.Is(unix.Kill(c.PID, 0), unix.ESRCH) }

// bury takes names from containers whose process or interface is gone, before
// Docker tells: it may be away, and their addresses are others' soon.
func (e *engine) bury() {
	e.mu.Lock()
	running := slices.Collect(maps.Values(e.running))
	e.mu.Unlock()
	unplugged := func(end docker.Endpoint) bool {
		return e.drivers != nil && e.drivers.Has(end.ID) && !e.drivers.Lives(end.ID)
	}
	for _, c := range running {
		if ended(c) || slices.ContainsFunc(c.Endpoints, unplugged) {
			e.introduce(c)
		}
	}
}

// namesOf returns the full names that a container has in domain: its hostname
// if that is in the domain, else its name, and its aliases on networks of weft.
func namesOf(c *docker.Container, domain string, aliases []string) []string {
	if domain == "" {
		return nil
	}
	own := c.Name + "." + domain
	if d := strings.TrimSuffix(c.Domainname, "."); d == domain || strings.HasSuffix(d, "."+domain) {
		own = c.Hostname + "." + d
	} else if h := strings.TrimSuffix(c.Hostname, "."); strings.HasSuffix(h, "."+domain) {
		own = h
	}
	names := []string{own}
	for _, a := range aliases {
		// Docker gives each container the beginning of its id as an alias.
		if a != "" && a != c.ShortID() && a != c.Name {
			names = append(names, a+"."+domain)
		}
	}
	return names
}

// addName gives a container that runs a name, its own if fqdn is "", with the
// addresses, all that it has on the switch, now or later, if none is given.
func (e *engine) addName(ctx context.Context, ref, fqdn string, addrs []netip.Addr) error {
	c, err := e.client.Find(ctx, ref)
	if err != nil {
		return err
	}
	if !c.Running {
		return fmt.Errorf("container %s does not run", ref)
	}
	if fqdn == "" {
		if fqdn, err = qualify(e.names, namesOf(c, e.names.Domain(), nil)[0]); err != nil {
			return err
		}
	}
	if _, live := e.attachments.live(c.ID); len(addrs) == 0 && !live && len(e.endpoints(c)) == 0 {
		return fmt.Errorf("container %s has no address on the switch; attach it, or say which addresses the name is for", ref)
	}
	return e.changeNames(c, func(g given) given {
		g.Names = g.Names.with(fqdn, addrs)
		g.Hidden = g.Hidden.without(fqdn, addrs)
		return g
	})
}

// removeName takes addresses, all if none is given, from a name of a container,
// from all its names if fqdn is "": also from those that it has by itself, which
// it has again in its next run.
func (e *engine) removeName(ctx context.Context, ref, fqdn string, addrs []netip.Addr) error {
	p, err := e.find(ctx, ref, false)
	if err != nil {
		return err
	}
	return e.changeNames(p.container, func(g given) given {
		g.Names = g.Names.without(fqdn, addrs)
		for name, have := range e.namesFor(e.latest(p.container), g) {
			if len(addrs) > 0 {
				have = minus(have, minus(have, addrs))
			}
			if len(have) > 0 && (fqdn == "" || fqdn == name) {
				g.Hidden = g.Hidden.with(name, have)
			}
		}
		return g
	})
}

// changeNames changes what was said of the names of a container, and its names. On
// error both are as they were.
func (e *engine) changeNames(c *docker.Container, change func(given) given) error {
	e.naming.Lock()
	defer e.naming.Unlock()
	before := e.given.get(c.ID)
	after := change(before)
	if err := e.given.put(c.ID, after); err != nil {
		return err
	}
	if err := e.setNames(e.latest(c), after); err != nil {
		return errors.Join(err, e.given.put(c.ID, before))
	}
	return nil
}
