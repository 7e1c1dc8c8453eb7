package daemon

import (
	"context"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/weft-net/weft/internal/netdev"
)

// restore makes containers, records and allocators agree after a start. What
// fails is logged, and tried again by sweep where that helps.
func (as *attachments) restore(ctx context.Context) {
	for _, owner := range as.owners() {
		if err := as.restoreOne(ctx, owner); err != nil {
			as.log.Warn("an attached container could not be restored", "owner", owner, "err", err)
		}
	}
}

func (as *attachments) restoreOne(ctx context.Context, owner string) error {
	defer as.lock(owner)()
	a, known := as.get(owner)
	if !known || as.kind.waitsForStart(a) {
		return nil
	}
	current := as.kind.isCurrent(owner, a)
	if a.Port == "" {
		// The router ended while it attached this container.
		if !current {
			return as.forget(owner)
		}
		var err error
		if a.Port, a.MAC, err = as.portOf(a.Netns); err != nil {
			return as.forget(owner)
		}
		if err := as.put(owner, a); err != nil {
			return err
		}
	}
	if !linkExists(a.Port) {
		return nil // sweep frees it after its grace
	}
	if current {
		// Puts the port back on a bridge that was created again, and announces.
		if err := as.plug(owner, a.Netns, a, a.Addresses); err != nil {
			return err
		}
	}
	return as.addresses.settle(ctx, owner, a.Addresses)
}

// restoreNames registers the names of the containers that still run. It comes
// before everything else, so that the mesh learns the names together with this
// router.
func (as *attachments) restoreNames() {
	for _, owner := range as.owners() {
		a, known := as.get(owner)
		if !known || !a.isPlugged() {
			continue
		}
		if err := a.Names.register(as.names, owner, a.Addresses); err != nil {
			as.log.Warn("some names of an attached container could not be restored", "owner", owner, "err", err)
		}
		for _, n := range a.Names {
			if _, err := permit(as.names, n.Addresses, addrsOf(a.Addresses)); err != nil {
				as.log.Warn("a name of an attached container leads to fewer addresses than before", "name", n.FQDN, "err", err)
			}
		}
	}
}

// sweep frees the addresses of containers that have been gone for goneGrace.
func (as *attachments) sweep(now time.Time) {
	as.removeNamesOfGone(now)
	for _, owner := range as.owners() {
		a, known := as.get(owner)
		if !known || a.Port == "" || as.kind.isReleased(a) || linkExists(a.Port) {
			continue
		}
		if now.Sub(as.missedSince(owner, now)) >= goneGrace {
			as.free(owner)
		}
	}
}

// missedSince returns when the port of owner was first missed, and notes now if
// that is the first time.
func (as *attachments) missedSince(owner string, now time.Time) time.Time {
	as.mu.Lock()
	defer as.mu.Unlock()
	if _, missed := as.gone[owner]; !missed {
		as.gone[owner] = now
	}
	return as.gone[owner]
}

func (as *attachments) free(owner string) {
	defer as.lock(owner)()
	a, known := as.get(owner)
	if !known || a.Port == "" || linkExists(a.Port) {
		return
	}
	if err := as.kind.onExit(owner); err != nil {
		as.log.Warn("the addresses of a container that is gone could not be freed", "owner", owner, "err", err)
		return
	}
	as.log.Info("a container is gone, its addresses are free", "owner", owner, "netns", a.Netns, "addresses", a.Addresses)
}

// removeNamesOfGone removes the names of containers that are gone. It grants no
// grace, unlike sweep for addresses: a name that leads nowhere is of no use.
func (as *attachments) removeNamesOfGone(now time.Time) {
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
	links, err := netdev.Dump(netlink.LinkList)
	if err != nil {
		return // asked again with the next change, or by sweep
	}
	ports := make(map[string]bool, len(links))
	for _, l := range links {
		ports[l.Attrs().Name] = true
	}
	for owner, port := range before {
		if !ports[port] {
			as.removeNamesIfGone(owner, port, now)
		}
	}
}

// removeNamesIfGone does that for one container, which had this port.
func (as *attachments) removeNamesIfGone(owner, port string, now time.Time) {
	defer as.lock(owner)()
	if a, known := as.get(owner); !known || a.Port != port || linkExists(port) {
		return // attached again meanwhile
	}
	as.missedSince(owner, now)
	as.names.RemoveContainer(owner)
}
