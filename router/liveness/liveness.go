// Package liveness decides whether the far end of a path answers. It is the step machine
// behind the heartbeats of sleeve and the probes of the kernel fast path.
//
// It follows the echo function of BFD (RFC 5880, sections 3.2 and 6.4): this end sends
// requests, the far end returns each of them, and each end decides for itself, so a path
// that is cut in one direction is dead at both ends. The detection time is a multiplier
// times an interval. Both adapt:
//
//	          frames use the path             an answer is overdue
//	  idle <-----------------------> busy --------------------------> suspect
//	  Config.Rest                    Config.Pace                      SuspectInterval
//	   ^                              |  ^                              |    |
//	   |        an answer is overdue  |  +--- any answer ---------------+    | Multiplier
//	   +------------------------------+                                      | requests overdue
//	                                                                         v
//	                     any answer                                         dead
//	dead ------------------------------------------------------------> idle or busy
//
// An answer is overdue after srtt + max(4*rvar, srtt/4), between MinWait and MaxWait: srtt is
// the smoothed round-trip time, and rvar its variation (SRTT and RTTVAR of RFC 6298). So on a
// path with a short round trip, a busy path is dead at most Interval + 2*MinWait + (Multiplier-1)*SuspectInterval = 595 ms after
// the last packet that passed, and an idle one Config.Rest - Interval later. Multiplier is
// large because requests get lost on a path that works: of the busy paths on which each
// direction loses a fifth of the packets, one in 300 is called dead in an hour.
//
// A round trip that grows by half a second at once looks like a dead path, too. The late
// answers end that, and the next one is expected later.
//
// # Stalls
//
// Silence only counts while this process could have heard an answer. If the driver is late,
// because the process was stopped or the host is busy, the clock of the detector stands
// still for that time. If the answers are overdue and the driver says that packets wait to
// be read, the verdict waits for them, up to Multiplier*SuspectInterval. So a router that
// was not scheduled does not blame its peers, and one that is always late still finds out
// that a peer is silent, later.
//
// # Cost
//
// Most links of a large mesh carry nothing most of the time, and their frames begin to need
// them long before anybody notices that a request is late: so the more links a router has,
// the longer is the interval that Rest returns, up to MaxRest. A router with 200 links (the
// default limit of sessions) at rest sends 50 heartbeats and 50 probes a second, and as many
// answers. Links with traffic add 10 requests a second each, up to busyRequests for all of
// them: with more than 64 busy links, Pace returns a longer interval. So a router sends at
// most 2*640 more requests and as many answers a second, however large the mesh is. A suspect path costs at most Multiplier requests for
// each suspicion.
package liveness

import "time"

const (
	// Interval is the least interval of requests on a busy path.
	Interval = 100 * time.Millisecond
	// SuspectInterval is the interval of requests while an answer is overdue.
	SuspectInterval = 25 * time.Millisecond
	// Multiplier is how many requests must be overdue, and none after them answered.
	Multiplier = 16
	// MinWait and MaxWait bound how long an answer may take.
	MinWait = 60 * time.Millisecond
	MaxWait = 2 * time.Second
	// Recent is how long a path is busy after a frame used it.
	Recent = 3 * time.Second

	// grace is how late a driver may be: timers are.
	grace = 10 * time.Millisecond
	// maxPending bounds the requests under way, on paths with a very long round trip.
	maxPending = 4 * Multiplier
	// busyRequests is how many requests a second all busy paths of a router share.
	busyRequests = 640
	// restRequests is how many requests a second all paths of a router share that carry no
	// frames, until the interval of each is MaxRest.
	restRequests = 16
	// MaxRest is the longest interval of requests on a path without frames.
	MaxRest = 4 * time.Second
)

// Pace returns the interval of requests if paths are busy at the same time: Interval, or
// longer if there are so many that the requests of all of them would exceed a bound.
func Pace(paths int) time.Duration {
	return max(Interval, time.Duration(paths)*time.Second/busyRequests)
}

// Rest returns the interval of requests on a path that carries no frames, if a router has so
// many paths: least, or that doubled, so that all paths still send at the same moments.
func Rest(paths int, least time.Duration) time.Duration {
	d := least
	for d < MaxRest && time.Duration(paths)*time.Second > restRequests*d {
		d *= 2
	}
	return d
}

// Config configures a Detector.
type Config struct {
	// Epoch is the origin of the moments at which requests are sent while answers come: the
	// same for all paths of a router, so that it wakes up once for all of them.
	Epoch time.Time
	// Rest returns the interval of requests on a path that carries no frames.
	Rest func() time.Duration
	// Pace returns the interval on a busy path; always Interval if nil.
	Pace func() time.Duration
	// Unread reports whether packets that came wait to be read; nil if that is not known.
	Unread func() bool
}

// Detector is the state of one path. Make it with New. It is not safe for concurrent use.
// Times never go backwards.
type Detector struct {
	cfg   Config
	alive bool

	pending  []request // sent after the last one that was answered, in order
	lastSent time.Time
	next     time.Time // when to send the next request, while alive; zero: when an answer comes
	suspect  bool      // an answer is overdue, or somebody asked for a check
	check    time.Time // of the check that was asked for; zero if it is answered

	busyUntil  time.Time
	srtt, rvar time.Duration

	attended  time.Time     // of the last step
	stalled   time.Duration // how long the clock stood still
	stall     time.Time     // when it last did
	postponed time.Duration // verdicts for packets to be read, since the last answer
}

// request is a request that is under way.
type request struct {
	at time.Time
	on time.Duration // the detector's clock at that time
}

// New returns a Detector of a path that is not known to be alive.
func New(cfg Config) *Detector { return &Detector{cfg: cfg} }

// Alive reports whether the far end answers.
func (d *Detector) Alive() bool { return d.alive }

// Suspect reports whether an answer is overdue, or Check was not answered yet.
func (d *Detector) Suspect() bool { return d.suspect }

// RTT returns the smoothed round-trip time; 0 if not known.
func (d *Detector) RTT() time.Duration { return d.srtt }

// Busy reports whether frames used the path within Recent.
func (d *Detector) Busy(now time.Time) bool { return now.Before(d.busyUntil) }

// Reset forgets everything: the path is another one.
func (d *Detector) Reset() { *d = Detector{cfg: d.cfg, busyUntil: d.busyUntil} }

// Used reports that frames use the path.
func (d *Detector) Used(now time.Time) {
	was := d.Busy(now)
	d.busyUntil = now.Add(Recent)
	if !was {
		d.attend(now)
		d.schedule(now)
	}
}

// Check asks for requests at once, because something else suggests that the path is dead.
// It is BFD's poll sequence (RFC 5880, section 6.5).
func (d *Detector) Check(now time.Time) {
	d.attend(now)
	if d.alive && !d.suspect {
		d.suspect, d.check = true, now
		d.schedule(now)
	}
}

// Sent reports that a request was sent.
func (d *Detector) Sent(now time.Time) {
	d.attend(now)
	if len(d.pending) < maxPending {
		d.pending = append(d.pending, request{now, d.clock(now)})
	}
	d.lastSent = now
	d.schedule(now)
}

// Answered reports the answer to a request that was sent at a time. It may be one that was
// not reported with Sent.
func (d *Detector) Answered(now, sent time.Time) {
	d.attend(now)
	if rtt := now.Sub(sent); sent.After(d.stall) {
		d.measure(rtt)
	}
	n := 0
	for n < len(d.pending) && !d.pending[n].at.After(sent) {
		n++
	}
	d.pending = d.pending[:copy(d.pending, d.pending[n:])]
	if !d.check.IsZero() && !sent.Before(d.check) {
		d.check = time.Time{}
	}
	d.alive, d.postponed = true, 0
	d.suspect = !d.check.IsZero() || d.overdue(now) > 0
	d.schedule(now)
}

// measure smoothes round-trip times as RFC 6298, section 2, does.
func (d *Detector) measure(rtt time.Duration) {
	if d.srtt == 0 {
		d.srtt, d.rvar = rtt, rtt/2
		return
	}
	d.rvar += ((d.srtt - rtt).Abs() - d.rvar) / 4
	d.srtt += (rtt - d.srtt) / 8
}

// wait returns how long an answer may take.
func (d *Detector) wait() time.Duration {
	return min(max(d.srtt+max(4*d.rvar, d.srtt/4), MinWait), MaxWait)
}

// Tick does what is due, and reports whether it found that the path is dead. Call it at
// Next, or at any other time.
func (d *Detector) Tick(now time.Time) (died bool) {
	d.attend(now)
	if !d.alive {
		return false
	}
	overdue := d.overdue(now)
	switch {
	case overdue == 0:
	case overdue >= Multiplier:
		if d.cfg.Unread != nil && d.postponed < Multiplier*SuspectInterval && d.cfg.Unread() {
			d.postponed += SuspectInterval
			d.stalled += SuspectInterval
			break
		}
		d.alive, d.suspect, d.check, d.pending = false, false, time.Time{}, d.pending[:0]
		return true
	case !d.suspect:
		d.suspect = true
		d.schedule(now)
	}
	return false
}

// Due reports whether a request must be sent. While the path is not alive the caller
// decides that.
func (d *Detector) Due(now time.Time) bool {
	return d.alive && !d.next.IsZero() && !now.Before(d.next)
}

// Next returns when Tick must be called at the latest; zero for never.
func (d *Detector) Next() time.Time {
	if !d.alive {
		return time.Time{}
	}
	next := d.next
	deciding := 0 // the request whose lateness changes something
	if d.suspect {
		deciding = Multiplier - 1
	}
	if deciding < len(d.pending) {
		at := d.cfg.Epoch.Add(d.pending[deciding].on + d.wait() + d.stalled)
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// clock returns the time of the detector's clock, which stands still during stalls.
func (d *Detector) clock(now time.Time) time.Duration { return now.Sub(d.cfg.Epoch) - d.stalled }

// attend stops the clock for the time by which the driver is late.
func (d *Detector) attend(now time.Time) {
	due := d.Next()
	if due.Before(d.attended) {
		due = d.attended // what was late before is counted
	}
	if late := now.Sub(due); d.alive && !due.IsZero() && late > grace {
		d.stalled += late
		d.stall = now
	}
	d.attended = now
}

// overdue returns how many requests had enough time for their answers.
func (d *Detector) overdue(now time.Time) (n int) {
	for n < len(d.pending) && d.clock(now)-d.pending[n].on >= d.wait() {
		n++
	}
	return n
}

// schedule sets when the next request is sent.
func (d *Detector) schedule(now time.Time) {
	switch {
	case d.suspect && len(d.pending) >= Multiplier:
		d.next = time.Time{} // there are enough to decide
		return
	case d.suspect:
		d.next = d.lastSent.Add(SuspectInterval)
	case d.Busy(now):
		d.next = d.slot(d.pace())
	default:
		d.next = d.slot(d.cfg.Rest())
	}
	if d.next.Before(now) {
		d.next = now
	}
}

func (d *Detector) pace() time.Duration {
	if d.cfg.Pace == nil {
		return Interval
	}
	return min(d.cfg.Pace(), d.cfg.Rest())
}

// slot returns the first moment after the last request at which all paths with the
// same interval send one.
func (d *Detector) slot(interval time.Duration) time.Time {
	return d.lastSent.Add(interval - d.lastSent.Sub(d.cfg.Epoch)%interval)
}
