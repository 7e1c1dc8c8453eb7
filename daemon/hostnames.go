package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/dns/names"
	"github.com/weft-net/weft/internal/api"
)

// Names is where host names are registered, by the ids of the containers that
// they belong to. A *dns.Service is one. What is registered is not written to
// disk: whoever registers does so again after a restart.
type Names interface {
	// Qualify returns the full name for one that a user gave, or why it can not be
	// registered here.
	Qualify(name string) (string, error)
	// Add gives a name of a container addresses.
	Add(container, name string, addrs ...netip.Addr) error
	// Remove takes addresses from a name of a container, from all its names if name
	// is "", all addresses if none is given.
	Remove(container, name string, addrs ...netip.Addr) ([]names.Entry, error)
	// RemoveContainer takes all names of a container away.
	RemoveContainer(container string)
}

// hostName is one name in the record of a container.
type hostName struct {
	FQDN      string       `json:"fqdn"`
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// All are all addresses that the container has, whichever those are.
	All bool `json:"all,omitempty"`
}

// hostNames are those of one container. They are never changed in place.
type hostNames []hostName

// union returns a list with more in it.
func union(addrs, more []netip.Addr) []netip.Addr {
	addrs = slices.Clone(addrs)
	for _, a := range more {
		if !slices.Contains(addrs, a) {
			addrs = append(addrs, a)
		}
	}
	return addrs
}

// minus returns a list without some.
func minus(addrs, without []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return slices.Contains(without, a) })
}

// with returns the names with more addresses for one, all that the container has
// if none is given.
func (ns hostNames) with(fqdn string, addrs []netip.Addr) hostNames {
	ns = slices.Clone(ns)
	i := slices.IndexFunc(ns, func(n hostName) bool { return n.FQDN == fqdn })
	if i < 0 {
		i, ns = len(ns), append(ns, hostName{FQDN: fqdn})
	}
	ns[i].Addresses = union(ns[i].Addresses, addrs)
	ns[i].All = ns[i].All || len(addrs) == 0
	return ns
}

// without returns the names without addresses of one, of all if fqdn is "", and
// without any if none is given.
func (ns hostNames) without(fqdn string, addrs []netip.Addr) hostNames {
	var left hostNames
	for _, n := range ns {
		if fqdn == "" || n.FQDN == fqdn {
			if len(addrs) == 0 {
				continue
			}
			n.Addresses = minus(n.Addresses, addrs)
		}
		if n.All || len(n.Addresses) > 0 {
			left = append(left, n)
		}
	}
	return left
}

// register gives a container the names of its record.
func (ns hostNames) register(to Names, container string) error {
	var errs []error
	for _, n := range ns {
		errs = append(errs, to.Add(container, n.FQDN, n.Addresses...))
	}
	return errors.Join(errs...)
}

// qualify is Names.Qualify for what a request says, "" for no name.
func qualify(ns Names, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	fqdn, err := ns.Qualify(name)
	if errors.Is(err, dns.ErrOff) {
		return "", unavailable(err.Error())
	}
	if err != nil {
		return "", usage(err.Error())
	}
	return fqdn, nil
}

func addrsOf(ps []netip.Prefix) (addrs []netip.Addr) {
	for _, p := range ps {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}

// restoreNames registers the names of the containers that are still there. It
// comes first of all, so that the mesh sees them as soon as it sees this router.
func (as *attachments) restoreNames() {
	for _, owner := range as.owners() {
		a, known := as.get(owner)
		if !known || a.Port == "" || !linkExists(a.Port) {
			continue
		}
		if err := a.Names.register(as.names, owner); err != nil {
			as.log.Warn("some names of an attached container could not be restored", "owner", owner, "error", err)
		}
	}
}

// restoreNames registers the names of the host's own addresses.
func (es *exposures) restoreNames() {
	es.mu.Lock()
	defer es.mu.Unlock()
	for _, e := range es.all() {
		for _, name := range es.tab.Records[e.Addr.String()].Names {
			if err := es.names.Add(api.Exposed, name, e.Addr.Addr()); err != nil {
				es.log.Warn("a name of the host could not be restored", "error", err)
			}
		}
	}
}

// bury takes the names of containers away that are gone, without the grace that
// their addresses have: nobody needs to find them any more.
func (as *attachments) bury(now time.Time) {
	// The records first: the port of one that comes later may not be listed yet.
	before := make(map[string]string)
	for _, owner := range as.owners() {
		if a, known := as.get(owner); known && a.Port != "" {
			before[owner] = a.Port
		}
	}
	if len(before) == 0 {
		return
	}
	links, err := netlink.LinkList()
	if err != nil {
		return // asked again with the next change, or by sweep
	}
	for _, l := range links {
		for owner, port := range before {
			if l.Attrs().Name == port {
				delete(before, owner)
			}
		}
	}
	for owner, port := range before {
		as.buryOne(owner, port, now)
	}
}

func (as *attachments) buryOne(owner, port string, now time.Time) {
	defer as.locks.lock(owner)()
	if a, known := as.get(owner); !known || a.Port != port || linkExists(port) {
		return // attached anew meanwhile
	}
	as.mu.Lock()
	if _, missed := as.gone[owner]; !missed {
		as.gone[owner] = now
	}
	as.mu.Unlock()
	as.names.RemoveContainer(owner)
}

// find returns the id of a container that is attached, given by its id or by the
// path of its namespace.
func (as *attachments) find(container string) (owner string, a attachment, err error) {
	if a, known := as.get(container); known {
		return container, a, nil
	}
	for _, owner := range as.owners() {
		if a, known := as.get(owner); known && a.Netns == container {
			return owner, a, nil
		}
	}
	return "", attachment{}, fmt.Errorf("container %s is not attached; 'weft ps' lists those that are", container)
}

// addName gives a container that is attached a name, its first one if fqdn is "",
// with the addresses, all its own if none is given.
func (as *attachments) addName(container, fqdn string, addrs []netip.Addr) error {
	owner, _, err := as.find(container)
	if err != nil {
		return err
	}
	defer as.locks.lock(owner)()
	a, known := as.get(owner)
	if !known || a.Port == "" || !linkExists(a.Port) {
		return fmt.Errorf("container %s is gone", container)
	}
	if fqdn == "" {
		if len(a.Names) == 0 {
			return usage(fmt.Sprintf("container %s has no name yet; say which by -h NAME", container))
		}
		fqdn = a.Names[0].FQDN
	}
	if len(addrs) == 0 {
		addrs = addrsOf(a.Addresses)
	}
	if err := as.names.Add(owner, fqdn, addrs...); err != nil {
		return err
	}
	a.Names = a.Names.with(fqdn, addrs)
	return as.put(owner, a)
}

// removeName undoes addName: for all names if fqdn is "", and all addresses if
// none is given. What is not there is no error.
func (as *attachments) removeName(container, fqdn string, addrs []netip.Addr) error {
	owner, _, err := as.find(container)
	if err != nil {
		return err
	}
	defer as.locks.lock(owner)()
	a, known := as.get(owner)
	if !known {
		return nil
	}
	if _, err := as.names.Remove(owner, fqdn, addrs...); err != nil {
		return err
	}
	a.Names = a.Names.without(fqdn, addrs)
	return as.put(owner, a)
}

// AddName implements api.Backend.
func (d *daemon) AddName(ctx context.Context, r api.NameRequest) error {
	fqdn, err := d.checkName(r)
	switch {
	case err != nil:
		return err
	case d.isDockers(r.Container):
		return d.engine.addName(ctx, r.Container, fqdn, r.Addresses)
	case r.Container != "":
		return d.attachments.addName(r.Container, fqdn, r.Addresses)
	case fqdn == "" || len(r.Addresses) == 0:
		return usage("a name that belongs to no container needs both addresses and -h NAME")
	}
	return d.externs.add(fqdn, r.Addresses)
}

// RemoveName implements api.Backend.
func (d *daemon) RemoveName(ctx context.Context, r api.NameRequest) error {
	fqdn, err := d.checkName(r)
	switch {
	case err != nil:
		return err
	case d.isDockers(r.Container):
		return d.engine.removeName(ctx, r.Container, fqdn, r.Addresses)
	case r.Container != "":
		return d.attachments.removeName(r.Container, fqdn, r.Addresses)
	case fqdn == "":
		return usage("say which name to remove by -h NAME, or of which container")
	}
	return d.externs.remove(fqdn, r.Addresses)
}

// isDockers tells whether a request names a container as Docker does, and not by
// its namespace.
func (d *daemon) isDockers(container string) bool {
	return d.engine != nil && container != "" && !strings.ContainsAny(container, "/:")
}

func (d *daemon) checkName(r api.NameRequest) (fqdn string, err error) {
	if r.Container == api.Exposed {
		return "", usage("the names of the host itself are given by: weft expose -h NAME")
	}
	if d.config.DNS.Off {
		return "", unavailable(dns.ErrOff.Error())
	}
	return qualify(d.names, r.Hostname)
}

// LookupName implements api.Backend.
func (d *daemon) LookupName(ctx context.Context, r api.LookupRequest) ([]string, error) {
	if d.config.DNS.Off {
		return nil, unavailable(dns.ErrOff.Error())
	}
	return d.names.Resolve(ctx, r.Name)
}
