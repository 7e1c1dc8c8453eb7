package gossip

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"github.com/weft-net/weft/mesh/peer"
)

// next reads records of a key, a length and that many bytes.
func next(b []byte) (key byte, length int, err error) {
	if len(b) < 2 || len(b) < 2+int(b[1]) {
		return 0, 0, errors.New("short")
	}
	return b[0], 2 + int(b[1]), nil
}

func rec(key byte, content string) []byte {
	return append([]byte{key, byte(len(content))}, content...)
}

func TestJoinRecords(t *testing.T) {
	older := slices.Concat(rec(1, "one"), rec(2, "two"), rec(3, "three"))
	newer := slices.Concat(rec(2, "TWO"), rec(4, "FOUR"))
	want := slices.Concat(rec(1, "one"), rec(3, "three"), newer)
	kept := bytes.Clone(older)
	if got := JoinRecords(older, newer, next); !bytes.Equal(got, want) {
		t.Errorf("joined %q, want %q", got, want)
	}
	if !bytes.Equal(older, kept) {
		t.Error("the older delta was changed although it may have been sent")
	}
	if got := JoinRecords(older, []byte{1}, next); got != nil {
		t.Errorf("joined with bytes that are not a record: %q", got)
	}
	if got := JoinRecords([]byte{1}, newer, next); got != nil {
		t.Errorf("joined to bytes that are not a record: %q", got)
	}
	if got := JoinRecords(make([]byte, 0), bytes.Repeat(rec(1, "x"), MaxDelta), next); got != nil {
		t.Errorf("joined to %d bytes", len(got))
	}
}

func TestPackFillsDeltas(t *testing.T) {
	r := bytes.Repeat([]byte{7}, MaxDelta/3)
	deltas := Pack(slices.Values([][]byte{r, r, r, r}))
	if len(deltas) != 2 || len(deltas[0]) != 3*len(r) || len(deltas[1]) != len(r) {
		t.Errorf("%d deltas", len(deltas))
	}
	if deltas := Pack(slices.Values([][]byte(nil))); deltas != nil {
		t.Errorf("deltas of no records: %q", deltas)
	}
}

func TestSumsShowWhichRowsDiffer(t *testing.T) {
	a, b := make(Sums, 64), make(Sums, 64)
	names := []peer.Name{{2, 0, 0, 0, 0, 1}, {2, 0, 0, 0, 0, 2}, {2, 0, 0, 0, 0, 3}}
	for _, i := range []int{0, 1, 2} {
		a.Add(names[i], []byte{1})
		b.Add(names[2-i], []byte{1}) // in another order
	}
	if _, some := a.Differ(b.Append(nil)); some {
		t.Error("equal copies differ")
	}
	b.Add(names[1], []byte{2})
	rows, some := a.Differ(b.Append(nil))
	if n := len(slices.DeleteFunc(slices.Clone(rows), func(d bool) bool { return !d })); !some || n != 1 || !rows[a.Row(names[1])] {
		t.Errorf("some %v, %d rows", some, n)
	}
}
