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

// EntryOf returns the entry of a peer.
func EntryOf(p plan.Peer) PeerEntry {
	e := PeerEntry{Flags: PeerKnown, From: p.From}
	if p.FromAny {
		e.Flags |= PeerAny
	}
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
