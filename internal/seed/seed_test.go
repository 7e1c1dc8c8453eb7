package seed

import "testing"

func TestNew(t *testing.T) {
	defer func(was uint64) { *given = was }(*given)
	*given = 0
	if a, b := New(t), New(t); a == b {
		t.Error("New returned the same seed twice")
	}
	*given = 7
	if n := New(t); n != 7 {
		t.Errorf("with -seed 7: %d", n)
	}
}
