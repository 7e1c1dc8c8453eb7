package member

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// memberlist believes what a member sends about the size of things: a packet of 1 KB may
// unpack to 40 MB, and the header of a state may say that a million nodes follow, for which
// it allocates memory. Members are not trusted that far. So this file lets only those
// messages through that an honest member of this mesh sends.

// Types of memberlist's messages; see net.go there. Honest members neither compress nor
// encrypt, and send no user messages.
const (
	typePing      = 0
	typeIndirect  = 1
	typeAck       = 2
	typeSuspect   = 3
	typeAlive     = 4
	typeDead      = 5
	typePushPull  = 6
	typeCompound  = 7
	typeNack      = 11
	typeCRC       = 12
	typeError     = 13
	maxStateNodes = 8192
	maxState      = 4 << 20 // bytes of one direction of a stream
)

var errRefused = errors.New("no honest member sends this")

// checkPacket returns an error if an honest member does not send the packet.
func checkPacket(b []byte) error {
	if len(b) > 5 && b[0] == typeCRC {
		b = b[5:]
	}
	if len(b) < 1 {
		return fmt.Errorf("member packet without a type: %w", errRefused)
	}
	if b[0] != typeCompound {
		return checkMessage(b)
	}
	// count u8 | count times length u16 | the messages
	if len(b) < 2 || len(b) < 2+2*int(b[1]) {
		return fmt.Errorf("member packet: list of %d bytes cut short: %w", len(b), errRefused)
	}
	lengths, rest := b[2:2+2*int(b[1])], b[2+2*int(b[1]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(rest) {
			return fmt.Errorf("member packet: message of %d bytes, %d are left: %w", n, len(rest), errRefused)
		}
		if err := checkMessage(rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	return nil
}

func checkMessage(b []byte) error {
	if len(b) < 1 {
		return fmt.Errorf("empty member message: %w", errRefused)
	}
	switch b[0] {
	case typePing, typeIndirect, typeAck, typeSuspect, typeAlive, typeDead, typeNack:
		return nil
	}
	return fmt.Errorf("member message of type %d: %w", b[0], errRefused)
}

// guarded is a stream that passes on only what an honest member sends. Only one goroutine
// reads it.
type guarded struct {
	net.Conn
	head []byte // checked, not yet read
	left int    // bytes that may still be read
	err  error
	open bool // the head was checked
}

func guard(c net.Conn) net.Conn { return &guarded{Conn: c, left: maxState} }

// Read implements net.Conn.
func (g *guarded) Read(b []byte) (int, error) {
	if !g.open {
		g.open = true
		g.head, g.err = readHead(g.Conn)
	}
	if len(g.head) > 0 {
		n := copy(b, g.head)
		g.head = g.head[n:]
		return n, nil
	}
	if g.err != nil {
		return 0, g.err
	}
	if g.left <= 0 {
		return 0, fmt.Errorf("member state of more than %d bytes: %w", maxState, errRefused)
	}
	n, err := g.Conn.Read(b[:min(len(b), g.left)])
	g.left -= n
	return n, err
}

// readHead reads the type of a stream's message and, of a state, the header, and returns
// these bytes if an honest member sends them.
func readHead(r io.Reader) ([]byte, error) {
	h := &header{r: r}
	switch h.byte() {
	case typePing, typeAck, typeError:
		return h.read, h.err
	case typePushPull:
	default:
		if h.err != nil {
			return nil, h.err
		}
		return nil, fmt.Errorf("member stream of type %d: %w", h.read[0], errRefused)
	}
	// A map of the keys Nodes, UserStateLen and Join (MessagePack).
	fields := h.byte()
	if h.err == nil && fields&0xf0 != 0x80 {
		return nil, fmt.Errorf("member state: header begins with %#x: %w", fields, errRefused)
	}
	for range fields & 0x0f {
		key := h.text()
		value := h.number()
		if h.err != nil {
			return nil, h.err
		}
		if key == "Nodes" && value > maxStateNodes || key == "UserStateLen" && value > 0 {
			return nil, fmt.Errorf("member state: %s is %d: %w", key, value, errRefused)
		}
	}
	return h.read, h.err
}

// header reads MessagePack values and keeps their bytes.
type header struct {
	r    io.Reader
	read []byte
	err  error
}

func (h *header) bytes(n int) []byte {
	b := make([]byte, n)
	if h.err == nil {
		_, h.err = io.ReadFull(h.r, b)
	}
	if h.err == nil {
		h.read = append(h.read, b...)
	}
	return b
}

func (h *header) byte() byte { return h.bytes(1)[0] }

// text reads a string of less than 256 bytes.
func (h *header) text() string {
	switch t := h.byte(); {
	case t&0xe0 == 0xa0:
		return string(h.bytes(int(t & 0x1f)))
	case t == 0xd9, t == 0xc4:
		return string(h.bytes(int(h.byte())))
	}
	h.fail()
	return ""
}

// number reads an unsigned number, a positive one, or a truth value.
func (h *header) number() (v uint64) {
	t := h.byte()
	size := 0
	switch {
	case t < 0x80: // small number
		return uint64(t)
	case t == 0xc2, t == 0xc3: // false, true
		return 0
	case t >= 0xcc && t <= 0xcf: // unsigned
		size = 1 << (t - 0xcc)
	case t >= 0xd0 && t <= 0xd3: // signed; a negative one is too large
		size = 1 << (t - 0xd0)
	default:
		h.fail()
		return 0
	}
	for _, b := range h.bytes(size) {
		v = v<<8 | uint64(b)
	}
	return v
}

func (h *header) fail() {
	if h.err == nil {
		h.err = fmt.Errorf("member state: header %#x: %w", h.read, errRefused)
	}
}
