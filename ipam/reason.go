package ipam

import (
	"errors"
	"fmt"
)

// Kinds of reasons why a request waits or fails, for errors.Is. The text of an
// error names the peers, the range and the counts.
var (
	// ErrNoRing means that the first ring, or one that was adopted, is missing.
	ErrNoRing = errors.New("there is no ring")
	// ErrNoSpace means that no peer that can be reached gave a free address.
	ErrNoSpace = errors.New("there is no free address")
	// ErrUnreachable means that every peer that could help is unreachable.
	ErrUnreachable = errors.New("the owner is unreachable")
	// ErrNoAnswer means that a peer that can be reached has not answered yet.
	ErrNoAnswer = errors.New("the owner has not answered")
	// ErrNoQuorum means that too few voters agreed to a decision.
	ErrNoQuorum = errors.New("too few voters agreed")
	// ErrInUse means that somebody else uses the address.
	ErrInUse = errors.New("the address is in use")
	// ErrKept means that an heir keeps the address for a removed peer that may return.
	ErrKept = errors.New("the address is kept")
	// ErrCatchingUp means that the state of this peer may be old, and no other peer has said
	// yet what is new.
	ErrCatchingUp = errors.New("this peer catches up with the mesh")
	// ErrDeadline is the cause when the time of a request is up. The text of the
	// error also says what the request waited for.
	ErrDeadline = errors.New("deadline exceeded")
	// ErrLeft is the cause when this peer has handed its space over.
	ErrLeft = errors.New("this peer has left the ring")
)

// reason is an error of a kind with a text of its own.
type reason struct {
	kind error
	text string
}

func (r *reason) Error() string { return r.text }
func (r *reason) Unwrap() error { return r.kind }

func because(kind error, format string, args ...any) error {
	return &reason{kind, fmt.Sprintf(format, args...)}
}
