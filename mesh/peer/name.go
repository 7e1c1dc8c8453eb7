// Package peer has the identity of a router: its name, the key that proves it, and the
// book of the keys to which overridden names are bound.
//
// # Names and keys
//
// A name is of one of two kinds, and its first byte says which. A derived name is a hash
// of a key. It belongs to that key everywhere and always, so nobody can take it, not even
// while its host is away. An overridden name was given by a user (--name). The first key
// that shows it keeps it until the name is removed from the mesh; see Book.
//
// All types are values or plain structs that open no socket, read no clock and log
// nothing, so simulations use the same code as the router.
package peer

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
)

// NameLen is the length of a Name in bytes.
const NameLen = 6

// Name is a peer's 48-bit identity, printed like a MAC address. No peer has the zero Name.
type Name [NameLen]byte

// Broadcast is the destination of messages to every peer. No peer may have this name.
var Broadcast = Name{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// The low three bits of a name's first byte say what kind of name it is. A derived name
// has the locally administered bit and derivedBit set and the group bit clear. No override
// may have that pattern, so the two kinds never meet.
const (
	kindBits = 7
	derived  = 6
)

// keyIDRounds is how often a key is hashed to give its KeyID. A name has only 45 free
// bits, so a second key for one name costs 2^45 keys to try; the rounds raise that to
// 2^55 hashes. One KeyID costs about as much as one signature.
const keyIDRounds = 1 << 10

// KeyID names a key by its content. Two keys with one KeyID cannot be found; two keys
// with one derived Name cost 2^55 hashes.
type KeyID [16]byte

// Name returns the name that is derived from the key: the first 48 bits of its id,
// marked as derived. It is also a valid unicast, locally administered MAC address.
func (id KeyID) Name() (n Name) {
	copy(n[:], id[:])
	n[0] = n[0]&^kindBits | derived
	return n
}

// String returns the first bytes of the id in hexadecimal, for people to compare.
func (id KeyID) String() string { return hex.EncodeToString(id[:4]) }

// Compare orders ids by their bytes: -1, 0 or 1.
func (id KeyID) Compare(o KeyID) int { return bytes.Compare(id[:], o[:]) }

// IDOf returns the KeyID of a public key: the first 16 bytes of SHA-256, repeated
// keyIDRounds times, of "weft peer name" and the key.
func IDOf(k Key) (id KeyID) {
	if id, ok := knownIDs.get(k); ok {
		return id
	}
	sum := sha256.Sum256(append([]byte("weft peer name"), k[:]...))
	for range keyIDRounds - 1 {
		sum = sha256.Sum256(sum[:])
	}
	copy(id[:], sum[:])
	knownIDs.put(k, id)
	return id
}

// Derived reports whether n is of the kind that only its own key may use.
func (n Name) Derived() bool { return n[0]&kindBits == derived }

// Matches returns an error if a key with that id may not use the name. Every key may use
// a name that is not derived; a Book then binds it to one.
func (n Name) Matches(id KeyID) error {
	if n.Derived() && id.Name() != n {
		return fmt.Errorf("peer %s shows key %s, from which the name %s is derived: %w", n, id, id.Name(), ErrNameTaken)
	}
	return nil
}

// CheckOverride returns an error if a user may not give a peer this name.
func (n Name) CheckOverride() error {
	switch {
	case n.Derived():
		return fmt.Errorf("peer name %s: names whose first byte ends in the bits 110 are derived from keys; choose another, for example %s",
			n, Name{n[0] &^ kindBits, n[1], n[2], n[3], n[4], n[5]})
	case n[0]&1 != 0:
		return fmt.Errorf("peer name %s: the lowest bit of its first byte is set, as in the address of a group", n)
	}
	return nil
}

// ParseName parses the form that String returns. As in an IPv6 address, "::" stands for a
// run of zero bytes, so ::1 is 00:00:00:00:00:01.
func ParseName(s string) (Name, error) {
	var n Name
	bad := func() (Name, error) {
		return Name{}, fmt.Errorf("peer name %q: want six hexadecimal bytes like 02:ab:cd:00:00:01", s)
	}
	fill := func(dst []byte, part string) (int, bool) {
		if part == "" {
			return 0, true
		}
		fields := strings.Split(part, ":")
		if len(fields) > len(dst) {
			return 0, false
		}
		for i, f := range fields {
			if len(f) == 0 || len(f) > 2 {
				return 0, false
			}
			v, err := strconv.ParseUint(f, 16, 8)
			if err != nil {
				return 0, false
			}
			dst[i] = byte(v)
		}
		return len(fields), true
	}
	head, tail, short := strings.Cut(s, "::")
	k, ok := fill(n[:], head)
	if !ok || (!short && k != NameLen) {
		return bad()
	}
	if short {
		var t [NameLen]byte
		m, ok := fill(t[:], tail)
		if !ok || k+m >= NameLen {
			return bad()
		}
		copy(n[NameLen-m:], t[:m])
	}
	if n.IsZero() || n == Broadcast {
		return Name{}, fmt.Errorf("peer name %q: all zeros and all ones are reserved", s)
	}
	return n, nil
}

// NameFromBytes returns the first NameLen bytes of b, which must be at least that long.
func NameFromBytes(b []byte) (n Name) {
	copy(n[:], b[:NameLen])
	return n
}

// String returns the name in MAC form.
func (n Name) String() string {
	var b [NameLen*3 - 1]byte
	for i, v := range n {
		if i > 0 {
			b[i*3-1] = ':'
		}
		hex.Encode(b[i*3:i*3+2], []byte{v})
	}
	return string(b[:])
}

// With returns the name for people, with the nickname of its peer, "" if unknown.
func (n Name) With(nickname string) string {
	if nickname == "" {
		return n.String()
	}
	return n.String() + "(" + nickname + ")"
}

// IsZero reports whether n is the zero Name.
func (n Name) IsZero() bool { return n == Name{} }

// Compare orders names by their bytes: -1, 0 or 1.
func (n Name) Compare(m Name) int { return bytes.Compare(n[:], m[:]) }

// ID returns the low 32 bits of the name, which are unique in most meshes. Data frames carry
// it instead of the whole name.
func (n Name) ID() uint32 { return binary.BigEndian.Uint32(n[2:]) }

// MarshalText implements encoding.TextMarshaler, so that names are readable in JSON, as
// values and as keys of a map.
func (n Name) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *Name) UnmarshalText(b []byte) error {
	v, err := ParseName(string(b))
	if err != nil {
		return err
	}
	*n = v
	return nil
}
