package daemon

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/peer"
)

// That an address file was lost is known until its state has come from the peers, whatever
// restarts there are, and only where there were others.
func TestLostAddressFiles(t *testing.T) {
	dir := t.TempDir()
	st, _, err := store.Open(filepath.Join(dir, "weft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	r := ringConfig{file: "ipam.db", addrRange: netip.MustParsePrefix("10.32.0.0/12")}
	run := func() (lost bool) {
		h := &host{config: &Config{StateDir: dir}, store: st, log: slog.New(slog.DiscardHandler)}
		disk, _, lost, err := h.openDisk(peer.Name{1}, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := disk.Close(); err != nil {
			t.Fatal(err)
		}
		return lost
	}
	remove := func() {
		if err := os.Remove(filepath.Join(dir, r.file)); err != nil {
			t.Fatal(err)
		}
	}
	set := func(key string, value []byte) {
		if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(key), Value: value}}); err != nil {
			t.Fatal(err)
		}
	}
	steps := []struct {
		what string
		do   func()
		lost bool
	}{
		{"first start", func() {}, false},
		{"restart", func() {}, false},
		{"removed on a host that was alone", remove, false},
		{"removed on a host with others", func() { set(keyShared, []byte{1}); remove() }, true},
		{"restart before the ring has come", func() {}, true},
		{"another one", func() {}, true},
		{"restart after it has come", func() { set(keyLost+r.file, nil) }, false},
		{"damaged", func() {
			if err := os.WriteFile(filepath.Join(dir, r.file), []byte("damage"), 0o600); err != nil {
				t.Fatal(err)
			}
		}, true},
		{"restart after that", func() {}, true},
	}
	for _, s := range steps {
		s.do()
		if got := run(); got != s.lost {
			t.Errorf("%s: lost is %v, want %v", s.what, got, s.lost)
		}
	}
}
