package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

type requestKind int

const (
	reqAllocate requestKind = iota
	reqClaim
	reqPrime
)

// request is a call that waits.
type request struct {
	id     uint64
	kind   requestKind
	owner  string
	subnet netip.Prefix // of an allocation; of a claim, the address and its length
	asked  peer.Name    // of a claim: the owner that was asked
	askID  uint64
	askAt  time.Time
}

// allocation is an address in use here.
type allocation struct {
	owner string
	bits  int // prefix length of the subnet, for the interface
}

// spaceAsk is the one open question for addresses of a subnet.
type spaceAsk struct {
	id   uint64
	to   peer.Name
	sent time.Time
	next time.Time // not before
	// promised is when the peer by said that it gives a range, zero if none did or the range is here. The
	// decision takes a while.
	promised time.Time
	by       peer.Name
}

// donor is the last answer of a peer about its free addresses.
type donor struct {
	subnet netip.Prefix
	free   addr.Count
	at     time.Time
}

func (c *core) nextID() uint64 {
	c.lastID++
	return c.lastID
}

// maxOwner is the longest owner, in bytes.
const maxOwner = 255

func checkOwner(owner string) error {
	if owner == "" || len(owner) > maxOwner {
		return fmt.Errorf("container id of %d bytes: want 1 to %d", len(owner), maxOwner)
	}
	return nil
}

// allocate begins an allocation.
func (c *core) allocate(id uint64, owner string, subnet netip.Prefix) {
	if err := c.checkAllocate(owner, subnet); err != nil {
		c.fail(id, err)
		return
	}
	c.begin(&request{id: id, kind: reqAllocate, owner: owner, subnet: subnet.Masked()})
}

func (c *core) checkAllocate(owner string, subnet netip.Prefix) error {
	if err := checkOwner(owner); err != nil {
		return err
	}
	if !addr.Of(subnet).Overlaps(addr.Of(c.cfg.Range)) {
		return fmt.Errorf("subnet %s is outside the address range %s", subnet, c.cfg.Range)
	}
	_, err := addr.Hosts(subnet)
	return err
}

// claim begins a claim.
func (c *core) claim(id uint64, owner string, p netip.Prefix) {
	if err := checkOwner(owner); err != nil {
		c.fail(id, err)
		return
	}
	c.begin(&request{id: id, kind: reqClaim, owner: owner, subnet: p})
}

// prime begins a request that waits for the ring.
func (c *core) prime(id uint64) { c.begin(&request{id: id, kind: reqPrime}) }

func (c *core) begin(r *request) {
	if c.tryRequest(r) {
		return
	}
	c.pending = append(c.pending, r)
	if !c.ring.Ready() {
		c.ringWanted = true
		c.establish()
	}
	c.pushAsks()
}

// retryPending tries all pending requests again.
func (c *core) retryPending() {
	c.pending = slices.DeleteFunc(c.pending, c.tryRequest)
	for subnet := range c.asks {
		if !slices.ContainsFunc(c.pending, func(r *request) bool { return r.kind == reqAllocate && r.subnet == subnet }) {
			delete(c.asks, subnet)
		}
	}
	c.pushAsks()
}

// tryRequest replies to r if it can, and reports whether it did.
func (c *core) tryRequest(r *request) bool {
	if c.left || c.leaving != nil {
		c.fail(r.id, ErrLeft)
		return true
	}
	switch r.kind {
	case reqPrime:
		if !c.ring.Ready() || !c.caughtUp() {
			return c.failCopy(r)
		}
		c.reply(r.id, answer{})
		return true
	case reqAllocate:
		return c.tryAllocate(r)
	}
	return c.tryClaim(r)
}

// failCopy ends a request that cannot succeed, as this host is a copy of another one, and
// reports whether it did.
func (c *core) failCopy(r *request) bool {
	if !c.isCopy() {
		return false
	}
	c.fail(r.id, c.notCaughtUp())
	return true
}

func (c *core) tryAllocate(r *request) bool {
	if a, ok := c.lookup(r.owner, r.subnet); ok {
		c.reply(r.id, answer{prefix: a})
		return true
	}
	hosts, err := addr.Hosts(r.subnet)
	if err != nil || !c.ring.Ready() || !c.caughtUp() {
		return c.failCopy(r)
	}
	a, ok := c.space.Allocate(hosts)
	if !ok {
		return false
	}
	c.assign(r.owner, a, r.subnet.Bits())
	c.reply(r.id, answer{prefix: netip.PrefixFrom(a, r.subnet.Bits())})
	return true
}

func (c *core) tryClaim(r *request) bool {
	a := r.subnet.Addr()
	if old, ok := c.allocations[a]; ok {
		if old.owner != r.owner {
			c.fail(r.id, because(ErrInUse, "it is in use here by %s", c.cfg.describeOwner(old.owner)))
		} else {
			c.reply(r.id, answer{})
		}
		return true
	}
	if c.ringDivides(a) {
		owner, ok := c.ring.Owner(a)
		if !ok || !c.isMine(owner) || !c.caughtUp() {
			return c.failCopy(r)
		}
		if !c.space.Owns(a) {
			if k := c.keptAt(a); k != nil && !k.isOpen() {
				c.fail(r.id, c.isKept(a, k.from.Name, c.cfg.Self, k.until))
				return true
			}
			return false
		}
		c.space.Take(a)
	}
	c.assign(r.owner, a, r.subnet.Bits())
	c.reply(r.id, answer{})
	return true
}

// assign records that owner uses a, which is already taken in space.
func (c *core) assign(owner string, a netip.Addr, bits int) {
	c.allocations[a] = allocation{owner, bits}
	c.byOwner[owner] = append(c.byOwner[owner], a)
	c.writes = append(c.writes, allocationWrite(owner, a, bits))
}

// lookup returns the address that owner has in subnet.
func (c *core) lookup(owner string, subnet netip.Prefix) (netip.Prefix, bool) {
	for _, a := range c.byOwner[owner] {
		if al := c.allocations[a]; subnet.Contains(a) && al.bits == subnet.Bits() {
			return netip.PrefixFrom(a, al.bits), true
		}
	}
	return netip.Prefix{}, false
}

// release frees one address of owner, and reports whether owner had it.
func (c *core) release(owner string, a netip.Addr) bool {
	if al, ok := c.allocations[a]; !ok || al.owner != owner {
		return false
	}
	c.unassign(owner, a)
	c.space.Release(a)
	if c.withheld(a) {
		c.setOwned()
	}
	c.writes = append(c.writes, releaseWrite(a))
	c.retryPending()
	return true
}

// unassign forgets that owner uses a, which stays taken in space.
func (c *core) unassign(owner string, a netip.Addr) {
	delete(c.allocations, a)
	delete(c.foreign, a)
	rest := slices.DeleteFunc(c.byOwner[owner], func(b netip.Addr) bool { return a == b })
	if c.byOwner[owner] = rest; len(rest) == 0 {
		delete(c.byOwner, owner)
	}
}

// cancel ends a request whose time is up. The error says what it waited for; it
// is nil if there is no such request.
func (c *core) cancel(id uint64) (waitedFor error) {
	i := slices.IndexFunc(c.pending, func(r *request) bool { return r.id == id })
	if i < 0 {
		return c.cancelOther(id)
	}
	waitedFor = c.waitsFor(c.pending[i])
	c.pending = slices.Delete(c.pending, i, i+1)
	c.retryPending()
	return waitedFor
}

// waitsFor returns the reason why r waits.
func (c *core) waitsFor(r *request) error {
	if !c.ring.Ready() {
		return c.noRing()
	}
	if !c.caughtUp() {
		return c.notCaughtUp()
	}
	if r.kind == reqAllocate {
		return c.noSpace(r.subnet)
	}
	a := r.subnet.Addr()
	owner, _ := c.ring.Owner(a)
	switch {
	case c.isMine(owner) && c.keptAt(a) != nil:
		return because(ErrKept, "%s belonged to another peer, and hosts that use its addresses have %v to say so", a, claimsFirst)
	case c.isMine(owner) && c.rivals[a] != nil:
		return because(ErrInUse, "%s is in use on another host, by what that host says", a)
	case c.isMine(owner):
		return because(ErrNoAnswer, "%s was promised to another host", a)
	case !c.present(owner) && c.selfBanned():
		return because(ErrUnreachable, "%s is in a range of %s, and this host is banned from the mesh", a, c.displayName(owner.Name))
	case !c.present(owner):
		return because(ErrUnreachable, "%s is in a range of %s, which is unreachable; if it is dead for good, 'weft rmpeer %s' gives its addresses to others",
			a, c.displayName(owner.Name), owner.Name)
	}
	return because(ErrNoAnswer, "%s is in a range of %s, which has not answered", a, c.displayName(owner.Name))
}

// noSpace returns the reason why no address of subnet is available.
func (c *core) noSpace(subnet netip.Prefix) error {
	var unreachable, full []string
	for _, h := range c.ownersIn(subnet) {
		switch {
		case c.isMine(h):
		case !c.present(h):
			unreachable = append(unreachable, c.displayName(h.Name))
		default:
			full = append(full, c.displayName(h.Name))
		}
	}
	kept := ""
	if n := c.keptIn(subnet); !n.IsZero() {
		kept = fmt.Sprintf("; %s %s for hosts that may use them", n,
			count.Form(n.Float(), "address of this peer belonged to another, and waits", "addresses of this peer belonged to others, and wait"))
	}
	switch {
	case len(unreachable) == 0 && len(full) == 0 && kept != "":
		return because(ErrNoSpace, "subnet %s has no free address%s", subnet, kept)
	case len(unreachable) == 0 && len(full) == 0:
		return because(ErrNoSpace, "subnet %s is full: all of it is owned and used here", subnet)
	case len(full) == 0 && c.selfBanned():
		return because(ErrUnreachable, "this host is banned from the mesh, and all ranges of %s that are not used here belong to others: %s%s", subnet, joinNames(unreachable), kept)
	case len(full) == 0:
		return because(ErrUnreachable, "all ranges of %s that are not used here are owned by unreachable peers %s%s", subnet, joinNames(unreachable), kept)
	case len(unreachable) == 0:
		return because(ErrNoSpace, "subnet %s is full: no peer that owns a part of it gave any: %s%s", subnet, joinNames(full), kept)
	}
	return because(ErrNoSpace, "no free address of %s: %s gave none, and %s cannot be reached%s", subnet, joinNames(full), joinNames(unreachable), kept)
}

// joinNames joins names, and only counts those that would make the line too long.
func joinNames(names []string) string {
	const most = 8
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}

// ownersIn returns the owners of parts of subnet, in order of their names.
func (c *core) ownersIn(subnet netip.Prefix) []ring.Holder {
	var out []ring.Holder
	for h := range c.ring.OwnersIn(addr.Of(subnet)) {
		out = append(out, h)
	}
	slices.SortFunc(out, ring.Holder.Compare)
	return out
}

// pushAsks asks other peers for the addresses that the pending requests need.
func (c *core) pushAsks() {
	if !c.ring.Ready() || !c.caughtUp() || c.ring.Epoch() != c.epoch {
		return // after a change of the ring, refresh first tries the requests again
	}
	for _, r := range c.pending {
		switch r.kind {
		case reqAllocate:
			c.pushSpaceAsk(r.subnet)
		case reqClaim:
			c.pushClaimAsk(r)
		}
	}
}

func (c *core) pushSpaceAsk(subnet netip.Prefix) {
	ask := c.asks[subnet]
	if ask == nil {
		ask = &spaceAsk{}
		c.asks[subnet] = ask
	}
	if !ask.to.IsZero() && c.now.Before(ask.sent.Add(askTimeout)) || c.now.Before(ask.promised.Add(promiseTTL)) || c.now.Before(ask.next) {
		return
	}
	if !ask.to.IsZero() { // no answer: try others for a while
		c.donors[ask.to] = donor{subnet: subnet, at: c.now}
	}
	if !ask.by.IsZero() { // no range: try others rather
		c.donors[ask.by] = donor{subnet, addr.N(1), c.now}
	}
	ask.to, ask.by, ask.promised = peer.Name{}, peer.Name{}, time.Time{}
	to, ok := c.pickDonor(subnet)
	if !ok {
		return
	}
	*ask = spaceAsk{id: c.nextID(), to: to, sent: c.now}
	c.send(to, message{kind: msgSpaceAsk, id: ask.id, prefix: subnet})
}

// pickDonor picks a peer that owns a part of subnet, at random. The weight of a peer
// is the number of free addresses by its last answer, or else of those it owns.
func (c *core) pickDonor(subnet netip.Prefix) (peer.Name, bool) {
	owners := c.ring.OwnersIn(addr.Of(subnet))
	var names []peer.Name
	var weights []float64
	total := 0.0
	for _, h := range c.ownersIn(subnet) {
		if c.isMine(h) || !c.present(h) {
			continue
		}
		w := owners[h].Float()
		if d, ok := c.donors[h.Name]; ok && d.subnet == subnet && c.now.Sub(d.at) < donorTTL {
			w = min(w, d.free.Float())
		}
		if w > 0 {
			names, weights, total = append(names, h.Name), append(weights, w), total+w
		}
	}
	if len(names) == 0 {
		return peer.Name{}, false
	}
	x := c.rng.Float64() * total
	for i, w := range weights {
		if x -= w; x < 0 {
			return names[i], true
		}
	}
	return names[len(names)-1], true
}

func (c *core) onSpaceAnswer(from peer.Name, m message) {
	for subnet, ask := range c.asks {
		if ask.id != m.id || ask.to != from {
			continue
		}
		c.donors[from] = donor{subnet, m.free, c.now}
		ask.to = peer.Name{}
		if m.status == statusYes {
			ask.promised, ask.by = c.now, from
		} else {
			c.donors[from] = donor{subnet, addr.Count{}, c.now}
		}
	}
	c.retryPending()
}

// promiseKept ends the wait for a range that is here, perhaps before the answer: if it is not enough,
// this peer asks again soon. The peer that gave it must have heard of the decision, or it would say that
// the range is on its way.
func (c *core) promiseKept(m ring.Move) {
	for subnet, ask := range c.asks {
		if from := m.From.Name; (ask.by == from || ask.to == from) && m.Ranges[0].Overlaps(addr.Of(subnet)) {
			*ask = spaceAsk{next: c.now.Add(askPause)}
		}
	}
}

func (c *core) pushClaimAsk(r *request) {
	owner, ok := c.ring.Owner(r.subnet.Addr())
	if !ok || c.isMine(owner) || !c.present(owner) {
		return
	}
	if owner.Name == r.asked && c.now.Before(r.askAt.Add(askTimeout)) {
		return
	}
	r.asked, r.askAt, r.askID = owner.Name, c.now, c.nextID()
	c.send(owner.Name, message{kind: msgClaimAsk, id: r.askID, addr: r.subnet.Addr()})
}

func (c *core) onClaimAnswer(from peer.Name, m message) {
	if c.regainAnswer(from, m) || m.status != statusNo && m.status != statusKept {
		return
	}
	c.pending = slices.DeleteFunc(c.pending, func(r *request) bool {
		if r.kind != reqClaim || r.askID != m.id || r.asked != from {
			return false
		}
		if m.status == statusKept {
			c.fail(r.id, c.isKept(r.subnet.Addr(), m.name, from, m.until))
		} else {
			c.fail(r.id, because(ErrInUse, "it is in use on peer %s", c.displayName(from)))
		}
		return true
	})
}
