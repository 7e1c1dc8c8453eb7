package ipam

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam/consensus"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// Decisions of the ring, as this peer takes part in them. A peer that wants something
// sends its wish to the voters until the ring shows it. A voter that consents to a wish
// works for its decision:
//
//	any peer          voters
//	wish ------------> consents? -> a machine of package consensus for the next slot
//	     ------------>    round <--------> round ...
//	ring <--- gossip ---- decision
//
// What a voter consents to is decided here and in voters.go. A consent is about what this
// voter itself knows; the word of the peer that asks is worth nothing.

const (
	wishTTL = 30 * time.Second // of another peer's wish that is not repeated
	// maxWishes bounds the wishes of other peers, and maxWishesBy those of one host. All
	// peers that are not alone at their underlay address count as one host.
	maxWishes   = 512
	maxWishesBy = 16
	// consentTTL is how long an operator's consent holds, and how long an heir goes on with a handover.
	consentTTL = 10 * time.Minute
	// aloneAfter is how many times Config.Absence a peer must be away until the wish of one
	// host is enough to remove it: 5 minutes.
	aloneAfter = 30
	// activeFor is how long a voter takes part after it last heard of a round.
	activeFor = 5 * time.Second
	// helpEvery is how often a peer that is behind is sent what it lacks. othersHelp and
	// othersHelpEvery bound that for all peers that have no vote together: a few bytes that
	// a made-up peer sends can make this one send the whole ring.
	helpEvery       = time.Second
	othersHelp      = 16
	othersHelpEvery = 500 * time.Millisecond
	// snapshotTail is how many bytes of decisions are kept before a snapshot.
	snapshotTail = 256 << 10
	// minSnapshotTail is how many there must be for a voter to agree to a snapshot.
	minSnapshotTail = 64 << 10
)

// wish is an action that a peer wants to be decided.
type wish struct {
	action *ring.Action
	own    bool
	from   ring.Holder // the host, of another peer's and of a handover; zero: see hostOf
	at     time.Time   // when it was last repeated
	sent   time.Time   // of an own wish
	// askedBy has the hosts that asked for a removal, and when each last did.
	askedBy map[ring.Holder]time.Time
}

// wishKey tells wishes apart. Two removals of one holder are one wish, and so are two
// handovers.
type wishKey struct {
	kind ring.Kind
	from ring.Holder
	id   [16]byte // of a transfer
}

func keyOf(a *ring.Action) wishKey {
	k := wishKey{kind: a.Kind, from: a.From}
	if a.Kind == ring.Transfer {
		sum := sha256.Sum256(a.Encode())
		copy(k.id[:], sum[:])
	}
	return k
}

// consent is something that the operator of this host agreed to.
type consent struct {
	kind ring.Kind
	peer ring.Holder
}

// wish works for the decision of an action until the ring shows it.
func (c *core) wish(a *ring.Action) {
	k := keyOf(a)
	old := c.wishes[k]
	if old != nil && old.own && a.Kind != ring.Leave {
		return
	}
	w := &wish{action: a, own: true, at: c.now}
	if old != nil {
		w.sent, w.askedBy = old.sent, old.askedBy
	}
	c.wishes[k] = w
}

// hostOf returns the host that a peer counts as: itself if it is alone at its underlay
// address, as far as this peer sees. All other peers count as one, the zero holder:
// whoever knows the password can make up any number of them.
func (c *core) hostOf(n peer.Name) ring.Holder {
	if h, ok := c.holderOf(n); ok && c.eligible(h) {
		return h
	}
	return ring.Holder{}
}

// endConsents ends what the operator of this host agreed to and what came true, so that one
// voter cannot bring it about again: a removed peer may come back and be away, and the end of
// a ban may be decided by others. A ban itself is consented to as long as it is in force, see
// removeBannedSeeds.
func (c *core) endConsents() {
	for k := range c.consents {
		over := false
		switch k.kind {
		case ring.Remove:
			over = !c.inRing(k.peer)
		case ring.Ban:
			over = slices.Contains(c.banned, k.peer) && !c.ring.IsBanned(k.peer)
		case ring.Unban:
			over = !c.ring.IsBanned(k.peer)
		}
		if over {
			delete(c.consents, k)
		}
	}
}

// spaceForWish reports whether one more wish of a host is kept. If there are too many, the
// host with the most loses its oldest one.
func (c *core) spaceForWish(from ring.Holder) bool {
	by := make(map[ring.Holder]int)
	total := 0
	for _, w := range c.wishes {
		if !w.own {
			by[w.from]++
			total++
		}
	}
	if by[from] >= maxWishesBy {
		return false
	}
	if total < maxWishes {
		return true
	}
	var victim wishKey
	for k, w := range c.wishes {
		if v := c.wishes[victim]; !w.own && (v == nil || by[w.from] > by[v.from] || by[w.from] == by[v.from] && w.at.Before(v.at)) {
			victim = k
		}
	}
	if by[c.wishes[victim].from] <= by[from]+1 {
		return false
	}
	delete(c.wishes, victim)
	return true
}

// onWish takes the wish of another peer, if this peer has a vote.
func (c *core) onWish(from peer.Name, m message) {
	a, err := ring.ParseAction(m.body)
	if err != nil || !c.ring.Ready() || !c.hasVote() {
		return
	}
	switch a.Kind {
	case ring.Transfer, ring.Leave:
		if c.ring.Check(a) != nil {
			if m.id < c.ring.Slot() {
				c.help(from, m.id)
			}
			return
		}
	case ring.Remove:
		if c.ring.Check(a) != nil {
			return
		}
	case ring.Ban, ring.Unban, ring.Adopt:
		c.hearOperator(from, a)
		return
	default:
		return
	}
	host := c.hostOf(from)
	k := keyOf(a)
	if s := c.startedPeers[from]; s != nil && a.Kind == ring.Transfer && a.From.Name == from {
		c.knowsTransfer(s, a) // also if there is no space for it: other voters may propose it
	}
	w := c.wishes[k]
	if w == nil {
		if !c.spaceForWish(host) {
			c.counters.Wishes++
			return
		}
		w = &wish{action: a, from: host}
		c.wishes[k] = w
	}
	if !w.own {
		w.at = c.now
		if a.Kind == ring.Leave {
			w.action = a // signed again, perhaps for another heir
		}
	}
	if a.Kind == ring.Remove {
		w.ask(host, c.now)
		if err := c.agreeRemoval(c.removalOf(a.From)); err != nil {
			c.send(from, message{kind: msgRefusal, body: []byte(err.Error())})
		}
	}
	c.pushDecide()
}

// ask records that a host wants a removal.
func (w *wish) ask(host ring.Holder, now time.Time) {
	if w.askedBy == nil {
		w.askedBy = make(map[ring.Holder]time.Time)
	}
	maps.DeleteFunc(w.askedBy, func(_ ring.Holder, at time.Time) bool { return now.Sub(at) > wishTTL })
	if !host.IsZero() {
		w.askedBy[host] = now
	}
}

// refusal is why a voter does not agree to a wish of this peer.
type refusal struct {
	reason string
	at     time.Time
}

// maxRefusal is the longest reason that is kept, in bytes.
const maxRefusal = 200

func (c *core) onRefusal(from peer.Name, m message) {
	if c.ring.Ready() && c.voterNamed(from) {
		c.refusals[from] = refusal{strings.ToValidUTF8(string(m.body[:min(len(m.body), maxRefusal)]), "?"), c.now}
	}
}

// dropWishes drops the wishes that came true, and those that are not repeated.
func (c *core) dropWishes() {
	for k, w := range c.wishes {
		if c.wishEnds(w) {
			delete(c.wishes, k)
		}
	}
	for n, r := range c.refusals {
		if c.now.Sub(r.at) > 3*resendEvery {
			delete(c.refusals, n)
		}
	}
	for k, at := range c.consents {
		if c.now.Sub(at) > consentTTL {
			delete(c.consents, k)
		}
	}
	c.dropVoices()
}

// wishEnds reports whether a wish came true, is void, or was not repeated.
func (c *core) wishEnds(w *wish) bool {
	if c.ring.CheckEffect(w.action) != nil {
		return true
	}
	age := c.now.Sub(w.at)
	if w.action.Kind == ring.Remove {
		// A peer that is back is not dead, and what an operator asked for does not hold for
		// the next time that it is away.
		if c.present(w.action.From) {
			delete(c.consents, consent{ring.Remove, w.action.From})
			return true
		}
		return age > consentTTL || !w.own && age > wishTTL
	}
	// The heir goes on with a handover for a while if the host that leaves has ended.
	return !w.own && age > wishTTL || w.action.Kind == ring.Leave && age > consentTTL
}

// sortedWishes returns the wishes in the order in which they came.
func (c *core) sortedWishes() (out []*wish) {
	for _, w := range c.wishes {
		out = append(out, w)
	}
	slices.SortFunc(out, func(a, b *wish) int {
		return cmp.Or(a.at.Compare(b.at), bytes.Compare(a.action.Encode(), b.action.Encode()))
	})
	return out
}

// propose returns the body that this voter proposes now, nil for none. An action that must be alone
// does not fit behind others, of which there can always be some. So it is the first one in every
// second proposal.
func (c *core) propose() []byte {
	actions := c.actions()
	if c.aloneFirst = !c.aloneFirst; c.aloneFirst {
		var alone, others []*ring.Action
		for _, a := range actions {
			if c.ring.Alone(a) {
				alone = append(alone, a)
			} else {
				others = append(others, a)
			}
		}
		actions = append(alone, others...)
	}
	return c.ring.Body(actions)
}

// actions returns what this voter would propose now.
func (c *core) actions() (out []*ring.Action) {
	if a := c.wantSnapshot(); a != nil {
		return []*ring.Action{a}
	}
	for _, w := range c.sortedWishes() {
		a := w.action
		if a.Kind == ring.Remove {
			a = c.removalOf(a.From)
		}
		if c.agree(a) == nil {
			out = append(out, a)
		}
	}
	out = append(out, c.heardEnough()...)
	if a := c.wantVoters(); a != nil {
		out = append(out, a)
	}
	return out
}

func (c *core) wantSnapshot() *ring.Action {
	if tail, snapshot := c.ring.TailSize(); tail > max(snapshotTail, 2*snapshot) {
		return c.ring.NextSnapshot()
	}
	return nil
}

// agree returns an error if this voter does not agree to an action. The signatures of the
// action were checked when it arrived.
func (c *core) agree(a *ring.Action) error {
	if err := c.ring.CheckEffect(a); err != nil {
		return err
	}
	switch a.Kind {
	case ring.Transfer, ring.Leave:
		// Those from whom it takes have signed it. But nothing goes to a peer that is
		// away, as it may be removed soon.
		if !c.present(a.To) {
			return fmt.Errorf("%s cannot be reached from %s", c.displayName(a.To.Name), c.displayName(c.cfg.Self))
		}
		if err := c.agreeRemembered(a); err != nil || a.Kind == ring.Leave {
			return err
		}
		return c.agreeCut(a)
	case ring.Remove:
		return c.agreeRemoval(a)
	case ring.Voters:
		return c.agreeVoters(a)
	case ring.Ban, ring.Unban:
		if a.Kind == ring.Ban && a.To != c.heirFor(a.From) {
			return fmt.Errorf("the heir of %s is %s, not %s", a.From, c.heirFor(a.From), a.To)
		}
		if _, ok := c.consents[consent{a.Kind, a.From}]; !ok {
			return fmt.Errorf("the operator of %s did not ask for the %s of %s", c.displayName(c.cfg.Self), a.Kind, a.From)
		}
		return nil
	case ring.Adopt:
		return c.agreeAdoption(a)
	case ring.Snapshot:
		if tail, _ := c.ring.TailSize(); tail < minSnapshotTail {
			return errors.New("there are too few decisions for a snapshot")
		}
		return nil
	}
	return fmt.Errorf("%s is unknown here", a.Kind)
}

func (c *core) removalOf(gone ring.Holder) *ring.Action {
	return &ring.Action{Kind: ring.Remove, From: gone, To: c.heirFor(gone)}
}

// agreeRemoval returns an error if this voter does not agree to a removal. It agrees if its
// own operator asked for it. Otherwise the peer must have been away for a while: two hosts
// that ask for the removal are enough then, this one and its programs among them, but one
// alone may lie, and must wait for longer than a host takes to restart.
func (c *core) agreeRemoval(a *ring.Action) error {
	if c.present(a.From) {
		return fmt.Errorf("%s can be reached from %s", c.displayName(a.From.Name), c.displayName(c.cfg.Self))
	}
	if heir := c.heirFor(a.From); a.To != heir {
		return fmt.Errorf("the heir of %s is %s, not %s", a.From, heir, a.To)
	}
	if _, asked := c.consents[consent{ring.Remove, a.From}]; asked {
		return nil
	}
	away, alone := c.absentFor(a.From), aloneAfter*c.cfg.Absence
	if away >= alone || away >= c.cfg.Absence && c.askedForRemoval(a.From) >= 2 {
		return nil
	}
	return fmt.Errorf("%s has been away for %v only; %s agrees after %v, after %v if two hosts ask for it, or at once if its operator removes the peer too",
		c.displayName(a.From.Name), away.Round(time.Second), c.displayName(c.cfg.Self), alone, c.cfg.Absence)
}

// askedForRemoval returns how many hosts have asked for a removal lately.
func (c *core) askedForRemoval(gone ring.Holder) (n int) {
	if w := c.wishes[wishKey{kind: ring.Remove, from: gone}]; w != nil {
		for _, at := range w.askedBy {
			if c.now.Sub(at) <= wishTTL {
				n++
			}
		}
		if w.own {
			n++
		}
	}
	return n
}

// heirFor returns the peer that gets the space of gone: the first voter that is present,
// in an order that the hash of both names and keys decides. A voter can therefore only try
// keys until it is the heir of a peer that it has chosen before.
func (c *core) heirFor(gone ring.Holder) (heir ring.Holder) {
	var best [32]byte
	for _, h := range c.ring.Voters() {
		if h == gone || !c.present(h) {
			continue
		}
		if sum := sha256.Sum256(h.Append(gone.Append(nil))); heir.IsZero() || bytes.Compare(sum[:], best[:]) < 0 {
			heir, best = h, sum
		}
	}
	if heir.IsZero() {
		return c.self
	}
	return heir
}

// agreeBody returns an error if this voter does not agree to all actions of a body.
func (c *core) agreeBody(body []byte) error {
	actions, err := c.ring.CheckBody(body)
	if err != nil {
		return err
	}
	for _, a := range actions {
		if err := c.agree(a); err != nil {
			return err
		}
	}
	return nil
}

// voter returns this peer as a voter.
func (c *core) voter() (ring.Holder, bool) {
	for _, h := range c.mine() {
		if slices.Contains(c.ring.Voters(), h) {
			return h, true
		}
	}
	return ring.Holder{}, false
}

func (c *core) hasVote() bool {
	_, ok := c.voter()
	return ok && !c.left
}

func (c *core) voterNamed(n peer.Name) bool {
	return slices.ContainsFunc(c.ring.Voters(), func(h ring.Holder) bool { return h.Name == n && c.present(h) })
}

// pushDecide continues everything that waits for a decision.
func (c *core) pushDecide() {
	if !c.ring.Ready() {
		return
	}
	c.dropWishes()
	c.sendWishes()
	// A voter whose disk went back in time must not vote before it has heard of the
	// decisions since then.
	if !c.hasVote() || c.deciding || c.now.Before(c.graceEnd()) || !c.caughtUp() {
		return
	}
	c.deciding = true
	defer func() { c.deciding = false }()
	m := c.slotMachine()
	if m == nil || !m.Pending() && !c.now.Before(c.activeUntil) && len(c.actions()) == 0 {
		return
	}
	m.Tick(c.now)
	c.afterMachine()
}

// slotMachine returns the machine of the next slot.
func (c *core) slotMachine() *consensus.Machine {
	self, ok := c.voter()
	if !ok {
		return nil
	}
	if c.machine != nil && c.machine.Slot() == c.ring.Slot()+1 && c.machineRing == c.ring.Genesis().ID() {
		return c.machine
	}
	m, err := consensus.New(consensus.Config{
		Ring: c.ring.Genesis().ID(), Slot: c.ring.Slot() + 1, Voters: c.ring.Voters(), Self: self,
		Signer: c.cfg.Signer, Verifier: c.cfg.Verifier, SignedBy: c.ring.SignedBy,
		Propose:   c.propose,
		Fits:      func(body []byte) error { _, err := c.ring.CheckBody(body); return err },
		Agree:     c.agreeBody,
		Reachable: c.present,
	}, c.savedVotes)
	if err != nil {
		c.warn("cannot take part in decisions of the ring", "err", err)
		return nil
	}
	c.machine, c.machineRing = m, c.ring.Genesis().ID()
	return m
}

// afterMachine writes and sends what the machine changed, and merges its decision.
func (c *core) afterMachine() {
	m := c.machine
	if m.TakeChanged() {
		c.savedVotes = m.State()
		c.put(bucketVotes, []byte("slot"), c.savedVotes)
		c.roundSent = time.Time{}
	}
	if d := m.Decided(); d != nil {
		c.sendRound() // so that the others see the same quorum, if gossip is slow
		out, err := c.ring.Decide(d)
		if err != nil {
			c.warn("a decision has a quorum but the ring refuses it", "err", err)
		}
		c.machine, c.activeUntil = nil, time.Time{}
		c.publish(out)
		return
	}
	if c.now.Sub(c.roundSent) >= resendEvery {
		c.sendRound()
	}
}

func (c *core) sendRound() {
	c.roundSent = c.now
	for _, b := range c.machine.Messages(c.now) {
		c.sendVoters(message{kind: msgRound, body: b})
	}
}

// sendVoters sends to the other voters that are present.
func (c *core) sendVoters(m message) {
	for _, h := range c.ring.Voters() {
		if !c.isMine(h) && c.present(h) {
			c.send(h.Name, m)
		}
	}
}

// sendWishes sends own wishes to the voters, until they come true.
func (c *core) sendWishes() {
	for _, w := range c.sortedWishes() {
		if !w.own || c.now.Sub(w.sent) < resendEvery {
			continue
		}
		w.sent = c.now
		c.sendVoters(message{kind: msgWish, id: c.ring.Slot(), body: w.action.Encode()})
	}
	c.sendVoices()
}

// onRound takes a message of another voter.
func (c *core) onRound(from peer.Name, m message) {
	slot, err := consensus.SlotOf(m.body)
	if err != nil || !c.ring.Ready() || !c.voterNamed(from) {
		return
	}
	switch mine := c.ring.Slot() + 1; {
	case slot < mine:
		c.help(from, slot-1)
		return
	case slot > mine:
		c.send(from, message{kind: msgBehind, slot: c.ring.Slot()})
		return
	}
	machine := c.slotMachine()
	if machine == nil || c.left || c.now.Before(c.graceEnd()) || !c.caughtUp() {
		return
	}
	c.activeUntil = c.now.Add(activeFor)
	if err := machine.Receive(c.now, from, m.body); err != nil {
		c.counters.Rounds++
		return
	}
	if machine == c.machine {
		c.deciding = true
		machine.Tick(c.now)
		c.deciding = false
		c.afterMachine()
	}
}

// onBehind hears how far a peer is, and sends it what it lacks.
func (c *core) onBehind(from peer.Name, m message) {
	if c.ring.Ready() && m.slot < c.ring.Slot() {
		c.help(from, m.slot)
	}
	c.heardLeave(from, m.slot)
}

// help sends a peer the decisions after slot, at most once in helpEvery.
func (c *core) help(to peer.Name, slot uint64) {
	if c.now.Sub(c.helped[to]) < helpEvery || !c.voterNamed(to) && !c.helps.take(c.now, othersHelp, othersHelpEvery) {
		return
	}
	if len(c.helped) >= maxWishes {
		clear(c.helped)
	}
	c.helped[to] = c.now
	for _, d := range c.ring.Since(slot) {
		c.send(to, message{kind: msgRecords, body: d})
	}
}

// undecided returns what a decision waits for.
func (c *core) undecided() string {
	voters := c.ring.Voters()
	need := ring.Quorum(len(voters))
	var away []string
	for _, h := range voters {
		if !c.present(h) {
			away = append(away, c.displayName(h.Name))
		}
	}
	s := fmt.Sprintf("%d of %s can be reached, %d must agree", len(voters)-len(away), count.Of(len(voters), "voter", "voters"), need)
	if len(away) > 0 {
		s += "; away: " + joinNames(away)
	}
	for _, h := range voters {
		if r, ok := c.refusals[h.Name]; ok {
			s += fmt.Sprintf("; %s says %q", c.displayName(h.Name), r.reason)
		}
	}
	for _, w := range c.sortedWishes() {
		if err := c.agree(w.action); w.own && err != nil && c.hasVote() {
			s += "; " + err.Error()
			break
		}
	}
	return s
}
