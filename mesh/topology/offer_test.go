package topology

import (
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// What a peer gains within a moment is one entry, a change of costs alone waits longer, and a lost
// link is published at once.
func TestOfferedLinksArePublishedTogether(t *testing.T) {
	t.Parallel()
	s := mesh(t, 5, LinkSession|LinkData, [2]int{0, 1}, [2]int{1, 2}, [2]int{2, 3}, [2]int{3, 4})[0]
	peers := time.Duration(len(s.Entries()))
	link := func(i int, cost uint8) Link {
		return Link{To: identity(t, i).Name, Flags: LinkSession | LinkData, Cost: cost}
	}
	now := epoch
	offer := func(what string, published bool, again time.Time, links ...Link) {
		t.Helper()
		delta, at := s.OfferLinks(links, now)
		if (delta != nil) != published || !at.Equal(again) {
			t.Errorf("%s: %d bytes, again at %v; want published %v, again at %v", what, len(delta), at, published, again)
		}
	}
	never := time.Time{}
	offer("no change", false, never, link(1, 0))
	due := now.Add(peers * gainDelay)
	offer("a link more", false, due, link(1, 0), link(2, 0))
	now = due.Add(-time.Millisecond)
	offer("and one more", false, due, link(1, 0), link(2, 0), link(3, 0))
	now = due
	offer("later", true, never, link(1, 0), link(2, 0), link(3, 0))

	due = now.Add(peers * costDelay)
	offer("other costs", false, due, link(1, 40), link(2, 0), link(3, 0))
	now = now.Add(time.Millisecond)
	offer("the old costs", false, never, link(1, 0), link(2, 0), link(3, 0))
	due = now.Add(peers * costDelay)
	offer("other costs again", false, due, link(1, 40), link(2, 0), link(3, 0))
	due = now.Add(peers * gainDelay * 2) // it has just gained something
	offer("a link more, too", false, due, link(1, 40), link(2, 0), link(3, 0), link(4, 0))
	offer("a lost link", true, never, link(1, 40), link(2, 0), link(4, 0))
	offer("nothing is left", false, never, link(1, 40), link(2, 0), link(4, 0))
	lost := link(4, 0)
	lost.Flags = LinkSession
	offer("a lost way of a link", true, never, link(1, 40), link(2, 0), lost)
}

// A peer that gains link after link, as in a mesh that starts, publishes fewer and fewer
// entries, and one that gains a link now and then does so soon.
func TestPeerThatGrowsPublishesLess(t *testing.T) {
	t.Parallel()
	const peers = 100
	s := newState(t, identity(t, 0), 1, epoch)
	for i := range peers {
		s.put(&Entry{Name: peer.Name{9, byte(i)}})
	}
	var links []Link
	now, published := epoch, 0
	tick := func() (delta []byte) {
		now = now.Add(10 * time.Millisecond)
		delta, _ = s.OfferLinks(links, now)
		return delta
	}
	for i := range peers { // a link each 0.2 s
		links = append(links, Link{To: peer.Name{9, byte(i)}, Flags: LinkSession})
		for range 20 {
			if tick() != nil {
				published++
			}
		}
	}
	if published > 6 {
		t.Errorf("%d entries for %d links within 20 s", published, peers)
	}
	for begun := now; tick() == nil; {
		if now.Sub(begun) > maxGrowingDelay {
			t.Fatal("the last links are not published")
		}
	}
	now = now.Add(time.Minute)
	links = append(links, Link{To: peer.Name{9, peers}, Flags: LinkSession})
	for begun := now; tick() == nil; {
		if now.Sub(begun) > maxGainDelay+20*time.Millisecond {
			t.Fatal("a link that comes alone is published late")
		}
	}
}

// An author has sent its entry to the neighbours that it lists as sessions, and to no others.
func TestSentIsWhatTheAuthorReaches(t *testing.T) {
	t.Parallel()
	states := mesh(t, 4, LinkSession, [2]int{0, 1}, [2]int{0, 2}, [2]int{1, 2}, [2]int{2, 3})
	name := func(i int) peer.Name { return identity(t, i).Name }
	s := states[0]
	for _, c := range []struct {
		authors []int
		to      int
		want    bool
	}{
		{[]int{1}, 2, true}, {[]int{1}, 3, false}, {[]int{2}, 1, true}, {[]int{2}, 3, true},
		{[]int{1}, 1, true},     // it has its own entry
		{[]int{1, 2}, 3, false}, // only one of the two reaches it
		{[]int{0}, 1, false},    // this peer has sent it to nobody yet
	} {
		var delta []byte
		for _, a := range c.authors {
			delta = append(delta, s.entries[name(a)].raw...)
		}
		if got := s.Sent(delta)(name(c.to)); got != c.want {
			t.Errorf("entries of %v, to %d: sent %v, want %v", c.authors, c.to, got, c.want)
		}
	}
	if s.Sent([]byte{1})(name(1)) {
		t.Error("bytes that are no entry count as sent")
	}
}
