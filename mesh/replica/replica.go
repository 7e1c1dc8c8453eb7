// Package replica runs this peer's copy of replicated records: it locks it, gives it the time,
// announces its changes to the mesh, and logs what it refuses. Each use of mesh/records has one.
//
//	goroutine of the channel  --- Merge, Digest, Missing ---> +---------+
//	the use                   --- Change -------------------> | Replica | --- Announce --> mesh
//	observer of the mesh      --- PeersChanged -------------> +---------+
//	once a second             --- Tick ---------------------->     |
//	                                                               +-------- Changed --> the use
//
// A Replica is safe for concurrent use. Its zero value is not usable.
package replica

import (
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
)

// TickEvery is the interval at which Tick should be called.
const TickEvery = time.Second

const (
	// logEvery is how often one refusal is logged.
	logEvery = time.Minute
	// maxLogged bounds the refusals that are remembered for that.
	maxLogged = 1000
)

// State is the copy: a records.Map, or a type that embeds one.
type State interface {
	gossip.Channel
	SetOwners(known map[peer.Name]peer.Key) (deltas [][]byte)
	SetTime(clock time.Time)
	Tick(now time.Time) (deltas [][]byte)
	Refused() []gossip.Refusal
	Stats() records.Stats
}

// Config configures a Replica.
type Config struct {
	What string // the records have, for the log, for example "DNS names"
	// Announce sends a change of the state to the mesh. Changed, which may be nil, is called
	// after every call that may have changed the state. Both are called without locks.
	Announce func(delta []byte)
	Changed  func()
	// Now returns the time as most peers see it; nil: the clock of this host.
	Now func() time.Time
	Log *slog.Logger
}

// Replica runs a state. Make one with New.
type Replica[S State] struct {
	cfg    Config // constant
	shared S      // constant; what may be used without the lock
	stats  atomic.Pointer[records.Stats]

	mu    sync.Mutex // no callback of Config is made while it is held
	state S          // the same as shared

	logging sync.Mutex           // comes after no other lock
	logged  map[string]time.Time // when a refusal was last logged, by its text; guarded by logging
}

// New returns a Replica of a state that nobody else uses from now on, except for parts of it that
// are safe for concurrent use.
func New[S State](cfg Config, state S) *Replica[S] {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	r := &Replica[S]{cfg: cfg, shared: state, state: state, logged: make(map[string]time.Time)}
	r.noteStats()
	return r
}

// Change calls f, which may change the state, and announces the deltas that it returns, unless it
// fails. Two changes may be announced in the wrong order: versions decide which one is newer. No
// other method may be called by f.
func (r *Replica[S]) Change(f func(state S) (deltas [][]byte, err error)) error {
	r.mu.Lock()
	deltas, err := f(r.state)
	r.mu.Unlock()
	if err != nil {
		return err
	}
	for _, d := range deltas {
		r.cfg.Announce(d)
	}
	r.cfg.Changed()
	return nil
}

// Read calls f, which must not change the state, nor call another method.
func (r *Replica[S]) Read(f func(state S)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.state)
}

// PeersChanged reports the peers that the mesh reaches, with their keys. The Replica owns the map
// from now on.
func (r *Replica[S]) PeersChanged(peers map[peer.Name]peer.Key) {
	_ = r.Change(func(s S) ([][]byte, error) { return s.SetOwners(peers), nil })
}

// Tick does what is due. Call it every TickEvery; now must not go back.
func (r *Replica[S]) Tick(now time.Time) {
	clock := r.cfg.Now()
	var refused []gossip.Refusal
	_ = r.Change(func(s S) ([][]byte, error) {
		s.SetTime(clock)
		deltas := s.Tick(now)
		refused = s.Refused()
		r.noteStats()
		return deltas, nil
	})
	for _, e := range refused {
		if r.mayLog(fmt.Sprintf("%s %v", e.Owner, e.Cause), now) {
			r.cfg.Log.Warn("what a peer announced was refused", "what", r.cfg.What, "peer", e.Owner, "from", e.From, "err", e.Cause)
		}
	}
}

// mayLog reports whether a text was not logged a short time ago, and notes that it is.
func (r *Replica[S]) mayLog(text string, now time.Time) bool {
	r.logging.Lock()
	defer r.logging.Unlock()
	if last, ok := r.logged[text]; ok && now.Sub(last) < logEvery {
		return false
	}
	if len(r.logged) > maxLogged {
		clear(r.logged)
	}
	r.logged[text] = now
	return true
}

// Stats returns what the state takes, and what was refused. It does not wait for a merge, which
// can take long: then the result is up to a second old. The caller owns the result.
func (r *Replica[S]) Stats() records.Stats {
	if r.mu.TryLock() {
		defer r.mu.Unlock()
		return r.state.Stats()
	}
	s := *r.stats.Load()
	s.Refused = maps.Clone(s.Refused)
	return s
}

// noteStats keeps the counts for Stats. It is called with mu held, and by New.
func (r *Replica[S]) noteStats() {
	s := r.state.Stats()
	r.stats.Store(&s)
}

// Channel returns the state as a channel that the mesh replicates.
func (r *Replica[S]) Channel() gossip.Channel { return channel[S]{r} }

// channel implements gossip.Channel.
type channel[S State] struct{ *Replica[S] }

func (c channel[S]) Digest() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Digest()
}

func (c channel[S]) Missing(digest []byte) ([][]byte, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Missing(digest)
}

func (c channel[S]) Merge(from peer.Name, delta []byte) ([]byte, error) {
	c.mu.Lock()
	news, err := c.state.Merge(from, delta)
	c.mu.Unlock()
	if len(news) > 0 {
		c.cfg.Changed()
	}
	return news, err
}

// Join does not use the state, so it needs no lock.
func (c channel[S]) Join(older, newer []byte) []byte { return c.shared.Join(older, newer) }
