package records

import (
	"errors"
	"fmt"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

const (
	// A neighbour can make this peer check verifyPerSecond signatures a second with a burst
	// of verifyBurst. One check takes about 60 us, so a neighbour that sends nothing but new
	// records costs an eighth of a core, and a new host gets 90,000 records, as of 1,000
	// hosts with 100 values each, within a minute.
	verifyPerSecond = 2000
	verifyBurst     = 16 << 10
	// maxBudgets bounds the neighbours whose checks are counted. A router has fewer
	// sessions.
	maxBudgets = 4096
	// banFor is how long an owner that lost its place is not taken again. Otherwise large
	// owners would displace each other all the time.
	banFor = time.Minute
	// maxBanned bounds the owners that are remembered. Beyond it an owner may come again at
	// once, which costs checks of its signatures.
	maxBanned = 8192
)

// Causes of a gossip.Refusal.
var (
	ErrForged  = fmt.Errorf("the record is not signed by its owner: %w", gossip.ErrMalformed)
	ErrKey     = errors.New("the record names another key than the owner's topology entry")
	ErrAhead   = errors.New("its incarnation or version is ahead of the clock: the clock of one of the two hosts is wrong")
	ErrPayload = errors.New("the payload cannot be parsed")
	ErrFlood   = errors.New("the owner has more records than one owner may have")
	ErrNoPlace = errors.New("there are more records than fit")
	ErrTooMany = errors.New("the neighbour sends more new records than are checked in that time")
	ErrRival   = errors.New("another live peer uses this peer's identity (was the state directory copied?)")
)

// reasons are the causes with their names in Stats.
var reasons = []struct {
	name  string
	cause error
}{
	{"forged", ErrForged}, {"key", ErrKey}, {"ahead", ErrAhead}, {"payload", ErrPayload}, {"owner-too-large", ErrFlood},
	{"no-place", ErrNoPlace}, {"too-many", ErrTooMany}, {"rival", ErrRival},
}

// Stats says what a Map holds, and what it did since it was made.
type Stats struct {
	Owners              int    // whose records are stored, without this peer
	Records             int    // that are shown
	Bytes, MaxBytes     int    // memory of the records of others, and the limit
	Dropped             uint64 // owners dropped because there were too many records
	Waiting, MaxWaiting int    // bytes of records that wait for their owner, and the limit
	WaitDropped         uint64 // waiting records dropped because there were too many
	// Refused counts the records refused, by reason. The caller owns the map. All reasons
	// are there.
	Refused map[string]uint64

	refused map[error]uint64
}

// Stats returns the counts so far.
func (m *Map[V]) Stats() Stats {
	s := m.stats
	s.Owners, s.Records = len(m.owners)-1, m.count
	s.Bytes, s.MaxBytes = m.cost, m.cfg.Limits.Total
	s.Waiting, s.MaxWaiting = m.waitlist.Bytes(), maxWaitlist
	s.Refused = make(map[string]uint64, len(reasons))
	for _, r := range reasons {
		s.Refused[r.name] = m.stats.refused[r.cause]
	}
	s.refused = nil
	return s
}

// refuse counts a record that was refused.
func (m *Map[V]) refuse(from, owner peer.Name, err error) {
	m.refused.Add(from, owner, err)
	if m.stats.refused == nil {
		m.stats.refused = make(map[error]uint64, len(reasons))
	}
	for _, r := range reasons {
		if errors.Is(err, r.cause) {
			m.stats.refused[r.cause]++
			return
		}
	}
}

// Refused returns the refusals since the last call, up to a limit; Stats counts all.
func (m *Map[V]) Refused() []gossip.Refusal { return m.refused.Take() }

// makePlace makes place for cost more bytes of an owner, which came from a neighbour, and
// reports whether it could.
func (m *Map[V]) makePlace(o *owner[V], cost int) bool {
	for m.cost+cost > m.cfg.Limits.Total {
		loser := m.loser(o, cost)
		m.stats.Dropped++
		// An owner that the topology lost may return as soon as the topology has it again.
		if loser.shown && len(m.banned) < maxBanned {
			m.banned[loser.name] = m.now.Add(banFor)
		}
		if m.owners[loser.name] == loser {
			m.drop(loser)
		}
		if loser == o {
			return false
		}
	}
	return true
}

// loser returns the owner to drop if o wants cost more bytes: the one that the topology lost
// first, else the one whose size times the share of the neighbour that brought it is largest.
// So who brings many made-up owners loses some of them, however small they are, and an honest
// neighbour that happens to bring most owners loses the large ones.
//
// It takes time in proportion to the number of owners, but each call costs an owner its place
// for banFor.
func (m *Map[V]) loser(o *owner[V], cost int) *owner[V] {
	var lost *owner[V]
	for _, x := range m.owners {
		if x != m.own && !x.shown && (lost == nil || x.lostAt.Before(lost.lostAt) || x.lostAt.Equal(lost.lostAt) && x.name.Compare(lost.name) < 0) {
			lost = x
		}
	}
	if lost != nil {
		return lost
	}
	var loser *owner[V]
	most := 0
	consider := func(x *owner[V], size, share int) {
		if w := size * share; loser == nil || w > most || w == most && x.name.Compare(loser.name) < 0 {
			loser, most = x, w
		}
	}
	consider(o, o.cost+cost, m.shares[o.via]+cost) // it may be new
	for _, x := range m.owners {
		if x != m.own && x != o {
			consider(x, x.cost, m.shares[x.via])
		}
	}
	return loser
}

// budget is a token bucket for the checks of one neighbour's records.
type budget struct {
	tokens float64
	at     time.Time
}

func (b *budget) settle(now time.Time) {
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(verifyBurst, b.tokens+verifyPerSecond*d.Seconds())
		b.at = now
	}
}

func (b *budget) full(now time.Time) bool {
	b.settle(now)
	return b.tokens >= verifyBurst
}

// mayVerify takes one check from the budget of a neighbour.
func (m *Map[V]) mayVerify(from peer.Name) bool {
	b := m.spent[from]
	if b == nil {
		if len(m.spent) >= maxBudgets {
			return false
		}
		b = &budget{verifyBurst, m.now}
		m.spent[from] = b
	}
	b.settle(m.now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
