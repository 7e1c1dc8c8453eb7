// Package member keeps the list of the members of the mesh and notices which of them are
// lost. It uses hashicorp/memberlist.
//
// The packets and streams of memberlist travel inside sessions, relayed hop by hop to
// members without a direct session. So a member is alive while any path leads to it. The
// list only gives hints when to dial a peer: sessions decide about links, the topology about
// routes, and the signed entry of a peer about the addresses at which it is dialled.
//
// memberlist's messages are not signed, so any member can speak for any other one. That may
// cost a hint, but nothing else: only peers that the topology knows become members, and
// guard.go refuses messages that would cost memory.
package member

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/weft-net/weft/mesh/peer"
)

// Event is a change of the list.
type Event struct {
	Peer  peer.Name
	Alive bool // unset if the member is lost or has left
}

// Config configures a List.
type Config struct {
	Self peer.Name
	// SendPacket and SendStream carry a message to Packet and Stream of another
	// member, over any number of hops. They neither block nor keep the message, and
	// may lose it.
	SendPacket, SendStream func(to peer.Name, msg []byte) error
	// Behind returns the peers behind which another one is; see package stream.
	Behind func(peer.Name) []peer.Name
	// Known reports whether the mesh knows a peer. Other peers do not become members. It
	// is called by memberlist with its lock held, so it must not call the List.
	Known func(peer.Name) bool
	// Notify is called for each change, from one of memberlist's goroutines.
	Notify func(Event)
	Log    *slog.Logger
}

// List is the running member list.
type List struct {
	cfg Config
	tr  *transport
	ml  *memberlist.Memberlist
	ctx context.Context
	end context.CancelFunc
	wg  sync.WaitGroup

	mu      sync.Mutex // guards the fields below
	alive   map[peer.Name]bool
	joining map[peer.Name]bool
}

// Start returns a running List that has only this peer.
func Start(cfg Config) (*List, error) {
	l := &List{cfg: cfg, tr: newTransport(cfg.Self, cfg.Behind, cfg.SendPacket, cfg.SendStream), alive: make(map[peer.Name]bool), joining: make(map[peer.Name]bool)}
	l.ctx, l.end = context.WithCancel(context.Background())
	c := memberlist.DefaultWANConfig()
	c.Name = cfg.Self.String()
	c.Transport = l.tr
	c.Delegate = delegate{l}
	c.Events = events{l}
	c.Alive = delegate{l}
	c.EnableCompression = false // it saves few bytes and costs CPU
	// A packet is a record of a session, so it may be large.
	c.UDPBufferSize = 8 << 10
	// Sessions notice the loss of a neighbour; this list only has to notice the loss of
	// other members. Half as many probes are enough. Each probe wakes all peers on its
	// way. The price is that a lost member is noticed later.
	c.ProbeInterval *= 2
	c.DNSConfigPath = ""
	c.Logger = log.New(io.Discard, "", 0)
	if cfg.Log != nil {
		c.Logger = slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	}
	var err error
	if l.ml, err = memberlist.Create(c); err != nil {
		return nil, fmt.Errorf("start the member list as %s: %w", cfg.Self, err)
	}
	return l, nil
}

// Packet handles a message of another member's SendPacket. It keeps msg.
func (l *List) Packet(from peer.Name, msg []byte) { l.tr.packet(from, msg) }

// Stream handles a message of another member's SendStream. It keeps msg.
func (l *List) Stream(from peer.Name, msg []byte) error { return l.tr.streams.Receive(from, msg) }

// Join merges this list with that of a peer, in the background, unless the
// peer is a member already.
func (l *List) Join(n peer.Name) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.alive[n] || l.joining[n] || l.ctx.Err() != nil {
		return
	}
	l.joining[n] = true
	l.wg.Add(1)
	go func() {
		defer l.wg.Done()
		_, err := l.ml.Join([]string{n.String() + "/" + addrString(n)})
		if err != nil && l.cfg.Log != nil {
			l.cfg.Log.Debug("join the member list", "peer", n, "err", err)
		}
		l.mu.Lock()
		delete(l.joining, n)
		l.mu.Unlock()
	}()
}

// Alive reports whether n is a member.
func (l *List) Alive(n peer.Name) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.alive[n]
}

// Leave tells the other members that this peer leaves, and closes the list.
func (l *List) Leave() {
	l.end()
	_ = l.ml.Leave(time.Second)
	l.Close()
}

// Close ends the list and waits for its own goroutines. The other members see
// this peer as lost.
func (l *List) Close() {
	l.end()
	_ = l.ml.Shutdown()
	l.wg.Wait()
}

// delegate decides who becomes a member, and has nothing to add to memberlist's messages.
type delegate struct{ l *List }

// NotifyAlive implements memberlist.AliveDelegate. It refuses peers that the mesh does not
// know, and addresses that do not stand for the peer.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	name, err := peer.ParseName(n.Name)
	switch {
	case err != nil:
		return err
	case name.String() != n.Name:
		return fmt.Errorf("member %q: want the form %s", n.Name, name)
	case !n.Addr.Equal(addrOf(name).AsSlice()) || n.Port != port:
		return fmt.Errorf("member %s at %s: want %s", name, n.Addr, addrOf(name))
	case name != d.l.cfg.Self && !d.l.cfg.Known(name):
		return fmt.Errorf("member %s is not in the topology", name)
	}
	return nil
}

func (delegate) NodeMeta(int) []byte { return nil }

func (delegate) NotifyMsg([]byte)                {}
func (delegate) GetBroadcasts(_, _ int) [][]byte { return nil }
func (delegate) LocalState(bool) []byte          { return nil }
func (delegate) MergeRemoteState([]byte, bool)   {}

type events struct{ l *List }

func (e events) NotifyJoin(n *memberlist.Node)   { e.notify(n, true) }
func (e events) NotifyUpdate(n *memberlist.Node) { e.notify(n, true) }
func (e events) NotifyLeave(n *memberlist.Node)  { e.notify(n, false) }

func (e events) notify(n *memberlist.Node, alive bool) {
	name, err := peer.ParseName(n.Name)
	if err != nil || name == e.l.cfg.Self {
		return
	}
	e.l.mu.Lock()
	if alive {
		e.l.alive[name] = true
	} else {
		delete(e.l.alive, name)
	}
	e.l.mu.Unlock()
	e.l.cfg.Notify(Event{Peer: name, Alive: alive})
}
