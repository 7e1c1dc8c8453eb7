package rotation

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// MaxHeld is how many passwords a peer holds at once.
const MaxHeld = 16

// State is what a peer publishes of its passwords. The payload of its record is
//
//	format u8 1 | for each password: id 8 | time u64 of its newest order, else 0
//
// The first password is the one that it offers.
type State struct {
	Accepts []Accepted // the one that is offered first
}

// Accepted is a password that a peer accepts.
type Accepted struct {
	Password ID
	Order    int64 // time of its newest order, 0 if there is none
}

const acceptedLen = 16

// Append appends the encoding of s to b.
func (s State) Append(b []byte) []byte {
	b = append(b, 1)
	for _, a := range s.Accepts {
		b = append(b, a.Password[:]...)
		b = binary.BigEndian.AppendUint64(b, uint64(a.Order))
	}
	return b
}

var errState = errors.New("malformed state of passwords")

// ParseState parses what Append made. The result owns its memory.
func ParseState(b []byte) (s State, err error) {
	if len(b) == 0 || b[0] != 1 || len(b)%acceptedLen != 1 || len(b) == 1 || len(b) > 1+MaxHeld*acceptedLen {
		return s, fmt.Errorf("%d bytes: %w", len(b), errState)
	}
	for b = b[1:]; len(b) > 0; b = b[acceptedLen:] {
		at := binary.BigEndian.Uint64(b[8:])
		if at >= 1<<62 {
			return State{}, fmt.Errorf("time %d: %w", at, errState)
		}
		s.Accepts = append(s.Accepts, Accepted{ID(b), int64(at)})
	}
	return s, nil
}

// offers returns the id of the password that the peer offers.
func (s State) offers(id ID) bool { return len(s.Accepts) > 0 && s.Accepts[0].Password == id }

// accepts returns what the peer published of a password.
func (s State) accepts(id ID) (a Accepted, ok bool) {
	for _, a := range s.Accepts {
		if a.Password == id {
			return a, true
		}
	}
	return a, false
}
