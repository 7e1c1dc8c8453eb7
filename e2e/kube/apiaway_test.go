//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/cluster"
)

// restartTimeout is the documented time in which all routers of a cluster are ready again after
// all of them were killed, without an API server.
const restartTimeout = 10 * time.Second

// While the API server is away, all routers are killed. They start again without it, and pods
// reach each other. All frames use sleeve, so that they need the routers.
func TestRoutersStartWithoutTheAPIServer(t *testing.T) {
	k := newClusterWithoutWeft(t, "iptables")
	k.install("WEFT_NO_FASTDP=1")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	one, two := k.pod("one", "n1", ""), k.pod("two", "n2", "")
	k.waitAnswer("pods reach each other", k.fromPod("one"), url(two, 8080), "two", one)

	if err := k.StopAPI(ctx); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	before := make(map[string]string) // processes of routers, by node
	for _, n := range k.Nodes {
		before[n.Name] = k.routerProcess(n)
		if _, err := n.Run(ctx, "kill", "-9", before[n.Name]); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range k.Nodes {
		k.waitUntil("the router of "+n.Name+" is ready", func() error {
			if p := k.routerProcess(n); p == "" || p == before[n.Name] {
				return fmt.Errorf("its process is %q, before it was %s", p, before[n.Name])
			}
			return routerReady(ctx, n)
		})
	}
	ready := time.Since(began)
	k.waitAnswer("a pod is reached from another node", k.fromHost(k.Nodes[0].Host), url(two, 8080), "two", "")
	k.waitAnswer("a pod is reached from another node", k.fromHost(k.Nodes[1].Host), url(one, 8080), "one", "")
	t.Logf("all routers are ready %v after they were killed, and pods reach each other after %v", ready, time.Since(began))
	if ready > restartTimeout {
		t.Errorf("the routers are ready after %v, want %v", ready, restartTimeout)
	}
	if _, err := k.Kubectl(ctx, nil, "get", "--raw", "/readyz"); err == nil {
		t.Error("the API server answers")
	}

	if err := k.RestartAPI(ctx); err != nil {
		t.Fatal(err)
	}
	k.rollout()
	k.waitAnswer("pods reach each other once the API server is back", k.fromPod("one"), url(two, 8080), "two", one)
	k.pod("new", "n2", "")
}

// routerProcess returns the number of the router's process, "" if there is none.
func (k *kube) routerProcess(n *cluster.Node) string {
	out, _ := n.Run(k.t.Context(), "pidof", "weft-kube")
	return strings.TrimSpace(out)
}

// routerReady returns an error if the router of a node is not ready. It does not ask the API server.
func routerReady(ctx context.Context, n *cluster.Node) error {
	r, err := router(n).Ready(ctx)
	if err == nil && !r.Ready {
		err = errors.New("it is starting")
	}
	return err
}

// router returns a client of the router of a node, which needs no API server.
func router(n *cluster.Node) *api.Client { return api.NewClient(n.Path(api.DefaultSocket)) }
