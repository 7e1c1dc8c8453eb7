package daemon

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// namespaces attaches containers that are named by a network namespace. A
// namespace never comes back: once it is gone, another one may have its inode
// number, which is the owner's name.
type namespaces struct{ *attachments }

var _ kind = (*namespaces)(nil)

const bucketNamespaces = "attachments"

func newNamespaces(c attachConfig) *namespaces {
	ns := new(namespaces)
	ns.attachments = newAttachments(c, bucketNamespaces, ns)
	return ns
}

// namespaceAt returns the place of the namespace at path.
func namespaceAt(path string) (place, error) {
	owner, err := ownerOf(path)
	return place{owner: owner, netns: path}, err
}

// ownerOf returns the name in the allocators of the container at path.
func ownerOf(path string) (string, error) {
	if !filepath.IsAbs(path) {
		return "", usage("container %q: want the absolute path of a network namespace", path)
	}
	id, err := netdev.IdentifyNS(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf(api.OwnerNetns+"%d", id.Ino), nil
}

func (ns *namespaces) newRecord(p place, r api.AttachRequest) attachment {
	return attachment{Netns: p.netns, NoMulticastRoute: r.NoMulticastRoute, AllowSpoof: r.AllowSpoof}
}

func (ns *namespaces) isCurrent(owner string, a attachment) bool {
	current, err := ownerOf(a.Netns)
	return err == nil && current == owner
}

func (ns *namespaces) waitsForStart(attachment) bool { return false }

func (ns *namespaces) isReleased(attachment) bool { return false }

func (ns *namespaces) nameOf(attachment) string { return "" }

func (ns *namespaces) onRestart(owner string) error { return ns.forget(owner) }

func (ns *namespaces) onExit(owner string) error { return ns.forget(owner) }

// adopt makes the record of a container agree with its port. If the path of its namespace was
// lost, it is looked for among those that have a name.
func (ns *namespaces) adopt(p netdev.UsedPort) error {
	if err := ns.attachments.adopt(p); err != nil {
		return err
	}
	defer ns.lock(p.Owner)()
	a, known := ns.get(p.Owner)
	if !known || a.Netns != "" {
		return nil
	}
	names, err := netdev.ListNS()
	if err != nil {
		return nil // the folder is another one in a container
	}
	for _, name := range names {
		path := netdev.NSByName(name)
		if owner, err := ownerOf(path); err == nil && owner == p.Owner {
			a.Netns = path
			return ns.put(p.Owner, a)
		}
	}
	return nil
}

// attachAt attaches the namespace that a request names.
func (ns *namespaces) attachAt(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	p, err := namespaceAt(r.Netns)
	if err != nil {
		return nil, err
	}
	ps, err := ns.attach(ctx, p, r)
	if errors.Is(err, netdev.ErrHostNS) {
		return nil, usage("%w", err)
	}
	return ps, err
}

// detachAt takes addresses from the namespace that a request names.
func (ns *namespaces) detachAt(r api.AttachRequest) ([]netip.Prefix, error) {
	p, err := namespaceAt(r.Netns)
	if err != nil {
		return nil, err
	}
	return ns.detach(p, r.Addresses)
}

// find returns the owner that is given by its name or by the path of its
// namespace, and must be attached.
func (ns *namespaces) find(container string) (owner string, err error) {
	if _, known := ns.get(container); known {
		return container, nil
	}
	for _, owner := range ns.owners() {
		if a, known := ns.get(owner); known && a.Netns == container {
			return owner, nil
		}
	}
	return "", fmt.Errorf("container %s is not attached; 'weft ps' lists those that are", container)
}

// addName gives a container that is attached a name, its first one if fqdn is "",
// with the addresses, all its own if none is given.
func (ns *namespaces) addName(container, fqdn string, addrs []netip.Addr) error {
	owner, err := ns.find(container)
	if err != nil {
		return err
	}
	defer ns.lock(owner)()
	a, known := ns.get(owner)
	if !known || !a.isPlugged() {
		return fmt.Errorf("container %s is gone", container)
	}
	if fqdn == "" {
		if len(a.Names) == 0 {
			return usage("container %s has no name yet; give one with -h NAME", container)
		}
		fqdn = a.Names[0].FQDN
	}
	if len(addrs) == 0 {
		addrs = addrsOf(a.Addresses)
	}
	if err := ns.names.Add(owner, fqdn, addrs...); err != nil {
		return err
	}
	a.Names = a.Names.with(fqdn, addrs)
	return ns.put(owner, a)
}

// removeName undoes addName: for all names if fqdn is "", and all addresses if
// none is given.
func (ns *namespaces) removeName(container, fqdn string, addrs []netip.Addr) error {
	owner, err := ns.find(container)
	if err != nil {
		return err
	}
	defer ns.lock(owner)()
	a, known := ns.get(owner)
	if !known {
		return fmt.Errorf("container %s is gone", container)
	}
	if err := a.Names.check(fqdn, addrs); err != nil {
		return fmt.Errorf("container %s: %w", container, err)
	}
	if _, err := ns.names.Remove(owner, fqdn, addrs...); err != nil {
		return err
	}
	a.Names = a.Names.without(fqdn, addrs)
	return ns.put(owner, a)
}
