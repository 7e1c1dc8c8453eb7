package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/kube"
)

// routerConfig returns the configuration of the router. The settings of the manifest are
// defaults for the flags of weft launch, which EXTRA_ARGS overrides. Environment variables
// such as WEFT_MTU count only for flags that neither decides. Without nodes, because the API
// server does not answer, the router uses the targets of its last run.
func routerConfig(s *kube.Settings, nodes []*corev1.Node, lookup func(string) (string, bool)) (*daemon.Config, error) {
	c := daemon.DefaultConfig()
	decided := applySettings(c, s, nodes)
	undecided := func(name string) (string, bool) {
		if slices.Contains(decided, name) {
			return "", false
		}
		return lookup(name)
	}
	if err := cmd.ParseLaunch(c, s.ExtraArgs, undecided); err != nil {
		return nil, fmt.Errorf("settings of the router: %w", err)
	}
	return c, nil
}

// withPassword returns lookup with the generated password of the cluster, unless the user gives
// the router one or wants none.
func withPassword(ctx context.Context, s *kube.Settings, client kubernetes.Interface, lookup func(string) (string, bool), log *slog.Logger) (func(string) (string, bool), error) {
	if s.GeneratedSecret == "" || s.GivesPassword(lookup) {
		return lookup, nil
	}
	// A container that is restarted needs no API server for it: the kubelet knows the Secret.
	password := s.GeneratedPassword
	if password == "" {
		var err error
		if password, err = kube.GeneratedPassword(ctx, client, s, rand.Reader, log); err != nil {
			return nil, fmt.Errorf("get the password of the mesh: %w", err)
		}
	}
	return func(name string) (string, bool) {
		if name == "WEFT_PASSWORD" {
			return password, true
		}
		return lookup(name)
	}, nil
}

// applySettings sets the fields of c that the settings and the Nodes decide, and returns
// the environment variables for the flags of these fields.
func applySettings(c *daemon.Config, s *kube.Settings, nodes []*corev1.Node) (decided []string) {
	// A Kubernetes cluster has its own DNS, and its containers are not Docker's.
	c.DNS.Off, c.Docker.Host = true, ""
	c.Mesh.Nickname, c.NoMasqLocal = s.NodeName, !s.MasqLocal
	decided = []string{"WEFT_NO_DNS", "WEFT_DOCKER_API", "WEFT_NICKNAME", "WEFT_NO_MASQ_LOCAL"}
	if s.Range.IsValid() {
		c.Range, c.RangeGiven = s.Range, true
		decided = append(decided, "WEFT_IPALLOC_RANGE")
	}
	if s.Range6.IsValid() {
		c.Range6 = s.Range6
		decided = append(decided, "WEFT_IPALLOC_RANGE6")
	}
	if s.ConnLimit != nil {
		c.Mesh.ConnLimit = *s.ConnLimit
		decided = append(decided, "WEFT_CONN_LIMIT")
	}
	if s.MetricsAddr != "" {
		if c.StatusAddr = s.MetricsAddr; s.MetricsAddr == kube.MetricsOff {
			c.StatusAddr = ""
		}
		decided = append(decided, "WEFT_STATUS_ADDR")
	}
	switch {
	case s.Init != nil:
		c.Init = *s.Init
		decided = append(decided, "WEFT_IPALLOC_INIT")
	case len(nodes) > 0:
		c.Init.Expect = len(nodes)
		decided = append(decided, "WEFT_IPALLOC_INIT")
	}
	switch {
	case s.Peers != nil:
		c.Peers = s.Peers
	case len(nodes) == 0:
		c.Resume = true
		decided = append(decided, "WEFT_RESUME")
	default:
		c.Peers = kube.Targets(s.NodeName, nodes)
	}
	return decided
}
