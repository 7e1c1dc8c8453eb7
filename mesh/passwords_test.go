package mesh

import (
	"testing"

	"github.com/weft-net/weft/mesh/session"
)

// Sessions live through a change of the password. A peer that does not learn the new one is
// out, and cannot come back.
func TestSessionsOutliveTheirPassword(t *testing.T) {
	t.Parallel()
	a := start(t, password("old password"))
	b := start(t, password("old password"), to(a))
	outsider := start(t, password("old password"), to(a))
	all := []*node{a, b, outsider}
	for _, n := range all {
		eventually(t, "one mesh", func() bool { return n.sees(all...) })
	}
	before := a.direct(b.Self())
	set := func(n *node, passwords ...string) {
		t.Helper()
		var keys []session.PSK
		for _, p := range passwords {
			keys = append(keys, pskOf(p))
		}
		if err := n.SetPasswords(keys); err != nil {
			t.Fatal(err)
		}
	}
	// a proves the new password before b knows it.
	set(a, "old password", "new password")
	set(b, "old password", "new password")
	set(a, "new password")
	set(b, "new password")
	for _, n := range []*node{a, b} {
		eventually(t, "the outsider is out", func() bool { return n.direct(outsider.Self()) == nil })
	}
	eventually(t, "the outsider knows why", outsider.hasProblem("the password changed"))
	eventually(t, "the outsider is refused", outsider.hasProblem("the passwords differ"))
	if a.direct(b.Self()) != before {
		t.Error("the session of the two that know the new password ended")
	}
	if a.SetPasswords(nil) == nil || a.SetPasswords(make([]session.PSK, MaxPasswords+1)) == nil {
		t.Error("no passwords, or too many, were accepted")
	}
}
