package daemon

import (
	"context"
	"log/slog"
	"maps"
	"net/netip"
	"time"

	"github.com/weft-net/weft/daemon/announce"
	"github.com/weft-net/weft/internal/netdev"
)

// announcer announces the addresses of containers to other hosts again, whoever connected the
// containers; package announce says when and why. It is the driver of announce.Schedule.
type announcer struct {
	bridge string
	log    *slog.Logger
	last   map[netip.Addr]string      // that the keeper saw; rounds of the keeper only
	held   chan map[netip.Addr]string // of capacity 1: the newest
}

func newAnnouncer(bridge string, log *slog.Logger) *announcer {
	return &announcer{bridge: bridge, log: log, held: make(chan map[netip.Addr]string, 1)}
}

// saw takes the addresses of containers from what the keeper saw. One goroutine at a time may
// call it.
func (a *announcer) saw(v *netdev.View) {
	now := netdev.AddressesOfPorts(v)
	if maps.Equal(now, a.last) {
		return
	}
	a.last = now
	select {
	case <-a.held:
	default:
	}
	a.held <- now // nobody else writes
}

// run announces until ctx ends.
func (a *announcer) run(ctx context.Context) {
	var s announce.Schedule
	for {
		wait := time.Duration(-1)
		if next := s.Next(); !next.IsZero() {
			wait = max(time.Until(next), 0)
		}
		if !a.await(ctx, &s, wait) {
			return
		}
		due := s.Due(time.Now())
		if len(due) == 0 {
			continue
		}
		if err := netdev.AnnounceFar(a.bridge, due); err != nil {
			a.log.Warn("some addresses of containers could not be announced again", "err", err)
		}
	}
}

// await waits for a time, for ever if it is negative, or until the addresses change. It is
// false if ctx has ended.
func (a *announcer) await(ctx context.Context, s *announce.Schedule, wait time.Duration) bool {
	var timeout <-chan time.Time
	if wait >= 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		timeout = timer.C
	}
	select {
	case <-ctx.Done():
		return false
	case held := <-a.held:
		s.Hold(time.Now(), held)
	case <-timeout:
	}
	return true
}
