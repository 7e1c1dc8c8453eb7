package ipam

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// divergenceTTL is how long another ring is shown after it was last seen.
const divergenceTTL = 2 * time.Minute

// healTime is how long the peers of a ring may take to follow another one.
const healTime = time.Minute

// maxDiverged bounds how many other rings are shown.
const maxDiverged = 16

const (
	// maxOtherRanges bounds the address ranges of other peers that are kept, and
	// keepOtherRange is how long one is shown after it was heard of last. Peers compare
	// their states more often.
	maxOtherRanges = 8
	keepOtherRange = time.Minute
)

// noteOtherRange notes that another peer has an address range of its own.
func (c *core) noteOtherRange(r netip.Prefix) {
	maps.DeleteFunc(c.otherRanges, func(_ netip.Prefix, at time.Time) bool { return c.now.Sub(at) >= keepOtherRange })
	if _, known := c.otherRanges[r]; known || len(c.otherRanges) < maxOtherRanges {
		c.otherRanges[r] = c.now
	}
}

// Divergence describes another ring over the same address range.
type Divergence struct {
	Ours, Theirs         ring.ID
	OurPeers, TheirPeers []peer.Name // the peers that made the rings; TheirPeers may be unknown
	From                 peer.Name   // the neighbour that showed it
	Seen                 time.Time   // last

	genesis *ring.Genesis // of theirs, nil if unknown
}

// String describes the divergence, and how to heal it, in one line.
func (d Divergence) String() string {
	from := "another peer"
	if !d.From.IsZero() {
		from = "peer " + d.From.String()
	}
	return fmt.Sprintf("%s has ring %s (made by %s), ours is %s (made by %s): the two sides may have given the same addresses; "+
		"to go on with theirs run here: weft adopt %s; with ours, run there: weft adopt %s",
		from, d.Theirs, peersOrUnknown(d.TheirPeers), d.Ours, peersOrUnknown(d.OurPeers), d.Theirs, d.Ours)
}

func peersOrUnknown(ps []peer.Name) string {
	if len(ps) == 0 {
		return "unknown peers"
	}
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return joinNames(s)
}

func (c *core) noteDivergence(from peer.Name, e *ring.DivergentError) {
	if e.Follows && len(c.healed) < maxDiverged {
		c.healed[e.Theirs] = c.now
		delete(c.diverged, e.Theirs)
	}
	if at, ok := c.healed[e.Theirs]; ok && c.now.Sub(at) < healTime {
		return // not all of its peers have heard of their decision
	}
	delete(c.healed, e.Theirs)
	old, known := c.diverged[e.Theirs]
	if !known && !c.spaceForDivergence(from) {
		return
	}
	if !known && !c.now.Before(c.nextDivergedWarn) {
		c.nextDivergedWarn = c.now.Add(warnEvery)
		args := []any{"err", e}
		if !from.IsZero() {
			args = append(args, "peer", from)
		}
		c.warn("another ring exists", args...)
	}
	d := Divergence{Ours: e.Ours, Theirs: e.Theirs, OurPeers: namesOf(e.OurPeers), TheirPeers: namesOf(e.TheirPeers),
		From: from, Seen: c.now, genesis: e.Genesis}
	if known && d.genesis == nil {
		d.genesis, d.TheirPeers = old.genesis, old.TheirPeers
		if d.From.IsZero() {
			d.From = old.From
		}
	}
	c.diverged[e.Theirs] = d
}

// spaceForDivergence reports whether another ring that a peer showed is kept. Anybody can
// make up rings. If there are too many, the host that showed most loses its oldest one.
func (c *core) spaceForDivergence(from peer.Name) bool {
	if len(c.diverged) < maxDiverged {
		return true
	}
	by := make(map[ring.Holder]int)
	for _, d := range c.diverged {
		by[c.hostOf(d.From)]++
	}
	var victim *Divergence
	for _, d := range c.diverged {
		if n := by[c.hostOf(d.From)]; victim == nil || n > by[c.hostOf(victim.From)] ||
			n == by[c.hostOf(victim.From)] && d.Seen.Before(victim.Seen) {
			victim = &d
		}
	}
	if by[c.hostOf(victim.From)] <= by[c.hostOf(from)]+1 {
		return false
	}
	delete(c.diverged, victim.Theirs)
	return true
}

func namesOf(hs []ring.Holder) (out []peer.Name) {
	for _, h := range hs {
		out = append(out, h.Name)
	}
	return out
}

// Owner is one line of Status.
type Owner struct {
	Name        peer.Name
	Nickname    string
	Addresses   addr.Count
	Percent     float64
	Local       bool
	Active      int // addresses in use; Local only
	Unreachable bool
}

// Conflict is an address that is in use here and that another peer owns.
type Conflict struct {
	Address netip.Addr
	Owner   string    // the container that has it here
	Peer    peer.Name // the peer that owns its range
	// InUse is set if Peer says that it uses the address too. Otherwise this peer
	// still asks for it.
	InUse bool
	Away  bool // Peer cannot be reached
}

// Status is the state of an Allocator at one moment.
type Status struct {
	Range, Default netip.Prefix
	// State is one of: idle; awaiting consensus (...); priming; ready; waiting for
	// N IPs because ...; left.
	State string
	Ready bool
	// Ring is the id of the ring, zero if there is none.
	Ring      ring.ID
	Owners    []Owner // by name
	Entries   []ring.Entry
	Divergent []Divergence
	// OtherRanges are address ranges that other peers have, in order.
	OtherRanges []netip.Prefix
	Conflicts   []Conflict
	Waiting     []string // the reason of each request that waits
	// Elected and Needed are the votes of the election while there is no ring.
	Elected, Needed int

	PendingAllocates, PendingClaims int

	Used uint64     // addresses in use here
	Max  addr.Count // size of the address range
	// Unreachable is how many addresses unreachable peers own.
	Unreachable        addr.Count
	UnreachablePercent float64
	Refused            uint64 // records of the ring refused since the start
	Slot               uint64 // decisions of the ring
	Voters             []Voter
	Quorum             int         // how many voters decide
	Banned             []peer.Name // by decision
	Out                bool        // this peer is among those; it may be banned and not know of the decision
	Votes              []Vote      // what operators want and is not decided
	Kept               []Kept
	LeftRings          []ring.ID // rings to which the operator can go back
	Counters           Counters
	// Unheard warns that this peer gives addresses without having caught up; "" if it has.
	Unheard string
	DiskErr error // of the last write of the state file; nil if all is written
}

// Kept is what this peer inherited from a removed peer and leaves unused for a time.
type Kept struct {
	Name      peer.Name // of the removed peer
	Nickname  string
	Addresses addr.Count
	Until     time.Time
	// Open is set once the time is over, and the heir waits for peers that use some of the
	// addresses.
	Open bool
}

// Voter is a peer that has a vote on decisions of the ring.
type Voter struct {
	Name     peer.Name
	Nickname string
	Present  bool
}

func (c *core) voterOf(h ring.Holder) Voter {
	return Voter{h.Name, c.view.Nickname(h.Name), c.present(h)}
}

// Counters count what was refused because a bound was reached or because it was wrong.
type Counters struct {
	Asks   uint64 // asks for addresses by peers that asked too often
	Wishes uint64 // wishes beyond the bound
	Rounds uint64 // messages of voters that were wrong
}

// status returns the state.
func (c *core) status() Status {
	s := Status{Range: c.cfg.Range, Default: c.cfg.Default, Ready: c.ring.Ready(),
		Entries: c.ring.Entries(), Used: uint64(len(c.allocations)), Max: addr.Of(c.cfg.Range).Size(),
		Refused: c.ring.Refused(), Slot: c.ring.Slot(), LeftRings: c.ring.LeftRings(), Counters: c.counters}
	for _, h := range c.ring.Voters() {
		s.Voters = append(s.Voters, c.voterOf(h))
	}
	s.Votes = c.votes()
	s.Quorum = ring.Quorum(len(s.Voters))
	s.Banned = namesOf(c.ring.Banned())
	s.Out = c.ring.IsBanned(c.self)
	s.Kept = c.keptByPeer()
	if g := c.ring.Genesis(); g != nil {
		s.Ring = g.ID()
	}
	if c.election != nil && !s.Ready {
		s.Elected, s.Needed = len(c.election.Voters()), c.election.Needed()
	}
	for h, n := range c.ring.Owners() {
		o := Owner{Name: h.Name, Nickname: c.view.Nickname(h.Name), Addresses: n,
			Percent: 100 * n.Float() / s.Max.Float(), Local: c.isMine(h)}
		if o.Local {
			for a := range c.allocations {
				if c.space.Owns(a) {
					o.Active++
				}
			}
		} else if !c.present(h) {
			o.Unreachable = true
			s.Unreachable = s.Unreachable.Add(n)
		}
		s.Owners = append(s.Owners, o)
	}
	slices.SortFunc(s.Owners, func(a, b Owner) int { return a.Name.Compare(b.Name) })
	s.UnreachablePercent = 100 * s.Unreachable.Float() / s.Max.Float()
	for _, d := range c.diverged {
		s.Divergent = append(s.Divergent, d)
	}
	for r, at := range c.otherRanges {
		if c.now.Sub(at) < keepOtherRange {
			s.OtherRanges = append(s.OtherRanges, r)
		}
	}
	slices.SortFunc(s.OtherRanges, netip.Prefix.Compare)
	slices.SortFunc(s.Divergent, func(a, b Divergence) int { return slices.Compare(a.Theirs[:], b.Theirs[:]) })
	for _, a := range c.foreignAddrs() {
		owner, _ := c.ring.Owner(a)
		s.Conflicts = append(s.Conflicts, Conflict{a, c.allocations[a].owner, owner.Name, c.foreign[a].inUse == owner.Name, !c.present(owner)})
	}
	for _, r := range c.pending {
		switch r.kind {
		case reqAllocate:
			s.PendingAllocates++
		case reqClaim:
			s.PendingClaims++
		}
		if text := c.waitsFor(r).Error(); !slices.Contains(s.Waiting, text) {
			s.Waiting = append(s.Waiting, text)
		}
	}
	for _, r := range c.removals {
		s.Waiting = append(s.Waiting, "removal of "+c.notRemoved(r).Error())
	}
	s.Unheard = c.unheard()
	s.State = c.state(s)
	return s
}

// state returns the name of the state and, if requests wait, the reason.
func (c *core) state(s Status) string {
	switch _, adopted := c.ring.Awaits(); {
	case c.left:
		return "left"
	case s.Ready && s.PendingAllocates > 0:
		return fmt.Sprintf("waiting for %s because %s", count.Of(s.PendingAllocates, "IP", "IPs"), strings.Join(s.Waiting, "; "))
	case s.Ready && !c.caughtUp():
		return "catching up: " + c.notCaughtUp().Error()
	case s.Ready:
		return "ready"
	case adopted:
		return "priming: " + c.noRing().Error()
	case !c.ringWanted && (c.election == nil || !c.election.Running()):
		return "idle"
	case c.election == nil || c.now.Before(c.graceEnd()):
		return "priming"
	}
	return fmt.Sprintf("awaiting consensus (quorum: %d, known: %d)", s.Needed, s.Elected)
}
