package kube

import (
	"context"
	"errors"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/weft-net/weft/internal/api"
)

// The methods in this file bring one part of the Node up to date. They do nothing if it already
// is.

func (a *Agent) allNodes() ([]*corev1.Node, error) { return a.nodes.List(labels.Everything()) }

// connect sets the router's targets to the Nodes' addresses.
func (a *Agent) connect(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if r, err := a.cfg.Router.Ready(ctx); err != nil || !r.Ready {
		a.connectedTargets = nil
		if err == nil || errors.Is(err, api.ErrNotRunning) {
			err = errors.New("the router is starting")
		}
		return err
	}
	if a.cfg.Settings.Peers != nil {
		return nil
	}
	nodes, err := a.allNodes()
	if err != nil {
		return err
	}
	want := Targets(a.cfg.Settings.NodeName, nodes)
	if a.connectedTargets != nil && slices.Equal(a.connectedTargets, want) {
		return nil
	}
	if err := a.cfg.Router.Connect(ctx, api.PeersRequest{Peers: want, Replace: true}); err != nil {
		return err
	}
	a.connectedTargets = append([]string{}, want...)
	return nil
}

// prime waits until the router can allocate addresses, and assigns the Node one from each range.
func (a *Agent) prime(ctx context.Context) error {
	if a.exposed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := a.cfg.Router.Prime(ctx); err != nil {
		return errors.Join(err, a.ipamStatus())
	}
	r, err := a.cfg.Router.Summary(ctx, api.NoLists)
	if err != nil {
		return err
	}
	var want []api.Address
	for _, u := range []*api.IPAM{r.IPAM, r.IPAM6} {
		if u != nil {
			want = append(want, api.Address{Kind: api.FromSubnet, Prefix: u.DefaultSubnet})
		}
	}
	if len(want) == 0 {
		return errors.New("the router has no address range; see IPALLOC_RANGE")
	}
	if _, err := a.cfg.Router.Expose(ctx, api.ExposeRequest{Addresses: want}); err != nil {
		return err
	}
	a.exposed = true
	return nil
}

// ipamStatus returns what the router's allocator waits for, nil if it does not report it.
func (a *Agent) ipamStatus() error {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	r, err := a.cfg.Router.Summary(ctx, api.NoLists)
	if err != nil || r.IPAM == nil {
		return err
	}
	return errors.New(r.IPAM.Status)
}

// enforce fails until policies are enforced: a pod that starts earlier would be unprotected.
func (a *Agent) enforce(context.Context) error {
	if a.cfg.Policies == nil {
		return nil
	}
	return a.cfg.Policies.Enforced()
}

func (a *Agent) install(context.Context) error {
	if a.cfg.Plugin == nil {
		return nil
	}
	wrote, err := a.cfg.Plugin.Install()
	if wrote {
		a.cfg.Log.Info("installed the CNI plugin and its configuration", "plugins", a.cfg.Plugin.BinDir, "configuration", a.cfg.Plugin.ConfDir)
	}
	return err
}
