package ipam

import (
	"bytes"
	"net/netip"
	"testing"

	lies "github.com/weft-net/weft/internal/hostile"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// The hostile peer of the lab speaks the present format, so its lies are understood.
func TestHostileMessagesAreUnderstood(t *testing.T) {
	t.Parallel()
	subnet, a := netip.MustParsePrefix("10.32.0.0/12"), netip.MustParseAddr("10.32.0.1")
	action := &ring.Action{Kind: ring.Unban, From: ring.HolderOf(peer.Name{2}, peer.Key{1})}
	for _, want := range []message{
		{kind: msgSpaceAsk, id: 3, prefix: subnet},
		{kind: msgClaimAsk, id: 3, addr: a, inUse: true},
		{kind: msgWish, id: 3, body: action.Encode()},
	} {
		got := map[messageType][]byte{
			msgSpaceAsk: lies.SpaceAsk(3, subnet), msgClaimAsk: lies.ClaimAsk(3, a), msgWish: lies.Wish(3, action),
		}[want.kind]
		if !bytes.Equal(got, want.encode()) {
			t.Errorf("type %d: % x, want % x", want.kind, got, want.encode())
		}
	}
}
