package daemon

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// The state files may be old, damaged or lost, but the kernel knows which containers live. At
// the start, before anything is given, the daemon reads the ports of the bridge with their
// owners, and the addresses behind them. All of those count as in use, and the containers as
// attached, whatever the files say:
//
//	alias of the port       addresses behind it        -> allocators, records
//	owner and its addresses                               of that owner
//	                        others in the range           of portOwner and the port's name,
//	                                                      if they have no owner yet

// kernelState lists the ports and addresses that the kernel has.
type kernelState struct {
	ports   []netdev.UsedPort
	exposed []netip.Prefix // of the bridge itself
}

func readKernelState(bridge string) (l kernelState, err error) {
	if l.ports, err = netdev.UsedPorts(bridge); err != nil {
		return kernelState{}, err
	}
	if l.exposed, err = netdev.Addresses(bridge); err != nil {
		return kernelState{}, fmt.Errorf("read the addresses of bridge %s: %w", bridge, err)
	}
	return l, nil
}

// Lives reports whether containers live on this host that a router with this bridge has
// connected, or other software has connected to the bridge. No router need run.
func Lives(bridge string) (bool, error) {
	l, err := readKernelState(bridge)
	return len(l.ports) > 0, err
}

// uses reports whether a container of this host, or the host itself, has an address of a range.
func (l kernelState) uses(r netip.Prefix) bool {
	in := func(p netip.Prefix) bool { return r.Contains(p.Addr()) }
	return slices.ContainsFunc(l.exposed, in) ||
		slices.ContainsFunc(l.ports, func(p netdev.UsedPort) bool {
			return slices.ContainsFunc(p.Addrs, in) || slices.ContainsFunc(p.Behind, in)
		})
}

// owners returns the owners of ports, with the names of their ports.
func (l kernelState) owners() map[string]string {
	all := make(map[string]string)
	for _, p := range l.ports {
		if p.Owner != "" {
			all[p.Owner] = p.Name
		}
	}
	return all
}

// portOwner begins the name of the owner of an address of which only the port is known.
const portOwner = "port:"

// hold makes an address count as in use by owner, and logs if the file says something else.
func (as addresses) hold(owner string, p netip.Prefix, log *slog.Logger) {
	u := as.of(p.Addr())
	if u == nil {
		return
	}
	switch before := u.Hold(owner, p); before {
	case owner:
	case "":
		log.Warn("an address is in use on this host and the state file does not have it", "addr", p, "owner", owner)
	default:
		log.Warn("an address is in use on this host by another container than the state file says", "addr", p, "owner", owner, "before", before)
	}
}

// isDockerLease reports whether an owner belongs to Docker's driver, which keeps one owner for
// each address.
func isDockerLease(owner string) bool { return strings.HasPrefix(owner, "docker:") }

// maxUnrecorded bounds the addresses of one port that count as in use although weft did not give
// them: a container may add any number.
const maxUnrecorded = 16

// adopt makes the allocators and the records agree with what lives.
func (d *daemon) adopt(l kernelState) error {
	file := make(map[netip.Addr]string) // owners
	for owner, ps := range d.addresses.Owners() {
		for _, p := range ps {
			file[p.Addr()] = owner
		}
	}
	byWeft := make(map[netip.Addr]bool)
	for _, port := range l.ports {
		for _, p := range port.Addrs {
			if port.Owner == "" {
				continue
			}
			byWeft[p.Addr()] = true
			if !isDockerLease(port.Owner) || !isDockerLease(file[p.Addr()]) {
				d.addresses.hold(port.Owner, p, d.log)
			}
		}
	}
	isOwned := func(a netip.Addr, port string) bool {
		owner := file[a]
		of, byPort := strings.CutPrefix(owner, portOwner)
		return owner != "" && (!byPort || of != port && slices.ContainsFunc(l.ports, func(p netdev.UsedPort) bool { return p.Name == of }))
	}
	for _, port := range l.ports {
		unrecorded := 0
		for _, p := range slices.Concat(port.Addrs, port.Behind) {
			// What weft wrote down comes first: a container may give itself the address of
			// another one. That one may have no port here, as a gateway of Docker's, or a
			// container whose interface another CNI plugin made.
			if byWeft[p.Addr()] || isOwned(p.Addr(), port.Name) || unrecorded == maxUnrecorded || d.addresses.of(p.Addr()) == nil {
				continue
			}
			unrecorded++
			byWeft[p.Addr()] = true
			d.addresses.hold(portOwner+port.Name, p, d.log)
		}
		if err := d.adoptPort(port); err != nil {
			return err
		}
	}
	for _, p := range l.exposed {
		if d.addresses.of(p.Addr()) != nil {
			d.addresses.hold(api.Exposed, p, d.log)
		}
	}
	return d.exposures.adopt(l.exposed)
}

// adoptPort makes the record of a container agree with its port.
func (d *daemon) adoptPort(p netdev.UsedPort) error {
	switch {
	case p.Owner == "" || isDockerLease(p.Owner) || strings.HasPrefix(p.Owner, portOwner):
		return nil // Docker's driver asks the engine
	case strings.HasPrefix(p.Owner, api.OwnerCNI):
		return d.leases.adopt(p)
	case strings.HasPrefix(p.Owner, api.OwnerNetns):
		return d.namespaces.adopt(p)
	}
	return d.docker.adopt(p)
}

// adopt makes the record of a container agree with its port.
func (as *attachments) adopt(p netdev.UsedPort) error {
	defer as.lock(p.Owner)()
	a, known := as.get(p.Owner)
	has := slices.Clone(p.Addrs)
	for _, q := range a.Addresses { // the kernel keeps only some of many
		if !slices.Contains(has, q) && slices.Contains(p.Behind, q) {
			has = append(has, q)
		}
	}
	sorted := func(ps []netip.Prefix) []netip.Prefix {
		return slices.SortedFunc(slices.Values(ps), netip.Prefix.Compare)
	}
	if known && a.Port == p.Name && slices.Equal(sorted(a.Addresses), sorted(has)) {
		return nil
	}
	as.log.Warn("a container is attached and the state file says something else", "owner", p.Owner, "port", p.Name, "addresses", has)
	if !known {
		a.Docker.Name = p.PortUser.Name
	}
	a.Port, a.Addresses, a.Docker.Released = p.Name, has, false
	a.Requested = slices.DeleteFunc(slices.Clone(a.Requested), func(r netip.Prefix) bool { return !slices.Contains(has, r) })
	return as.put(p.Owner, a)
}

// adopt records the addresses of the bridge that no record has. They are masqueraded, which is
// the default.
func (es *exposures) adopt(has []netip.Prefix) error {
	es.mu.Lock()
	defer es.mu.Unlock()
	defer es.show()
	for _, p := range has {
		if _, known := es.tab.Records[p.String()]; known || es.addresses.of(p.Addr()) == nil {
			continue
		}
		es.log.Warn("the bridge has an address that the state file does not have; it is exposed with masquerading", "addr", p)
		if err := es.tab.Put(p.String(), exposure{Masquerade: true}); err != nil {
			return err
		}
	}
	return nil
}

// otherPorts frees the addresses of portOwner once the ports are gone.
type otherPorts struct {
	addresses addresses
	log       *slog.Logger
	gone      map[string]time.Time // of the ports, when they were first missed; sweep only
}

func (ps *otherPorts) sweep(now time.Time) {
	for owner, addrs := range ps.addresses.Owners() {
		port, ours := strings.CutPrefix(owner, portOwner)
		if !ours || linkExists(port) {
			delete(ps.gone, owner)
			continue
		}
		if since, missed := ps.gone[owner]; !missed {
			ps.gone[owner] = now
		} else if now.Sub(since) >= goneGrace {
			delete(ps.gone, owner)
			if err := ps.addresses.take(owner, addrs); err != nil {
				ps.log.Warn("the addresses of a port that is gone could not be freed", "port", port, "err", err)
			}
		}
	}
}
