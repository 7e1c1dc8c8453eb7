package dial

import (
	"net/netip"
	"time"
)

// Any member may state any address as its own, and the peers of a mesh are many. So that
// they cannot be used to flood a host that is no peer, attempts at one IP address are
// limited together, whichever members state it.
const (
	// maxActive is how many attempts at one IP address are in progress at a time.
	maxActive = 4
	// freeFailures is how many attempts may fail before there is a pause between two.
	// Any peer that answers there resets the count.
	freeFailures = 8
	// fewClaims is how many members may share an address, behind translation, before the
	// pause grows beyond MaxDelayAlive.
	fewClaims = 4
)

// destination is an IP address that members state.
type destination struct {
	claims   int // members that state it
	active   int // attempts in progress
	failures int // since a peer answered
	next     time.Time
}

// free returns when an attempt may start.
func (d *destination) free(now time.Time) time.Time {
	switch {
	case d.active >= maxActive, d.active > 0 && d.failures >= freeFailures:
		return now.Add(blockedDelay)
	case now.Before(d.next):
		return d.next
	}
	return now
}

// done records the result of an attempt.
func (d *destination) done(answered bool, now time.Time) {
	d.active--
	if answered {
		d.failures, d.next = 0, time.Time{}
		return
	}
	d.failures++
	if d.failures < freeFailures {
		return
	}
	most := MaxDelayAlive
	if d.claims > fewClaims {
		most = MaxDelay
	}
	delay := FirstDelay
	for range min(d.failures-freeFailures, 20) {
		delay = min(delay*3/2, most)
	}
	d.next = now.Add(delay)
}

// claim counts the members that state the addresses of c, by n.
func (m *Maker) claim(c *candidate, n int) {
	for _, ip := range c.hosts {
		d := m.destinations[ip]
		if d == nil {
			d = &destination{}
			m.destinations[ip] = d
		}
		if d.claims += n; d.claims <= 0 && d.active == 0 {
			delete(m.destinations, ip)
		}
	}
}

// hostsOf returns the IP addresses of addrs, each once.
func hostsOf(addrs []netip.AddrPort) (hosts []netip.Addr) {
	seen := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if !seen[a.Addr()] {
			seen[a.Addr()] = true
			hosts = append(hosts, a.Addr())
		}
	}
	return hosts
}
