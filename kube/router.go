package kube

import (
	"context"
	"net/netip"

	"github.com/weft-net/weft/internal/api"
)

// Router is the control API of this Node's router. *api.Client implements it.
type Router interface {
	Ready(ctx context.Context) (api.Ready, error)
	Summary(ctx context.Context, lists api.Lists) (*api.Report, error)
	Prime(ctx context.Context) error
	Expose(ctx context.Context, r api.ExposeRequest) ([]netip.Prefix, error)
	Hide(ctx context.Context, r api.ExposeRequest) ([]netip.Prefix, error)
	Connect(ctx context.Context, r api.PeersRequest) error
	RemovePeers(ctx context.Context, r api.PeersRequest) ([]api.Removed, error)
}

var _ Router = (*api.Client)(nil)
