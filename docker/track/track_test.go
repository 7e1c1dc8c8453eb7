package track

import (
	"fmt"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/seed"
)

// answer answers all questions of t from the truth, and returns the changes.
func answer(t *Tracker, truth map[string]State) (changes []string) {
	for {
		id, all, ok := t.Next()
		if !ok {
			return changes
		}
		if all {
			var ids []string
			for id := range truth {
				ids = append(ids, id)
			}
			slices.Sort(ids)
			for _, id := range t.Listed(ids) {
				changes = append(changes, "gone "+id)
			}
			continue
		}
		var now *State
		if s, exists := truth[id]; exists {
			now = &s
		}
		for _, c := range t.Asked(id, now) {
			changes = append(changes, []string{"started ", "stopped ", "gone ", "reshaped "}[c]+id)
		}
	}
}

func TestChanges(t *testing.T) {
	tr := New()
	truth := map[string]State{"a": {Running: true, Since: "1"}, "b": {}}
	step := func(what string, want ...string) {
		t.Helper()
		if got := answer(tr, truth); !slices.Equal(got, want) {
			t.Errorf("%s: reported %v, want %v", what, got, want)
		}
	}
	step("at first", "started a", "stopped b")
	step("nothing happened")
	tr.Mark("a")
	step("an event about nothing")
	truth["a"] = State{Running: true, Since: "2"}
	tr.Mark("a")
	tr.Mark("a")
	step("restarted between two questions", "stopped a", "started a")
	truth["a"] = State{Running: true, Since: "2", Shape: "on two networks"}
	tr.MarkRunning("a")
	step("connected to a network", "reshaped a")
	truth["b"] = State{Shape: "on two networks"}
	tr.MarkRunning("b")
	if _, _, asks := tr.Next(); asks {
		t.Error("connecting a stopped container to a network causes a question")
	}
	truth["b"] = State{Running: true, Since: "1"}
	tr.Mark("b")
	delete(truth, "a")
	tr.Mark("a")
	step("one starts, one is removed", "started b", "stopped a", "gone a")
	delete(truth, "b")
	tr.MarkAll()
	step("the engine was down meanwhile", "gone b")
	tr.Mark("c")
	step("one that came and went", "gone c")
}

// A flood costs one question per container, and never more memory than the bound.
func TestFloodIsBounded(t *testing.T) {
	tr := New()
	answer(tr, nil)
	for range 1_000_000 {
		tr.Mark("a")
	}
	if len(tr.queue) != 1 {
		t.Errorf("a million events about one container make %d questions", len(tr.queue))
	}
	for i := range 3 * maxMarked {
		tr.Mark(fmt.Sprint(i))
	}
	if len(tr.queue) > maxMarked || len(tr.marked) > maxMarked || !tr.all {
		t.Errorf("%d questions wait", len(tr.queue))
	}
}

// Whatever events are lost or repeated, after a question about all containers the
// reported changes agree with the truth.
func TestReportsAgreeWithTheTruth(t *testing.T) {
	r := seed.Rand(t)
	tr := New()
	truth := make(map[string]State)
	running := make(map[string]bool) // as reported
	for step := range 20_000 {
		id := fmt.Sprint(r.IntN(8))
		switch r.IntN(4) {
		case 0:
			truth[id] = State{Running: true, Since: fmt.Sprint(step / 10), Shape: fmt.Sprint(step)}
		case 1:
			truth[id] = State{}
		case 2:
			delete(truth, id)
		}
		if r.IntN(2) == 0 {
			tr.Mark(id) // otherwise the event is lost
		}
		settled := r.IntN(10) == 0
		if settled {
			tr.MarkAll()
		}
		for _, change := range answer(tr, truth) {
			var what, who string
			fmt.Sscan(change, &what, &who)
			switch {
			case what == "started" && running[who]:
				t.Fatalf("step %d: %s started twice", step, who)
			case what == "started":
				running[who] = true
			case what == "reshaped" && !running[who]:
				t.Fatalf("step %d: %s changed its shape while it was stopped", step, who)
			case what == "reshaped":
			default:
				delete(running, who)
			}
		}
		if !settled {
			continue
		}
		for id := range running {
			if !truth[id].Running {
				t.Fatalf("step %d: %s was reported as running, and is not", step, id)
			}
		}
		for id, s := range truth {
			if s.Running && !running[id] {
				t.Fatalf("step %d: %s runs, which was not reported", step, id)
			}
		}
	}
}
