package router

import (
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
	"github.com/weft-net/weft/router/fastdp"
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
func (r *Router) stationSeen(e fastdp.Event) {
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

// copyStation writes what the table says of a station into the kernel's map.
func (r *Router) copyStation(m ethernet.MAC) {
	f := r.fast
	at, ok := r.macs.Lookup(m, r.since())
	id := f.self
	if ok && at != r.self {
		id = r.routes.ShortIDs[at]
	}
	var err error
	if !ok || id == 0 {
		err = f.dp.DeleteMAC(m)
	} else {
		e := fastdp.MACEntry{Peer: id}
		if at == r.self {
			if i := f.veths[m]; i != 0 {
				e.Ifindex, e.Flags = uint32(i), fastdp.MACExpress
			}
		} else {
			delete(f.veths, m)
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

// syncStations compares both tables: last use goes to the later of the two,
// places are as the table has them, and what the table has forgotten leaves the
// kernel. What an earlier process left in the kernel is learned from it.
func (r *Router) syncStations() {
	f := r.fast
	if f == nil || f.dp == nil {
		return
	}
	now, boot := r.since(), time.Duration(fastdp.BootTime())
	adopting := time.Since(f.began) < adoptStay
	inKernel := make(map[ethernet.MAC]uint16)
	var rewrite []ethernet.MAC
	err := f.dp.MACs(func(m [6]byte, e fastdp.MACEntry) bool {
		at := r.self
		if e.Peer != f.self {
			at = f.names[e.Peer]
		}
		age := max(0, boot-time.Duration(e.Seen))
		inKernel[m] = e.Peer
		if at.IsZero() {
			if !adopting {
				rewrite = append(rewrite, m)
			}
			return true
		}
		if _, known := r.macs.Lookup(m, now); adopting && !known && age < mac.MaxAge {
			r.macs.Learn(m, at, now-age)
			switch i := int(e.Ifindex); {
			case f.shaped[i]:
				rewrite = append(rewrite, m)
			case i != 0:
				f.veths[m] = i
			}
			return true
		}
		if !r.macs.Touch(m, at, now-age) {
			rewrite = append(rewrite, m)
		}
		return true
	})
	if err != nil {
		r.log.Warn("read the kernel's stations", "err", err)
		return
	}
	r.macs.Expire(now)
	for _, e := range r.macs.Entries(now) {
		id := f.self
		if e.Peer != r.self {
			id = r.routes.ShortIDs[e.Peer]
		}
		if have, ok := inKernel[e.MAC]; id != 0 && (!ok || have != id) {
			rewrite = append(rewrite, e.MAC)
		}
	}
	for _, m := range rewrite {
		r.copyStation(m)
	}
}

// keeps tells whether a peer is kept although no route leads to it.
func (f *fastpath) keeps(n peer.Name) bool {
	if f == nil {
		return false
	}
	_, ok := f.away[n]
	return ok
}
