package router

import (
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/offload"
	"github.com/weft-net/weft/router/tap"
	"github.com/weft-net/weft/router/wire"
)

// fastHost is what the controller of the fast path needs of the router.
type fastHost struct {
	r   *Router
	tap tap.Writer
	q   tap.Queue
}

var _ fastpath.Host = fastHost{}

func (h fastHost) Send(to peer.Name, c wire.Control) {
	h.r.do(func() {
		if l, ok := h.r.links[to]; ok {
			h.r.sendControl(l, c.Append(nil))
		}
	})
}

func (h fastHost) Inject(head offload.Header, frame []byte) {
	if h.tap.Write(head, [][]byte{frame}) != nil {
		h.r.drops.add(DropTAP)
	}
}

func (h fastHost) Carries(n peer.Name) bool {
	l := (*h.r.byName.Load())[n]
	return l != nil && !l.quiet.Load()
}

func (h fastHost) SetFast(n peer.Name, up bool) {
	h.r.do(func() {
		if l, ok := h.r.links[n]; ok {
			h.r.step(l, l.machine.SetFast(time.Now(), up))
		}
	})
}

func (h fastHost) Check(n peer.Name) {
	h.r.do(func() {
		if l, ok := h.r.links[n]; ok {
			h.r.step(l, l.machine.Check(time.Now()))
		}
	})
}

func (h fastHost) Backlog() bool {
	b, ok := h.q.(tap.Backlogger)
	return ok && b.Backlog()
}
