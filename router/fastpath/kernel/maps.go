package kernel

import (
	"net/netip"

	"github.com/weft-net/weft/router/fastpath/plan"
)

// Tables are the maps of peers and neighbours, as Datapath has them.
type Tables interface {
	PutPeer(id uint16, e PeerEntry) error
	DeletePeer(id uint16) error
	PutRemote(a netip.Addr, r Remote) error
	DeleteRemote(a netip.Addr) error
}

// Maps writes plan.Tables to the kernel.
type Maps struct{ Tables }

var _ plan.Writer = Maps{}

// PutPeer implements plan.Writer.
func (m Maps) PutPeer(id uint16, p plan.Peer) error { return m.Tables.PutPeer(id, EntryOf(p)) }

// PutRemote implements plan.Writer.
func (m Maps) PutRemote(a netip.Addr, r plan.Remote) error {
	return m.Tables.PutRemote(a, RemoteOf(r))
}

// RemoteOf returns the entry of a neighbour.
func RemoteOf(r plan.Remote) Remote {
	return Remote{Peer: r.Peer, Local: AddrOf(r.Local), Key: r.Key}
}

// PeerOf is the inverse of EntryOf.
func PeerOf(e PeerEntry) plan.Peer {
	p := plan.Peer{From: e.From, FromAny: e.Flags&PeerAny != 0, Next: e.Next}
	if e.Next == 0 {
		return p
	}
	p.Hop = plan.Hop{
		Remote: ToAddr(e.Remote), Local: ToAddr(e.Local), Gateway: ToAddr(e.Gateway), Ifindex: int(e.Ifindex), MTU: int(e.MTU),
		Up: e.Flags&PeerFast != 0, Express: e.Flags&PeerExpress != 0, Direct: e.Flags&PeerDirect != 0, Accepts: e.Flags&PeerPlain != 0,
		Encaps: [2]plan.Encap{plan.V4: plan.Encap(e.Encap4), plan.V6: plan.Encap(e.Encap6)},
	}
	return p
}

// EntryOf returns the entry of a peer.
func EntryOf(p plan.Peer) PeerEntry {
	e := PeerEntry{Flags: PeerKnown, From: p.From}
	if p.FromAny {
		e.Flags |= PeerAny
	}
	if p.Next == 0 {
		return e
	}
	if p.Up {
		e.Flags |= PeerFast
	}
	if p.Accepts {
		e.Flags |= PeerPlain
	}
	if p.Express {
		e.Flags |= PeerExpress
	}
	if p.Direct {
		e.Flags |= PeerDirect
	}
	e.Encap4, e.Encap6 = Encap(p.Encaps[plan.V4]), Encap(p.Encaps[plan.V6])
	e.Next, e.MTU, e.Ifindex = p.Next, uint16(min(p.MTU, 65535)), uint32(p.Ifindex)
	e.Remote, e.Local, e.Gateway = AddrOf(p.Remote), AddrOf(p.Local), AddrOf(p.Gateway)
	return e
}
