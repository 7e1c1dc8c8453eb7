package plan

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// Kinds of reasons why a link is not up, for errors.Is.
var (
	ErrUnwilling = errors.New("an end is not willing")
	ErrPending   = errors.New("being tried")
	ErrMTU       = errors.New("packets do not fit the path")
	ErrChecksums = errors.New("wrong checksums")
	ErrBlocked   = errors.New("no echo")
)

// Because returns an error that has the text of a cause and is of a kind, too. A cause
// of nil makes it nil.
func Because(kind, cause error) error {
	if cause == nil {
		return nil
	}
	return reason{kind, cause}
}

type reason struct{ kind, cause error }

func (r reason) Error() string   { return r.cause.Error() }
func (r reason) Unwrap() []error { return []error{r.kind, r.cause} }

func reasonf(kind error, format string, args ...any) error {
	return Because(kind, fmt.Errorf(format, args...))
}

// Reason says why the link is not up, nil if it is.
func (l *Link) Reason(now time.Time) error {
	if l.vxlan.up {
		return nil
	}
	if err := l.disagreement(); err != nil {
		return err
	}
	port, size := l.own.Port, l.cfg.MTU+Overhead(l.addr)
	if l.Encrypted() {
		port, size = l.peer.Tunnel.Port, l.cfg.MTU+EncryptedOverhead(l.addr)
		if l.path < size {
			return reasonf(ErrMTU, "MTU %d does not fit: packets would be of %d bytes, the path to %s is known to carry %d", l.cfg.MTU, size, l.addr, l.path)
		}
	}
	if l.summing && now.Sub(l.vxlan.badChecksum) < 2*SlowBeat {
		return reasonf(ErrChecksums, "packets to %s come with wrong checksums, although the kernel computes them", l.addr)
	}
	return l.vxlan.reason(now, fmt.Sprintf("UDP %d", port), l.addr, size)
}

// reason says why packets of a kind, what, that are of size bytes on the underlay, do not reach a host.
func (p *prober) reason(now time.Time, what string, to netip.Addr, size int) error {
	switch {
	case now.Sub(p.fullEcho) < Silence && !p.fullEcho.Before(p.tryingSince):
		return reasonf(ErrPending, "%s was blocked and flows again, watched for %v before it is used", what, p.hold)
	case now.Sub(p.smallEcho) < 2*SlowBeat && p.smallEcho.After(p.asked):
		return reasonf(ErrMTU, "MTU %d does not fit: packets of %d bytes to %s are lost, small ones pass", p.cfg.MTU, size, to)
	case p.unanswered < 4 && now.Sub(p.tryingSince) < Silence && p.fullEcho.IsZero():
		return Because(ErrPending, ErrPending)
	}
	since := p.tryingSince
	if !p.fullEcho.IsZero() {
		since = p.fullEcho
	}
	silent := now.Sub(since)
	if silent > 10*time.Second {
		silent = silent.Truncate(time.Second)
	}
	return reasonf(ErrBlocked, "%s blocked: no echo from %s for %v", what, to, silent.Truncate(100*time.Millisecond))
}

// EncapReason says why IP packets between known addresses do not go to the peer in the best encapsulation of the
// settings; nil if they do, or if frames do not go to it by the fast path at all.
func (l *Link) EncapReason(now time.Time) error {
	if len(l.own.Encaps.List()) == 0 || !l.ready {
		return Because(ErrUnwilling, l.own.NoPlain)
	}
	best := l.ways[0].Encap
	switch {
	case l.transport != clearText:
		return reasonf(ErrUnwilling, "packets must be encrypted")
	case !l.takes(best):
		return reasonf(ErrUnwilling, "the peer does not take it, its own status says why")
	}
	missing := 0
	for _, w := range l.ways {
		from, to := l.ends(w.family)
		switch {
		case w.Encap != best || w.up:
		case !from.IsValid() || !to.IsValid():
			missing++
		case l.cannot(w) != nil:
			return Because(ErrUnwilling, l.cannot(w))
		case now.Sub(w.badChecksum) < 2*SlowBeat:
			return reasonf(ErrChecksums, "%s to %s come with wrong checksums", w.text(), to)
		default:
			return w.reason(now, w.text(), to, l.cfg.MTU+w.overhead())
		}
	}
	if missing == len(families) {
		return reasonf(ErrPending, "no addresses of containers are known on both hosts")
	}
	return nil
}

// text is what users know the packets as.
func (w *way) text() string {
	switch {
	case w.Encap == None:
		return "packets with addresses of containers"
	case w.family == V6:
		return "IP protocol 41"
	}
	return "IP protocol 4"
}

// overhead is that of an IP packet of a container, in bytes.
func (w *way) overhead() int {
	if w.Encap == IPIP {
		return IPIPOverhead
	}
	return 0
}

// disagreement says why the link is not even tried, nil if it is.
func (l *Link) disagreement() error {
	own := l.own.Verdict
	switch {
	case own != wire.FastWilling && own != wire.FastEncrypted, own == wire.FastEncrypted && !l.own.Tunnel.Valid():
		if l.own.Why == nil {
			return ErrUnwilling
		}
		return Because(ErrUnwilling, l.own.Why)
	case l.peer == nil:
		return reasonf(ErrPending, "the peer has not offered a fast path")
	case l.peer.Verdict != wire.FastWilling && l.peer.Verdict != wire.FastEncrypted:
		return theirs(l.peer.Verdict)
	case l.agreedTransport() == none && l.own.Tunnel.Valid():
		return reasonf(ErrUnwilling, "frames must be encrypted, and the peer has no WireGuard, its own status says why")
	case l.agreedTransport() == none:
		return theirs(wire.FastEncrypted)
	case l.peer.Port != l.own.Port:
		return reasonf(ErrUnwilling, "the peer's fast path uses UDP port %d, this host's %d", l.peer.Port, l.own.Port)
	case !l.addr.IsValid():
		return reasonf(ErrPending, "the peer's address is not known")
	case l.own.ShortID == 0 || l.peer.ShortID == 0:
		return theirs(wire.FastNoID)
	}
	return nil
}

// theirs is a reason at the other end.
func theirs(v wire.Verdict) error {
	text := "refused by the peer"
	switch v {
	case wire.FastOff:
		text = "switched off at the peer"
	case wire.FastNoKernel:
		text = "the peer's kernel lacks something, its own status says what"
	case wire.FastEncrypted:
		text = "the peer wants encryption"
	case wire.FastNoID:
		text = "there are more peers than short ids, or one is being chosen"
	}
	return reasonf(ErrUnwilling, "%s", text)
}
