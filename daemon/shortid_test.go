package daemon

import (
	"path/filepath"
	"testing"

	"github.com/weft-net/weft/internal/store"
)

func TestShortIDIsKept(t *testing.T) {
	st, _, err := store.Open(filepath.Join(t.TempDir(), storeFile))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	want := func(id uint16) {
		t.Helper()
		if got, err := loadShortID(st); got != id || err != nil {
			t.Errorf("short id is %d, want %d: %v", got, id, err)
		}
	}
	want(0)
	if err := saveShortID(st, 4095); err != nil {
		t.Fatal(err)
	}
	want(4095)
	for _, damaged := range [][]byte{{1}, {0xff, 0xff}, {0, 1, 2}} {
		if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyShortID), Value: damaged}}); err != nil {
			t.Fatal(err)
		}
		want(0)
	}
}
