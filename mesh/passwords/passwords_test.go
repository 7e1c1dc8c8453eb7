package passwords

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/topology"
)

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(30*time.Second, 10*time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// host is one peer of a mesh over loopback, with its Keeper.
type host struct {
	*Keeper
	mesh *mesh.Mesh
	id   *peer.Identity

	mu      sync.Mutex
	file    []string
	disk    []byte
	diskErr error
}

func (h *host) write(lines ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.file = lines
}

func (h *host) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.diskErr = err
}

// hosts starts n peers that know each other, all with votes, whose password is in a file.
func hosts(t *testing.T, n int, password string) (all []*host) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	t.Cleanup(func() { cancel(); running.Wait() })
	members := func() (list, voters []Member) {
		for _, h := range all {
			list = append(list, Member{h.id.Name, peer.IDOf(h.id.Key())})
		}
		return list, list
	}
	var targets []string
	for range n {
		h := &host{file: []string{password}}
		var err error
		if h.id, err = peer.NewIdentity(rand.Reader); err != nil {
			t.Fatal(err)
		}
		h.Keeper, _, err = Open(Config{
			Identity: h.id, Configured: h.file, Log: slog.New(slog.DiscardHandler),
			Read: func() ([]string, error) {
				h.mu.Lock()
				defer h.mu.Unlock()
				return slices.Clone(h.file), nil
			},
			Load: func() ([]byte, error) { return h.disk, nil },
			Save: func(b []byte) error {
				h.mu.Lock()
				defer h.mu.Unlock()
				if h.diskErr == nil {
					h.disk = b
				}
				return h.diskErr
			},
			Changed: func([]string) error { return nil }, Members: members,
			settle: time.Millisecond, readEvery: time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		keys, err := h.Keys()
		if err != nil {
			t.Fatal(err)
		}
		h.mesh, err = mesh.New(mesh.Config{
			Identity: h.id, Host: netip.MustParseAddr("127.0.0.1"), Passwords: keys, Targets: slices.Clone(targets), Log: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), h.mesh.Port()).String())
		h.Join(h.mesh)
		all = append(all, h)
	}
	for _, h := range all {
		running.Go(func() { _ = h.mesh.Run(ctx, observer{h}) })
		running.Go(func() { _ = h.Run(ctx) })
	}
	for _, h := range all {
		eventually(t, "one mesh", func() bool { return len(h.mesh.View().Peers()) == n-1 })
	}
	return all
}

type observer struct{ h *host }

func (observer) NeighbourUp(mesh.Neighbour)           {}
func (observer) NeighbourDown(peer.Name, mesh.Ending) {}
func (observer) HandshakeRefused(mesh.Refused)        {}
func (observer) PeersBanned(func(peer.Key) bool)      {}
func (observer) LinkMessage(peer.Name, []byte)        {}
func (observer) RoutesChanged(*topology.Routes)       {}
func (o observer) ViewChanged(v *mesh.View)           { o.h.PeersChanged(v.Keys()) }
func (h *host) only(passwords ...string) (is func() bool) {
	return func() bool { return slices.Equal(h.Texts(), passwords) }
}

// The file with the password is changed on one host after the other.
func TestFileIsFollowed(t *testing.T) {
	t.Parallel()
	all := hosts(t, 3, "the old password")
	for i, h := range all[:2] {
		h.write("the new password")
		eventually(t, "the new password is accepted", h.only("the old password", "the new password"))
		if s := all[0].Status(); !s.Running || i == 0 && s.Peers[0].Step == s.Peers[1].Step && s.Peers[0].Step > 1 {
			t.Errorf("status after %d files: %+v", i+1, s)
		}
	}
	all[2].write("short")
	eventually(t, "a file that cannot be used is shown", func() bool { return strings.Contains(strings.Join(all[2].Status().Faults, ""), "shorter than 8 bytes") })
	all[2].write("the new password")
	for _, h := range all {
		eventually(t, "only the new password is left", h.only("the new password"))
	}
	if n := len(all[0].mesh.View().Peers()); n != 2 {
		t.Errorf("%d peers are left", n)
	}
}

// A host that cannot write the new password to its disk does not say that it accepts it, so the
// others wait for it.
func TestOthersWaitForTheDisk(t *testing.T) {
	t.Parallel()
	all := hosts(t, 2, "the old password")
	full := errors.New("no space left on device")
	all[1].fail(full)
	if err := all[0].Start("the new password", []peer.Name{all[1].id.Name}, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the fault is shown", func() bool { return strings.Contains(strings.Join(all[1].Status().Faults, ""), full.Error()) })
	if !all[0].only("the old password", "the new password")() {
		t.Errorf("the first host goes on: %q", all[0].Texts())
	}
	all[1].fail(nil)
	for _, h := range all {
		eventually(t, "only the new password is left", h.only("the new password"))
	}
	h := all[1]
	h.mu.Lock()
	defer h.mu.Unlock()
	again, _, err := Open(Config{
		Identity: h.id, Configured: []string{"the old password"}, Log: slog.New(slog.DiscardHandler), Load: func() ([]byte, error) { return h.disk, nil },
	})
	if err != nil || !slices.Equal(again.Texts(), []string{"the new password"}) {
		t.Errorf("after a restart with the old configuration: %q, %v", again.Texts(), err)
	}
}

// A voter orders a password that it chose, for one host and itself. The operator of that host
// changes the password: not to that one, unless asked to go on with the order.
func TestOrderOfAnotherHostIsNotContinued(t *testing.T) {
	t.Parallel()
	all := hosts(t, 3, "the old password")
	names := []peer.Name{all[0].id.Name, all[1].id.Name, all[2].id.Name}
	if err := all[2].Start("the password of another", names[:1], false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the order arrives", all[0].only("the old password", "the password of another"))
	if err := all[0].Start("", names, false); err != nil {
		t.Fatal(err)
	}
	for _, h := range all {
		eventually(t, "one password is left", func() bool { return len(h.Texts()) == 1 && !h.Status().Running })
		if h.only("the password of another")() {
			t.Error("the password is that of the other order")
		}
	}
	if err := all[1].Start("", names, true); err == nil {
		t.Error("a change that is over goes on")
	}
}
