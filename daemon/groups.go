package daemon

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/mesh/groups"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/replica"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/multicast"
)

// groupService tells all hosts which multicast groups the containers of this one want, and the router which
// the others want. It drives a groups.State. Its methods may be called from any goroutine.
type groupService struct {
	*replica.Replica[*groups.State]
	members func(*groups.Members) // called in order with what other hosts want
	log     *slog.Logger
	wake    chan struct{} // of capacity 1: the groups of some host, or what this host wants, have changed

	mu    sync.Mutex
	wants multicast.Wants // of the containers of this host
}

type groupConfig struct {
	self     peer.Name
	signer   peer.Signer
	verifier peer.Verifier
	announce func(delta []byte)
	members  func(*groups.Members)
	now      func() time.Time // as most peers see it
	log      *slog.Logger
}

func newGroupService(c groupConfig) *groupService {
	s := &groupService{members: c.members, log: c.log, wake: make(chan struct{}, 1)}
	state := groups.New(groups.Config{Self: c.self, Signer: c.signer, Verifier: c.verifier, Start: time.Now()})
	s.Replica = replica.New(replica.Config{What: "multicast groups", Announce: c.announce, Changed: s.changed, Now: c.now, Log: c.log}, state)
	return s
}

func (s *groupService) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// wanted takes what the containers of this host want. It does not wait.
func (s *groupService) wanted(w multicast.Wants) {
	s.mu.Lock()
	s.wants = w
	s.mu.Unlock()
	s.changed()
}

// run announces what this host wants, and tells the router what the others want, until ctx ends. A peer whose
// groups change all the time costs at most a fourth of a core.
func (s *groupService) run(ctx context.Context) {
	tick := time.NewTicker(replica.TickEvery)
	defer tick.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	stale, next := true, time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.Tick(now)
		case <-s.wake:
			stale = true
		case <-pause.C:
		}
		if !stale {
			continue
		}
		began := time.Now()
		if wait := next.Sub(began); wait > 0 {
			pause.Reset(wait)
			continue
		}
		s.announce()
		var m *groups.Members
		_ = s.Change(func(state *groups.State) ([][]byte, error) { // a change, as it takes the mark of one
			if state.TakeChanged() {
				m = state.Members()
			}
			return nil, nil
		})
		if m != nil {
			s.members(m)
		}
		stale, next = false, time.Now().Add(updatePause*time.Since(began))
	}
}

// announce announces what the containers of this host want, once that is known.
func (s *groupService) announce() {
	s.mu.Lock()
	w := s.wants
	s.mu.Unlock()
	if !w.Ready {
		return
	}
	if err := s.Change(func(state *groups.State) ([][]byte, error) {
		return state.Announce(groups.Wants{All: w.All, Groups: w.Groups})
	}); err != nil {
		s.log.Warn("the multicast groups of this host cannot be announced", "err", err)
	}
}

// report fills in what is known of multicast.
func (s *groupService) report(r *api.Report, lists api.Lists, g router.GroupStatus, nickname func(peer.Name) string) {
	var list []groups.Listed
	omitted := 0
	s.Read(func(state *groups.State) { list, omitted = state.List(limit(lists, api.ListGroups, maxNames)) })
	r.Multicast = api.Multicast{
		Known: len(list) + omitted, Own: len(g.Wants.Groups), All: g.Wants.All || !g.Wants.Ready,
		Pruned: g.Pruned, Unwanted: g.Unwanted, Flooded: g.Flooded, Ignored: g.Ignored,
	}
	omit(r, "Multicast.Groups", omitted)
	text := newPeerTexts(nickname)
	for _, l := range list {
		at := text.of(l.Owner)
		r.Multicast.Groups = append(r.Multicast.Groups, api.MulticastGroup{Group: l.Group, Peer: at.name, NickName: at.nick})
	}
}
