package mesh

import (
	"errors"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// Two hosts with different passwords say so until they have a session.
func TestProblemEndsWithASession(t *testing.T) {
	t.Parallel()
	a, b := start(t, password("correct horse")), start(t, password("battery staple"))
	b.SetTargets([]string{a.addr()})
	const text = "passwords differ"
	eventually(t, "both say it", func() bool { return a.hasProblem(text)() && b.hasProblem(text)() })
	if err := b.SetPasswords([]session.PSK{pskOf("correct horse")}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	if a.hasProblem(text)() || b.hasProblem(text)() {
		t.Errorf("problems %+v, %+v", a.Status().Problems, b.Status().Problems)
	}
}

// A host says that it refuses a banned one for as long as that is banned, and the banned one says
// who refuses it until it is in the mesh again.
func TestReportsOfABanEndWithIt(t *testing.T) {
	t.Parallel()
	a, b := pair(t)
	const refused = "refused: the peer is banned"
	a.SetBanned(ChannelRing, []peer.KeyID{peer.IDOf(b.Identity().Key())})
	eventually(t, "a refuses b", a.hasProblem(refused))
	eventually(t, "b knows who banned it", func() bool {
		by := b.Status().BannedBy
		return len(by) == 1 && by[0].Name == a.Self() && by[0].Nickname == "n" && time.Since(by[0].Last) < time.Minute
	})
	if !b.Banned() || a.Banned() {
		t.Errorf("b is banned: %v, a is: %v", b.Banned(), a.Banned())
	}
	a.SetBanned(ChannelRing, nil)
	if a.hasProblem(refused)() {
		t.Errorf("a refuses nobody now, and has the problems %+v", a.Status().Problems)
	}
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	if s := b.Status(); len(s.BannedBy) > 0 || b.Banned() || b.hasProblem("ban")() {
		t.Errorf("b is in the mesh, and has %+v, %+v", s.BannedBy, s.Problems)
	}
}

// What a neighbour sent and was refused is a problem until that one is banned, and not for long
// after the last time.
func TestRefusedGossipEndsWithItsCause(t *testing.T) {
	t.Parallel()
	cause := errors.New("does not fit")
	channel := func(c *testChannel) []func(*node) { return []func(*node){register(200, c)} }
	a := startWith(t, channel(&testChannel{merge: func(string) error { return cause }}))
	b := startWith(t, channel(&testChannel{}), to(a))
	eventually(t, "a session", func() bool { return a.sees(b) && b.sees(a) })
	b.Announce(200, []byte("x"))
	const text = "gossip refused, from "
	eventually(t, "a refuses it", a.hasProblem(text))
	if p := a.Status().Problems; len(p) != 1 || p[0].Text != text+b.Self().With("n")+": delta: does not fit" {
		t.Errorf("problems %+v", p)
	}
	a.SetBanned(ChannelRing, []peer.KeyID{peer.IDOf(b.Identity().Key())})
	eventually(t, "no session", func() bool { return a.sessions() == 0 })
	if a.hasProblem(text)() {
		t.Errorf("b is banned, and a has the problems %+v", a.Status().Problems)
	}

	var p problems
	now := time.Now()
	p.record(Problem{Text: "of gossip", gossip: true}, now)
	p.record(Problem{Text: "of a session"}, now)
	p.expire(now.Add(gossipProblemTTL + time.Second))
	if len(p.all) != 1 || p.all["of a session"] == nil {
		t.Errorf("after a minute: %+v", p.all)
	}
	if p.expire(now.Add(problemTTL + time.Second)); len(p.all) > 0 {
		t.Errorf("after ten minutes: %+v", p.all)
	}
}
