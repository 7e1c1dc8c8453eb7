package plan

import (
	"errors"
	"fmt"
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
	if l.up {
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
	switch {
	case now.Sub(l.fullEcho) < Silence && !l.fullEcho.Before(l.tryingSince):
		return reasonf(ErrPending, "UDP %d was blocked and flows again, watched for %v before it is used", port, l.hold)
	case l.summing && now.Sub(l.badChecksum) < 2*SlowBeat:
		return reasonf(ErrChecksums, "packets to %s come with wrong checksums, although the kernel computes them", l.addr)
	case now.Sub(l.smallEcho) < 2*SlowBeat && l.smallEcho.After(l.asked):
		return reasonf(ErrMTU, "MTU %d does not fit: packets of %d bytes to %s are lost, small ones pass", l.cfg.MTU, size, l.addr)
	case l.unanswered < 4 && now.Sub(l.tryingSince) < Silence && l.fullEcho.IsZero():
		return Because(ErrPending, ErrPending)
	}
	since := l.tryingSince
	if !l.fullEcho.IsZero() {
		since = l.fullEcho
	}
	silent := now.Sub(since)
	if silent > 10*time.Second {
		silent = silent.Truncate(time.Second)
	}
	return reasonf(ErrBlocked, "UDP %d blocked: no echo from %s for %v", port, l.addr, silent.Truncate(100*time.Millisecond))
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
