package daemon

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
)

// The peers of the last run are there for a run that goes on with it, and for no other one.
func TestPeersOfTheLastRun(t *testing.T) {
	st := openStore(t)
	want := []mesh.LastPeer{
		{Name: peer.Name{2, 1}, Addr: netip.MustParseAddrPort("192.0.2.1:6783")},
		{Name: peer.Name{2, 2}, Addr: netip.MustParseAddrPort("[2001:db8::1]:7000")},
	}
	put := func(b []byte) {
		t.Helper()
		if err := st.Apply([]store.Write{{Bucket: bucketDaemon, Key: []byte(keyLastPeers), Value: b}}); err != nil {
			t.Fatal(err)
		}
	}
	put(appendLastPeers(nil, want))
	if got, err := loadLastPeers(st, true); err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := loadLastPeers(st, false); err != nil || len(got) > 0 {
		t.Errorf("a run that begins from scratch has %v, %v", got, err)
	}
	if got, err := loadLastPeers(st, true); err != nil || len(got) > 0 {
		t.Errorf("after that one there are %v, %v", got, err)
	}
	put([]byte("damage"))
	if got, err := loadLastPeers(st, true); err == nil {
		t.Errorf("damage is %v", got)
	}
}

func FuzzParseLastPeers(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, 2*lastPeerLen))
	f.Add(make([]byte, lastPeerLen-1))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := parseLastPeers(b)
		if err != nil {
			return
		}
		again, err := parseLastPeers(appendLastPeers(nil, list))
		if err != nil || !slices.Equal(again, list) {
			t.Errorf("% x is %v, then %v, %v", b, list, again, err)
		}
	})
}
