// Package announce says when to announce again that an address is at a container.
//
// Whoever connects a container announces its addresses once (RFC 5227, section 2.3, and
// RFC 4861, section 7.2.6). The frame may be lost: the router of another host is being
// replaced, or a link is cut. A container there that knows the address from its previous
// holder would send to the old MAC address until its kernel asks again: after up to 45 s, and
// 8 s of tries. So the announcement is repeated, less and less often, for about as long:
//
//	connected    1 s    3 s       7 s              15 s                              31 s
//	    +---------+------+---------+----------------+---------------------------------+
//
// An address that leaves its port is not announced any more. If it comes to another port, or
// comes back, that begins again. A container costs five frames for each address.
package announce

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// after are the times of the announcements since an address came.
var after = [...]time.Duration{1 * time.Second, 3 * time.Second, 7 * time.Second, 15 * time.Second, 31 * time.Second}

// maxDue bounds how many addresses Due returns at once; the others are due a little later.
// pause is until then.
const (
	maxDue = 64
	pause  = 100 * time.Millisecond
)

// Schedule knows which addresses are to be announced. The zero value knows none. It is not
// safe for concurrent use.
type Schedule struct {
	held map[netip.Addr]held
	// notBefore is when addresses are due again that did not fit into the last answer.
	notBefore time.Time
}

// held is an address at a port.
type held struct {
	port  string
	since time.Time
	done  int // announcements
}

// Hold replaces the addresses by those that are at ports now.
func (s *Schedule) Hold(now time.Time, ports map[netip.Addr]string) {
	next := make(map[netip.Addr]held, len(ports))
	for a, port := range ports {
		h, known := s.held[a]
		if !known || h.port != port {
			h = held{port: port, since: now}
		}
		next[a] = h
	}
	s.held = next
}

// Due returns the addresses that must be announced now, by their ports. The caller does that.
func (s *Schedule) Due(now time.Time) map[string][]netip.Addr {
	due := make(map[string][]netip.Addr)
	if now.Before(s.notBefore) {
		return due
	}
	n := 0
	for _, a := range slices.SortedFunc(maps.Keys(s.held), netip.Addr.Compare) {
		h := s.held[a]
		if h.done == len(after) || now.Before(h.since.Add(after[h.done])) {
			continue
		}
		if n++; n > maxDue {
			s.notBefore = now.Add(pause)
			break
		}
		// Those that were missed, because nobody asked for a while, count as done.
		for h.done < len(after) && !now.Before(h.since.Add(after[h.done])) {
			h.done++
		}
		s.held[a] = h
		due[h.port] = append(due[h.port], a)
	}
	return due
}

// Next returns when Due must be called; zero for not before the next Hold.
func (s *Schedule) Next() (next time.Time) {
	for _, h := range s.held {
		if h.done == len(after) {
			continue
		}
		if at := h.since.Add(after[h.done]); next.IsZero() || at.Before(next) {
			next = at
		}
	}
	if !next.IsZero() && next.Before(s.notBefore) {
		return s.notBefore
	}
	return next
}
