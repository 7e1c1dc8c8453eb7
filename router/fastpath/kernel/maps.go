package kernel

import (
	"net/netip"

	"github.com/weft-net/weft/router/fastpath/plan"
)

// Maps are the maps of peers and neighbours, for fast.Tables to be applied to.
type Maps struct{ *Datapath }

var _ plan.Writer = Maps{}

// PutPeer implements fast.Writer.
func (m Maps) PutPeer(id uint16, p plan.Peer) error { return m.Datapath.PutPeer(id, entryOf(p)) }

// PutRemote implements fast.Writer.
func (m Maps) PutRemote(a netip.Addr, r plan.Remote) error {
	return m.Datapath.PutRemote(a, Remote{Peer: r.Peer, Local: AddrOf(r.Local)})
}

func entryOf(p plan.Peer) PeerEntry {
	e := PeerEntry{Flags: PeerKnown}
	if p.Next == 0 {
		return e
	}
	e.Flags |= PeerFast
	if p.Express {
		e.Flags |= PeerExpress
	}
	if p.Direct {
		e.Flags |= PeerDirect
	}
	e.Next, e.MTU, e.Ifindex = p.Next, uint16(min(p.MTU, 65535)), uint32(p.Ifindex)
	e.Remote, e.Local, e.Gateway = AddrOf(p.Remote), AddrOf(p.Local), AddrOf(p.Gateway)
	return e
}
