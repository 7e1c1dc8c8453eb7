package router

import (
	"errors"
	"maps"
	"net/netip"
	"time"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
	"github.com/weft-net/weft/router/link"
	"github.com/weft-net/weft/router/wire"
)

// fastUp begins the fast datapath of a link, or goes on with it after the peer's
// router was away.
func (r *Router) fastUp(s *sleeve, now time.Time) {
	f := r.fast
	if f == nil {
		return
	}
	addr := s.machine.Addr().Addr()
	if l, ok := f.away[s.peer]; ok && l.Addr() == addr {
		delete(f.away, s.peer)
		l.gone, l.secret = time.Time{}, s.secret
		f.links[s.peer] = l
		r.fastEffects(l, now, l.Renew(now, f.offer(addr)))
		return
	}
	delete(f.away, s.peer)
	l := &fastLink{peer: s.peer, secret: s.secret}
	var effects []plan.Effect
	l.Link, effects = plan.NewLink(plan.Config{MTU: r.cfg.MTU, Epoch: r.epoch, Nonce: newNonce, Own: f.offer(addr), Addr: addr}, now)
	f.links[s.peer] = l
	r.fastEffects(l, now, effects)
	if f.dp != nil {
		r.findHop(l)
	}
}

// fastDown ends it, unless the peer's kernel still answers.
func (r *Router) fastDown(n peer.Name, now time.Time) {
	f := r.fast
	if f == nil {
		return
	}
	l, ok := f.links[n]
	if !ok {
		return
	}
	delete(f.links, n)
	if l.gone = now; l.Up() {
		f.away[n] = l
	}
	f.dirty = true
}

// fastMoved follows the address of the peer's end, and the MTU of the way there.
func (r *Router) fastMoved(s *sleeve, now time.Time) {
	f := r.fast
	if f == nil {
		return
	}
	l, addr := f.links[s.peer], s.machine.Addr().Addr()
	if l == nil {
		return
	}
	if state, _ := s.machine.State(); state == link.Established && l.path != s.machine.MTU() {
		l.path = s.machine.MTU()
		r.fastEffects(l, now, l.SetPath(now, l.path))
	}
	if l.Addr() == addr {
		return
	}
	r.fastEffects(l, now, l.SetAddr(now, addr))
	r.fastEffects(l, now, l.SetOwn(now, f.offer(addr)))
	if f.dp != nil {
		r.findHop(l)
	}
}

// fastControl takes in what a neighbour says of its fast datapath.
func (r *Router) fastControl(from peer.Name, c wire.Control) {
	if r.fast == nil {
		return
	}
	if l, ok := r.fast.links[from]; ok {
		now := time.Now()
		r.fastEffects(l, now, l.Control(now, c))
		r.findHop(l)
	}
}

// fastEchoed takes in a probe that came back.
func (r *Router) fastEchoed(e echo) {
	now := time.Now()
	for _, set := range []map[peer.Name]*fastLink{r.fast.links, r.fast.away} {
		for _, l := range set {
			if l.Remote() == e.from {
				r.fastEffects(l, now, l.Echoed(now, e.nonce, e.summed))
			}
		}
	}
}

// fastEffects carries out what a link wants, and shows how it is now.
func (r *Router) fastEffects(l *fastLink, now time.Time, effects []plan.Effect) {
	for _, e := range effects {
		switch e := e.(type) {
		case plan.Send:
			if err := r.control.Send(l.peer, e.Msg.Append(nil)); err != nil {
				r.log.Debug("link control not sent", "peer", l.peer, "err", err)
			}
		case plan.Probe:
			if r.fast.dp == nil {
				continue
			}
			frame := kernel.AppendProbe(nil, kernel.Probe{Src: e.Src, Dst: e.Dst, To: e.To, Nonce: e.Nonce}, e.Size+ethernetLen)
			if err := r.fast.tap.Write(kernel.ProbeHeader, [][]byte{frame}); err != nil {
				r.drops.add(DropTAP)
			}
		case plan.Summing:
			r.sumInSoftware(l)
		}
	}
	r.showFast(l, now)
}

// showFast publishes a link's state for lanes and status.
func (r *Router) showFast(l *fastLink, now time.Time) {
	s, ok := r.links[l.peer]
	if !ok {
		return
	}
	f := r.fast
	show := fastStatus{up: l.Up(), sealed: l.Sealed(), reason: l.Reason(now), rtt: l.RTT()}
	if l.clash && l.Sealed() && !show.up {
		show.reason = "the peer says it has the tunnel key of another peer"
	}
	if show.up {
		show.mtu = r.cfg.MTU
		show.reason = f.whyNotExpress(l)
		show.express = show.reason == ""
	}
	old := s.fast.Swap(&show)
	if old == nil || old.up != show.up {
		f.dirty = true
		if show.up {
			r.log.Info("fast datapath in use", "peer", l.peer, "addr", l.Addr(), "encrypted", show.sealed, "rtt", show.rtt)
		} else if old != nil {
			r.log.Info("fast datapath out of use", "peer", l.peer, "addr", l.Addr(), "reason", show.reason)
		}
	}
	if l.id != l.PeerID() {
		l.id, f.dirty = l.PeerID(), true
	}
	if t := l.neighbour(); t != l.tunnel {
		l.tunnel, f.dirty = t, true
	}
}

// sumInSoftware has the kernel make the checksums of what goes into VXLAN, as the
// card by which a peer is reached makes wrong ones.
func (r *Router) sumInSoftware(l *fastLink) {
	f := r.fast
	r.log.Warn("wrong checksums inside VXLAN: they are made in software from now on", "peer", l.peer, "ifindex", l.hop.Ifindex, "interface", netdev.VXLANName)
	if err := f.dp.SumInSoftware(true); err != nil {
		r.log.Warn("make checksums in software", "err", err)
	}
	f.wrongSums[l.hop.Ifindex], f.dirty = true, true
}

// whyNotExpress says in words why frames to a peer that is fast cross the
// bridge, "" if they pass by it.
func (f *fastpath) whyNotExpress(l *fastLink) string {
	switch {
	case f.noExpress != "":
		return f.noExpress
	case within(l.Addr(), f.cfg.NoExpressTo):
		return "switched off by --no-express-to"
	case l.Sealed():
		return "frames are encrypted by WireGuard"
	case within(l.Addr(), f.secured):
		return "IPsec of the host applies to packets to the peer"
	case f.judged != "":
		return f.judged
	case f.wrongSums[l.hop.Ifindex]:
		return "the card towards the peer makes wrong checksums inside VXLAN, so the kernel makes them"
	case !f.expressable(l):
		return "the underlay is not IPv4 over Ethernet"
	}
	return ""
}

// underlay is what the interface is by which a peer is reached. Where netfilter sees
// what leaves by it, it would take what it knows of a frame from weft's bridge, like a
// translation of its addresses, for the packet's that the frame is in. Without an
// Ethernet header from_underlay would look for addresses in the wrong place.
func (f *fastpath) underlay(ifindex int) netdev.Underlay {
	u, known := f.looked[ifindex]
	if !known {
		u = f.watch.Underlay(ifindex)
		f.looked[ifindex] = u
	}
	return u
}

// expressable tells whether what goes to a peer can be put into VXLAN by hand:
// over IPv4 and Ethernet, by an interface that is known.
func (f *fastpath) expressable(l *fastLink) bool {
	return f.noExpress == "" && !l.Sealed() && !f.wrongSums[l.hop.Ifindex] && !within(l.Addr(), f.cfg.NoExpressTo) && !within(l.Addr(), f.secured) &&
		l.hop.Ifindex != 0 && l.hop.Local.Is4() && l.Addr().Is4() && l.hop.Gateway.Is4() && f.underlay(l.hop.Ifindex).Ethernet
}

// planFast works out what the kernel's maps are to hold and writes what differs.
func (r *Router) planFast() {
	f := r.fast
	if !f.dirty {
		return
	}
	f.dirty = false
	now := time.Now()
	r.takeIDs(now)
	r.applyTunnels(now)
	want := r.wantFast()
	if now.Sub(f.began) < adoptStay {
		f.keepAdopted(&want)
	} else {
		f.adopted = plan.Tables{}
	}
	r.writeTables(want)
}

// wantFast works out what the kernel's maps are to hold of what this process knows.
func (r *Router) wantFast() plan.Tables {
	f := r.fast
	hops, next, ids := make(map[peer.Name]plan.Hop), r.routes.Unicast, r.routes.ShortIDs
	add := func(l *fastLink) {
		if l.hop.Ifindex == 0 || l.PeerID() == 0 || !f.allowed(l.Remote()) || f.cfg.Off || f.why != "" {
			return
		}
		if l.Sealed() && (l.clash || l.hop.Ifindex != f.tunnel.Index() || !r.hasID(l)) {
			return // it would leave in clear, or to another
		}
		hops[l.peer] = plan.Hop{
			Remote: l.Remote(), Local: l.hop.Local, Gateway: l.hop.Gateway, Ifindex: l.hop.Ifindex, MTU: r.cfg.MTU,
			Up: l.Up() && ids[l.peer] == l.PeerID(), Express: f.expressable(l),
		}
		if h := hops[l.peer]; h.Express && !f.underlay(h.Ifindex).Netfilter {
			h.Direct = true
			hops[l.peer] = h
		}
	}
	if len(f.away) > 0 {
		next, ids = maps.Clone(next), maps.Clone(ids)
	}
	for n, l := range f.away {
		if via, reached := next[n]; reached && via != n {
			continue // over others; that it is reached itself is what the routes said before
		}
		if _, known := ids[n]; !known && r.routes.ByShortID[l.id].IsZero() {
			ids[n] = l.id
		}
		next[n] = n
		add(l)
	}
	for _, l := range f.links {
		add(l)
	}
	return plan.Plan(r.self, ids, next, hops)
}

// takeIDs takes in the short ids of the routes.
func (r *Router) takeIDs(now time.Time) {
	f := r.fast
	if self := r.routes.ShortIDs[r.self]; self != f.self {
		f.self = self
		if err := f.dp.SetSelf(self); err != nil {
			r.log.Warn("tell the kernel the own short id", "id", self, "err", err)
		}
		r.setTunnelAddr(self)
		for _, l := range f.links {
			r.fastEffects(l, now, l.SetOwn(now, f.offer(l.Addr())))
		}
		f.resync = true
	}
	if !maps.Equal(f.names, r.routes.ByShortID) {
		f.names, f.resync = r.routes.ByShortID, true
	}
}

// writeTables brings the kernel's maps to want. What could not be written is
// tried again with the next change.
func (r *Router) writeTables(want plan.Tables) {
	f := r.fast
	under := make(map[int]bool)
	for _, p := range want.Peers {
		if p.Express {
			under[p.Ifindex] = true
		}
	}
	r.attachUnderlays(under)
	if err := want.Apply(f.have, kernel.Maps{Datapath: f.dp}); err != nil {
		r.log.Warn("change the fast datapath", "err", err)
	}
}

// attachUnderlays has the programs on the interfaces by which peers are reached.
func (r *Router) attachUnderlays(want map[int]bool) {
	f := r.fast
	for i := range want {
		if f.underlays[i] || f.noExpress != "" {
			continue
		}
		if err := f.dp.AttachUnderlay(i); err != nil {
			r.log.Warn("no express path", "ifindex", i, "err", err)
			continue
		}
		f.underlays[i] = true
	}
	for i := range f.underlays {
		if want[i] {
			continue
		}
		delete(f.underlays, i)
		if err := f.dp.DetachUnderlay(i); err != nil {
			r.log.Warn("express path", "ifindex", i, "err", err)
		}
	}
}

// adopt reads what an earlier process left in the kernel. What may not be sent in
// clear any more ends at once, and so does what may not be taken in clear.
func (f *fastpath) adopt() error {
	f.have = plan.Tables{Peers: make(map[uint16]plan.Peer), Remotes: make(map[netip.Addr]plan.Remote)}
	var refused []uint16
	err := f.dp.Peers(func(id uint16, e kernel.PeerEntry) bool {
		p := plan.Peer{}
		if e.Flags&kernel.PeerFast != 0 && (f.cfg.Off || !f.allowed(kernel.ToAddr(e.Remote))) {
			refused = append(refused, id)
		} else if e.Flags&kernel.PeerFast != 0 {
			p.Next = e.Next
			p.Hop = plan.Hop{
				Remote: kernel.ToAddr(e.Remote), Local: kernel.ToAddr(e.Local), Gateway: kernel.ToAddr(e.Gateway),
				Ifindex: int(e.Ifindex), MTU: int(e.MTU), Up: true, Express: e.Flags&kernel.PeerExpress != 0, Direct: e.Flags&kernel.PeerDirect != 0,
			}
		}
		f.have.Peers[id] = p
		return true
	})
	for _, id := range refused {
		err = errors.Join(err, f.dp.PutPeer(id, kernel.PeerEntry{Flags: kernel.PeerKnown}))
	}
	if err != nil {
		return err
	}
	var strangers []netip.Addr
	err = f.dp.Remotes(func(a netip.Addr, e kernel.Remote) bool {
		if f.cfg.Off || !f.allowed(a) {
			strangers = append(strangers, a)
		} else {
			f.have.Remotes[a] = plan.Remote{Peer: e.Peer, Local: kernel.ToAddr(e.Local)}
		}
		return true
	})
	for _, a := range strangers {
		err = errors.Join(err, f.dp.DeleteRemote(a))
	}
	for _, i := range f.dp.Underlays() {
		f.underlays[i] = true
	}
	for _, i := range f.dp.Containers() {
		f.containers[i] = true
	}
	f.adopted = plan.Tables{Peers: maps.Clone(f.have.Peers), Remotes: maps.Clone(f.have.Remotes)}
	return err
}

// keepAdopted leaves in place what was adopted and is not contradicted: peers
// that this process does not reach yet, over neighbours that may be sent to in
// clear.
func (f *fastpath) keepAdopted(want *plan.Tables) {
	if f.cfg.Off || f.why != "" {
		return
	}
	for id, p := range f.adopted.Peers {
		switch r := f.adopted.Remotes[p.Remote]; {
		case want.Peers[id].Next != 0: // from now on it is this process's word that counts
			delete(f.adopted.Peers, id)
		case p.Next != 0 && f.allowed(p.Remote) && r.Peer == p.Next:
			if f.noExpress != "" || within(p.Remote, f.cfg.NoExpressTo) {
				p.Express, p.Direct = false, false
			}
			want.Peers[id] = p
		}
	}
	for a, e := range f.adopted.Remotes {
		if _, ok := want.Remotes[a]; !ok && f.allowed(a) {
			want.Remotes[a] = e
		}
	}
}
