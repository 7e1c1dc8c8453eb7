package ring

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weft-net/weft/mesh/peer"
)

// moves returns what TakeMoves does, in words: the numbers of the peers, and how many addresses.
func moves(r *Ring) (out []string) {
	for _, m := range r.TakeMoves() {
		s := fmt.Sprintf("%s in slot %d", m.Kind, m.Slot)
		for _, rng := range m.Ranges {
			s += fmt.Sprintf(" %s", rng)
		}
		if m.To != (Holder{}) {
			s += fmt.Sprintf(" to %d", numberOf(m.To))
		}
		if m.From != (Holder{}) {
			s += fmt.Sprintf(" from %d", numberOf(m.From))
		}
		if m.Departed {
			s += ", departed"
		}
		out = append(out, s)
	}
	return out
}

func wantMoves(t *testing.T, what string, r *Ring, want ...string) {
	t.Helper()
	if got := moves(r); !slices.Equal(got, want) {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// A copy says what changed its owner and how, also if it skipped the decisions with a snapshot, and
// if it has changed to another ring.
func TestMoves(t *testing.T) {
	r, away := newRing(t, 4), newRing(t, 4)
	wantMoves(t, "the first ring", r)
	decide(t, r, gift(t, r, 0, 8, rangeOf("10.32.1.0/24")), gift(t, r, 0, 9, rangeOf("10.32.3.0/24")), gift(t, r, 0, 10, rangeOf("10.32.5.0/24")))
	wantMoves(t, "transfers", r, "transfer in slot 1 10.32.1.0/24 to 8 from 0",
		"transfer in slot 1 10.32.3.0/24 to 9 from 0", "transfer in slot 1 10.32.5.0/24 to 10 from 0")
	leave := r.Leaving(signer(8), holder(8), holder(1))
	r.SignAsHeir(signer(1), leave)
	decide(t, r, leave)
	decide(t, r, &Action{Kind: Remove, From: holder(9), To: holder(1)})
	decide(t, r, &Action{Kind: Ban, From: holder(10), To: holder(1)})
	decide(t, r, gift(t, r, 0, 11, rangeOf("10.32.7.0/24")))
	wantMoves(t, "peers that go", r, "leave in slot 2 10.32.1.0/24 to 1 from 8", "removal in slot 3 10.32.3.0/24 to 1 from 9",
		"ban in slot 4 10.32.5.0/24 to 1 from 10", "transfer in slot 5 10.32.7.0/24 to 11 from 0")
	decide(t, r, r.NextSnapshot())
	sync(t, r, away)
	wantMoves(t, "a snapshot", away,
		"snapshot in slot 6 10.32.1.0/24 10.32.3.0/24 10.32.5.0/24 to 1, departed",
		"snapshot in slot 6 10.32.7.0/24 to 11")
	onDisk := New(whole, peer.Cheap{}, nil)
	if errs := onDisk.Restore(away.Dump()); len(errs) > 0 {
		t.Fatal(errs)
	}
	wantMoves(t, "from disk", onDisk)

	old := onDisk.Genesis().ID()
	if _, err := onDisk.Refound(signer(1), holder(1), []Holder{holder(11)}); err != nil {
		t.Fatal(err)
	}
	wantMoves(t, "a ring that is founded again", onDisk, "adoption in slot 0", "adoption in slot 0 10.32.7.0/24 to 1 from 11")
	if err := onDisk.Follow(old); err != nil {
		t.Fatal(err)
	}
	wantMoves(t, "the way back", onDisk, "adoption in slot 6", "adoption in slot 6 10.32.7.0/24 to 11 from 1")
}
