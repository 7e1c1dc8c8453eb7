// Package topology holds the link-state database, which has one versioned, signed entry
// for each peer with the neighbours of that peer. It also computes the routes.
//
// State is one peer's copy of the database, and a gossip.Channel. The peer itself changes
// it by SetLinks and SettleShortID, and Merge adds the entries of others. A link counts
// only if both its ends list it. A peer to which no path leads is forgotten after
// ForgetAfter. A forgotten entry is not learned again from a neighbour that forgets it
// later.
//
// # Bounds
//
// Peers cost nothing: a member can make up any number of keys. Therefore:
//
//   - An entry is stored only if it shares a link, which both list, with a stored entry.
//     So every stored peer hangs on a real session of this peer. Other verified entries
//     wait for a short time in a waitlist of limited size, in which each neighbour has a fair
//     share: an entry may arrive before the one that confirms its link. They are neither
//     passed on nor part of the digest.
//   - The stored entries have a limit. If more are known, Expire decides which ones stay;
//     see places. Those that have to go are refused for a while.
//   - Each neighbour can make this peer check a limited number of signatures a second.
//   - A version is the time of launch in microseconds, plus one for each change. An entry
//     whose version is more than a day ahead of the clock is refused, so that nobody can
//     use up the versions of a name.
//
// Nothing here opens a socket, reads a clock or logs: times are arguments.
// State is not safe for concurrent use; Graph and Routes are immutable.
package topology

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// ForgetAfter is how long an entry is kept after the last path to its peer is lost. A
// partition that heals sooner costs no exchange of entries.
const ForgetAfter = time.Minute

// tombstoneTTL is how long a forgotten version is not learned again. By then every peer
// on this side has forgotten it too.
const tombstoneTTL = 10 * ForgetAfter

const (
	// maxTombstones bounds the tombstones. Beyond it a forgotten entry may be learned
	// again, which costs an exchange.
	maxTombstones = 8192
	// maxAhead is how far the version of an entry may be ahead of the clock: the
	// difference between the clocks of two hosts.
	maxAhead = 24 * time.Hour
	// A neighbour can make this peer check verifyPerSecond signatures a second with a
	// burst of verifyBurst, which is enough for an island of 2,000 peers. One check takes
	// about 60 us, so a neighbour that sends nothing but new entries costs one hundredth
	// of a core.
	verifyPerSecond = 200
	verifyBurst     = 2048
	// maxBudgets bounds the neighbours whose checks are counted.
	maxBudgets = 4096
)

// Config configures a State.
type Config struct {
	Self     peer.Name
	Nickname string
	// Instance is drawn at random at each launch. It distinguishes a restart from a
	// clone.
	Instance uint64
	Signer   peer.Signer
	Verifier peer.Verifier
	// Book says which key a name has. The State binds the names of stored entries and
	// holds the bindings while they are stored.
	Book Book
	// Banned reports whether entries of a key are refused; nil if none is.
	Banned func(peer.Key) bool
	// ShortID is the first short id to try, 0 for one that is derived from the name. A
	// peer that starts with its last id spares the others a change.
	ShortID uint16
	// Start is the time of launch. Versions start from it, so that they rise over
	// restarts. If the clock was set back, the first exchange corrects the version.
	Start time.Time

	shortIDs uint16 // the highest short id, 0 for MaxShortID; lower in tests
	maxCost  int    // of all stored entries, 0 for the default; lower in tests
}

// Book says which key a name has. *peer.Book implements it.
type Book interface {
	Check(peer.Name, peer.Key) error
	Bind(peer.Name, peer.Key, peer.Via) error
	Hold(peer.Name)
	Release(peer.Name)
}

// Stats counts what a State did with the entries of others since it was made.
type Stats struct {
	Waiting       int    // entries that wait now for a link that both ends state
	MaxWaiting    int    // the limit
	WaitDropped   uint64 // waiting entries dropped because there were too many
	Unverified    uint64 // entries refused because a neighbour sent too many
	NoPlace       uint64 // stored entries dropped because there were too many
	Ahead         uint64 // entries refused because their version is ahead of the clock
	Cost, MaxCost int    // of the stored entries, and the limit; see places
}

// State is one peer's copy of the link-state database.
type State struct {
	cfg              Config
	own              *Entry
	entries          map[peer.Name]*Entry
	unreachableSince map[peer.Name]time.Time // the time since which no path leads to a peer
	tombstones       map[peer.Name]tombstone
	refused          gossip.Refusals
	shortID          uint16 // that of own
	addrs            []netip.AddrPort
	now              time.Time
	gainedAt         time.Time                           // when gains were published last
	growing          int                                 // by what the next delay of gains is longer than the first
	offerAt          time.Time                           // when changes of the links of this peer are published, zero if there are none
	waitlist         *gossip.Waitlist[peer.Name, *Entry] // verified, but no stored entry confirms them yet
	crowded          bool                                // an entry waits for a place
	cost             int                                 // of entries
	budgets          map[peer.Name]*budget
	exhausted        bool // an entry was refused because its neighbour sends too many
	stats            Stats

	sorted       []*Entry // the entries in order of name
	graph        *Graph   // of the present entries, nil after a change
	digest       []byte   // of the present entries, nil after a change
	generation   uint64
	rivalEntries int  // entries of this peer that another instance wrote
	shortIDStale bool // whether the short id may have to change
}

type tombstone struct {
	key     peer.Key
	version uint64
	until   time.Time
}

// budget is a token bucket for the checks of one neighbour's entries.
type budget struct {
	tokens float64
	at     time.Time
}

var (
	// ErrForged is the cause if an entry is not signed by the key that it names.
	ErrForged = fmt.Errorf("the entry is not signed by its owner: %w", gossip.ErrMalformed)
	// ErrAhead is the cause if the version of an entry is more than a day ahead.
	ErrAhead = errors.New("its version is ahead of the clock: the clock of one of the two hosts is wrong")
	// ErrRival is the cause if another live peer writes entries with this peer's name
	// and key: its state folder was copied.
	ErrRival = errors.New("another live peer uses this peer's identity (a copied state folder?)")
)

var _ gossip.Spreader = (*State)(nil)

// New returns a State that knows only this peer. It binds the peer's own name in the
// Book.
func New(cfg Config) (*State, error) {
	if cfg.ShortID > MaxShortID {
		return nil, fmt.Errorf("short id %d: want at most %d", cfg.ShortID, MaxShortID)
	}
	if err := cfg.Book.Bind(cfg.Self, cfg.Signer.Key(), peer.Via{}); err != nil {
		return nil, err
	}
	if len(cfg.Nickname) > maxNickname {
		cfg.Nickname = cfg.Nickname[:maxNickname]
	}
	cfg.Book.Hold(cfg.Self)
	cfg.shortIDs = cmp.Or(cfg.shortIDs, MaxShortID)
	cfg.maxCost = cmp.Or(cfg.maxCost, maxCost)
	s := &State{
		cfg:              cfg,
		entries:          make(map[peer.Name]*Entry),
		unreachableSince: make(map[peer.Name]time.Time),
		tombstones:       make(map[peer.Name]tombstone),
		budgets:          make(map[peer.Name]*budget),
		waitlist:         gossip.NewWaitlist[peer.Name, *Entry](waitLimits),
		now:              cfg.Start,
		shortID:          cmp.Or(cfg.ShortID, probe(cfg.Self, 0, cfg.shortIDs)),
	}
	s.publish(&Entry{Version: uint64(cfg.Start.UnixMicro())})
	return s, nil
}

func (s *State) put(e *Entry) {
	i, known := slices.BinarySearchFunc(s.sorted, e.Name, func(e *Entry, n peer.Name) int { return e.Name.Compare(n) })
	if known {
		s.cost -= s.sorted[i].cost()
		s.sorted[i] = e
	} else {
		s.sorted = slices.Insert(s.sorted, i, e)
	}
	s.cost += e.cost()
	s.entries[e.Name] = e
	s.shortIDStale = s.shortIDStale || e.ShortID == s.own.ShortID && e.Name.Compare(s.own.Name) < 0
	s.changed()
}

func (s *State) changed() {
	s.graph, s.digest = nil, nil
	s.shortIDStale = s.shortIDStale || s.own.ShortID == 0
	s.generation++
}

// Generation returns a number that grows with each change of the state.
func (s *State) Generation() uint64 { return s.generation }

// SetTime tells the State the time. Clocks of hosts differ: pass the best estimate of what
// most peers think it is.
func (s *State) SetTime(now time.Time) { s.now = now }

// newest returns the highest version that an entry may have now.
func (s *State) newest() uint64 { return uint64(max(0, s.now.Add(maxAhead).UnixMicro())) }

// Sent implements gossip.Spreader: a peer sends its entries over the sessions that it lists.
func (s *State) Sent(delta []byte) func(peer.Name) bool {
	var authors []*Entry
	for b := delta; len(b) > 0; {
		h, err := peek(b)
		e := s.entries[h.name]
		if err != nil || e == nil || e == s.own { // this peer has sent it to nobody yet
			return func(peer.Name) bool { return false }
		}
		authors = append(authors, e)
		b = b[h.length:]
	}
	return func(n peer.Name) bool {
		for _, e := range authors {
			if l := linkTo(e.Links, n); e.Name != n && (l == nil || l.Flags&LinkSession == 0) {
				return false
			}
		}
		return true
	}
}

// Entry returns the entry of name, nil if there is none.
func (s *State) Entry(name peer.Name) *Entry { return s.entries[name] }

// Entries returns all entries in order of name. The slice is read-only, and valid until
// the next change.
func (s *State) Entries() []*Entry { return s.sorted }

// Refused returns the entries that Merge refused since the last call.
func (s *State) Refused() []gossip.Refusal { return s.refused.Take() }

// Merge implements gossip.Channel. If it refuses an entry (see Refused) it still merges
// the others: two peers may know different keys for one name, and an honest neighbour
// passes all entries on together.
func (s *State) Merge(from peer.Name, delta []byte) ([]byte, error) {
	var in []*Entry
	for b := delta; len(b) > 0; {
		h, err := peek(b)
		if err != nil {
			return nil, fmt.Errorf("merge topology from %s: %w: %w", from, gossip.ErrMalformed, err)
		}
		// A flood brings each entry from every neighbour.
		if !h.stale(s.entries[h.name]) {
			switch e, _, err := parseEntry(b); {
			case errors.Is(err, errShortID): // peers of older versions pass it on unread
				s.refused.Add(from, h.name, err)
			case err != nil:
				return nil, fmt.Errorf("merge topology from %s: %w: %w", from, gossip.ErrMalformed, err)
			default:
				in = append(in, e)
			}
		}
		b = b[h.length:]
	}
	if len(in) == 0 {
		return nil, nil
	}
	fresh := make([]byte, 0, len(delta))
	for _, e := range in {
		fresh = s.mergeEntry(from, e, fresh)
	}
	if len(fresh) < len(delta)/2 {
		fresh = slices.Clone(fresh) // it may stay in queues for a long time
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	return fresh, nil
}

// mergeEntry merges one entry and appends to fresh what was new.
func (s *State) mergeEntry(from peer.Name, e *Entry, fresh []byte) []byte {
	old := s.entries[e.Name]
	if t, ok := s.tombstones[e.Name]; ok && e.Key == t.key && e.Version <= t.version {
		return fresh
	}
	if old != nil && old.Key == e.Key && !e.supersedes(old) {
		return fresh
	}
	if w := s.waitlist.Get(e.Name); w != nil && w.Value.Key == e.Key && !e.supersedes(w.Value) {
		return fresh
	}
	if s.cfg.Banned != nil && s.cfg.Banned(e.Key) {
		return fresh
	}
	if e.Version > s.newest() {
		s.stats.Ahead++
		s.refused.Add(from, e.Name, ErrAhead)
		return fresh
	}
	// The check of a new key against a derived name costs as much as a signature.
	if !s.mayVerify(from) {
		s.stats.Unverified++
		s.exhausted = true
		return fresh
	}
	if err := s.cfg.Book.Check(e.Name, e.Key); err != nil {
		s.refused.Add(from, e.Name, err)
		return fresh
	}
	if !e.verify(s.cfg.Verifier) {
		s.refused.Add(from, e.Name, ErrForged)
		return fresh
	}
	switch {
	case e.Name == s.cfg.Self:
		// A former instance of this peer, or a clone. Either way the present
		// instance overrides its entry.
		if e.Instance != s.cfg.Instance {
			s.rivalEntries++
			if s.rivalEntries > 3 {
				s.refused.Add(from, e.Name, ErrRival)
			}
		}
		return append(fresh, s.publish(&Entry{Version: e.Version + 1, Links: s.own.Links})...)
	case old != nil:
		s.put(e)
	case !s.attached(e):
		s.stats.WaitDropped += uint64(s.waitlist.Add(e.Name, e, len(e.raw), from))
		return fresh
	case s.cost+e.cost() > s.cfg.maxCost:
		// Expire decides whether it gets the place of another one.
		s.crowded = true
		s.stats.WaitDropped += uint64(s.waitlist.Add(e.Name, e, len(e.raw), from))
		return fresh
	default:
		if !s.admit(from, e) {
			return fresh
		}
	}
	return s.admitWaiting(e, append(fresh, e.raw...))
}

// mayVerify takes one check from the budget of a neighbour.
func (s *State) mayVerify(from peer.Name) bool {
	b := s.budgets[from]
	if b == nil {
		if len(s.budgets) >= maxBudgets {
			return false
		}
		b = &budget{verifyBurst, s.now}
		s.budgets[from] = b
	}
	if d := s.now.Sub(b.at); d > 0 {
		b.tokens = min(verifyBurst, b.tokens+verifyPerSecond*d.Seconds())
		b.at = s.now
	}
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// Exhausted reports whether entries were refused since the last call because a neighbour
// sends too many.
func (s *State) Exhausted() bool {
	was := s.exhausted
	s.exhausted = false
	return was
}

// attached reports whether a stored entry confirms a link of e.
func (s *State) attached(e *Entry) bool {
	for _, l := range e.Links {
		if o := s.entries[l.To]; o != nil && e.linked(o) {
			return true
		}
	}
	return false
}

// admit stores a verified entry of a new name and reports whether it could.
func (s *State) admit(from peer.Name, e *Entry) bool {
	if err := s.cfg.Book.Bind(e.Name, e.Key, peer.Via{Neighbour: from}); err != nil {
		s.refused.Add(from, e.Name, err)
		return false
	}
	s.cfg.Book.Hold(e.Name)
	s.waitlist.Remove(e.Name)
	delete(s.tombstones, e.Name)
	s.put(e)
	return true
}

// admitWaiting stores the waiting entries that the stored entry e confirms, and those that
// they confirm, and appends them to fresh.
func (s *State) admitWaiting(e *Entry, fresh []byte) []byte {
	for queue := []*Entry{e}; len(queue) > 0 && s.waitlist.Len() > 0; queue = queue[1:] {
		for _, l := range queue[0].Links {
			w := s.waitlist.Get(l.To)
			if w == nil || !w.Value.linked(queue[0]) {
				continue
			}
			if s.cost+w.Value.cost() > s.cfg.maxCost {
				s.crowded = true
				continue
			}
			s.waitlist.Remove(w.Key)
			if s.admit(w.From, w.Value) {
				queue = append(queue, w.Value)
				fresh = append(fresh, w.Value.raw...)
			}
		}
	}
	return fresh
}

// drop removes a stored entry. It is not learned again for ttl.
func (s *State) drop(e *Entry, now time.Time, ttl time.Duration) {
	delete(s.entries, e.Name)
	if i, ok := slices.BinarySearchFunc(s.sorted, e.Name, func(e *Entry, n peer.Name) int { return e.Name.Compare(n) }); ok {
		s.sorted = slices.Delete(s.sorted, i, i+1)
	}
	s.cost -= e.cost()
	delete(s.unreachableSince, e.Name)
	if ttl > 0 {
		s.addTombstone(e, now.Add(ttl))
	}
	_ = s.cfg.Book.Bind(e.Name, e.Key, peer.Via{}) // it was used until now
	s.cfg.Book.Release(e.Name)
	s.changed()
}

func (s *State) addTombstone(e *Entry, until time.Time) {
	if len(s.tombstones) < maxTombstones {
		s.tombstones[e.Name] = tombstone{e.Key, e.Version, until}
	}
}

// Remove drops the entry of a name that the mesh has removed, if there is one, and does not
// learn it again for some minutes. The caller then ends the binding of the name, so that
// another key may use it.
func (s *State) Remove(n peer.Name) {
	if e := s.entries[n]; e != nil && n != s.cfg.Self {
		s.drop(e, s.now, tombstoneTTL)
	}
	s.waitlist.Remove(n)
}

// Stats returns the counts so far.
func (s *State) Stats() Stats {
	st := s.stats
	st.Waiting, st.MaxWaiting, st.Cost, st.MaxCost = s.waitlist.Len(), maxWaitlist, s.cost, s.cfg.maxCost
	return st
}

// Expire forgets the peers to which no path has led for ForgetAfter, and returns their
// names. If more peers are known than may be stored, it decides which of them are; the
// caller should then compare its state with its neighbours.
func (s *State) Expire(now time.Time) (gone []peer.Name, moved bool) {
	g := s.Graph()
	for _, e := range slices.Clone(s.sorted) {
		if e != s.own && e.Version > s.newest() { // the estimate of the time was corrected
			s.drop(e, now, 0)
			continue
		}
		if g.Reaches(e.Name) {
			delete(s.unreachableSince, e.Name)
			continue
		}
		since, ok := s.unreachableSince[e.Name]
		if !ok {
			s.unreachableSince[e.Name] = now
			continue
		}
		if now.Sub(since) < ForgetAfter {
			continue
		}
		s.drop(e, now, tombstoneTTL)
		gone = append(gone, e.Name)
	}
	if s.crowded || s.cost > s.cfg.maxCost {
		s.crowded = false
		moved = s.settlePlaces(now)
	}
	s.waitlist.Expire(now)
	for n, t := range s.tombstones {
		if now.After(t.until) {
			delete(s.tombstones, n)
		}
	}
	for n, b := range s.budgets {
		if now.Sub(b.at).Seconds() > verifyBurst/verifyPerSecond {
			delete(s.budgets, n) // it is full again
		}
	}
	return gone, moved
}

// DropBanned drops the entries of banned keys, and returns their names.
func (s *State) DropBanned() (gone []peer.Name) {
	for _, e := range slices.Clone(s.sorted) {
		if e != s.own && s.cfg.Banned != nil && s.cfg.Banned(e.Key) {
			s.drop(e, s.now, 0)
			gone = append(gone, e.Name)
		}
	}
	return gone
}
