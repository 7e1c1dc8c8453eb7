package daemon

import (
	"errors"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/peer"
)

// A router that is started again before there is a ring must not make one with
// fewer peers than the first time, or two halves of a mesh end up with a ring each.
func TestPeersOfTheLastRunCountForTheFirstRing(t *testing.T) {
	host := nstest.New(t, "host")
	dir := t.TempDir()
	c := &Config{Socket: filepath.Join(dir, "sock"), StateDir: dir, Bridge: "weft", MTU: DefaultMTU, Resume: true, Peers: []string{"h3"}}
	st, _, err := store.Open(c.path(storeFile))
	if err != nil {
		t.Fatal(err)
	}
	last := &targets{store: st, set: func([]string) {}}
	if err := errors.Join(last.add([]string{"h1", "h2"}, true), st.Close()); err != nil {
		t.Fatal(err)
	}
	enough := errors.New("enough is known")
	var got *Config
	nstest.In(t, host, func() {
		err = Run(t.Context(), c, func(c *Config, _ *peer.Identity, _ *store.Store, _ *slog.Logger) (*Parts, error) {
			got = c
			return nil, enough
		}, slog.New(slog.DiscardHandler))
	})
	if !errors.Is(err, enough) {
		t.Fatal(err)
	}
	if !slices.Equal(got.Peers, []string{"h1", "h2", "h3"}) || got.ringInit().Expect != 4 {
		t.Errorf("the mesh begins with %v, and a ring takes %d", got.Peers, got.ringInit().Expect)
	}
}
