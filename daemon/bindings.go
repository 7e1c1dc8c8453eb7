package daemon

import (
	"bytes"
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/mesh/bindings"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/replica"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/resolve"
)

const (
	// ringEvery is how often the rings are compared with those by which bindings were last
	// believed. A binding of a container can arrive before the ring that gives its host the
	// address.
	ringEvery = 200 * time.Millisecond
	// updatePause is how many times its duration must pass after a decision on whom to believe
	// before the next one, so that a peer that floods costs at most a fourth of a core.
	updatePause = 3
)

// bindingService has the bindings of all hosts, MAC addresses with the IP addresses that weft gave
// to containers, and knows which are believed. It drives a bindings.State. Its methods may be called
// from any goroutine.
type bindingService struct {
	*replica.Replica[*bindings.State]
	table *bindings.Table
	epoch func() uint64 // of the rings
	moved func(m bindings.MAC, at peer.Name)
	// resolved is called with the changes of one decision, after place tells them.
	resolved func([]resolve.Change)
	wake     chan struct{} // of capacity 1: bindings have changed
}

type bindingConfig struct {
	self     peer.Name
	signer   peer.Signer
	verifier peer.Verifier
	// ownerOf and epoch are those of the rings, see bindings.Config and ipam.Allocator.
	ownerOf  func(netip.Addr) (owner peer.Name, inRange bool)
	epoch    func() uint64
	announce func(delta []byte)
	// moved is called in order when a MAC address is believed to be at another peer than before,
	// at none if the Name is zero.
	moved func(m bindings.MAC, at peer.Name)
	// resolved is called in order with the changes of where IP addresses are.
	resolved func([]resolve.Change)
	now      func() time.Time // as most peers see it
	log      *slog.Logger
}

func newBindingService(c bindingConfig) *bindingService {
	state := bindings.New(bindings.Config{Self: c.self, Signer: c.signer, Verifier: c.verifier, Start: time.Now(), OwnerOf: c.ownerOf})
	s := &bindingService{table: state.Table(), epoch: c.epoch, moved: c.moved, resolved: c.resolved, wake: make(chan struct{}, 1)}
	s.Replica = replica.New(replica.Config{What: "bindings", Announce: c.announce, Changed: s.changed, Now: c.now, Log: c.log}, state)
	return s
}

func (s *bindingService) changed() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run decides whom to believe whenever bindings or the rings have changed, until ctx ends.
func (s *bindingService) run(ctx context.Context) {
	tick, ring := time.NewTicker(replica.TickEvery), time.NewTicker(ringEvery)
	defer tick.Stop()
	defer ring.Stop()
	pause := time.NewTimer(0)
	defer pause.Stop()
	stale, all, epoch, next := true, true, uint64(0), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			s.Tick(now)
		case <-ring.C:
			if now := s.epoch(); now != epoch {
				epoch, stale, all = now, true, true
			}
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
		var resolved []resolve.Change
		for _, c := range s.table.Update(all) {
			if !c.Addr.IsValid() {
				s.moved(c.MAC, c.New.Owner)
				continue
			}
			resolved = append(resolved, resolve.Change{Addr: c.Addr, Old: placeOf(c.Old), New: s.place(c.Addr)})
		}
		if len(resolved) > 0 {
			s.resolved(resolved)
		}
		stale, all, next = false, false, time.Now().Add(updatePause*time.Since(began))
	}
}

// place returns where an IP address is, if its MAC address is there too; see router.Config.
func (s *bindingService) place(a netip.Addr) resolve.Place {
	l, _ := s.table.Resolve(a)
	return placeOf(l)
}

func placeOf(l bindings.Location) resolve.Place {
	return resolve.Place{MAC: ethernet.MAC(l.MAC), At: l.Owner}
}

// announce replaces the bindings of this host.
func (s *bindingService) announce(list []bindings.Binding) error {
	return s.Change(func(state *bindings.State) ([][]byte, error) { return state.Announce(list) })
}

// list returns the bindings of all hosts, and how many it leaves out as there are more than limit.
// It asks the rings.
func (s *bindingService) list(limit int) (list []bindings.Listed, omitted int) {
	if limit <= 0 {
		return nil, s.table.Counts().Bindings
	}
	s.Read(func(state *bindings.State) { list, omitted = state.List(limit) })
	s.table.MarkRefused(list)
	return list, omitted
}

// counts returns how many bindings there are, and how many of them are of this host.
func (s *bindingService) counts() (all bindings.Counts, own int) {
	s.Read(func(state *bindings.State) {
		for _, list := range state.Own() {
			own += len(list)
		}
	})
	return s.table.Counts(), own
}

// report fills in the bindings.
func (s *bindingService) report(r *api.Report, lists api.Lists, nickname func(peer.Name) string) {
	all, own := s.counts()
	r.Bindings = api.Bindings{Known: all.Bindings, Own: own, Refused: all.Refused}
	list, omitted := s.list(limit(lists, api.ListBindings, maxNames))
	omit(r, "Bindings.Entries", omitted)
	slices.SortFunc(list, func(a, b bindings.Listed) int {
		first := func(l bindings.Listed) (a netip.Addr) {
			if len(l.Addrs) > 0 {
				a = l.Addrs[0]
			}
			return a
		}
		return cmp.Or(first(a).Compare(first(b)), bytes.Compare(a.MAC[:], b.MAC[:]), a.Owner.Compare(b.Owner))
	})
	text := newPeerTexts(nickname)
	for _, b := range list {
		at := text.of(b.Owner)
		r.Bindings.Entries = append(r.Bindings.Entries, api.Binding{
			MAC: b.MAC.String(), Kind: b.Kind.String(), Addresses: b.Addrs, Peer: at.name, NickName: at.nick, Refused: b.Refused,
		})
	}
}
