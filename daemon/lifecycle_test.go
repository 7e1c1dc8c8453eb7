package daemon

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/keeper"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/peer"
)

// fakeNode is a node without a mesh.
type fakeNode struct {
	running chan struct{} // closed when Run begins
	ended   chan struct{} // closed when Run ends
	fault   chan error    // Run returns what arrives here

	mu       sync.Mutex
	closed   bool
	handOver func(context.Context) error
	calls    []string // of HandOver, and of leave of its engine
}

func newFakeNode() *fakeNode {
	return &fakeNode{
		running: make(chan struct{}), ended: make(chan struct{}), fault: make(chan error, 1),
		handOver: func(context.Context) error { return nil },
	}
}

func (n *fakeNode) Run(ctx context.Context) error {
	close(n.running)
	defer close(n.ended)
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.fault:
		return err
	}
}

func (n *fakeNode) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
}

func (n *fakeNode) isClosed() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.closed
}

func (n *fakeNode) HandOver(ctx context.Context) error {
	n.mu.Lock()
	n.calls = append(n.calls, "hand over")
	handOver := n.handOver
	n.mu.Unlock()
	return handOver(ctx)
}

func (n *fakeNode) Password(context.Context) (r api.PasswordReply, err error) { return r, nil }

func (n *fakeNode) Rotation(context.Context) (r api.Rotation, err error) { return r, nil }

func (n *fakeNode) Rotate(context.Context, api.RotateRequest) (r api.Rotation, err error) {
	return r, nil
}

func (n *fakeNode) setHandOver(f func(context.Context) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.handOver = f
}

// made returns the calls of HandOver and leave, in order.
func (n *fakeNode) made() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.calls)
}

// fakeEngine is an engine without containers that notes when the router leaves it.
type fakeEngine struct {
	noEngine
	node *fakeNode
}

func (e fakeEngine) leave(context.Context) {
	e.node.mu.Lock()
	defer e.node.mu.Unlock()
	e.node.calls = append(e.node.calls, "leave the engine")
}

func (n *fakeNode) SetTargets([]string) {}

func (n *fakeNode) Report(context.Context, *api.Report, api.Lists) error { return nil }

func (n *fakeNode) RemovePeers(context.Context, api.PeersRequest) ([]api.Removed, error) {
	return nil, nil
}

func (n *fakeNode) Adopt(string, bool) error               { return nil }
func (n *fakeNode) Ban(api.BanRequest) ([]api.Vote, error) { return nil, nil }

// assemble is for run. The node has service discovery and no addresses.
func (n *fakeNode) assemble(*Config, *peer.Identity, *store.Store, *keeper.Keeper) (*parts, error) {
	return &parts{node: n, names: newTestNames(), bind: func([]bindings.Binding) error { return nil }, newEngine: func(DockerConfig, *dockerContainers, *dns.Service) (engine, error) {
		return fakeEngine{node: n}, nil
	}}, nil
}

// testRouter is a router in a namespace, with a node that is a fake.
type testRouter struct {
	host   string // its namespace
	config *Config
	node   *fakeNode
	client *api.Client
	ended  chan error
}

func newTestRouter(t *testing.T) *testRouter {
	t.Helper()
	// A short path: those of t.TempDir can be too long for a socket.
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := DefaultConfig()
	c.Socket, c.StateDir, c.StatusAddr, c.DNS.Off, c.Docker.Host = filepath.Join(dir, "run", "sock"), filepath.Join(dir, "state"), "", true, ""
	if err := c.Check(); err != nil {
		t.Fatal(err)
	}
	return &testRouter{host: nstest.New(t, "host"), config: c, node: newFakeNode(), client: api.NewClient(c.Socket), ended: make(chan error, 1)}
}

// start runs the router until ctx ends.
func (r *testRouter) start(ctx context.Context, assemble assemble) {
	go func() {
		r.ended <- netdev.Do(r.host, func() error { return run(ctx, r.config, assemble) })
	}()
}

// waitReady waits until the control API says that the router is ready.
func (r *testRouter) waitReady(t *testing.T) {
	t.Helper()
	ready := func() bool {
		reply, err := r.client.Ready(t.Context())
		return err == nil && reply.Ready
	}
	if err := poll.Until(10*time.Second, time.Millisecond, poll.True(ready)); err != nil {
		t.Fatalf("the router is not ready: %v", err)
	}
}

// wantNothingLeft fails the test if the router has left its socket or a goroutine.
func (r *testRouter) wantNothingLeft(t *testing.T) {
	t.Helper()
	if _, err := os.Lstat(r.config.Socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for stack := range strings.SplitSeq(string(stacks), "\n\n") {
		if strings.Contains(stack, "daemon.(*daemon)") || strings.Contains(stack, "daemon.(*fakeNode)") || strings.Contains(stack, "api.Serve") {
			t.Errorf("a goroutine is left:\n%s", stack)
		}
	}
}

func TestRunWithAnEndedContextDoesNothing(t *testing.T) {
	r := newTestRouter(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r.start(ctx, r.node.assemble)
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.wantNothingLeft(t)
	if _, err := os.Lstat(r.config.StateDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a state folder: %v", err)
	}
}

func TestStopWhileStarting(t *testing.T) {
	r := newTestRouter(t)
	ctx, cancel := context.WithCancel(t.Context())
	r.start(ctx, func(c *Config, id *peer.Identity, st *store.Store, k *keeper.Keeper) (*parts, error) {
		cancel()
		return r.node.assemble(c, id, st, k)
	})
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.wantNothingLeft(t)
}

func TestStopTwice(t *testing.T) {
	r := newTestRouter(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.start(ctx, r.node.assemble)
	<-r.node.running
	if err := r.client.Stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
	cancel() // a signal meanwhile
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	if err := r.client.Stop(t.Context()); !errors.Is(err, api.ErrNotRunning) {
		t.Errorf("stop again: %v", err)
	}
	r.wantNothingLeft(t)
}

func TestFaultOfAPartEndsRun(t *testing.T) {
	r := newTestRouter(t)
	r.start(t.Context(), r.node.assemble)
	<-r.node.running
	fault := errors.New("the TAP is gone")
	r.node.fault <- fault
	if err := <-r.ended; !errors.Is(err, fault) {
		t.Errorf("run returned %v, want %v", err, fault)
	}
	r.wantNothingLeft(t)
}

func TestStartThatFailsClosesItsParts(t *testing.T) {
	r := newTestRouter(t)
	var l net.Listener
	if err := netdev.Do(r.host, func() (err error) { l, err = net.Listen("tcp", "127.0.0.1:0"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.config.StatusAddr = l.Addr().String()
	r.start(t.Context(), r.node.assemble)
	if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "listen for status and metrics") {
		t.Errorf("run returned %v", err)
	}
	if !r.node.isClosed() {
		t.Error("the node is not closed")
	}
	r.wantNothingLeft(t)
}

// Whoever can write to the state folder could be this peer, and root on the host.
func TestStateFolderOfOthersIsRefused(t *testing.T) {
	r := newTestRouter(t)
	if err := os.Mkdir(r.config.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(r.config.StateDir, 0o770); err != nil {
		t.Fatal(err)
	}
	r.start(t.Context(), r.node.assemble)
	if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "others can write to "+r.config.StateDir) {
		t.Errorf("run returned %v", err)
	}
	if info, err := os.Stat(r.config.StateDir); err != nil || info.Mode().Perm() != 0o770 {
		t.Errorf("the folder has mode %v now, %v", info.Mode(), err)
	}
}

func TestOneRouterForAStateFolder(t *testing.T) {
	r := newTestRouter(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r.start(ctx, r.node.assemble)
	r.waitReady(t)
	other := *r
	other.ended = make(chan error, 1)
	other.start(t.Context(), newFakeNode().assemble)
	if err := <-other.ended; !errors.Is(err, store.ErrLocked) {
		t.Errorf("a second router: %v", err)
	}
	if ready, err := r.client.Ready(t.Context()); err != nil || !ready.Ready {
		t.Errorf("after that the first one is ready %v, %v", ready.Ready, err)
	}
	cancel()
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	r.wantNothingLeft(t)
}

// A router whose addresses nobody takes goes on, and can be reset later.
func TestResetThatFailsCanBeRepeated(t *testing.T) {
	r := newTestRouter(t)
	r.start(t.Context(), r.node.assemble)
	r.waitReady(t)
	r.node.setHandOver(func(context.Context) error { return errors.New("no peer answers") })
	if err := r.client.Reset(t.Context()); err == nil || !strings.Contains(err.Error(), "no peer answers") {
		t.Errorf("reset: %v", err)
	}
	if ready, err := r.client.Ready(t.Context()); err != nil || !ready.Ready {
		t.Errorf("after a reset that failed the router is ready %v, %v", ready.Ready, err)
	}
	if calls := r.node.made(); !slices.Equal(calls, []string{"hand over"}) {
		t.Errorf("a reset that failed did: %q", calls)
	}
	r.node.setHandOver(func(context.Context) error { return nil })
	if err := r.client.Reset(t.Context()); err != nil {
		t.Errorf("reset again: %v", err)
	}
	if calls := r.node.made(); !slices.Equal(calls, []string{"hand over", "hand over", "leave the engine"}) {
		t.Errorf("both resets did: %q", calls)
	}
	if err := <-r.ended; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(r.config.StateDir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state is left: %v", err)
	}
	r.wantNothingLeft(t)
}

// A signal lets a reset finish that hands the addresses over.
func TestSignalDuringReset(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		answer time.Duration // of the heir, after the signal
		err    error
		erased bool
	}{
		{"an heir that confirms", 100 * time.Millisecond, nil, true},
		{"an heir that refuses", 100 * time.Millisecond, errors.New("refused"), false},
		{"an heir that does not answer", time.Hour, nil, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newTestRouter(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r.node.setHandOver(func(ctx context.Context) error {
				cancel()
				select {
				case <-time.After(c.answer):
					return c.err
				case <-ctx.Done():
					return ctx.Err()
				case <-r.node.ended:
					return errors.New("the node ended during the handover")
				}
			})
			r.start(ctx, r.node.assemble)
			r.waitReady(t)
			err := r.client.Reset(t.Context())
			if (err == nil) != c.erased || err != nil && strings.Contains(err.Error(), "ended") {
				t.Errorf("reset: %v", err)
			}
			if err := <-r.ended; err != nil {
				t.Error(err)
			}
			if _, err := os.Lstat(r.config.StateDir); errors.Is(err, fs.ErrNotExist) != c.erased {
				t.Errorf("the state folder: %v", err)
			}
		})
	}
}

// A router that is started again before there is a ring must not make one with
// fewer peers than the first time, or two halves of a mesh end up with a ring each.
func TestPeersOfTheLastRunCountForTheFirstRing(t *testing.T) {
	r := newTestRouter(t)
	r.config.Resume, r.config.Peers = true, []string{"h3"}
	if err := os.MkdirAll(r.config.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	st, _, err := openState(r.config.path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	last := &targets{store: st, set: func([]string) {}}
	if err := errors.Join(last.replace([]string{"h1", "h2"}), st.Close()); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("the test needs no more")
	var got *Config
	r.start(t.Context(), func(c *Config, _ *peer.Identity, _ *store.Store, _ *keeper.Keeper) (*parts, error) {
		got = c
		return nil, enough
	})
	if err := <-r.ended; !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if init := got.ringInit(got.Peers); !slices.Equal(got.Peers, []string{"h1", "h2", "h3"}) || init.Expect != 4 {
		t.Errorf("the mesh begins with %v, and a ring takes %d", got.Peers, init.Expect)
	}
}
