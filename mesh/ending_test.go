package mesh

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// pair starts two peers with a session.
func pair(t *testing.T) (a, b *node) {
	t.Helper()
	a = start(t, noDiscovery)
	b = start(t, noDiscovery, to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	return a, b
}

// Both ends hear how the session ended, whatever ends it: the paths to a peer that is away
// stay for a while, those to one that is rejected end.
func TestBothEndsHearHowASessionEnded(t *testing.T) {
	t.Parallel()
	type test struct {
		name     string
		end      func(a, b *node)
		atA, atB Ending
	}
	tests := []test{
		{"misbehaviour", func(a, b *node) { a.misbehaved(a.direct(b.Self()), "test") }, Rejected, Rejected},
		{"malformed", func(a, b *node) { _ = b.direct(a.Self()).push([]byte{recUnicast, 1}) }, Rejected, Rejected},
		{"empty", func(a, b *node) { _ = b.direct(a.Self()).push([]byte{}) }, Rejected, Rejected},
		{"broken", func(a, b *node) { a.direct(b.Self()).Close() }, Away, Away},
		{"no reason", func(a, b *node) { _ = b.direct(a.Self()).push([]byte{recBye}) }, Rejected, Away},
	}
	for c := session.CodeOK; c <= session.CodeOther+1; c++ {
		how := Rejected
		if c == session.CodeOK {
			how = Away
		}
		tests = append(tests, test{fmt.Sprintf("goodbye %d", c), func(a, b *node) { a.direct(b.Self()).goodbye(c, "test") }, how, how})
	}
	for _, c := range tests {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			c.end(a, b)
			eventually(t, "a hears of it", a.downAs(b, c.atA))
			eventually(t, "b hears of it", b.downAs(a, c.atB))
		})
	}
}

func TestForgottenNameIsRejected(t *testing.T) {
	t.Parallel()
	name := peer.Name{0, 0, 0, 0, 0, 7}
	a := start(t, noDiscovery)
	b := start(t, noDiscovery, withIdentity(newIdentity(t, name)), to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	a.ForgetName(name)
	eventually(t, "a rejected b", a.downAs(b, Rejected))
	eventually(t, "b was rejected by a", b.downAs(a, Rejected))
	eventually(t, "b is told", b.hasProblem(errForgotten.Error()))
}

func TestBannedPeerIsRejected(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	a.SetBanned(ChannelRing, []peer.KeyID{peer.IDOf(b.Identity().Key())})
	eventually(t, "a rejected b", a.downAs(b, Rejected))
	eventually(t, "b was rejected by a", b.downAs(a, Rejected))
	eventually(t, "b is told", b.Banned)
	local := netip.MustParseAddr("127.0.0.1")
	eventually(t, "the observer of b hears that a wants no other session", b.heardOf(Refused{local, session.CodeBanned, true}))
	eventually(t, "the observer of a hears of it", a.heardOf(Refused{local, session.CodeBanned, false}))
	eventually(t, "the observer of a hears who is banned", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.banned != nil && a.banned(b.Identity().Key()) && !a.banned(a.Identity().Key())
	})
}

// Another session takes the place of the old one.
func TestReplacedSession(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		key  func(peer.Key) peer.Key
		how  Ending
	}{
		{"same key", func(k peer.Key) peer.Key { return k }, Away},
		{"another key", func(k peer.Key) peer.Key { k[0]++; return k }, Rejected},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a, b := pair(t)
			n := a.direct(b.Self())
			hello := n.Peer
			hello.Key = c.key(hello.Key)
			a.Mesh.mu.Lock()
			a.replace(n, &session.Conn{Peer: hello}, errDuplicate)
			a.Mesh.mu.Unlock()
			eventually(t, "the observer hears of it", a.downAs(b, c.how))
		})
	}
}

// The far end says goodbye and closes the connection. The writer of this end may notice
// before its reader has read the goodbye.
func TestGoodbyeIsReadAfterTheWriterFailed(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	n := b.direct(a.Self())
	n.sendFailed(errors.New("broken pipe"))
	n.setLinked(true) // no later deadline
	a.direct(b.Self()).goodbye(session.CodeOther, "go away")
	eventually(t, "b is told", b.hasProblem("go away"))
	eventually(t, "b was rejected by a", b.downAs(a, Rejected))
}

func TestSessionEndsAfterTheWriterFailed(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	n := b.direct(a.Self())
	cause := errors.New("broken pipe")
	begun := time.Now()
	n.sendFailed(cause)
	n.setLinked(true)
	eventually(t, "the session is down and the peer away", b.downAs(a, Away))
	if took := time.Since(begun); took >= sessionTimeout {
		t.Errorf("it took %v", took)
	}
	if !errors.Is(n.err(), cause) {
		t.Errorf("the cause is %v, want %v", n.err(), cause)
	}
}

// A peer that misbehaved gets no relayed session either.
func TestBannedPeerGetsNoRelayedSession(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	c := start(t, noDiscovery, to(b))
	eventually(t, "all peers see all others", func() bool { return a.sees(b, c) && c.sees(a, b) })
	a.Mesh.mu.Lock()
	a.bans.add(c.Self(), time.Now())
	a.Mesh.mu.Unlock()
	hello := &session.Hello{Name: c.Self(), Key: c.Identity().Key()}
	if r := a.checkRelayedHello(c.Self(), hello); r == nil || r.Reason != errMisbehaved.Error() {
		t.Errorf("the refusal is %v", r)
	}
	if r := b.checkRelayedHello(c.Self(), hello); r == nil || r.Code != session.CodeDuplicate {
		t.Errorf("the refusal of a peer with a direct session is %v", r)
	}
}
