package multicast

import (
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Times of RFC 9776, section 8, which RFC 9777 has too.
const (
	queryInterval = intervalSeconds * time.Second
	// memberFor is for how long a report holds: the group membership interval.
	memberFor = robustness*queryInterval + 10*time.Second
	// otherFor is for how long another querier is believed to be there.
	otherFor = robustness*queryInterval + 5*time.Second
	// routerFor is for how long a multicast router is believed to be there. PIM says so each 30 s,
	// queriers say so each 125 s.
	routerFor = otherFor
	// lastWait and lastCount are those of the queries before a group is dropped.
	lastWait  = time.Second
	lastCount = 2
	// oldFor is for how long hosts speak version 1 of IGMP after they heard it: the older version querier
	// present timeout. Such a host answers after up to ten seconds, whatever it is asked.
	oldFor  = memberFor
	oldWait = 11 * time.Second
	// answerWithin is how soon hosts answer a general query, and firstWithin the first ones.
	answerWithin = 10 * time.Second
	firstWithin  = time.Second
)

// MaxGroups is how many groups of one host are told apart. With more, the host wants all.
const MaxGroups = 1024

// maxAsks is how many queries are sent at once.
const maxAsks = 64

// firstQueries are the times of the first queries since the start of a Snooper. After readyAfter it has
// heard of all groups.
var firstQueries = []time.Duration{0, time.Second, 3 * time.Second}

const readyAfter = 6 * time.Second

// Snooper is what one host knows of its containers. Make one with New.
type Snooper struct {
	start    time.Time
	groups   map[netip.Addr]*group
	over     time.Time // when there were more than MaxGroups last
	families [2]family
	router   time.Time // when a multicast router was heard last on this host
	old      time.Time // when something of version 1 of IGMP was heard last
	dropped  uint64
}

// group is a group that some container of this host wants.
type group struct {
	until time.Time // next query, or the end
	asked int       // queries since the last report
}

// family is the state of the querier for IPv4 or IPv6.
type family struct {
	all   netip.Addr // unspecified
	next  time.Time  // general query
	sent  int
	other time.Time // when another querier was heard last
}

// New returns a Snooper that knows nothing.
func New(now time.Time) *Snooper {
	s := &Snooper{start: now, groups: make(map[netip.Addr]*group)}
	for i, all := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		s.families[i] = family{all: all, next: now}
	}
	return s
}

func (s *Snooper) family(v4 bool) *family {
	if v4 {
		return &s.families[0]
	}
	return &s.families[1]
}

// Hear takes a frame to a group. local is set if it comes from a container of this host.
func (s *Snooper) Hear(now time.Time, frame []byte, local bool) Kind {
	kind := Parse(frame, func(g netip.Addr, wanted bool) {
		if local {
			s.member(now, g, wanted)
		}
	})
	if isVersion1(frame, kind) {
		s.old = now
	}
	switch kind {
	case Query:
		s.family(frame[12] == typeIPv4>>8 && frame[13] == typeIPv4&0xff).other = now
		fallthrough
	case Routing:
		if local {
			s.router = now
		}
	}
	return kind
}

func (s *Snooper) member(now time.Time, g netip.Addr, wanted bool) {
	m := s.groups[g]
	switch {
	case m == nil && !wanted:
	case m == nil && len(s.groups) >= MaxGroups:
		s.over = now
		s.dropped++
	case m == nil:
		s.groups[g] = &group{until: now.Add(memberFor)}
	case wanted:
		*m = group{until: now.Add(memberFor)}
	case m.asked == 0 && m.until.Sub(now) > lastWait:
		m.until = now // another container may want it
	}
}

// Tick returns the queries that are due, and when to call it next.
func (s *Snooper) Tick(now time.Time) (asks []Ask, next time.Time) {
	next = now.Add(queryInterval)
	until := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	for i := range s.families {
		f := &s.families[i]
		if !now.Before(f.next) {
			first := f.sent < len(firstQueries)
			within := answerWithin
			if first {
				within = firstWithin
			}
			if first || now.After(f.other.Add(otherFor)) {
				asks = append(asks, Ask{f.all, within})
			}
			f.sent++
			f.next = now.Add(queryInterval)
			if f.sent < len(firstQueries) {
				f.next = now.Add(firstQueries[f.sent] - firstQueries[f.sent-1])
			}
		}
		until(f.next)
	}
	for _, g := range slices.SortedFunc(maps.Keys(s.groups), netip.Addr.Compare) {
		m := s.groups[g]
		if !now.Before(m.until) {
			if len(asks) >= maxAsks {
				until(now.Add(lastWait / 10))
				break
			}
			if m.asked == lastCount {
				delete(s.groups, g)
				continue
			}
			m.asked++
			m.until = now.Add(lastWait)
			if g.Is4() && now.Before(s.old.Add(oldFor)) {
				m.until = now.Add(oldWait)
			}
			asks = append(asks, Ask{g, lastWait})
		}
		until(m.until)
	}
	for _, end := range []time.Time{s.start.Add(readyAfter), s.router.Add(routerFor), s.over.Add(memberFor)} {
		if now.Before(end) {
			until(end)
		}
	}
	return asks, next
}

// Wants is what the containers of a host want.
type Wants struct {
	// Ready is false while containers may want groups that are not known. The host gets all frames.
	Ready bool
	// All is set if the host gets all frames and all reports: it has a multicast router or a
	// querier, or too many groups.
	All    bool
	Groups []netip.Addr // ascending; nil if All is set
}

// Equal reports whether two Wants are the same.
func (w Wants) Equal(o Wants) bool {
	return w.Ready == o.Ready && w.All == o.All && slices.Equal(w.Groups, o.Groups)
}

// Wants returns what the containers want. The caller owns the result.
func (s *Snooper) Wants(now time.Time) Wants {
	w := Wants{Ready: now.Sub(s.start) >= readyAfter, All: now.Before(s.router.Add(routerFor)) || now.Before(s.over.Add(memberFor))}
	if !w.All {
		w.Groups = slices.SortedFunc(maps.Keys(s.groups), netip.Addr.Compare)
	}
	return w
}

// Dropped returns how many reports were ignored because a host had too many groups.
func (s *Snooper) Dropped() uint64 { return s.dropped }
