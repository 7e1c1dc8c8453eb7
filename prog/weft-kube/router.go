package main

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/kube"
)

// routerConfig returns the configuration of the router. The settings of the manifest are
// defaults for the flags of weft launch; EXTRA_ARGS and environment variables such as
// WEFT_MTU override them. Without nodes, because the API server does not answer, the router
// uses the targets of its last run.
func routerConfig(s *kube.Settings, nodes []*corev1.Node, lookup func(string) (string, bool)) (*daemon.Config, error) {
	c := daemon.DefaultConfig()
	// A Kubernetes cluster has its own DNS, and its containers are not Docker's.
	c.DNS.Off, c.Docker.Host = true, ""
	c.Mesh.Nickname, c.NoMasqLocal = s.NodeName, !s.MasqLocal
	if s.Range.IsValid() {
		c.Range, c.RangeGiven = s.Range, true
	}
	c.Range6 = s.Range6
	if s.ConnLimit != nil {
		c.Mesh.ConnLimit = *s.ConnLimit
	}
	if s.MetricsAddr != "" {
		c.StatusAddr = s.MetricsAddr
	}
	if s.Init != nil {
		c.Init = *s.Init
	} else {
		c.Init.Expect = len(nodes)
	}
	switch {
	case s.Peers != nil:
		c.Peers = s.Peers
	case len(nodes) == 0:
		c.Resume = true
	default:
		c.Peers = kube.Targets(s.NodeName, nodes)
	}
	if err := cmd.ParseLaunch(c, s.ExtraArgs, lookup); err != nil {
		return nil, fmt.Errorf("settings of the router: %w", err)
	}
	return c, nil
}
