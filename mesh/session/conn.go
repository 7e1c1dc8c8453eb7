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

	Peer    Hello  // what the far end said of itself
	Dialled bool   // this end dialled
	Version uint8  // of the protocol
	Cipher  string // AES-256-GCM or ChaCha20-Poly1305
	// ID is the same on both ends and unlike that of any other session.
	ID uint64
	// Secret is known to the two ends alone.
	Secret [32]byte

	nc net.Conn

	// Reader only.

	in  *noise.CipherState
	r   *bufio.Reader // of nc: one system call for a record
	buf []byte

	// Guarded by mu.

	mu   sync.Mutex
	out  *noise.CipherState
	wbuf []byte
}

// RemoteAddr is the far end of the TCP connection.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// LocalAddr is the near end of the TCP connection.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// SetReadDeadline bounds the next ReadRecord.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.nc.SetReadDeadline(t) }

// SetWriteDeadline bounds the next WriteRecord.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }

// ReadRecord returns the next record. The slice is borrowed until the next
// call. After an error the session is of no use.
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

// WriteRecord sends b, which may have at most MaxRecord bytes and is not kept.
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

// Close ends the session at once. Reads and writes that wait return.
func (c *Conn) Close() error { return c.nc.Close() }
