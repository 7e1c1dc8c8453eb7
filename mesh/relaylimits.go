package mesh

import (
	"maps"
	"time"

	"golang.org/x/time/rate"

	"github.com/weft-net/weft/mesh/peer"
)

// A neighbour can send as fast as its connection allows, and put any source into a relayed
// message. So that it cannot fill the queues of others, or cost more than its part of the
// CPU:
//
//   - Its records are read at a limited rate. Beyond it its reader waits.
//   - Messages of one source that it brings, and all that it brings, have a limited rate.
//     Beyond it they are dropped and counted.
//   - Relayed messages use at most half of the queue to the next hop.
const (
	recordsPerSecond = 5000
	recordsBurst     = 10000

	sourcePerSecond = 500
	sourceBurst     = 1000
	bringPerSecond  = 2000
	bringBurst      = 4000
	// maxBrought bounds the sources of one neighbour whose rate is known.
	maxBrought = 1024
)

// inLimits bound what one neighbour sends. They are used by its reader only.
type inLimits struct {
	records *rate.Limiter
	all     *rate.Limiter
	sources map[peer.Name]*rate.Limiter
}

func newInLimits() *inLimits {
	return &inLimits{
		records: rate.NewLimiter(recordsPerSecond, recordsBurst),
		all:     rate.NewLimiter(bringPerSecond, bringBurst),
		sources: make(map[peer.Name]*rate.Limiter),
	}
}

// pause returns how long the reader must wait before the next record.
func (l *inLimits) pause(now time.Time) time.Duration {
	return min(l.records.ReserveN(now, 1).DelayFrom(now), time.Second)
}

// allow reports whether the neighbour may bring another message of a source.
func (l *inLimits) allow(source peer.Name, now time.Time) bool {
	s := l.sources[source]
	if s == nil {
		if len(l.sources) >= maxBrought {
			maps.DeleteFunc(l.sources, func(_ peer.Name, s *rate.Limiter) bool { return s.TokensAt(now) >= sourceBurst })
			if len(l.sources) >= maxBrought {
				return false
			}
		}
		s = rate.NewLimiter(sourcePerSecond, sourceBurst)
		l.sources[source] = s
	}
	return s.AllowN(now, 1) && l.all.AllowN(now, 1)
}
