package wire

import (
	"encoding/binary"
	"fmt"
)

// Messages of link control travel over the session of two neighbours, which encrypts
// them and keeps their order. They agree on keys:
//
//	lower name                         higher name
//	  offer   round, suites, index, key -->        installs its receive key,
//	          <-- answer  round, suite, index, key
//	  installs its receive key, sends
//	  under the new key at once
//	  confirm round -->                            sends under the new key
//
//	          <-- renew                            requests an offer
//
// Each end also reports, at first and when it changes, whether it is willing to use the
// fast path on the link:
//
//	  fast    verdict, short id, port  -->  <-- fast
//
// A message begins with the tag of its session. Two neighbours may have a new session while
// a message of the one before is under way. Keys made of such a message would be of different
// secrets at the two ends, so it is ignored.
//
//	| session 8 | one of the messages below |
//
// Formats, big endian. Bytes that follow a message are ignored, so that later
// versions may add fields. A message of an unknown type is ignored.
//
//	offer    | 1 | round 4 | index 4 | key 32 | suites 2 |
//	answer   | 2 | round 4 | index 4 | key 32 | suite 1 | index of the offer 4 |
//	confirm  | 3 | round 4 |
//	renew    | 4 |
//	fast     | 5 | verdict 1 | short id 2 | port 2 | encapsulations 1 |
//	         |  and, if there is a tunnel,  | tunnel port 2 | tunnel key 32 |

// ControlType is the first byte of a message. Numbers are append-only.
type ControlType uint8

// Types of messages.
const (
	Offer   ControlType = 1
	Answer  ControlType = 2
	Confirm ControlType = 3
	Renew   ControlType = 4
	Fast    ControlType = 5
)

// Verdict is whether a peer uses the fast path on a link and, if not, why. Numbers are
// append-only. An unknown number is a refusal.
type Verdict uint8

// Verdicts.
const (
	FastWilling   Verdict = 0
	FastOff       Verdict = 1 // switched off by flag
	FastNoKernel  Verdict = 2 // the kernel lacks something
	FastEncrypted Verdict = 3 // frames must be encrypted: by the tunnel if both ends have one, else by sleeve
	FastNoID      Verdict = 4 // no short id: there are too many peers, or it is being chosen
)

// Session is the tag of a session between two neighbours; see seal.SessionTag.
type Session [8]byte

// Tagged returns a message behind the tag of its session.
func (s Session) Tagged(msg []byte) []byte { return append(s[:], msg...) }

// Message returns what follows the tag; ok is false if the tag is not that of s. The memory
// is that of b.
func (s Session) Message(b []byte) (msg []byte, ok bool) {
	if len(b) < len(s) || Session(b) != s {
		return nil, false
	}
	return b[len(s):], true
}

// Control is a message of link control. Which fields count depends on Type.
type Control struct {
	Type   ControlType
	Round  uint32
	Index  uint32   // at which the sender will receive, 24 bits, not 0
	Key    [32]byte // ephemeral X25519 public key, RFC 7748
	Suites uint16   // offer: bit set of the sender's suites
	Suite  uint8    // answer: the one chosen, a bit number of Suites
	Offer  uint32   // answer: Index of the offer that it answers

	Verdict Verdict // fast
	ShortID uint16  // fast: of the sender, 12 bits; 0 for none
	Port    uint16  // fast: UDP port of the sender's VXLAN
	Encaps  Encaps  // fast
	Tunnel  Tunnel  // fast
}

// Encaps is a set of encapsulations of IP packets without VXLAN that the sender uses and accepts: bit n
// stands for number n of package plan. Unknown bits mean nothing.
type Encaps uint8

// Tunnel is the sender's end of an encrypted tunnel of the kernel, WireGuard.
type Tunnel struct {
	Port uint16   // UDP
	Key  [32]byte // X25519 public key; zero if there is no tunnel
}

// Valid reports whether there is a tunnel.
func (t Tunnel) Valid() bool { return t.Key != [32]byte{} && t.Port != 0 }

const (
	keysLen = 1 + 4 + 4 + 32
	fastLen = 1 + 1 + 2 + 2 + 1
	// tunnelLen is the length of the optional fields.
	tunnelLen = 2 + 32
	// MaxShortID is the largest short id of a peer.
	MaxShortID = 1<<12 - 1
)

// Append appends the message to b.
func (c *Control) Append(b []byte) []byte {
	b = append(b, byte(c.Type))
	switch c.Type {
	case Renew:
		return b
	case Fast:
		b = append(b, byte(c.Verdict))
		b = binary.BigEndian.AppendUint16(b, c.ShortID)
		b = binary.BigEndian.AppendUint16(b, c.Port)
		b = append(b, byte(c.Encaps))
		if c.Tunnel.Valid() {
			b = append(binary.BigEndian.AppendUint16(b, c.Tunnel.Port), c.Tunnel.Key[:]...)
		}
		return b
	}
	b = binary.BigEndian.AppendUint32(b, c.Round)
	switch c.Type {
	case Offer:
		b = binary.BigEndian.AppendUint32(b, c.Index)
		b = append(b, c.Key[:]...)
		b = binary.BigEndian.AppendUint16(b, c.Suites)
	case Answer:
		b = binary.BigEndian.AppendUint32(b, c.Index)
		b = append(b, c.Key[:]...)
		b = append(b, c.Suite)
		b = binary.BigEndian.AppendUint32(b, c.Offer)
	}
	return b
}

// ParseControl reads a message. known is false for a type of a later version.
func ParseControl(b []byte) (c Control, known bool, err error) {
	if len(b) < 1 {
		return c, false, ErrShort
	}
	c.Type = ControlType(b[0])
	var n int
	switch c.Type {
	case Offer:
		n = keysLen + 2
	case Answer:
		n = keysLen + 5
	case Confirm:
		n = 5
	case Renew:
		return c, true, nil
	case Fast:
		n = fastLen
	default:
		return c, false, nil
	}
	if len(b) < n {
		return c, true, fmt.Errorf("link control type %d of %d bytes: %w", c.Type, len(b), ErrShort)
	}
	if c.Type == Fast {
		c.Verdict, c.ShortID, c.Port = Verdict(b[1]), binary.BigEndian.Uint16(b[2:]), binary.BigEndian.Uint16(b[4:])
		c.Encaps = Encaps(b[6])
		if c.ShortID > MaxShortID {
			return c, true, fmt.Errorf("link control type %d: short id %d: %w", c.Type, c.ShortID, ErrFormat)
		}
		if len(b) >= fastLen+tunnelLen {
			c.Tunnel.Port = binary.BigEndian.Uint16(b[fastLen:])
			copy(c.Tunnel.Key[:], b[fastLen+2:])
		}
		return c, true, nil
	}
	c.Round = binary.BigEndian.Uint32(b[1:])
	if c.Type == Confirm {
		return c, true, nil
	}
	c.Index = binary.BigEndian.Uint32(b[5:])
	if c.Index == 0 || c.Index > MaxIndex {
		return c, true, fmt.Errorf("link control type %d: receiver index %d: %w", c.Type, c.Index, ErrFormat)
	}
	copy(c.Key[:], b[9:])
	if c.Type == Offer {
		c.Suites = binary.BigEndian.Uint16(b[keysLen:])
	} else {
		c.Suite = b[keysLen]
		c.Offer = binary.BigEndian.Uint32(b[keysLen+1:])
	}
	return c, true, nil
}
