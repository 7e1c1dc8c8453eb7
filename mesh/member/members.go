// Package member keeps the list of the members of the mesh, with the addresses at which
// each may be dialled. It uses hashicorp/memberlist.
//
// The packets and streams of memberlist travel inside sessions, relayed hop by hop to
// members without a direct session. So a member is alive while any path leads to it. The
// list only helps to decide which peers to dial: sessions decide about links, and the
// topology about routes.
package member

import (
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/weft-net/weft/mesh/peer"
)

// Event is a change of the list.
type Event struct {
	Peer  peer.Name
	Addrs []netip.AddrPort // at which it may be dialled
	Alive bool             // unset if the member is lost or has left
}

// Config configures a List.
type Config struct {
	Self peer.Name
	// SendPacket and SendStream carry a message to Packet and Stream of another
	// member, over any number of hops. They neither block nor keep the message, and
	// may lose it.
	SendPacket, SendStream func(to peer.Name, msg []byte) error
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
	addrs   []netip.AddrPort
	alive   map[peer.Name]bool
	joining map[peer.Name]bool
}

// Start returns a running List that has only this peer.
func Start(cfg Config) (*List, error) {
	l := &List{cfg: cfg, tr: newTransport(cfg.Self, cfg.SendPacket, cfg.SendStream), alive: make(map[peer.Name]bool), joining: make(map[peer.Name]bool)}
	l.ctx, l.end = context.WithCancel(context.Background())
	c := memberlist.DefaultWANConfig()
	c.Name = cfg.Self.String()
	c.Transport = l.tr
	c.Delegate = delegate{l}
	c.Events = events{l}
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

// SetAddrs publishes the addresses at which this peer may be dialled.
func (l *List) SetAddrs(addrs []netip.AddrPort) {
	l.mu.Lock()
	same := slices.Equal(l.addrs, addrs)
	l.addrs = slices.Clone(addrs)
	closed := l.ctx.Err() != nil
	if !same && !closed {
		l.wg.Add(1)
	}
	l.mu.Unlock()
	if same || closed {
		return
	}
	go func() { // UpdateNode waits until the update is sent
		defer l.wg.Done()
		_ = l.ml.UpdateNode(time.Second)
	}()
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

// delegate gives memberlist this peer's metadata: its addresses.
type delegate struct{ l *List }

func (d delegate) NodeMeta(limit int) []byte {
	d.l.mu.Lock()
	defer d.l.mu.Unlock()
	return appendMeta(nil, d.l.addrs, limit)
}
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
	addrs, err := parseMeta(n.Meta)
	if err != nil && e.l.cfg.Log != nil {
		e.l.cfg.Log.Warn("cannot parse the metadata of a member", "peer", name, "err", err)
	}
	e.l.mu.Lock()
	if alive {
		e.l.alive[name] = true
	} else {
		delete(e.l.alive, name)
	}
	e.l.mu.Unlock()
	e.l.cfg.Notify(Event{Peer: name, Addrs: addrs, Alive: alive})
}
