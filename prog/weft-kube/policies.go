package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/kube"
	"github.com/weft-net/weft/policy"
)

// enforcer is the policy engine with a control socket for the command weft policy.
type enforcer struct{ *policy.Engine }

func newEnforcer(s *kube.Settings, metrics prometheus.Registerer, log *slog.Logger) (enforcer, error) {
	e, err := policy.New(policy.Config{Node: s.NodeName, Log: log, Metrics: metrics})
	return enforcer{e}, err
}

// Run enforces policies until ctx ends, and leaves them in force.
func (e enforcer) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return e.Engine.Run(ctx) })
	g.Go(func() error { return e.Serve(ctx, api.DefaultPolicySocket) })
	return errors.Join(g.Wait(), e.Close())
}
