// Package peer has the identity of a router: its name, the keys that prove it, and the
// book of the keys with which names were first seen.
//
// All types are values or plain structs that open no socket, read no clock and log
// nothing, so simulations use the same code as the router.
package peer

import (
	"bytes"
	"crypto/ed25519"
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

// NameOf derives a name from a public key: the first 48 bits of
// SHA-256("weft peer name" || key) with the locally administered bit set and
// the group bit clear, so that it is also a valid unicast MAC address.
func NameOf(key ed25519.PublicKey) Name {
	h := sha256.New()
	h.Write([]byte("weft peer name"))
	h.Write(key)
	var n Name
	copy(n[:], h.Sum(nil))
	n[0] = n[0]&^1 | 2
	return n
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
