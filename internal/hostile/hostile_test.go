package hostile

import (
	"bytes"
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/leak"
	"github.com/weft-net/weft/internal/poll"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
	"github.com/weft-net/weft/mesh/topology"
)

func TestMain(m *testing.M) { os.Exit(leak.Run(m)) }

type silentObserver struct{}

func (silentObserver) NeighbourUp(mesh.Neighbour)           {}
func (silentObserver) NeighbourDown(peer.Name, mesh.Ending) {}
func (silentObserver) HandshakeRefused(mesh.Refused)        {}
func (silentObserver) PeersBanned(func(peer.Key) bool)      {}
func (silentObserver) LinkMessage(peer.Name, []byte)        {}
func (silentObserver) RoutesChanged(*topology.Routes)       {}
func (silentObserver) ViewChanged(*mesh.View)               {}

// router is a real control plane on loopback that counts the messages about addresses.
type router struct {
	*mesh.Mesh
	asks atomic.Int64
	from atomic.Value // peer.Name of the last one
}

const password = "password of the test"

func startRouter(t *testing.T) (*router, Config) {
	t.Helper()
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	loopback := netip.MustParseAddr("127.0.0.1")
	psk, err := session.DerivePSK(password)
	if err != nil {
		t.Fatal(err)
	}
	m, err := mesh.New(mesh.Config{Identity: id, Host: loopback, Passwords: []session.PSK{psk}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	r := &router{Mesh: m}
	m.HandleSigned(mesh.KindIPAM, func(from peer.Name, msg []byte) {
		if bytes.Equal(msg, []byte("hello")) {
			r.asks.Add(1)
			r.from.Store(from)
		}
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = m.Run(ctx, silentObserver{})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r, Config{
		Targets: []string{netip.AddrPortFrom(loopback, m.Port()).String()}, Password: password, Range: netip.MustParsePrefix("10.32.0.0/12"),
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	if err := poll.Until(20*time.Second, 10*time.Millisecond, poll.True(ok)); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

// flood runs steps at a router until the end of the test.
func flood(t *testing.T, cfg Config, run func(r *run)) *Attack {
	t.Helper()
	a, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.Run(ctx, &Flood{run: run})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return a
}

// The lies reach a real router: it believes that the made-up peers are in the mesh and
// accepts messages that they sign, but none that another one signed.
func TestLiesReachARouter(t *testing.T) {
	t.Parallel()
	r, cfg := startRouter(t)
	cfg.Rate = 200
	var forged atomic.Bool
	a := flood(t, cfg, member(func(r *run, p *Peer, n int) error {
		if err := r.announceMadeUp(p); err != nil {
			return err
		}
		m, err := r.made(7)
		if err != nil {
			return err
		}
		if forged.Load() {
			other, err := r.made(8)
			if err != nil {
				return err
			}
			signer := &Identity{Identity: &peer.Identity{}}
			*signer.Identity = *other.Identity
			signer.Name = m.Name
			return p.Signed(signer, p.Router, mesh.KindIPAM, []byte("hello"))
		}
		return p.Signed(m, p.Router, mesh.KindIPAM, []byte("hello"))
	}))
	eventually(t, "the router knows the made-up peers", func() bool { return len(r.Status().Peers) == madeUpNeighbours+2 })
	eventually(t, "it accepts what one of them signs", func() bool { return r.asks.Load() > 0 })
	m, err := a.made(7)
	if err != nil {
		t.Fatal(err)
	}
	if r.from.Load() != m.Name {
		t.Errorf("the message comes from %v, not from %s", r.from.Load(), m.Name)
	}
	forged.Store(true)
	unproved := r.Status().Unproved
	eventually(t, "it refuses what another one signs", func() bool { return r.Status().Unproved > unproved })
}

// Each flood arrives: the router notices it in one way or another.
func TestFloodsArrive(t *testing.T) {
	for _, f := range Floods {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			r, cfg := startRouter(t)
			cfg.Rate = 1000
			a := flood(t, cfg, f.run)
			eventually(t, "something was sent", func() bool { return a.Sent() > 50 })
			failures := func(code string) func() bool {
				return func() bool { return r.Status().HandshakeFailures[code] > 0 }
			}
			switch f.Name {
			case "silent":
				eventually(t, "connections make room", failures("busy"))
			case "handshakes":
				eventually(t, "passwords are refused", failures("password"))
				eventually(t, "sessions end", func() bool { return r.Status().Terminations > 0 })
			case "malformed":
				eventually(t, "sessions end", func() bool { return r.Status().Misbehaved > 1 })
			default:
				eventually(t, "the liar is a member", func() bool { return len(r.Status().Peers) > 1 })
			}
		})
	}
}
