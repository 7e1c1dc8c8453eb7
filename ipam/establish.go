package ipam

import (
	"fmt"
	"time"

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
		Instance: instance,
		Expect:   max(c.cfg.Init.Expect, 1),
		Observer: c.cfg.Init.Mode == Observer,
		Value:    encodeNames,
	}, own, value)
}

// encodeNames encodes the value that an election chooses: the names of the peers,
// 6 bytes each.
func encodeNames(names []peer.Name) []byte {
	var b []byte
	for _, n := range names {
		b = append(b, n[:]...)
	}
	return b
}

func decodeNames(b []byte) (names []peer.Name, err error) {
	if len(b) == 0 || len(b)%peer.NameLen != 0 {
		return nil, fmt.Errorf("list of peers of %d bytes: %w", len(b), errMessage)
	}
	for ; len(b) > 0; b = b[peer.NameLen:] {
		names = append(names, peer.NameFromBytes(b))
	}
	return names, nil
}

// establish makes the first ring if one is wanted.
func (c *core) establish() {
	if c.ring.Ready() || !c.ringWanted || c.left {
		return
	}
	if _, waits := c.ring.Awaits(); waits || c.now.Before(c.graceEnd()) {
		return
	}
	if c.election == nil {
		c.startRing(c.cfg.Init.Seeds)
		return
	}
	if c.now.Before(c.nextPropose) {
		return
	}
	c.nextPropose = c.now.Add(electionPause + time.Duration(c.rng.Int64N(int64(electionPause))))
	if c.election.Propose() {
		c.publishVote()
	}
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

// startElected makes the ring that the election has chosen, if it has.
func (c *core) startElected() {
	value, ok := c.election.Chosen()
	if !ok || c.ring.Ready() {
		return
	}
	names, err := decodeNames(value)
	if err != nil {
		c.warn("the election chose a value that is not a list of peers", "err", err)
		return
	}
	c.startRing(names)
}

func (c *core) startRing(peers []peer.Name) {
	g, err := ring.NewGenesis(c.cfg.Range, peers)
	if err == nil {
		var out ring.Outcome
		if out, err = c.ring.Start(g); err == nil {
			c.publish(out)
			return
		}
	}
	c.warn("cannot make the first ring", "err", err)
}

// mergeElection merges a delta of the election.
func (c *core) mergeElection(delta []byte) (news []byte, err error) {
	if c.ring.Ready() || c.election == nil {
		return nil, nil // digests will bring the sender the ring
	}
	if c.left {
		return nil, ErrLeft
	}
	// Let the attempt of another peer finish before this peer starts its own.
	c.nextPropose = c.now.Add(electionPause + time.Duration(c.rng.Int64N(int64(electionPause))))
	news, changed, err := c.election.Merge(delta)
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
	if c.election == nil {
		return because(ErrNoRing, "waiting for the first ring")
	}
	return because(ErrNoRing, "consensus not reached: %d of %d needed peers answered", len(c.election.Voters()), c.election.Needed())
}

func (c *core) put(bucket string, key, value []byte) {
	c.writes = append(c.writes, store.Write{Bucket: bucket, Key: key, Value: value})
}
