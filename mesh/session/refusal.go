package session

import (
	"encoding/binary"
	"fmt"
	"io"
	"unicode"
)

// Code is the reason of a refusal. The numbers are on the wire: append-only.
type Code uint8

// Codes of refusals.
const (
	CodeOK        Code = iota
	CodeVersion        // no protocol version in common
	CodePassword       // the passwords differ, or only one side has one
	CodeCollision      // another peer has the name
	CodeDuplicate      // the two peers already have a session
	CodeLimit          // the connection limit is reached
	CodeSelf           // a peer has dialled itself
	CodeBusy           // too many handshakes from this address
	CodeBanned         // the voters banned the peer
	CodeIdentity       // another live peer has the name and the key: a state folder was copied
	CodeOther
)

var codeNames = [...]string{"ok", "version", "password", "collision", "duplicate", "limit", "self", "busy", "banned", "identity", "other"}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code-%d", uint8(c))
}

// Refusal is the error if one of the two peers does not want the session.
type Refusal struct {
	Code   Code
	Reason string
	// ByPeer is set if the far end refused.
	ByPeer bool
	// Peer is the hello of the far end, nil if it was not received. So with ByPeer it says that
	// the refusal came encrypted, from a peer that proved its key.
	Peer *Hello
	// Proof is what the refusing peer knows for its reason, nil if nothing, at most 255 bytes.
	// This package carries it, and does not look into it.
	Proof []byte
	// Binding is that of the handshake, zero in a refusal in clear text.
	Binding Binding
}

func (r *Refusal) Error() string {
	switch {
	case r.ByPeer && r.Code == CodeBanned: // the reason calls this host "the peer"
		return "refused by the peer: this host is banned from the mesh"
	case r.ByPeer:
		return "refused by the peer: " + r.Reason
	}
	return "refused: " + r.Reason
}

const maxReason = 255

// appendRefusal encodes r as it is sent in place of a handshake message.
func appendRefusal(b []byte, r *Refusal) []byte {
	reason := r.Reason[:min(len(r.Reason), maxReason)]
	b = binary.BigEndian.AppendUint16(b, refusalTag)
	b = append(b, byte(r.Code), byte(len(reason)))
	return append(b, reason...)
}

// readRefusal reads a refusal after its tag.
func readRefusal(rd io.Reader) (*Refusal, error) {
	var head [2]byte
	if _, err := io.ReadFull(rd, head[:]); err != nil {
		return nil, err
	}
	reason := make([]byte, head[1])
	if _, err := io.ReadFull(rd, reason); err != nil {
		return nil, err
	}
	return &Refusal{Code: Code(head[0]), Reason: printable(reason), ByPeer: true}, nil
}

// printable replaces characters of a stranger's text that are not printable, so that it
// cannot send control sequences to a terminal or new lines to a log.
func printable(b []byte) string {
	r := []rune(string(b))
	for i, c := range r {
		if !unicode.IsPrint(c) {
			r[i] = '?'
		}
	}
	return string(r)
}
