package daemon

import (
	"net/netip"
	"strings"

	"github.com/weft-net/weft/docker"
)

// Names is service discovery, as far as containers are concerned. Its methods
// do not wait for anybody.
type Names interface {
	// Domain is the one that names of containers are in, like "weft.internal"
	// without a dot at its end; empty: there is no service discovery.
	Domain() string
	// Server is the address that containers ask, the zero Addr if there is none.
	Server() netip.Addr
	// Add gives a container a name for addresses, beside what it has.
	Add(container, fqdn string, addrs []netip.Addr)
	// RemoveContainer takes all names from a container; one that has none is no
	// error.
	RemoveContainer(container string)
}

// noNames is Names without service discovery.
type noNames struct{}

func (noNames) Domain() string                   { return "" }
func (noNames) Server() netip.Addr               { return netip.Addr{} }
func (noNames) Add(string, string, []netip.Addr) {}
func (noNames) RemoveContainer(container string) {}

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

func addrsOf(ps []netip.Prefix) []netip.Addr {
	as := make([]netip.Addr, len(ps))
	for i, p := range ps {
		as[i] = p.Addr()
	}
	return as
}
