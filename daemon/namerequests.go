package daemon

import (
	"context"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
)

// nameRequests answers requests about host names, and passes each to the part that
// keeps the name. It implements api.Names.
type nameRequests struct {
	off        bool // this host has no DNS
	dns        *dns.Service
	engine     engine
	namespaces *namespaces
	external   *externalNames
	attached   func() []netip.Addr // the addresses of containers of this host, and those exposed
}

// AddName implements api.Names.
func (ns *nameRequests) AddName(ctx context.Context, r api.NameRequest) error {
	fqdn, err := ns.check(r)
	switch {
	case err != nil:
		return err
	case r.Container == "" && (fqdn == "" || len(r.Addresses) == 0):
		return usage("a name that belongs to no container needs both addresses and -h NAME")
	}
	if err := ns.checkAddresses(r.Addresses); err != nil {
		return err
	}
	switch {
	case r.Container == "":
		return ns.external.add(fqdn, r.Addresses)
	case isNamespace(r.Container):
		return ns.namespaces.addName(r.Container, fqdn, r.Addresses)
	default:
		return ns.engine.addName(ctx, r.Container, fqdn, r.Addresses)
	}
}

// checkAddresses returns an error unless this host may name the addresses.
func (ns *nameRequests) checkAddresses(addrs []netip.Addr) error {
	attached := ns.attached()
	if _, err := permit(ns.dns, addrs, attached); err != nil {
		return usage("give a name to %w", err)
	}
	for _, a := range minus(addrs, attached) {
		if ns.dns.IsForeign(a) {
			return usage("give a name to address %s: the ring of addresses does not give it to this host, so no host would answer it; add the name on the host that has it", a)
		}
	}
	return nil
}

// RemoveName implements api.Names.
func (ns *nameRequests) RemoveName(ctx context.Context, r api.NameRequest) error {
	fqdn, err := ns.check(r)
	switch {
	case err != nil:
		return err
	case r.Container == "" && fqdn == "":
		return usage("say which name to remove with -h NAME, or of which container")
	case r.Container == "":
		return ns.external.remove(fqdn, r.Addresses)
	case isNamespace(r.Container):
		return ns.namespaces.removeName(r.Container, fqdn, r.Addresses)
	default:
		return ns.engine.removeName(ctx, r.Container, fqdn, r.Addresses)
	}
}

// isNamespace reports whether a request names a container by its namespace, and not
// as a container engine does.
func isNamespace(container string) bool { return strings.ContainsAny(container, "/:") }

// check returns the full name of a request, "" if it has none.
func (ns *nameRequests) check(r api.NameRequest) (fqdn string, err error) {
	if r.Container == api.Exposed {
		return "", usage("the names of the host itself are given by: weft expose -h NAME")
	}
	if ns.off {
		return "", unavailable("%w", dns.ErrOff)
	}
	return qualify(ns.dns, r.Hostname)
}

// LookupName implements api.Names.
func (ns *nameRequests) LookupName(ctx context.Context, r api.LookupRequest) ([]string, error) {
	if ns.off {
		return nil, unavailable("%w", dns.ErrOff)
	}
	return ns.dns.Resolve(ctx, r.Name)
}
