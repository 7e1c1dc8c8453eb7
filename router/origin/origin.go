// Package origin checks where frames come from. A frame that a neighbour relays names the
// peer that it is from. The neighbour may lie, so the frame is accepted only if the routes
// say that frames of that peer come over that neighbour:
//
//	A --- N --- self       frames of A come from N,
//	 \- - - - - - /        frames of N from N only,
//	      M                frames of A from M, too, if the path over M is as short
//
// Peers do not hear of a change at the same moment, so what the routes said last stays
// valid for Grace.
//
// Time is an argument: a duration since an origin that the caller chooses, which never
// goes back. A Table is immutable.
package origin

import (
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

// Grace is how long frames may still come from where the routes no longer lead: changes
// reach all peers within a few seconds.
const Grace = 10 * time.Second

// Table says from which neighbours frames of which peers may come. The zero value allows
// only frames that neighbours send for themselves.
type Table struct {
	from map[peer.Name][]Via
	next time.Duration // when the first Via ends, 0 for never
}

// Via is a neighbour over which frames of a peer may come.
type Via struct {
	Neighbour peer.Name
	// Until is when it ends; 0 while the routes say so.
	Until time.Duration
}

// New returns the table after a change of routes. from is that of topology.Routes, of all
// peers that are reachable now; frames of others are not accepted. old is the table until
// then.
func New(from map[peer.Name][]peer.Name, old Table, now time.Duration) Table {
	t := Table{from: make(map[peer.Name][]Via, len(from))}
	for src, list := range from {
		vias := make([]Via, 0, len(list))
		for _, n := range list {
			vias = append(vias, Via{Neighbour: n})
		}
		for _, v := range old.from[src] {
			if v.Until == 0 {
				v.Until = now + Grace
			}
			if v.Until <= now || has(vias, v.Neighbour) {
				continue
			}
			vias = append(vias, v)
			if t.next == 0 || v.Until < t.next {
				t.next = v.Until
			}
		}
		t.from[src] = vias
	}
	return t
}

func has(vias []Via, n peer.Name) bool {
	for _, v := range vias {
		if v.Neighbour == n {
			return true
		}
	}
	return false
}

// Allows reports whether a frame of src may come from a neighbour now.
func (t *Table) Allows(src, neighbour peer.Name, now time.Duration) bool {
	if src == neighbour {
		return true
	}
	for _, v := range t.from[src] {
		if v.Neighbour == neighbour {
			return v.Until == 0 || now < v.Until
		}
	}
	return false
}

// From returns the other neighbours over which frames of src may come now, those that
// the routes say first.
func (t *Table) From(src peer.Name, now time.Duration) (list []peer.Name) {
	for _, v := range t.from[src] {
		if v.Neighbour != src && (v.Until == 0 || now < v.Until) {
			list = append(list, v.Neighbour)
		}
	}
	return list
}

// Next returns when the answers of From change next although no route does; 0 for never.
func (t *Table) Next(now time.Duration) (next time.Duration) {
	if t.next == 0 || now < t.next {
		return t.next
	}
	for _, vias := range t.from {
		for _, v := range vias {
			if v.Until > now && (next == 0 || v.Until < next) {
				next = v.Until
			}
		}
	}
	return next
}
