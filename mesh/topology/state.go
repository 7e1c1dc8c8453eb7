// Package topology holds the link-state database, which has one versioned, signed entry
// for each peer with the neighbours of that peer. It also computes the routes.
//
// State is one peer's copy of the database, and a gossip.Channel. The peer itself changes
// it by SetLinks and SettleShortID, and Merge adds the entries of others. A link counts
// only if both its ends list it. A peer to which no path leads is forgotten after
// ForgetAfter. A forgotten entry is not learned again from a neighbour that forgets it
// later.
//
// Nothing here opens a socket, reads a clock or logs: times are arguments.
// State is not safe for concurrent use; Graph and Routes are immutable.
package topology

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
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

// Config configures a State.
type Config struct {
	Self     peer.Name
	Nickname string
	// Instance is drawn at random at each launch. It distinguishes a restart from a
	// clone.
	Instance uint64
	Signer   peer.Signer
	Verifier peer.Verifier
	// Book binds names to the keys that they were first seen with. The State adds to
	// it.
	Book *peer.Book
	// ShortID is the first short id to try, 0 for one that is derived from the name. A
	// peer that starts with its last id spares the others a change.
	ShortID uint16
	// Start is the time of launch. Versions start from it, so that they rise over
	// restarts. If the clock was set back, the first exchange corrects the version.
	Start time.Time

	shortIDs uint16 // the highest short id, 0 for MaxShortID; lower in tests
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

	sorted       []*Entry // the entries in order of name
	graph        *Graph   // of the present entries, nil after a change
	digest       []byte   // of the present entries, nil after a change
	generation   uint64
	rivalEntries int  // entries of this peer that another instance wrote
	shortIDStale bool // whether the short id may have to change
}

type tombstone struct {
	version uint64
	until   time.Time
}

var (
	// ErrForged is the cause if an entry is not signed by the key that it names.
	ErrForged = errors.New("the entry is not signed by its owner")
	// ErrRival is the cause if another live peer writes entries with this peer's name
	// and key: its state folder was copied.
	ErrRival = errors.New("another live peer uses this peer's identity (a copied state folder?)")
)

var _ gossip.Channel = (*State)(nil)

// New returns a State that knows only this peer. It binds the peer's own name in the
// Book.
func New(cfg Config) (*State, error) {
	if cfg.ShortID > MaxShortID {
		return nil, fmt.Errorf("short id %d: want at most %d", cfg.ShortID, MaxShortID)
	}
	if err := cfg.Book.Bind(cfg.Self, cfg.Signer.Key()); err != nil {
		return nil, err
	}
	if len(cfg.Nickname) > maxNickname {
		cfg.Nickname = cfg.Nickname[:maxNickname]
	}
	cfg.shortIDs = cmp.Or(cfg.shortIDs, MaxShortID)
	s := &State{
		cfg:              cfg,
		entries:          make(map[peer.Name]*Entry),
		unreachableSince: make(map[peer.Name]time.Time),
		tombstones:       make(map[peer.Name]tombstone),
		shortID:          cmp.Or(cfg.ShortID, probe(cfg.Self, 0, cfg.shortIDs)),
	}
	s.publish(&Entry{Version: uint64(cfg.Start.UnixMicro())})
	return s, nil
}

// publish signs e as this peer's entry and returns it as a delta.
func (s *State) publish(e *Entry) []byte {
	e.Name, e.Key, e.Instance, e.Nickname = s.cfg.Self, s.cfg.Signer.Key(), s.cfg.Instance, s.cfg.Nickname
	e.ShortID, e.hasShortID = s.shortID, true
	e.sign(s.cfg.Signer)
	s.own = e
	s.put(e)
	return slices.Clone(e.raw)
}

func (s *State) put(e *Entry) {
	i, known := slices.BinarySearchFunc(s.sorted, e.Name, func(e *Entry, n peer.Name) int { return e.Name.Compare(n) })
	if known {
		s.sorted[i] = e
	} else {
		s.sorted = slices.Insert(s.sorted, i, e)
	}
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

// SetLinks replaces this peer's links and returns the delta to announce. It returns nil
// and changes nothing if no link came or went and no cost changed by a doubling.
func (s *State) SetLinks(links []Link) []byte {
	links = slices.Clone(links)
	slices.SortFunc(links, func(a, b Link) int { return a.To.Compare(b.To) })
	links = slices.CompactFunc(links, func(a, b Link) bool { return a.To == b.To }) // others refuse an entry that lists a link twice
	if len(links) > MaxLinks {
		links = links[:MaxLinks]
	}
	if slices.EqualFunc(links, s.own.Links, func(a, b Link) bool {
		return a.To == b.To && a.Flags == b.Flags && max(a.Cost, b.Cost)-min(a.Cost, b.Cost) < costStepsPerX2
	}) {
		return nil
	}
	return s.publish(&Entry{Version: s.own.Version + 1, Links: links})
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
			return nil, fmt.Errorf("merge topology from %s: %w", from, err)
		}
		// A flood brings each entry from every neighbour.
		if !h.stale(s.entries[h.name]) {
			switch e, _, err := parseEntry(b); {
			case errors.Is(err, errShortID): // peers of older versions pass it on unread
				s.refused.Add(from, h.name, err)
			case err != nil:
				return nil, fmt.Errorf("merge topology from %s: %w", from, err)
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
		old := s.entries[e.Name]
		if t, ok := s.tombstones[e.Name]; ok && e.Version <= t.version {
			continue
		}
		if old != nil && old.Key == e.Key && !e.supersedes(old) {
			continue
		}
		if err := s.cfg.Book.Check(e.Name, e.Key); err != nil {
			s.refused.Add(from, e.Name, err)
			continue
		}
		if !e.verify(s.cfg.Verifier) {
			s.refused.Add(from, e.Name, ErrForged)
			continue
		}
		if e.Name == s.cfg.Self {
			// A former instance of this peer, or a clone. Either way the present
			// instance overrides its entry.
			if e.Instance != s.cfg.Instance {
				s.rivalEntries++
				if s.rivalEntries > 3 {
					s.refused.Add(from, e.Name, ErrRival)
				}
			}
			fresh = append(fresh, s.publish(&Entry{Version: e.Version + 1, Links: s.own.Links})...)
			continue
		}
		_ = s.cfg.Book.Bind(e.Name, e.Key)
		delete(s.tombstones, e.Name)
		s.put(e)
		fresh = append(fresh, e.raw...)
	}
	if len(fresh) < len(delta)/2 {
		fresh = slices.Clone(fresh) // it may stay in queues for a long time
	}
	if len(fresh) == 0 {
		return nil, nil
	}
	return fresh, nil
}

// Expire forgets the peers to which no path has led for ForgetAfter, and returns their
// names.
func (s *State) Expire(now time.Time) []peer.Name {
	g := s.Graph()
	var gone []peer.Name
	for n, e := range s.entries {
		if g.Reaches(n) {
			delete(s.unreachableSince, n)
			continue
		}
		since, ok := s.unreachableSince[n]
		if !ok {
			s.unreachableSince[n] = now
			continue
		}
		if now.Sub(since) < ForgetAfter {
			continue
		}
		delete(s.entries, n)
		s.sorted = slices.DeleteFunc(s.sorted, func(o *Entry) bool { return o == e })
		delete(s.unreachableSince, n)
		s.tombstones[n] = tombstone{e.Version, now.Add(tombstoneTTL)}
		s.cfg.Book.Forget(n)
		s.changed()
		gone = append(gone, n)
	}
	for n, t := range s.tombstones {
		if now.After(t.until) {
			delete(s.tombstones, n)
		}
	}
	return gone
}

// A digest is a list of names and versions. If that does not fit into one message, it is
// a table of sums over buckets of names:
//
//	list:   0x01, then for each entry name 6, version u64, the low 16 bits of the instance
//	table:  0x02, then 1,024 sums u64 over the entries whose names hash to that bucket
const (
	digestList  = 1
	digestTable = 2
	digestEntry = peer.NameLen + 8 + 2
	buckets     = 1024
	maxList     = 2500
)

func (s *State) table() gossip.Sums {
	t := make(gossip.Sums, buckets)
	for n, e := range s.entries {
		t.Add(n, e.raw[5:entryFixed-2])
	}
	return t
}

// Digest implements gossip.Channel.
func (s *State) Digest() []byte {
	if s.digest == nil {
		s.digest = s.summarise()
	}
	return s.digest
}

func (s *State) summarise() []byte {
	if len(s.entries) > maxList {
		return s.table().Append([]byte{digestTable})
	}
	b := make([]byte, 1, 1+len(s.entries)*digestEntry)
	b[0] = digestList
	for _, e := range s.Entries() {
		b = append(b, e.Name[:]...)
		b = binary.BigEndian.AppendUint64(b, e.Version)
		b = binary.BigEndian.AppendUint16(b, uint16(e.Instance))
	}
	return b
}

// Missing implements gossip.Channel.
func (s *State) Missing(digest []byte) (deltas [][]byte, wants bool, err error) {
	var lacks func(e *Entry) bool // whether the sender lacks e
	switch {
	case len(digest) > 0 && digest[0] == digestList && (len(digest)-1)%digestEntry == 0:
		theirs := make(map[peer.Name][]byte, len(digest)/digestEntry)
		for b := digest[1:]; len(b) > 0; b = b[digestEntry:] {
			n := peer.NameFromBytes(b)
			theirs[n] = b[peer.NameLen:digestEntry]
			v := binary.BigEndian.Uint64(b[peer.NameLen:])
			mine := s.entries[n]
			if t, ok := s.tombstones[n]; ok && v <= t.version {
				continue
			}
			if mine == nil || v > mine.Version ||
				v == mine.Version && binary.BigEndian.Uint16(b[peer.NameLen+8:]) != uint16(mine.Instance) {
				wants = true
			}
		}
		lacks = func(e *Entry) bool {
			t, ok := theirs[e.Name]
			if !ok {
				return true
			}
			v := binary.BigEndian.Uint64(t)
			return e.Version > v || e.Version == v && binary.BigEndian.Uint16(t[8:]) != uint16(e.Instance)
		}
	case len(digest) == 1+8*buckets && digest[0] == digestTable:
		mine := s.table()
		differ, some := mine.Differ(digest[1:])
		wants = some
		lacks = func(e *Entry) bool { return differ[mine.Row(e.Name)] }
	default:
		return nil, false, fmt.Errorf("topology digest of %d bytes is malformed", len(digest))
	}
	return gossip.Pack(func(yield func([]byte) bool) {
		for _, e := range s.Entries() {
			if lacks(e) && !yield(e.raw) {
				return
			}
		}
	}), wants, nil
}

// Join implements gossip.Channel: it keeps the newer of two entries of one peer.
func (s *State) Join(older, newer []byte) []byte {
	return gossip.JoinRecords(older, newer, func(b []byte) (peer.Name, int, error) {
		h, err := peek(b)
		return h.name, h.length, err
	})
}
