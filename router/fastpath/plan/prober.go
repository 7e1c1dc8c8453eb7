package plan

import (
	"time"

	"github.com/weft-net/weft/router/liveness"
)

// prober finds out by probes whether packets of one kind reach the peer and come back. Make it with
// newProber.
type prober struct {
	cfg *Config

	up          bool
	upSince     time.Time
	live        *liveness.Detector // used while up
	sent        map[[NonceLen]byte]sentProbe
	next        time.Time // when to send the next full-size probe
	unanswered  int       // full-size probes since the last echo of one
	asked       time.Time // when the first of them was sent
	tryingSince time.Time // or trying again
	fullEcho    time.Time // when the last echo of a full-size probe came
	smallEcho   time.Time // likewise of any other
	badChecksum time.Time // likewise of any with a wrong checksum
	echoesSince time.Time // since when full-size echoes come without a gap
	hold        time.Duration
}

type sentProbe struct {
	at   time.Time
	size int
}

func newProber(cfg *Config) prober {
	return prober{
		cfg: cfg, sent: make(map[[NonceLen]byte]sentProbe),
		live: liveness.New(liveness.Config{Epoch: cfg.Epoch, Rest: cfg.rest, Pace: cfg.Pace, Unread: cfg.Unread}),
	}
}

// begin begins to try a path of which nothing is known.
func (p *prober) begin(now time.Time) {
	p.stop()
	p.tryingSince, p.next, p.unanswered, p.hold = now, now, 0, 0
}

// resume is begin for a path that is up.
func (p *prober) resume(now time.Time) {
	p.up, p.upSince, p.next, p.fullEcho, p.echoesSince, p.tryingSince = true, now, now, now, now, now
}

// stop ends all probing, and forgets the path.
func (p *prober) stop() {
	p.live.Reset()
	p.up, p.fullEcho, p.smallEcho, p.badChecksum = false, time.Time{}, time.Time{}, time.Time{}
	clear(p.sent)
}

// answer returns the probe with a nonce that was sent and had no echo yet.
func (p *prober) answer(nonce [NonceLen]byte) (sentProbe, bool) {
	sent, ok := p.sent[nonce]
	delete(p.sent, nonce)
	return sent, ok
}

// echoed handles the echo of a probe.
func (p *prober) echoed(now time.Time, sent sentProbe) {
	p.live.Answered(now, sent.at)
	if sent.size != p.cfg.MTU {
		p.smallEcho = now
		return
	}
	if now.Sub(p.fullEcho) >= Silence {
		p.echoesSince = now
	}
	p.fullEcho, p.unanswered = now, 0
	beat := Beat
	if p.up && !p.live.Busy(now) {
		beat = p.cfg.rest()
	}
	p.next = now.Add(beat - now.Sub(p.cfg.Epoch)%beat)
	if p.up || now.Sub(p.echoesSince) < p.hold {
		return
	}
	p.up, p.upSince = true, now
	if p.cfg.Carries == nil || p.cfg.Carries() {
		p.live.Used(now)
	}
}

// due returns when something is due at the latest.
func (p *prober) due() time.Time {
	next := p.next
	if !p.up {
		return next
	}
	if p.unanswered > minOverdue {
		next = earlier(next, p.silentAt())
	}
	return earlier(next, p.live.Next())
}

// earlier returns the earlier of two times; b may be zero for none.
func earlier(a, b time.Time) time.Time {
	if !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// used reports that packets use the path.
func (p *prober) used(now time.Time) {
	if soon := now.Add(Beat); !p.live.Busy(now) && p.next.After(soon) {
		p.next = now // the last full-size probe was long ago
	}
	p.live.Used(now)
}

// silentAt returns when a path in use counts as silent, if enough probes are overdue.
func (p *prober) silentAt() time.Time {
	at := p.fullEcho.Add(Silence)
	if late := p.asked.Add(silentFor); late.After(at) {
		return late
	}
	return at
}

// silent reports whether full-size probes on a path in use are lost.
func (p *prober) silent(now time.Time) bool {
	overdue := p.unanswered
	if now.Before(p.next) {
		overdue-- // the last one
	}
	return overdue >= minOverdue && !now.Before(p.silentAt())
}

// update finds out whether a path that was up still is. It reports whether echoes begin to be late.
func (p *prober) update(now time.Time) (suspect bool) {
	if !p.up {
		return false
	}
	was := p.live.Suspect()
	died := p.live.Tick(now)
	suspect = !was && p.live.Suspect()
	if died || p.silent(now) {
		p.up = false
		p.live.Reset()
		if p.hold = max(firstHold, min(2*p.hold, lastHold)); now.Sub(p.upSince) >= holdForgotten {
			p.hold = firstHold
		}
		p.tryingSince, p.unanswered = now, 0
	}
	return suspect
}

// send sends the probes that are due: one of full size, and if the path is not up a small one, too, to
// distinguish an MTU that does not fit from a path that is blocked.
func (p *prober) send(now time.Time, probe func(nonce [NonceLen]byte, size int)) {
	one := func(size int) {
		n := p.cfg.Nonce()
		p.sent[n] = sentProbe{now, size}
		if p.up {
			p.live.Sent(now)
		}
		probe(n, size)
	}
	if !now.Before(p.next) {
		p.forgetOld(now)
		pause := FastBeat
		switch {
		case p.up:
			pause = RetryBeat
		case p.unanswered >= Timeout:
			pause = SlowBeat
		}
		if p.unanswered == 0 {
			p.asked = now
		}
		p.unanswered++
		p.next = now.Add(pause)
		one(p.cfg.MTU)
		if !p.up && p.cfg.MTU > smallProbe {
			one(smallProbe)
		}
	}
	if p.up && p.live.Due(now) {
		one(min(smallProbe, p.cfg.MTU))
	}
}

// forgetOld forgets probes whose echo would come too late.
func (p *prober) forgetOld(now time.Time) {
	for n, s := range p.sent {
		if now.Sub(s.at) > Silence {
			delete(p.sent, n)
		}
	}
}
