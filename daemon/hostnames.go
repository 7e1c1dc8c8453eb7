package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/dns/names"
)

// Names registers host names under the ids of their containers. A *dns.Service is
// one. It writes nothing to disk: its callers register their names again after a
// restart.
type Names interface {
	// Qualify returns the full name for one that a user gave. An error says why the
	// name cannot be registered here.
	Qualify(name string) (string, error)
	// Check returns an error unless this host may give a name to an address that it
	// neither attached nor exposed.
	Check(a netip.Addr) error
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
	// All stands for all addresses that the container has at any time.
	All bool `json:"all,omitempty"`
}

// hostNames are the names of one container. They are never changed in place.
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

// with returns the names with more addresses for fqdn, with all that the container
// has if none is given.
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

// without returns the names without some addresses of fqdn. An empty fqdn stands for
// all names, and no address for all of them.
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

// check returns an error unless there is each of the addresses that without would take away for
// fqdn, or for all names if fqdn is "".
func (ns hostNames) check(fqdn string, addrs []netip.Addr) error {
	var has []netip.Addr
	found := false
	for _, n := range ns {
		if fqdn == "" || n.FQDN == fqdn {
			found = true
			has = union(has, n.Addresses)
		}
	}
	switch missing := minus(addrs, has); {
	case !found && fqdn == "":
		return errors.New("it has no names")
	case !found:
		return fmt.Errorf("it does not have the name %s", fqdn)
	case len(missing) > 0 && fqdn == "":
		return fmt.Errorf("none of its names has the address %s", missing[0])
	case len(missing) > 0:
		return fmt.Errorf("its name %s does not have the address %s", fqdn, missing[0])
	}
	return nil
}

// register gives a container the names of its record. attached are the addresses of the
// container. Names of others that this host may not name now stay on record.
func (ns hostNames) register(to Names, container string, attached []netip.Prefix) error {
	var errs []error
	for _, n := range ns {
		may, _ := permit(to, n.Addresses, addrsOf(attached))
		errs = append(errs, to.Add(container, n.FQDN, may...))
	}
	return errors.Join(errs...)
}

// qualify is Names.Qualify for the name in a request, and returns "" for none.
func qualify(ns Names, name string) (string, error) {
	if name == "" {
		return "", nil
	}
	fqdn, err := ns.Qualify(name)
	if errors.Is(err, dns.ErrOff) {
		return "", unavailable("%w", err)
	}
	if err != nil {
		return "", usage("%w", err)
	}
	return fqdn, nil
}

func joinAddrs(addrs []netip.Addr) string {
	var words []string
	for _, a := range addrs {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}

func addrsOf(ps []netip.Prefix) (addrs []netip.Addr) {
	for _, p := range ps {
		addrs = append(addrs, p.Addr())
	}
	return addrs
}
