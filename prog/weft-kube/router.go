package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
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

// passwordDir is where the kubelet shows the Secrets with the password of the mesh, and keeps
// them up to date. A container that is restarted finds them without the API server.
const passwordDir = "/run/secrets/weft"

// Files of passwordDir: from the Secret of the user, and from the generated one. The kubelet has
// no file for a Secret, or a key of it, that does not exist.
const (
	userPassword      = "password"
	generatedPassword = "generated"
)

// changeSecret says how the password of a cluster is changed.
const changeSecret = "on Kubernetes change the Secret that has the password, and all nodes follow: " +
	"kubectl -n %s create secret generic weft --dry-run=client -o yaml --from-literal=password=NEW | kubectl apply -f -"

// passwords finds the password of the mesh.
type passwords struct {
	dir  string
	user bool   // the user's was there
	text string // the last one
}

// withPassword returns lookup with the password of the Secrets, unless the environment or the
// arguments have one, and how to read it again; nil if it cannot change. Without the user's
// Secret it is the generated one, if the settings want that.
func withPassword(ctx context.Context, s *kube.Settings, client kubernetes.Interface, dir string, lookup func(string) (string, bool), log *slog.Logger) (_ func(string) (string, bool), read func() ([]string, error), err error) {
	if s.GivesPassword(lookup) {
		return lookup, nil, nil
	}
	p := &passwords{dir: dir}
	_, err = p.read()
	switch {
	case err != nil:
		return nil, nil, err
	case p.text == "" && s.GeneratedSecret == "":
		return lookup, nil, nil
	case p.text == "":
		if p.text, err = kube.GeneratedPassword(ctx, client, s, rand.Reader, log); err != nil {
			return nil, nil, fmt.Errorf("get the password of the mesh: %w", err)
		}
	}
	text := p.text
	return func(name string) (string, bool) {
		if name == "WEFT_PASSWORD" {
			return text, true
		}
		return lookup(name)
	}, p.read, nil
}

// read returns the lines of the password.
func (p *passwords) read() ([]string, error) {
	for _, file := range []string{userPassword, generatedPassword} {
		b, err := os.ReadFile(filepath.Join(p.dir, file))
		switch {
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return nil, fmt.Errorf("read the password: %w", err)
		case len(bytes.TrimSpace(b)) > 0:
			p.user, p.text = file == userPassword, string(b)
			return cmd.PasswordLines(p.text), nil
		case p.user:
			// To go back to the generated password, which may be an old one, would be a surprise.
			return nil, errors.New("the Secret with the password is gone, or empty")
		}
	}
	return cmd.PasswordLines(p.text), nil
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
