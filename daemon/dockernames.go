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

// updateNames registers the names that a container has now, and removes all others of
// it, unless the run that c describes has ended.
func (e *dockerEngine) updateNames(c *docker.Container) {
	e.naming.Lock()
	defer e.naming.Unlock()
	if e.runs(c) {
		e.setNames(e.latest(c), e.edits.get(c.ID))
	}
}

// setNames registers the names of a container. The lock naming is held.
func (e *dockerEngine) setNames(c *docker.Container, edits nameEdits) error {
	err := e.names.Set(c.ID, e.namesFor(c, edits))
	if err != nil {
		e.log.Warn("the names of a container could not be registered", "container", c.Name, "err", err)
	}
	return err
}

// namesFor returns the full names that a container should have, with their addresses:
// none unless it runs.
func (e *dockerEngine) namesFor(c *docker.Container, edits nameEdits) map[string][]netip.Addr {
	have := make(map[string][]netip.Addr)
	domain := e.names.Domain()
	if domain == "" || !c.Running || ended(c) {
		return have
	}
	give := func(names []string, addrs []netip.Addr) {
		for _, name := range names {
			fqdn, err := e.names.Qualify(name)
			if err != nil {
				e.log.Warn("a name of a container could not be registered", "container", c.Name, "err", err)
				continue
			}
			have[fqdn] = union(have[fqdn], addrs)
		}
	}
	var all []netip.Addr
	if a, live := e.containers.live(c.ID); live {
		all = addrsOf(a.Addresses)
		if !a.Docker.WithoutDNS {
			give(namesOf(c, domain, nil), all)
		}
	}
	for _, end := range e.driver.endpoints(c) {
		addrs := addrsOf(end.Addresses)
		all = union(all, addrs)
		give(namesOf(c, domain, end.Aliases), addrs)
	}
	for _, n := range edits.Added {
		addrs, _ := permit(e.names, n.Addresses, all)
		if n.All {
			addrs = union(addrs, all)
		}
		give([]string{n.FQDN}, addrs)
	}
	for _, n := range edits.Hidden {
		have[n.FQDN] = minus(have[n.FQDN], n.Addresses)
	}
	return have
}

// ended reports whether the process of a container is gone.
func ended(c *docker.Container) bool { return errors.Is(unix.Kill(c.PID, 0), unix.ESRCH) }

// interfacesChanged implements engine. It comes before Docker's own report, which may
// be late, while others may soon have the addresses.
func (e *dockerEngine) interfacesChanged() {
	e.mu.Lock()
	running := slices.Collect(maps.Values(e.running))
	e.mu.Unlock()
	for _, c := range running {
		if ended(c) || e.driver.isUnplugged(c) {
			e.updateNames(c)
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

// addName implements engine.
func (e *dockerEngine) addName(ctx context.Context, ref, fqdn string, addrs []netip.Addr) error {
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
	if _, live := e.containers.live(c.ID); len(addrs) == 0 && !live && len(e.driver.endpoints(c)) == 0 {
		return fmt.Errorf("container %s has no address on the switch; attach it, or say which addresses the name is for", ref)
	}
	return e.changeNames(c, func(edits nameEdits) (nameEdits, error) {
		edits.Added = edits.Added.with(fqdn, addrs)
		edits.Hidden = edits.Hidden.without(fqdn, addrs)
		return edits, nil
	})
}

// removeName implements engine.
func (e *dockerEngine) removeName(ctx context.Context, ref, fqdn string, addrs []netip.Addr) error {
	_, c, err := e.findRecorded(ctx, ref)
	if err != nil {
		return err
	}
	return e.changeNames(c, func(edits nameEdits) (nameEdits, error) {
		has := edits.Added
		for name, have := range e.namesFor(e.latest(c), edits) {
			has = has.with(name, have)
		}
		if err := has.check(fqdn, addrs); err != nil {
			return edits, fmt.Errorf("container %s: %w", ref, err)
		}
		edits.Added = edits.Added.without(fqdn, addrs)
		for name, have := range e.namesFor(e.latest(c), edits) {
			if len(addrs) > 0 {
				have = minus(have, minus(have, addrs))
			}
			if len(have) > 0 && (fqdn == "" || fqdn == name) {
				edits.Hidden = edits.Hidden.with(name, have)
			}
		}
		return edits, nil
	})
}

// changeNames changes what users said of the names of a container, and its names. On
// error both are as they were.
func (e *dockerEngine) changeNames(c *docker.Container, change func(nameEdits) (nameEdits, error)) error {
	e.naming.Lock()
	defer e.naming.Unlock()
	before := e.edits.get(c.ID)
	after, err := change(before)
	if err != nil {
		return err
	}
	if err := e.edits.put(c.ID, after); err != nil {
		return err
	}
	if err := e.setNames(e.latest(c), after); err != nil {
		return errors.Join(err, e.edits.put(c.ID, before))
	}
	return nil
}
