package store

import (
	"path/filepath"
	"testing"
)

// The error of a table says once what failed, and for which record.
func TestErrorOfATable(t *testing.T) {
	st, _, err := Open(filepath.Join(t.TempDir(), "state.db"))
	if err != nil {
		t.Fatal(err)
	}
	tab, err := OpenTable[int](st, "attachments")
	if err != nil {
		t.Fatal(err)
	}
	if err := tab.Put("web", 1); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	const want = "web in attachments: write state file state.db: the store is closed"
	if err := tab.Put("web", 2); err == nil || err.Error() != want {
		t.Errorf("put: %q, want %q", err, want)
	}
	if err := tab.Delete("web"); err == nil || err.Error() != want {
		t.Errorf("delete: %q, want %q", err, want)
	}
}
