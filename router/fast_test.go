package router

import (
	"net/netip"
	"testing"
	"time"

	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fast"
	"github.com/weft-net/weft/router/fastdp"
)

// Where the kernel has no part in it, nothing filters what containers send: a
// frame that looks like a tag must not be taken for one.
func TestContainersCanNotSendTags(t *testing.T) {
	inMesh(t, names(2), line(2), func(m *mesh) {
		n := m.nodes[0]
		n.fast = &fastpath{echoes: make(chan echo, 1)}
		for _, op := range []fastdp.TagOp{fastdp.TagRelay, fastdp.TagEcho, 3} {
			before := n.dropped(DropBadSource)
			m.say(0, append(fastdp.AppendTag(nil, fastdp.Tag{Op: op, Src: 1, Dst: 2, TTL: 9}), frameOf(ethernet.Broadcast, macOf(0), 60, 1)...))
			if n.dropped(DropBadSource) != before+1 || len(n.fast.echoes) != 0 {
				t.Errorf("a tag with op %d: %+v", op, n.Status())
			}
		}
		n.fast = nil
	})
}

// What an earlier router left and nobody confirms is looked at again when its time
// is over, although nothing else happens.
func TestAdoptedEntriesHaveATerm(t *testing.T) {
	f := &fastpath{began: time.Unix(100, 0)}
	if next := f.next(); !next.IsZero() {
		t.Errorf("without any: %v", next)
	}
	f.adopted.Remotes = map[netip.Addr]fast.Remote{netip.MustParseAddr("192.0.2.2"): {Peer: 2}}
	if next := f.next(); next != f.began.Add(adoptStay) {
		t.Errorf("due at %v", next)
	}
}
