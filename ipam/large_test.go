package ipam

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/mesh/peer"
)

// flat is a View that sees nobody: the large simulation moves gossip only.
type flat struct{}

func (flat) Reachable(peer.Name) bool  { return false }
func (flat) Peers() []peer.Name        { return nil }
func (flat) Nickname(peer.Name) string { return "" }

// big is a peer of the large simulation: a core that is driven by its channel
// alone, with a queue of one joined delta for each neighbour.
type big struct {
	core  *core
	links []int
	queue map[int][]byte
	down  bool
}

func (b *big) flood(delta []byte, except int) {
	for _, n := range b.links {
		if n == except {
			continue
		}
		if old := b.queue[n]; old != nil {
			if j := joinDeltas(old, delta); j != nil {
				b.queue[n] = j
			}
			continue // the queue is full: the digests find out
		}
		b.queue[n] = delta
	}
}

// One thousand peers, each with six neighbours or more; one message in five is
// lost; while ranges are given away, peers go down, and come back having
// forgotten all. All rings become equal, and a single change in the stable mesh
// costs each peer a number of bytes that does not grow with the mesh.
func TestThousandPeersConverge(t *testing.T) {
	const count, voters, loss = 1000, 100, 0.2
	rng := rand.New(rand.NewPCG(firstSeed(t), 3))
	now := time.Unix(1_700_000_000, 0)
	name := func(i int) peer.Name { return peer.Name{2, 0, 0, 1, byte(i >> 8), byte(i)} }
	fresh := func(i int) *core {
		return newCore(Config{Self: name(i), Signer: peer.Cheap{ID: peer.Key{byte(i), byte(i >> 8), 1}}, Verifier: peer.Cheap{},
			Universe: pfx("10.32.0.0/12"), Init: Init{Mode: Seed}}, flat{}, rng)
	}
	peers := make([]*big, count)
	for i := range peers {
		peers[i] = &big{core: fresh(i), queue: map[int][]byte{}}
	}
	link := func(i, j int) {
		peers[i].links = append(peers[i].links, j)
		peers[j].links = append(peers[j].links, i)
	}
	for i := range peers {
		link(i, (i+1)%count)
		for range 2 {
			if j := rng.IntN(count); j != i {
				link(i, j)
			}
		}
	}
	bytesSent := 0
	act := func(i int, f func(c *core)) {
		_, effects := peers[i].core.step(now, func() { f(peers[i].core) })
		for _, e := range effects {
			if a, ok := e.(effAnnounce); ok {
				peers[i].flood(a.delta, -1)
			}
		}
	}
	arrives := func(n int, d []byte) bool {
		bytesSent += len(d)
		return !peers[n].down && rng.Float64() >= loss
	}
	merge := func(to, from int, d []byte) {
		if !arrives(to, d) {
			return
		}
		act(to, func(c *core) {
			if news, _ := c.merge(name(from), d); news != nil {
				peers[to].flood(news, from)
			}
		})
	}
	// round moves what is queued one hop; each peer sends a digest in one of ten.
	round := func(r int) {
		now = now.Add(100 * time.Millisecond)
		type hop struct {
			from, to int
			delta    []byte
		}
		var hops []hop
		for i, p := range peers {
			for _, n := range p.links {
				if d := p.queue[n]; d != nil {
					hops = append(hops, hop{i, n, d})
					delete(p.queue, n)
				}
			}
		}
		for _, h := range hops {
			if !peers[h.from].down {
				merge(h.to, h.from, h.delta)
			}
		}
		for i, p := range peers {
			if p.down || (i+r)%10 != 0 {
				continue
			}
			n := p.links[rng.IntN(len(p.links))]
			if d := p.core.digest(); arrives(n, d) {
				deltas, wants, err := peers[n].core.missing(d)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range deltas {
					merge(i, n, d)
				}
				if own := peers[n].core.digest(); wants && arrives(i, own) {
					deltas, _, _ := p.core.missing(own)
					for _, d := range deltas {
						merge(n, i, d)
					}
				}
			}
		}
	}
	equal := func() bool {
		first := peers[0].core.digest()
		for _, p := range peers {
			if !bytes.Equal(first, p.core.digest()) {
				return false
			}
		}
		return peers[0].core.ring.Ready()
	}
	settle := func(what string) {
		for r := range 300 {
			round(r)
			if r%5 == 4 && equal() {
				t.Logf("%s: equal after %v, %d bytes a peer", what, time.Duration(r+1)*100*time.Millisecond, bytesSent/count)
				return
			}
		}
		t.Fatalf("%s: rings differ after 30 s", what)
	}
	give := func() {
		i := rng.IntN(count)
		owned := peers[i].core.space.Owned()
		if peers[i].down || len(owned) == 0 {
			return
		}
		r := owned[rng.IntN(len(owned))]
		act(i, func(c *core) { c.give(name(rng.IntN(count)), addr.Of(r.Block(r.Size().Half()))) })
	}

	seeds := make([]peer.Name, voters)
	for i := range seeds {
		seeds[i] = name(i)
	}
	act(0, func(c *core) { c.startRing(seeds) })
	for r := range 100 {
		for range 12 {
			give()
		}
		if r%2 == 0 {
			p := peers[rng.IntN(count)]
			p.down = true
		}
		if i := rng.IntN(count); peers[i].down {
			peers[i].down, peers[i].core = false, fresh(i)
		}
		round(r)
	}
	for i, p := range peers {
		if p.down {
			p.down, p.core = false, fresh(i)
		}
	}
	settle("after churn")
	if n := len(peers[0].core.ring.Entries()); n < voters+50 {
		t.Errorf("only %d entries", n)
	}
	bytesSent = 0
	for before := peers[7].core.ring.Epoch(); peers[7].core.ring.Epoch() == before; {
		give()
		round(1)
	}
	settle("one change")
}
