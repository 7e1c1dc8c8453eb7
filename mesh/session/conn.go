package session

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/flynn/noise"
)

// Conn is an established session. One goroutine may read while another
// writes; WriteRecord may be called by several.
type Conn struct {
	// Constant after the handshake.

	Peer    Hello  // the hello of the far end
	Dialled bool   // this end dialled
	Version uint8  // of the protocol
	Cipher  string // AES-256-GCM or ChaCha20-Poly1305
	// ID is the same on both ends, and unique.
	ID uint64
	// Secret is known only to the two ends.
	Secret [32]byte
	// Password is the key with which both ends made the handshake.
	Password PSK

	nc net.Conn

	// Reader only.

	in  *noise.CipherState
	r   *bufio.Reader // of nc, so that a record costs one system call
	buf []byte

	// Guarded by mu.

	mu   sync.Mutex
	out  *noise.CipherState
	wbuf []byte
}

// RemoteAddr returns the address of the far end.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// LocalAddr returns the address of the near end.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// SetReadDeadline bounds the next ReadRecord.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.nc.SetReadDeadline(t) }

// SetWriteDeadline bounds the next WriteRecord.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }

// ReadRecord returns the next record. The slice is borrowed until the next call. After an
// error the session is unusable.
func (c *Conn) ReadRecord() ([]byte, error) {
	var head [2]byte
	if _, err := io.ReadFull(c.r, head[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if cap(c.buf) < n {
		c.buf = make([]byte, n, max(n, 4096))
	}
	b := c.buf[:n]
	if _, err := io.ReadFull(c.r, b); err != nil {
		return nil, err
	}
	p, err := c.in.Decrypt(b[:0], nil, b)
	if err != nil {
		return nil, fmt.Errorf("record of %d bytes from %s: %w", n, c.nc.RemoteAddr(), err)
	}
	return p, nil
}

// WriteRecord sends b, which has at most MaxRecord bytes. It does not keep b.
func (c *Conn) WriteRecord(b []byte) error {
	if len(b) > MaxRecord {
		return fmt.Errorf("record of %d bytes to %s: at most %d", len(b), c.nc.RemoteAddr(), MaxRecord)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	out, err := c.out.Encrypt(append(c.wbuf[:0], 0, 0), nil, b)
	if err != nil {
		return fmt.Errorf("encrypt a record to %s: %w", c.nc.RemoteAddr(), err)
	}
	binary.BigEndian.PutUint16(out, uint16(len(out)-2))
	c.wbuf = out
	if _, err := c.nc.Write(out); err != nil {
		return err
	}
	return nil
}

// Close ends the session at once. Blocked reads and writes return.
func (c *Conn) Close() error { return c.nc.Close() }
