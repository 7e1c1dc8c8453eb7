package seed

import "testing"

func TestNew(t *testing.T) {
	if New(t) == New(t) {
		t.Error("the same seed twice")
	}
	defer func(was uint64) { *given = was }(*given)
	*given = 7
	if n := New(t); n != 7 {
		t.Errorf("with -seed 7: %d", n)
	}
}
