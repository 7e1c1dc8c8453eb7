package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// inDocker is what the record of a container of Docker's has besides.
type inDocker struct {
	Name string `json:"name"`
	// Named are the addresses that the user asked for; no others take their
	// place.
	Named        []netip.Prefix `json:"named,omitempty"`
	WithoutDNS   bool           `json:"withoutDNS,omitempty"`
	RewriteHosts bool           `json:"rewriteHosts,omitempty"`
	AddHosts     []string       `json:"addHosts,omitempty"`
	// Released: the container has not run for a while, and others may have its
	// addresses.
	Released bool `json:"released,omitempty"`
}

// newInDocker starts the record of a container that r attaches, nil if p is not
// Docker's.
func newInDocker(p place, r api.AttachRequest) *inDocker {
	if p.container == nil {
		return nil
	}
	return &inDocker{Name: p.container.Name, WithoutDNS: r.WithoutDNS, RewriteHosts: r.RewriteHosts, AddHosts: r.AddHosts}
}

// name notes which of the addresses the user asked for.
func (d *inDocker) name(as []api.Address) {
	if d == nil {
		return
	}
	for _, a := range as {
		if a.Kind == api.Exactly && !slices.Contains(d.Named, a.Prefix) {
			d.Named = append(d.Named, a.Prefix)
		}
	}
}

// isThere tells whether the namespace at a's path is still the one that a's
// port leads to: the path names a process, and its number may be another's now.
func (as *attachments) isThere(a attachment) bool {
	ifaces, err := netdev.Attached(a.Netns, as.bridge)
	return err == nil && slices.ContainsFunc(ifaces, func(i netdev.Iface) bool { return i.HostName == a.Port })
}

// live returns the record of a container of Docker's that is attached in this run
// of it.
func (as *attachments) live(owner string) (attachment, bool) {
	a, known := as.get(owner)
	return a, known && a.Docker != nil && a.Port != "" && linkExists(a.Port)
}

// recorded finds a container of Docker's by what is on record, for when Docker
// can not be asked: by its id, the beginning of it, or its name.
func (as *attachments) recorded(ref string) (place, bool) {
	var found []place
	for _, owner := range as.owners() {
		a, known := as.get(owner)
		if !known || a.Docker == nil || a.Docker.Name != ref && !strings.HasPrefix(owner, ref) {
			continue
		}
		p := place{owner: owner, container: &docker.Container{ID: owner, Name: a.Docker.Name}}
		if as.isThere(a) {
			p.netns = a.Netns
		}
		found = append(found, p)
	}
	if len(found) != 1 {
		return place{}, false
	}
	return found[0], true
}

// rejoin gives a container of Docker's that runs, and was attached in this run
// or an earlier one, what its record says it has. An address that another took
// meanwhile is replaced by one of the same subnet, unless the user had asked
// for that very address.
func (as *attachments) rejoin(ctx context.Context, c *docker.Container) (now attachment, err error) {
	defer as.locks.lock(c.ID)()
	a, known := as.get(c.ID)
	if !known || a.Docker == nil {
		return attachment{}, nil
	}
	if len(a.Addresses) == 0 {
		// The router ended before it had attached it.
		return attachment{}, as.forget(c.ID)
	}
	before := a.Addresses
	a.Addresses = nil
	var fresh []netip.Prefix
	defer func() {
		if err != nil {
			err = errors.Join(err, as.addresses.take(c.ID, fresh))
		}
	}()
	for _, p := range before {
		got, isFresh, err := as.addresses.give(ctx, c.ID, api.Address{Kind: api.Exactly, Prefix: p})
		if err != nil && !slices.Contains(a.Docker.Named, p) {
			as.log.Warn("another took the address of a container that was away", "container", c.Name, "address", p, "error", err)
			got, isFresh, err = as.addresses.give(ctx, c.ID, api.Address{Kind: api.FromSubnet, Prefix: p.Masked()})
		}
		if err != nil {
			return attachment{}, fmt.Errorf("attach container %s again: %w", c.Name, err)
		}
		if isFresh {
			fresh = append(fresh, got)
		}
		if !slices.Contains(a.Addresses, got) {
			a.Addresses = append(a.Addresses, got)
		}
	}
	record := *a.Docker
	record.Name, record.Released = c.Name, false
	a.Docker = &record
	return a, as.join(place{owner: c.ID, netns: c.Netns(), container: c}, a, a.Addresses)
}

// release frees the addresses of a container that does not run; its record
// stays for its next run.
func (as *attachments) release(owner string) error {
	if err := as.addresses.take(owner, as.addresses.owned(owner)); err != nil {
		return err
	}
	a, known := as.get(owner)
	if !known || a.Docker == nil {
		return nil
	}
	record := *a.Docker
	record.Released = true
	a.Docker = &record
	return as.put(owner, a)
}

// remove frees the addresses of a container that does not exist any more.
func (as *attachments) remove(owner string) {
	defer as.locks.lock(owner)()
	if a, known := as.get(owner); !known || a.Docker == nil {
		return
	}
	if err := as.forget(owner); err != nil {
		as.log.Warn("the addresses of a container that is gone could not be freed", "owner", owner, "error", err)
	}
}

// keepOnly removes the containers of Docker's that are not among those that
// exist.
func (as *attachments) keepOnly(exist []string) {
	for _, owner := range as.owners() {
		if !slices.Contains(exist, owner) {
			as.remove(owner)
		}
	}
}
