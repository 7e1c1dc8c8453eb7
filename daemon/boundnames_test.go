package daemon

import (
	"net/netip"
	"path/filepath"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh/peer"
)

func TestKeysOfNamesAreKept(t *testing.T) {
	st, _, err := store.Open(filepath.Join(t.TempDir(), storeFile))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	if got, err := loadBindings(st); got != nil || err != nil {
		t.Errorf("at first there are %v, %v", got, err)
	}
	want := []peer.Binding{
		{Name: peer.Name{0, 1}, Key: peer.Key{7}, Via: peer.Via{Addr: netip.MustParseAddr("192.0.2.1"), Own: true}},
		{Name: peer.Name{0, 2}, Key: peer.Key{8}, Via: peer.Via{Addr: netip.MustParseAddr("2001:db8::")}},
		{Name: peer.Name{0, 3}, Key: peer.Key{9}},
	}
	for _, list := range [][]peer.Binding{want, want[:1], nil} {
		if err := saveBindings(st, list); err != nil {
			t.Fatal(err)
		}
		if got, err := loadBindings(st); err != nil || !slices.Equal(got, list) {
			t.Errorf("%v comes back as %v, %v", list, got, err)
		}
	}
	if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyBindings), Value: make([]byte, bindingLen+1)}}); err != nil {
		t.Fatal(err)
	}
	if got, err := loadBindings(st); err == nil || got != nil {
		t.Errorf("damage is read as %v", got)
	}
}
