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

// dockerContainers attaches Docker's containers, whose records outlive their runs.
// Owners are the containers' ids.
type dockerContainers struct{ *attachments }

var _ kind = (*dockerContainers)(nil)

const bucketDockerContainers = "docker-attachments"

func newDockerContainers(c attachConfig) *dockerContainers {
	cs := new(dockerContainers)
	cs.attachments = newAttachments(c, bucketDockerContainers, cs)
	return cs
}

func (cs *dockerContainers) newRecord(p place, r api.AttachRequest) attachment {
	return attachment{Netns: p.netns, NoMulticastRoute: r.NoMulticastRoute, AllowSpoof: r.AllowSpoof, Docker: dockerRecord{
		Name: p.name, WithoutDNS: r.WithoutDNS, RewriteHosts: r.RewriteHosts, AddHosts: r.AddHosts,
	}}
}

// isCurrent reports whether the namespace at a's path is still the one that a's
// port leads to: the path names a process, and its number may be another's now.
func (cs *dockerContainers) isCurrent(_ string, a attachment) bool {
	ifaces, err := netdev.Attached(a.Netns, cs.bridge)
	return err == nil && slices.ContainsFunc(ifaces, func(i netdev.Iface) bool { return i.HostName == a.Port })
}

func (cs *dockerContainers) waitsForStart(a attachment) bool {
	return a.Docker.Released || a.Port == ""
}

func (cs *dockerContainers) isReleased(a attachment) bool { return a.Docker.Released }

func (cs *dockerContainers) nameOf(a attachment) string { return a.Docker.Name }

// onRestart keeps the record, which has the addresses of the last run.
func (cs *dockerContainers) onRestart(string) error { return nil }

// onExit frees the addresses of a container that does not run; its record stays
// for its next run.
func (cs *dockerContainers) onExit(owner string) error {
	if err := cs.addresses.take(owner, cs.addresses.owned(owner)); err != nil {
		return err
	}
	a, known := cs.get(owner)
	if !known {
		return nil
	}
	a.Docker.Released = true
	return cs.put(owner, a)
}

// live returns the record of a container that is attached in its current run.
func (cs *dockerContainers) live(owner string) (attachment, bool) {
	a, known := cs.get(owner)
	return a, known && a.isPlugged()
}

// recorded finds a container in the records, for when Docker does not answer: by
// its id, the beginning of it, or its name.
func (cs *dockerContainers) recorded(ref string) (place, bool) {
	var found []place
	for _, owner := range cs.owners() {
		a, known := cs.get(owner)
		if !known || a.Docker.Name != ref && !strings.HasPrefix(owner, ref) {
			continue
		}
		p := place{owner: owner, name: a.Docker.Name}
		if cs.isCurrent(owner, a) {
			p.netns = a.Netns
		}
		found = append(found, p)
	}
	if len(found) != 1 {
		return place{}, false
	}
	return found[0], true
}

// rejoin gives a running container, which was attached in this run or an earlier
// one, the addresses of its record. An address that another container took
// meanwhile is replaced by one of the same subnet, unless the user had requested
// exactly that address.
func (cs *dockerContainers) rejoin(ctx context.Context, c *docker.Container) (now attachment, err error) {
	defer cs.lock(c.ID)()
	a, known := cs.get(c.ID)
	if !known {
		return attachment{}, nil
	}
	if len(a.Addresses) == 0 {
		// The router ended before it had attached the container.
		return attachment{}, cs.forget(c.ID)
	}
	before := a.Addresses
	a.Addresses = nil
	var fresh []netip.Prefix
	defer func() {
		if err != nil {
			err = errors.Join(err, cs.addresses.take(c.ID, fresh))
		}
	}()
	for _, p := range before {
		got, isFresh, err := cs.addresses.give(ctx, c.ID, api.Address{Kind: api.Exactly, Prefix: p})
		if err != nil && !slices.Contains(a.Requested, p) {
			cs.log.Warn("another container took the address of one that did not run", "container", c.Name, "addr", p, "err", err)
			got, isFresh, err = cs.addresses.give(ctx, c.ID, api.Address{Kind: api.FromSubnet, Prefix: p.Masked()})
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
	a.Docker.Name, a.Docker.Released = c.Name, false
	return a, cs.join(place{owner: c.ID, netns: c.Netns(), name: c.Name}, a, a.Addresses)
}

// remove frees the addresses of a container that Docker has removed.
func (cs *dockerContainers) remove(owner string) {
	defer cs.lock(owner)()
	if _, known := cs.get(owner); !known {
		return
	}
	if err := cs.forget(owner); err != nil {
		cs.log.Warn("the addresses of a container that was removed could not be freed", "owner", owner, "err", err)
	}
}

// keepOnly removes the records of all containers but those that exist.
func (cs *dockerContainers) keepOnly(exist []string) {
	for _, owner := range cs.owners() {
		if !slices.Contains(exist, owner) {
			cs.remove(owner)
		}
	}
}
