package daemon

import (
	"context"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
)

// containers answers requests about containers, and passes each to the part that
// knows them: the engine, or else the namespaces. It implements api.Containers.
type containers struct {
	gate       *gate
	namespaces *namespaces
	docker     *dockerContainers
	engine     engine
	exposures  *exposures
	leases     *leases
	kernel     requirer
	guard      *spoofGuard
}

// Attachments implements api.Containers.
func (cs *containers) Attachments(context.Context) ([]api.Attachment, error) {
	list := cs.list()
	cs.guard.mark(list)
	return cs.withMACs(list)
}

// withMACs fills in the MAC addresses that no record has, as the kernel has them: those of
// interfaces that the CNI plugin made, of containers whose records were lost, and of the bridge.
func (cs *containers) withMACs(list []api.Attachment) ([]api.Attachment, error) {
	if !slices.ContainsFunc(list, func(a api.Attachment) bool { return a.MAC == "" }) {
		return list, nil
	}
	macs, err := netdev.PortMACs(cs.exposures.bridge)
	if err != nil {
		return nil, err
	}
	for i, a := range list {
		port := a.Port
		if a.ID == api.Exposed {
			port = cs.exposures.bridge
		}
		if mac := macs[port]; a.MAC == "" && mac != nil {
			list[i].MAC = mac.String()
		}
	}
	return list, nil
}

// list returns the bridge, if it has an address, and all containers.
func (cs *containers) list() []api.Attachment {
	list := []api.Attachment{}
	if a, exposed := cs.exposures.attachment(); exposed {
		list = append(list, a)
	}
	list = append(list, cs.docker.list()...)
	list = append(list, cs.namespaces.list()...)
	list = append(list, cs.leases.attachments()...)
	return append(list, cs.engine.list()...)
}

// addrs returns the addresses of all containers, and those exposed.
func (cs *containers) addrs() (list []netip.Addr) {
	for _, a := range cs.list() {
		list = append(list, addrsOf(a.Addresses)...)
	}
	return list
}

// Attach implements api.Containers.
func (cs *containers) Attach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	ctx, done, err := cs.gate.enter(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	byName, err := isNamed(r)
	if err == nil {
		err = connectable(cs.kernel)
	}
	switch {
	case err != nil:
		return nil, err
	case byName:
		return cs.engine.attach(ctx, r)
	default:
		return cs.namespaces.attachAt(ctx, r)
	}
}

// Detach implements api.Containers.
func (cs *containers) Detach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	byName, err := isNamed(r)
	switch {
	case err != nil:
		return nil, err
	case byName:
		return cs.engine.detach(ctx, r)
	default:
		return cs.namespaces.detachAt(r)
	}
}

// isNamed reports whether a request names a container of the engine, and not a
// namespace.
func isNamed(r api.AttachRequest) (bool, error) {
	if r.Container != "" && r.Netns != "" {
		return false, usage("container %s: named by a network namespace too, %s; give one", r.Container, r.Netns)
	}
	return r.Container != "", nil
}

// allocateTimeout bounds how long a request waits for addresses. The error
// then says what it waited for.
const allocateTimeout = 60 * time.Second

var errLeaving = unavailable("the router is stopping")

// gate refuses requests for addresses once the router is stopping. Its zero
// value is open.
type gate struct{ closed atomic.Bool }

// enter returns a context for a request that may wait for addresses, and how to
// release it.
func (g *gate) enter(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if g.closed.Load() {
		return nil, nil, errLeaving
	}
	ctx, done := context.WithTimeout(ctx, allocateTimeout)
	return ctx, done, nil
}
