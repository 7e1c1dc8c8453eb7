package router

import (
	"testing"

	"github.com/weft-net/weft/router/ethernet"
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
