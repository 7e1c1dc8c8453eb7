package ipam

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// A state that was read from disk may be old: the disk of a virtual machine was rolled back, a
// folder came from a backup, a file was lost. Then this peer does not know what it gave to
// others since. So after a start it first catches up with the mesh. It asks the voters and other
// owners that it can reach how far the ring is, and for the transfers that it has signed and
// that are not decided. Until it knows as much as they do, it gives no address to containers,
// no range to peers, and has no vote.
//
//	this peer            each voter and some owners that are present
//	state ask  --------> compares the slots, sends records if the asker lacks some
//	           <-------- state answer: slot, transfers signed by the asker
//	merges the records, honours the transfers again; asks until nothing is missing
//
// A part of the mesh may know less than another one. So this peer asks those that come later
// too, until it has heard so many voters that no decision can be missing.
//
// If none of the peers that the ring names can be reached, this peer waits for
// Config.CatchUp. Then it gives addresses all the same, because the others may be dead, and
// Status.Unheard says so. It catches up as soon as one of them is present. If it reaches some
// that know the present state, but too few voters, it waits as long if its state was lost, else
// for Config.Grace, and says so too.

const (
	// defaultCatchUp is longer than a request for an address waits, so that its error
	// reports why none is given.
	defaultCatchUp = 2 * time.Minute
	// stateTimeout is how long one peer that the ring names can delay catching up, and all
	// others together: they do not answer, or say that they know more.
	stateTimeout = 10 * time.Second
	// askOwners bounds how many owners without a vote are asked.
	askOwners = 16
	// askOthers bounds how many peers are asked that the ring does not name.
	askOthers = 16
	noSlot    = math.MaxUint64
	// maxTransfers bounds the transfers in one answer.
	maxTransfers = 64
)

// catchUp is the state of catching up.
type catchUp struct {
	since time.Time // zero until the first step
	// target is when a target was first present that the ring does not name, zero if none was.
	target time.Time
	slot   uint64 // of the ring, when peers were asked last
	asked  map[peer.Name]*stateAsk

	// heard is what hearing returned at heardAt.
	heard      hearing
	heardAt    time.Time
	heardEpoch uint64
}

// stateAsk is what one peer was asked.
type stateAsk struct {
	id       uint64
	first    time.Time // shifted by the time that it was away
	gone     time.Time // zero: it is present
	sent     time.Time
	answered bool
	other    bool   // it has no ring, or another one
	old      bool   // it catches up too
	disk     uint64 // the slot of its disk
	slot     uint64 // of its answer
}

func (c *core) startCatchUp() {
	if c.catch == nil {
		c.catch = &catchUp{since: c.now, asked: make(map[peer.Name]*stateAsk)}
	}
}

// catchUpAfter starts to catch up if the ring that has just arrived says that this peer owns
// a part of it or has a vote, although it does not remember that: its state file was lost, or is
// from the time of the first election. Before the first decision there is nothing that it can
// have forgotten.
func (c *core) catchUpAfter(wasReady bool) {
	if !wasReady && c.ring.Ready() && c.ring.Slot() > 0 && !c.gone() {
		c.startCatchUp()
	}
}

// known returns the other peers that the ring names: voters, and then owners.
func (c *core) known() (voters, owners []ring.Holder) {
	for _, h := range c.ring.Voters() {
		if !c.isMine(h) {
			voters = append(voters, h)
		}
	}
	for h := range c.ring.Owners() {
		if !c.isMine(h) && !slices.Contains(voters, h) && !c.ring.IsBanned(h) {
			owners = append(owners, h)
		}
	}
	slices.SortFunc(owners, ring.Holder.Compare)
	return voters, owners
}

// hearing is what this peer has heard while it catches up.
type hearing struct {
	all     []ring.Holder // that the ring names, except this peer
	ask     []peer.Name   // those to ask that are present
	heard   int           // how many of all have said that nothing is missing
	fresh   bool          // one of them at least knows the present state
	enough  bool          // no decision can be missing
	missing []peer.Name   // those that this peer waits for
}

// add adds a peer to ask, and reports whether it has said that nothing is missing.
func (h *hearing) add(c *core, n peer.Name) bool {
	h.ask = append(h.ask, n)
	a := c.catch.asked[n]
	switch {
	case a != nil && a.upTo(c.ring.Slot()):
		return true
	case a == nil || !a.other && a.waited(c.now) < stateTimeout:
		h.missing = append(h.missing, n)
	}
	return false
}

// upTo reports whether the peer knows nothing beyond a slot.
func (a *stateAsk) upTo(slot uint64) bool { return a.answered && a.slot <= slot }

// waited returns for how long the peer was present since it was first asked.
func (a *stateAsk) waited(now time.Time) time.Duration {
	if !a.gone.IsZero() {
		now = a.gone
	}
	return now.Sub(a.first)
}

// hearing returns what this peer has heard until now.
func (c *core) hearing() hearing {
	k := c.catch
	if !k.heardAt.Equal(c.now) || k.heardEpoch != c.ring.Epoch() {
		k.heard, k.heardAt, k.heardEpoch = c.hear(), c.now, c.ring.Epoch()
	}
	return k.heard
}

func (c *core) hear() (h hearing) {
	voters, owners := c.known()
	h.all = append(slices.Clone(voters), owners...)
	votes := 0
	for i, o := range h.all {
		if c.present(o) && len(h.ask) < len(voters)+askOwners && h.add(c, o.Name) {
			h.heard++
			// Of several hosts that were started at once, that with an old disk is behind.
			a := c.catch.asked[o.Name]
			h.fresh = h.fresh || !a.old || a.disk == c.ring.Slot()
			if i < len(voters) {
				votes++
			}
		}
	}
	// Of each quorum, an honest voter is among so many.
	n := len(c.ring.Voters())
	need := n - ring.Quorum(n) + (n-1)/3 + 1
	h.enough = h.heard > 0 && h.heard == len(h.all) || len(voters) > 1 && votes >= min(need, len(voters))
	c.hearOthers(&h)
	return h
}

// hearOthers adds peers that the ring does not name: an old ring does not name those that
// joined later. Any number of them may come and go, so they delay catching up for stateTimeout
// in all, and not at all if the peers that the ring names are enough.
func (c *core) hearOthers(h *hearing) {
	k, missing, others := c.catch, len(h.missing), 0
	for _, n := range c.sortedPeers() {
		if !h.names(n) && others < askOthers {
			if k.target.IsZero() && c.view.Target(n) {
				k.target = c.now
			}
			h.add(c, n)
			others++
		}
	}
	late := func(since time.Time) bool { return !c.now.Before(since.Add(stateTimeout)) }
	if h.enough || !k.since.IsZero() && late(k.since) && late(k.target) {
		h.missing = h.missing[:missing]
	}
}

// names reports whether the ring names a peer.
func (h *hearing) names(n peer.Name) bool {
	return slices.ContainsFunc(h.all, func(o ring.Holder) bool { return o.Name == n })
}

func (c *core) sortedPeers() []peer.Name {
	return slices.SortedFunc(slices.Values(c.view.Peers()), peer.Name.Compare)
}

// pushCatchUp asks, and ends catching up if nothing can be missing.
func (c *core) pushCatchUp() {
	if c.catch == nil || !c.ring.Ready() || c.left {
		return
	}
	if c.catch.since.IsZero() {
		c.catch.since = c.now
	}
	h := c.hearing()
	// What this peer signed and forgot is void when the wishes of the voters have ended.
	over := c.caughtUp() && len(h.all) == 0 && !c.now.Before(c.catch.since.Add(max(c.cfg.CatchUp, 2*wishTTL)))
	if len(h.missing) == 0 && h.enough || over {
		c.catch = nil
		c.retryPending()
		c.pushDecide()
		return
	}
	c.catch.slot = c.ring.Slot()
	for _, n := range h.ask {
		a := c.catch.asked[n]
		if a == nil {
			a = &stateAsk{first: c.now}
			c.catch.asked[n] = a
		}
		if !a.gone.IsZero() {
			a.first, a.gone = a.first.Add(c.now.Sub(a.gone)), time.Time{}
		}
		if a.upTo(c.ring.Slot()) && (!a.old || h.fresh) || c.now.Sub(a.sent) < resendEvery {
			continue
		}
		id := c.ring.Genesis().ID()
		a.id, a.sent = c.nextID(), c.now
		c.send(n, message{kind: msgStateAsk, id: a.id, slot: c.ring.Slot(), body: id[:]})
	}
	// Those that went away are asked again when they are back. One that comes and goes without
	// an answer has no more time than one that stays.
	maps.DeleteFunc(c.catch.asked, func(n peer.Name, a *stateAsk) bool {
		if slices.Contains(h.ask, n) {
			return false
		}
		if a.gone.IsZero() {
			a.gone, a.sent = c.now, time.Time{}
		}
		return a.answered || !h.names(n)
	})
	if c.caughtUp() || c.isCopy() {
		c.retryPending()
	}
}

// wakeCatchUp asks again at once those that knew more than this peer before the ring changed.
func (c *core) wakeCatchUp() {
	if c.catch == nil || c.catch.slot == c.ring.Slot() {
		return
	}
	for _, a := range c.catch.asked {
		if !a.answered {
			a.sent = time.Time{}
		}
	}
	c.pushCatchUp()
}

// caughtUp reports whether this peer may give addresses: all known peers that are present have
// answered, or it has waited for long enough and still reaches nobody who knows the present
// state.
func (c *core) caughtUp() bool {
	if c.catch == nil {
		return true
	}
	if !c.ring.Ready() || c.catch.since.IsZero() {
		return false
	}
	h := c.hearing()
	wait := c.cfg.CatchUp
	switch {
	case len(h.missing) > 0:
		return false
	case h.enough: // also if the whole mesh was started again
		return true
	case h.fresh && !c.cfg.Lost, len(h.all) == 0 && !c.view.AwaitsTarget():
		wait = c.cfg.Grace
	}
	if wait == c.cfg.CatchUp && c.isCopy() {
		return false
	}
	return !c.now.Before(c.catch.since.Add(wait))
}

// isCopy reports whether the state folder of this host is a copy of that of a live host, which
// uses the addresses. Nobody that knows the present state has said otherwise, and nobody will:
// the others refuse the copy.
func (c *core) isCopy() bool {
	if c.catch == nil || !c.ring.Ready() || c.catch.since.IsZero() || !c.view.Collides() {
		return false
	}
	h := c.hearing()
	return len(h.missing) == 0 && !h.enough && !h.fresh && (len(h.all) > 0 || c.view.AwaitsTarget())
}

// current reports whether this peer has caught up with a peer that knows the present state.
func (c *core) current() bool {
	return c.catch == nil || c.caughtUp() && (c.hearing().fresh || c.hearing().enough)
}

// notCaughtUp is the reason why nothing is given yet.
func (c *core) notCaughtUp() error {
	h := c.hearing()
	since := c.catch.since
	if since.IsZero() {
		since = c.now
	}
	switch {
	case c.isCopy():
		return because(ErrCatchingUp, "another live router has the identity of this host, as a state folder was copied; nothing is given here until 'weft reset' "+
			"is run on one of the two")
	case len(h.all) == 0 && len(h.missing) == 0 && c.view.AwaitsTarget():
		return because(ErrCatchingUp, "no target of this host has answered since the start, and the state file of this host may be "+
			"old; addresses are given once one of them answers, or without an answer in %v", max(0, since.Add(c.cfg.CatchUp).Sub(c.now)).Round(time.Second))
	case len(h.all) == 0:
		return because(ErrCatchingUp, "waiting up to %v for peers that know more than the state file of this host", c.cfg.Grace)
	case !h.fresh && len(h.missing) == 0:
		return because(ErrCatchingUp, "no peer that owns addresses and knows the present state has been reached since the start (%s), and the state file "+
			"of this host may be old; addresses are given once one of them answers, or without an answer in %v",
			joinNames(c.displayNames(h.all)), max(0, since.Add(c.cfg.CatchUp).Sub(c.now)).Round(time.Second))
	}
	if len(h.missing) == 0 {
		return because(ErrCatchingUp, "waiting up to %v for more peers, as the state file of this host may be old", c.cfg.Grace)
	}
	var names []string
	for _, n := range h.missing {
		names = append(names, c.displayName(n))
	}
	return because(ErrCatchingUp, "waiting for the answer of %s, as the state file of this host may be old", joinNames(names))
}

func (c *core) displayNames(hs []ring.Holder) (names []string) {
	for _, h := range hs {
		names = append(names, c.displayName(h.Name))
	}
	return names
}

// unheard returns a warning if this peer gives addresses although it could not catch up.
func (c *core) unheard() string {
	if c.catch == nil || !c.caughtUp() {
		return ""
	}
	h := c.hearing()
	switch {
	case h.enough:
		return ""
	case h.fresh:
		text := fmt.Sprintf("this host gives addresses although it has reached too few voters since its start: if its state file is old, "+
			"others may have these addresses; it has not heard of %s", joinNames(c.displayNames(c.unheardVoters())))
		if !c.selfBanned() { // it is this host that is out, not those
			text += "; remove hosts that are dead for good with 'weft rmpeer'"
		}
		return text
	}
	if len(h.all) == 0 {
		if !c.view.AwaitsTarget() {
			return ""
		}
		return "this host gives addresses although none of its targets has answered since its start: " +
			"if its state file is old, others may have these addresses"
	}
	return fmt.Sprintf("this host gives addresses although no peer that knows the present state (%s) has answered since its start: "+
		"if its state file is old, others may have these addresses", strings.Join(c.displayNames(h.all), ", "))
}

// unheardVoters returns the other voters that have not said how far they are.
func (c *core) unheardVoters() (out []ring.Holder) {
	voters, _ := c.known()
	return slices.DeleteFunc(voters, func(h ring.Holder) bool {
		a := c.catch.asked[h.Name]
		return a != nil && a.upTo(c.ring.Slot())
	})
}

// onStateAsk answers a peer that catches up.
func (c *core) onStateAsk(from peer.Name, m message) {
	h, known := c.holderOf(from)
	if !known {
		return
	}
	var id ring.ID
	if c.ring.Ready() && !c.left {
		id = c.ring.Genesis().ID()
	}
	if string(id[:]) != string(m.body) {
		c.send(from, message{kind: msgStateAnswer, id: m.id, status: statusOther})
		return
	}
	if m.slot < c.ring.Slot() {
		c.help(from, m.slot)
	}
	answer := message{kind: msgStateAnswer, id: m.id, slot: c.ring.Slot(), disk: c.diskSlot, status: statusYes}
	if !c.current() {
		answer.status = statusToo
	}
	s := &started{slot: c.ring.Slot()}
	for _, a := range c.undecidedTransfers(h) {
		raw := a.Encode()
		c.knowsTransfer(s, a)
		answer.body = append(binary.BigEndian.AppendUint16(answer.body, uint16(len(raw))), raw...)
	}
	if c.inRing(h) {
		c.noteStart(from, s)
	}
	c.send(from, answer)
}

// started is what this peer knows of the last start of another one: what that signed before, it may
// have forgotten. The slot is on disk, so that a voter that is started again still knows it.
type started struct {
	slot uint64 // of this peer at that time, and so of the other one once it has caught up
	// knows has transfers as of this slot or an earlier one that the other one knows: this peer has
	// reported them to it, or has got them from it since. It sends them again until they are decided.
	knows map[wishKey]bool
	at    time.Time // when knows got the last one
	leave ring.ID   // the handover that it has sent since
}

// maxKnown bounds the transfers of one peer: its offers, and what revokes them. A peer that shares its
// underlay address may be made up, and has maxTransfers.
const maxKnown = 512

// noteStart records the start of a peer. It is on disk before the peer gets the answer.
func (c *core) noteStart(n peer.Name, s *started) {
	if old := c.startedPeers[n]; old == nil || old.slot != s.slot {
		c.put(bucketStarts, n[:], binary.BigEndian.AppendUint64(nil, s.slot))
	}
	c.startedPeers[n] = s
}

// forgetStart ends what noteStart began.
func (c *core) forgetStart(n peer.Name) {
	delete(c.startedPeers, n)
	c.putLater(bucketStarts, n[:], nil)
}

// knowsTransfer records that the signer of a transfer knows it.
func (c *core) knowsTransfer(s *started, a *ring.Action) {
	if a.AsOf > s.slot {
		return // it was signed since
	}
	most := maxKnown
	if c.hostOf(a.From.Name).IsZero() {
		most = maxTransfers
	}
	if s.knows == nil {
		s.knows = make(map[wishKey]bool)
	}
	if s.at = c.now; len(s.knows) < most {
		s.knows[keyOf(a)] = true
	}
}

// agreeRemembered returns an error for a transfer or a handover that its signer may have forgotten:
// it was signed before the signer started, this peer has not reported it to the signer, and has not got
// it from there since. Those that hear enough voters hear of each transfer that can be decided, and a
// voter that lies can keep one for any time.
func (c *core) agreeRemembered(a *ring.Action) error {
	s := c.startedPeers[a.From.Name]
	if s == nil || a.AsOf > s.slot || s.knows[keyOf(a)] || a.Kind == ring.Leave && s.leave == a.SignedID() {
		return nil
	}
	return fmt.Errorf("%s has started since it signed a %s, and may have forgotten it", c.displayName(a.From.Name), a.Kind)
}

// endStarted forgets the starts of peers that the ring does not name, and transfers that are not sent
// again.
func (c *core) endStarted() {
	named := make(map[peer.Name]bool)
	for h := range c.ring.Owners() {
		named[h.Name] = true
	}
	for _, h := range c.ring.Voters() {
		named[h.Name] = true
	}
	for n, s := range c.startedPeers {
		if !named[n] {
			c.forgetStart(n)
		} else if c.now.Sub(s.at) > wishTTL {
			s.knows = nil
		}
	}
}

// undecidedTransfers returns the transfers of a peer that this peer has seen and that may still
// be decided.
func (c *core) undecidedTransfers(h ring.Holder) (out []*ring.Action) {
	add := func(a *ring.Action) {
		if a.Kind == ring.Transfer && (a.From == h || a.From == ring.Holder{Name: h.Name}) && len(out) < maxTransfers {
			out = append(out, a)
		}
	}
	for _, w := range c.sortedWishes() {
		add(w.action)
	}
	if c.machine != nil && c.machine.Slot() == c.ring.Slot()+1 {
		for _, body := range c.machine.Bodies() {
			for _, a := range c.actionsOf(body) {
				add(a)
			}
		}
	}
	return out
}

// maxChecked bounds the bodies whose actions are remembered.
const maxChecked = 64

// actionsOf returns the actions of a body that can be the next decision, nil if it cannot. It checks
// a body once as long as the ring is the same: any peer can ask for them again and again, and a check
// costs signatures and a copy of the ring.
func (c *core) actionsOf(body []byte) []*ring.Action {
	if c.checkedEpoch != c.ring.Epoch() || len(c.checked) >= maxChecked {
		c.checkedEpoch, c.checked = c.ring.Epoch(), make(map[string][]*ring.Action)
	}
	actions, known := c.checked[string(body)]
	if !known {
		actions, _ = c.ring.CheckBody(body)
		c.checked[string(body)] = actions
	}
	return actions
}

// onStateAnswer hears how far a peer is.
func (c *core) onStateAnswer(from peer.Name, m message) {
	if c.catch == nil || !c.ring.Ready() {
		return
	}
	a := c.catch.asked[from]
	if a == nil || a.id != m.id {
		return
	}
	c.catch.heardAt = time.Time{}
	if a.other = m.status == statusOther; a.other {
		c.pushCatchUp()
		return
	}
	a.slot, a.disk = m.slot, m.disk
	if m.slot > c.ring.Slot() {
		return // asked again once the records are here
	}
	actions, err := transfersIn(m.body)
	if err != nil {
		return
	}
	changed := false
	for _, t := range actions {
		changed = c.honour(t) || changed
	}
	if changed {
		c.setOwned()
	}
	a.answered, a.old = true, m.status == statusToo
	c.pushCatchUp()
}

// honour makes a transfer that this peer has signed and forgotten an offer again, so that it
// does not use the range.
func (c *core) honour(a *ring.Action) bool {
	if a.Kind != ring.Transfer || !c.isMine(a.From) || c.isMine(a.To) || c.offers[string(a.Encode())] != nil || len(c.offers) >= maxOffers || c.ring.Check(a) != nil {
		return false
	}
	c.addOffer(&offer{action: a, to: a.To.Name, at: c.now})
	return true
}

// transfersIn parses the actions of a state answer.
func transfersIn(b []byte) (out []*ring.Action, err error) {
	f := fields{b: b}
	for len(f.b) > 0 && len(out) < maxTransfers {
		n := f.take(2)
		raw := f.take(int(binary.BigEndian.Uint16(n)))
		if f.bad {
			return nil, fmt.Errorf("transfers of %d bytes: %w", len(b), errMessage)
		}
		a, err := ring.ParseAction(raw)
		if err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	return out, nil
}

// hold records at once that owner uses an address, whoever owns its range and whoever had it
// by the state file: the kernel of this host says so. If another peer owns the range, this
// peer asks for the address. before is the owner by the state file, "" for none.
func (c *core) hold(owner string, p netip.Prefix) (before string) {
	a := p.Addr()
	old, had := c.allocations[a]
	if had && old.owner == owner {
		return owner
	}
	if had {
		c.unassign(old.owner, a)
	}
	if c.ringDivides(a) {
		c.space.Take(a)
	}
	c.assign(owner, a, p.Bits())
	if c.withheld(a) {
		c.setOwned()
	}
	c.findForeign()
	return old.owner
}
