package daemon

import (
	"context"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/api"
)

// engine is the container engine of the host, whose containers are named by id or
// name. Its methods but start may be called concurrently, and before start.
type engine interface {
	// start begins to follow the engine, and to serve it, in goroutines of g that
	// end with ctx. It returns when the sockets that it serves are there.
	start(ctx context.Context, g *errgroup.Group)
	// attach and detach are for a container of the engine, r.Container.
	attach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error)
	detach(ctx context.Context, r api.AttachRequest) ([]netip.Prefix, error)
	// addName gives a container of the engine a name, its own if fqdn is "", with
	// the addresses, all that it has on the switch, now or later, if none is given.
	addName(ctx context.Context, container, fqdn string, addrs []netip.Addr) error
	// removeName removes addresses from a container's name. No addrs means all
	// addresses; fqdn "" means all names. Automatic names return when the container
	// restarts.
	removeName(ctx context.Context, container, fqdn string, addrs []netip.Addr) error
	// list returns the containers on networks of the engine.
	list() []api.Attachment
	// report adds the state of the engine, and warnings.
	report(r *api.Report)
	// interfacesChanged takes names from containers that have lost their process or
	// their interface. It is called when interfaces of the host have changed.
	interfacesChanged()
	// leave removes the objects that the router made in the engine and no container
	// uses.
	leave(ctx context.Context)
}

// noEngine is the engine of a host whose containers are named by their network
// namespaces only.
type noEngine struct{}

var _ engine = noEngine{}

func (noEngine) start(context.Context, *errgroup.Group) {}

func (e noEngine) attach(_ context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	return nil, e.refuse(r.Container)
}

func (e noEngine) detach(_ context.Context, r api.AttachRequest) ([]netip.Prefix, error) {
	return nil, e.refuse(r.Container)
}

func (e noEngine) addName(_ context.Context, container, _ string, _ []netip.Addr) error {
	return e.refuse(container)
}

func (e noEngine) removeName(_ context.Context, container, _ string, _ []netip.Addr) error {
	return e.refuse(container)
}

func (noEngine) refuse(container string) error {
	return unavailable("container %s: this router was launched without Docker; name it by --netns or --pid", container)
}

func (noEngine) list() []api.Attachment { return nil }

func (noEngine) report(*api.Report) {}

func (noEngine) interfacesChanged() {}

func (noEngine) leave(context.Context) {}
