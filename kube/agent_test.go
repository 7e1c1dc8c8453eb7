package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/poll"
)

// router is a Router that records its calls.
type router struct {
	mu      sync.Mutex
	name    string
	primed  bool
	down    bool     // as while it is being replaced
	alive   []string // peers that are reachable, so they cannot be removed
	targets []string
	exposed []api.Address
	removed []string
	hidden  []api.Address
	warns   []string
	taken   []api.Conflict
}

func (r *router) Ready(context.Context) (api.Ready, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down {
		return api.Ready{}, api.ErrNotRunning
	}
	return api.Ready{Ready: true, Name: r.name}, nil
}

func (r *router) Summary(context.Context, api.Lists) (*api.Report, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	report := &api.Report{Warnings: r.warns, IPAM: &api.IPAM{
		Status: "waiting for a majority", DefaultSubnet: netip.MustParsePrefix("10.32.0.0/12"), Conflicts: slices.Clone(r.taken),
	}}
	if len(r.exposed) > 0 {
		report.Attachments = []api.Attachment{{ID: api.Exposed, Addresses: []netip.Prefix{netip.MustParsePrefix(nodeAddress)}}}
	}
	return report, nil
}

func (r *router) Prime(context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.primed {
		return errors.New("there is no ring")
	}
	return nil
}

func (r *router) Expose(_ context.Context, q api.ExposeRequest) ([]netip.Prefix, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exposed = q.Addresses
	return nil, nil
}

func (r *router) Hide(_ context.Context, q api.ExposeRequest) ([]netip.Prefix, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hidden, r.exposed, r.taken = append(r.hidden, q.Addresses...), nil, nil
	return nil, nil
}

func (r *router) Connect(_ context.Context, q api.PeersRequest) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.targets = q.Peers
	return nil
}

func (r *router) RemovePeers(_ context.Context, q api.PeersRequest) ([]api.Removed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q.Operator {
		return nil, errors.New("an agent is no operator")
	}
	if slices.Contains(r.alive, q.Peers[0]) {
		return nil, fmt.Errorf("remove peer %s: it is reachable", q.Peers[0])
	}
	r.removed = append(r.removed, q.Peers...)
	return []api.Removed{{Peer: q.Peers[0], Addresses: 1024}}, nil
}

func (r *router) get(f func(*router) bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return f(r)
}

// scene is an agent of Node "self" and a fake API server.
type scene struct {
	t      *testing.T
	client *fake.Clientset
	router *router
	agent  *Agent
}

// nodeAddress is the address of the Node in the network for pods.
const nodeAddress = "10.32.0.1/12"

const selfPeer = "02:00:00:00:00:01"

func newScene(t *testing.T, members map[string]string, nodes ...*corev1.Node) *scene {
	t.Helper()
	client := fake.NewClientset(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: configMapName}, Data: members})
	s := &scene{t: t, client: client, router: &router{name: selfPeer, primed: true}}
	s.add(node("self", "uid-self", internal("10.0.0.1")))
	for _, n := range nodes {
		s.add(n)
	}
	s.agent = NewAgent(AgentConfig{
		Settings: &Settings{NodeName: "self", Namespace: "kube-system"}, Client: client, Router: s.router,
		Log: slog.New(slog.DiscardHandler),
	})
	return s
}

func (s *scene) add(n *corev1.Node) {
	s.t.Helper()
	if _, err := s.client.CoreV1().Nodes().Create(s.t.Context(), n, metav1.CreateOptions{}); err != nil {
		s.t.Fatal(err)
	}
}

func (s *scene) run() {
	ctx, cancel := context.WithCancel(s.t.Context())
	ended := make(chan error)
	go func() { ended <- s.agent.Run(ctx) }()
	s.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			s.t.Error(err)
		}
	})
}

func (s *scene) until(what string, holds func() bool) {
	s.t.Helper()
	if err := poll.Until(30*time.Second, 10*time.Millisecond, poll.True(holds)); err != nil {
		s.t.Fatalf("condition not met: %s", what)
	}
}

// lines returns the lines of the ConfigMap in the API server.
func (s *scene) lines() map[string]string {
	s.t.Helper()
	m, err := s.client.CoreV1().ConfigMaps("kube-system").Get(s.t.Context(), configMapName, metav1.GetOptions{})
	if err != nil {
		s.t.Fatal(err)
	}
	return m.Data
}

func TestAgentMakesTheNodeReady(t *testing.T) {
	s := newScene(t, nil, node("other", "uid-other", internal("10.0.0.2")))
	s.run()
	s.until("the other Node is a target", func() bool {
		return s.router.get(func(r *router) bool { return slices.Equal(r.targets, []string{"10.0.0.2"}) })
	})
	s.until("the Node has an address in the network", func() bool {
		return s.router.get(func(r *router) bool { return len(r.exposed) == 1 })
	})
	s.until("its line is written", func() bool { return s.lines()["02-00-00-00-00-01"] == "self uid-self" })
	s.until("the condition is cleared", func() bool {
		n, err := s.client.CoreV1().Nodes().Get(t.Context(), "self", metav1.GetOptions{})
		return err == nil && isUp(n)
	})
	s.add(node("third", "uid-third", internal("10.0.0.3")))
	s.until("a new Node is a target", func() bool {
		return s.router.get(func(r *router) bool { return slices.Equal(r.targets, []string{"10.0.0.2", "10.0.0.3"}) })
	})
	if err := s.client.CoreV1().Nodes().Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	s.until("a deleted Node is not a target", func() bool {
		return s.router.get(func(r *router) bool { return slices.Equal(r.targets, []string{"10.0.0.3"}) })
	})
}

func TestAgentRemovesPeersOfDeadNodesOnly(t *testing.T) {
	s := newScene(t, map[string]string{
		"02-00-00-00-00-02": "other uid-other",
		"02-00-00-00-00-03": "gone uid-gone",
		"02-00-00-00-00-04": "other uid-of-an-earlier-other",
		"02-00-00-00-00-05": "alive uid-alive",
	}, node("other", "uid-other", internal("10.0.0.2")))
	s.router.alive = []string{"02:00:00:00:00:05"}
	s.run()
	s.until("lines of dead Nodes are deleted", func() bool {
		l := s.lines()
		return l["02-00-00-00-00-03"] == "" && l["02-00-00-00-00-04"] == "" && l["02-00-00-00-00-01"] != ""
	})
	if l := s.lines(); l["02-00-00-00-00-02"] == "" || l["02-00-00-00-00-05"] == "" {
		t.Errorf("lines are %v: the line of a Node or of a reachable peer was deleted", l)
	}
	want := []string{"02:00:00:00:00:03", "02:00:00:00:00:04"}
	if !s.router.get(func(r *router) bool { slices.Sort(r.removed); return slices.Equal(slices.Compact(r.removed), want) }) {
		t.Errorf("removed %v, want %v", s.router.removed, want)
	}
	s.router.get(func(r *router) bool { r.alive = nil; return true })
	s.until("a peer is removed once it is unreachable", func() bool { return s.lines()["02-00-00-00-00-05"] == "" })
}

// The readiness probe reports the reason why the Node is not ready.
func TestReadinessReason(t *testing.T) {
	s := newScene(t, nil)
	s.router.primed = false
	s.agent.cfg.Health = "127.0.0.1:0"
	h := &s.agent.health
	s.run()
	s.until("the reason is reported", func() bool { return strings.Contains(h.reason(), "waiting for a majority") })
	s.router.get(func(r *router) bool { r.primed = true; return true })
	s.until("it is ready", func() bool { return h.ready(t.Context()) == nil })
}

func TestHealthServer(t *testing.T) {
	h := &health{router: &router{}}
	h.setReason("no ring")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	addr := make(chan string, 1)
	go func() { _ = h.serveOn(ctx, "127.0.0.1:0", nil, func(a string) { addr <- a }) }()
	base := "http://" + <-addr
	for path, want := range map[string]int{"/readyz": http.StatusServiceUnavailable, "/healthz": http.StatusOK} {
		r, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil || r.StatusCode != want || path == "/readyz" && !strings.Contains(string(body), "no ring") {
			t.Errorf("%s: %d %s %v, want %d", path, r.StatusCode, body, err, want)
		}
	}
}

// A line that was written again in the meantime is not deleted.
func TestDeleteLineKeepsNewerLine(t *testing.T) {
	s := newScene(t, map[string]string{"02-00-00-00-00-03": "back uid-new"})
	old, ok := parseMember("02-00-00-00-00-03", "back uid-old")
	if !ok {
		t.Fatal("the line is invalid")
	}
	_ = s.agent.deleteLine(t.Context(), old) // the fake returns another error than an API server
	if s.lines()["02-00-00-00-00-03"] != "back uid-new" {
		t.Error("the line of the new Node was deleted")
	}
}

// switchedPolicies is Policies that a test can switch to enforced.
type switchedPolicies struct {
	recorder
	enforced atomic.Bool
}

func (p *switchedPolicies) Run(ctx context.Context) error { <-ctx.Done(); return nil }

func (p *switchedPolicies) Enforced() error {
	if !p.enforced.Load() {
		return errors.New("a transaction failed")
	}
	return nil
}

// A Node is not ready while its policies are not enforced, because pods that start then would be
// unprotected.
func TestNodeIsReadyOnlyWithPolicies(t *testing.T) {
	s := newScene(t, nil)
	p := &switchedPolicies{}
	s.agent.cfg.Policies = p
	image, dir := t.TempDir(), t.TempDir()
	s.agent.cfg.Plugin = &Plugin{Program: filepath.Join(image, pluginName), BinDir: dir, ConfDir: dir}
	for _, name := range []string{pluginName, chained[0].name, chained[1].name} {
		write(t, filepath.Join(image, name), name)
	}
	h := &s.agent.health
	s.run()
	s.until("the reason is reported", func() bool { return h.reason() == "enforce policies: a transaction failed" })
	if _, err := os.Stat(filepath.Join(dir, conflistName)); err == nil {
		t.Error("the network configuration was installed before policies were enforced")
	}
	p.enforced.Store(true)
	s.until("it is ready", func() bool { return h.ready(t.Context()) == nil })
}
