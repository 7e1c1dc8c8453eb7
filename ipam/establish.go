package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/internal/count"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// newElection starts the election of the first ring, or continues the one on disk.
func (c *core) newElection(own, value []byte) (*paxos.Election, error) {
	if c.cfg.Init.Mode == Seed {
		return nil, nil
	}
	instance := append([]byte("first ring of "), c.cfg.Range.String()...)
	return paxos.NewElection(paxos.Config{
		Self: c.cfg.Self, Signer: c.cfg.Signer, Verifier: c.cfg.Verifier,
		Instance:   instance,
		Expect:     max(c.cfg.Init.Expect, 1),
		Observer:   c.cfg.Init.Mode == Observer,
		Now:        func() time.Time { return c.now },
		Eligible:   c.countsForFirstRing,
		Host:       c.hostForFirstRing,
		Value:      encodeFounders,
		Acceptable: c.acceptFounders,
		SealMessage: func(value []byte) (string, []byte) {
			g, err := c.foundedBy(value)
			if err != nil {
				return "", nil // Acceptable has refused it
			}
			return ring.VoteDomain, g.VoteMessage()
		},
	}, own, value)
}

// encodeFounders encodes the value that an election chooses: the founders, 22 bytes each.
func encodeFounders(founders []ring.Holder) (b []byte) {
	for _, h := range founders {
		b = h.Append(b)
	}
	return b
}

// foundedBy returns the genesis of a value, without votes.
func (c *core) foundedBy(value []byte) (*ring.Genesis, error) {
	founders, err := ring.ParseHolders(value)
	if err != nil {
		return nil, err
	}
	return ring.NewGenesis(c.cfg.Range, founders)
}

// hostForFirstRing returns what counts as the host of a peer: its underlay address; zero for all that have
// no direct session with this peer.
func (c *core) hostForFirstRing(h ring.Holder) netip.Addr {
	a, _ := c.view.Place(h.Name)
	return placeOf(a)
}

// acceptFounders returns an error unless an honest peer could propose a value: all
// founders take part in the election, and they are enough to choose it.
func (c *core) acceptFounders(value []byte) error {
	g, err := c.foundedBy(value)
	if err != nil {
		return err
	}
	for _, h := range g.Founders {
		if !c.election.Knows(h) {
			return fmt.Errorf("founder %s takes no part in the election, or has no address of its own", h)
		}
	}
	if n := len(g.Founders); n < c.election.Needed() {
		return fmt.Errorf("%d founders, %d needed", n, c.election.Needed())
	}
	return nil
}

// establish makes the first ring if one is wanted.
func (c *core) establish() {
	if c.ring.Ready() || c.left {
		return
	}
	if _, waits := c.ring.Awaits(); waits {
		return
	}
	if c.election != nil {
		progress := c.election.Progress()
		if c.election.React() {
			c.putOffProposal(progress)
			c.publishVote()
		}
	}
	if !c.ringWanted || c.now.Before(c.graceEnd()) {
		return
	}
	if c.cfg.Lost && c.now.Before(c.started.Add(c.cfg.CatchUp)) {
		return // others may have the ring of this peer
	}
	if c.election == nil {
		c.startSeeds()
		return
	}
	if !c.proposedAt.IsZero() && c.now.Sub(c.proposedAt) >= hurryAfter && c.election.Hurry() {
		c.publishVote()
	}
	if c.ring.Ready() || c.now.Before(c.nextPropose) {
		return
	}
	c.nextPropose = c.now.Add(2*electionPause + time.Duration(c.rng.Int64N(int64(electionPause))))
	c.proposedAt = c.now
	if c.election.Propose() {
		c.publishVote()
	}
}

// putOffProposal lets the attempt in which this peer takes part finish before it starts its own, if there
// is progress since before.
func (c *core) putOffProposal(before paxos.Progress) {
	now := c.election.Progress()
	if now == before {
		return
	}
	pause := time.Duration(c.rng.Int64N(int64(electionPause)))
	c.nextPropose = c.now.Add(electionPause + pause)
	if end := now.Until().Add(-electionPause - pause); c.election.Proposed() && end.After(c.nextPropose) {
		c.nextPropose = end
	}
}

// electionWaits reports whether establish must be called soon although no ring is wanted here.
func (c *core) electionWaits() bool {
	return !c.ring.Ready() && !c.left && c.election != nil && c.election.Waiting()
}

func (c *core) graceEnd() time.Time { return c.started.Add(c.cfg.Grace) }

// publishVote writes and announces this peer's entry of the election, and makes the
// ring if the election is decided.
func (c *core) publishVote() {
	own, value := c.election.Own()
	c.put(bucketElection, []byte("entry"), own)
	if value != nil {
		c.put(bucketElection, []byte("value"), value)
	}
	c.out = append(c.out, effAnnounce{append([]byte{deltaElection}, c.election.Delta()...)})
	c.startElected()
}

// startElected makes the ring that the election has chosen, once a quorum of its voters
// has signed it.
func (c *core) startElected() {
	value, ok := c.election.Chosen()
	if !ok || c.ring.Ready() {
		return
	}
	g, err := c.foundedBy(value)
	if err != nil {
		c.warn("the election chose a value that is not a list of founders", "err", err)
		return
	}
	var votes []ring.Vote
	for _, s := range c.election.Seals() {
		i, ok := slices.BinarySearchFunc(g.Voters(), ring.HolderOf(s.Node, s.Key), ring.Holder.Compare)
		if ok {
			votes = append(votes, ring.Vote{Voter: i, Key: s.Key, Sig: s.Sig})
		}
	}
	if len(votes) >= ring.Quorum(len(g.Voters())) {
		c.startRing(g.WithVotes(votes))
	}
}

// startSeeds makes the ring from the names that the user gave to all peers.
func (c *core) startSeeds() { c.startNamed(c.cfg.Init.Seeds...) }

func (c *core) startNamed(names ...peer.Name) {
	var founders []ring.Holder
	for _, n := range names {
		founders = append(founders, ring.Holder{Name: n})
	}
	g, err := ring.NewGenesis(c.cfg.Range, founders)
	if err != nil {
		c.warn("cannot make the first ring", "err", err)
		return
	}
	c.startRing(g)
}

func (c *core) startRing(g *ring.Genesis) {
	out, err := c.ring.Start(g)
	if err != nil {
		c.warn("cannot make the first ring", "err", err)
		return
	}
	c.publish(out)
}

// mergeElection merges a delta of the election.
func (c *core) mergeElection(from peer.Name, delta []byte) (news []byte, err error) {
	if c.ring.Ready() || c.election == nil {
		return nil, nil // digests will bring the sender the ring
	}
	if c.left {
		return nil, ErrLeft
	}
	progress := c.election.Progress()
	news, changed, err := c.election.Merge(from, delta)
	c.putOffProposal(progress)
	if changed {
		c.publishVote()
	} else if err == nil {
		c.startElected()
	}
	return news, err
}

// noRing says what keeps the first ring from being made.
func (c *core) noRing() error {
	if want, ok := c.ring.Awaits(); ok {
		return because(ErrNoRing, "waiting for ring %s, which was adopted, from a peer that has it", want)
	}
	if c.now.Before(c.graceEnd()) {
		return because(ErrNoRing, "waiting up to %v for other peers to show a ring", c.cfg.Grace)
	}
	if end := c.started.Add(c.cfg.CatchUp); c.cfg.Lost && c.now.Before(end) {
		return because(ErrNoRing, "the state of this host was lost; waiting for a peer that has the ring, or, without one, for %v before making another ring",
			end.Sub(c.now).Round(time.Second))
	}
	if c.election == nil {
		return because(ErrNoRing, "waiting for the first ring")
	}
	if _, chosen := c.election.Chosen(); chosen {
		return because(ErrNoRing, "consensus reached, waiting for the signatures of the founders")
	}
	return because(ErrNoRing, "consensus not reached: %d of %s answered", len(c.election.Voters()), count.Of(c.election.Needed(), "needed peer", "needed peers"))
}

func (c *core) put(bucket string, key, value []byte) {
	c.writes = append(c.writes, store.Write{Bucket: bucket, Key: key, Value: value})
}

// putLater writes with the next write of put, or within flushEvery. What is lost if this peer dies
// before must do no harm.
func (c *core) putLater(bucket string, key, value []byte) {
	if len(c.deferred) == 0 {
		c.deferredSince = c.now
	}
	c.deferred = append(c.deferred, store.Write{Bucket: bucket, Key: key, Value: value})
}
