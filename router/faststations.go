package router

import (
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/mac"
)

// The MAC table of package mac says where each station is. The kernel's map has
// a copy: what lanes learn is written there; what the kernel sees is told by
// events and learned here; when a station was last used is kept by both, and
// compared now and then.

// learnedStation has the control goroutine copy a station that came or moved.
func (f *fastpath) learnedStation(m ethernet.MAC) {
	if f == nil || f.dp == nil {
		return
	}
	select {
	case f.learned <- m:
	default:
		f.missed.Store(true)
	}
}

// stationSeen takes in that the kernel saw a station where its map did not have
// it.
func (r *Router) stationSeen(e kernel.Event) {
	f := r.fast
	m := ethernet.MAC(e.Addr)
	at := r.self
	if e.Peer != f.self {
		if at = f.names[e.Peer]; at.IsZero() {
			return
		}
	}
	if !m.IsStation() {
		return
	}
	if r.macs.Learn(m, at, r.since()) == mac.Full {
		r.macsRefused.Add(1)
		return
	}
	switch {
	case at != r.self:
		delete(f.veths, m)
	case e.Ifindex != 0 && f.containers[int(e.Ifindex)]:
		f.veths[m] = int(e.Ifindex)
	}
	r.copyStation(m)
}

// placeOf returns the short id of the peer that the table has a station behind; 0 if
// it knows none, or the peer has none.
func (r *Router) placeOf(m ethernet.MAC) uint16 {
	at, ok := r.macs.Lookup(m, r.since())
	switch {
	case !ok:
		return 0
	case at == r.self:
		return r.fast.self
	}
	return r.routes.ShortIDs[at]
}

// copyStation writes what the table says of a station into the kernel's map.
func (r *Router) copyStation(m ethernet.MAC) {
	f := r.fast
	id := r.placeOf(m)
	var err error
	if id == 0 {
		err = f.dp.DeleteMAC(m)
	} else {
		e := kernel.MACEntry{Peer: id}
		if id != f.self {
			delete(f.veths, m)
		} else if i := f.veths[m]; i != 0 {
			e.Ifindex, e.Flags = uint32(i), kernel.MACExpress
		}
		err = f.dp.PutMAC(m, e)
	}
	if err != nil {
		r.log.Debug("copy a station to the kernel", "mac", m, "err", err)
	}
}

// stationGone forgets a station of this host whose interface is gone.
func (r *Router) stationGone(m ethernet.MAC) {
	f := r.fast
	delete(f.veths, m)
	if at, ok := r.macs.Lookup(m, r.since()); ok && at == r.self {
		r.macs.Remove(m)
	}
	r.copyStation(m)
}

// syncStations has the table and the kernel's map agree.
func (r *Router) syncStations() {
	f := r.fast
	if f == nil || f.dp == nil {
		return
	}
	inKernel := make(map[ethernet.MAC]kernel.MACEntry)
	err := f.dp.MACs(func(m [6]byte, e kernel.MACEntry) bool { inKernel[m] = e; return true })
	if err != nil {
		r.log.Warn("read the kernel's stations", "err", err)
		return
	}
	for _, m := range r.compareStations(inKernel, time.Duration(kernel.BootTime())) {
		r.copyStation(m)
	}
}

// compareStations brings the table up to date by what the kernel's map has, and
// returns what the map has wrongly: last use goes to the later of the two, places are
// as the table has them, and what the table forgets leaves the kernel. What an
// earlier process left in the kernel is learned from it. The time is that since boot.
func (r *Router) compareStations(inKernel map[ethernet.MAC]kernel.MACEntry, boot time.Duration) (wrong []ethernet.MAC) {
	f, now := r.fast, r.since()
	adopting := time.Since(f.began) < adoptStay
	peerOf := func(e kernel.MACEntry) peer.Name {
		if e.Peer == f.self {
			return r.self
		}
		return f.names[e.Peer]
	}
	for m, e := range inKernel {
		at, age := peerOf(e), max(0, boot-time.Duration(e.Seen))
		if at.IsZero() {
			continue
		}
		if _, known := r.macs.Lookup(m, now); adopting && !known && age < mac.MaxAge {
			r.macs.Learn(m, at, now-age)
			if i := int(e.Ifindex); i != 0 && !f.shaped[i] {
				f.veths[m] = i
			}
			continue
		}
		r.macs.Touch(m, at, now-age)
	}
	r.macs.Expire(now)
	for m, e := range inKernel {
		id := r.placeOf(m)
		unconfirmed := adopting && id == 0 && peerOf(e).IsZero()
		passesBy := f.shaped[int(e.Ifindex)] // by express, what holds its frames back
		if id != e.Peer && !unconfirmed || passesBy {
			wrong = append(wrong, m)
		}
	}
	for _, e := range r.macs.Entries(now) {
		if _, ok := inKernel[e.MAC]; !ok && r.placeOf(e.MAC) != 0 {
			wrong = append(wrong, e.MAC)
		}
	}
	return wrong
}

// keeps tells whether a peer is kept although no route leads to it.
func (f *fastpath) keeps(n peer.Name) bool {
	if f == nil {
		return false
	}
	_, ok := f.away[n]
	return ok
}
