package daemon

import (
	"log/slog"
	"net/netip"
	"strings"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/docker"
)

// engineNames is service discovery as far as Docker's containers are concerned.
// What it registers comes anew from Docker after a restart.
type engineNames struct {
	*dns.Service
	log *slog.Logger
}

// add gives a container a name for addresses, beside what it has.
func (ns engineNames) add(container, fqdn string, addrs []netip.Addr) {
	if err := ns.Add(container, fqdn, addrs...); err != nil {
		ns.log.Warn("a container has not the name that Docker gave it", "error", err)
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
