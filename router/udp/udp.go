// Package udp is sleeve's way to the underlay: batches of datagrams on one
// socket, IPv4 and IPv6, that are never fragmented on the way.
package udp

import (
	"errors"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Message is a datagram. To read, Buf is where it goes, and N and Addr tell
// what came; to write, Buf[:N] goes to Addr. Buf is borrowed for the call.
// IPv4 addresses are never in their IPv6-mapped form.
type Message struct {
	Buf  []byte
	N    int
	Addr netip.AddrPort
}

// Conn is a socket. Readers and writers of one Conn may be used at the same
// time, each by one goroutine.
type Conn interface {
	NewReader(batch int) Reader
	NewWriter(batch int) Writer
	LocalAddr() netip.AddrPort
	// Close ends all reads and writes with net.ErrClosed.
	Close() error
}

// Reader reads batches.
type Reader interface {
	// ReadBatch waits until at least one datagram has come and returns how
	// many of m it filled, at most the batch of NewReader. A datagram longer
	// than its Buf is cut.
	ReadBatch(m []Message) (int, error)
}

// Writer writes batches.
type Writer interface {
	// WriteBatch sends m in order, waiting for room in the socket's buffer.
	// On error it returns how many were sent; the error is that of the next.
	WriteBatch(m []Message) (int, error)
}

// IsTooBig tells whether err says that the interface can not send a datagram
// of that size.
func IsTooBig(err error) bool { return errors.Is(err, unix.EMSGSIZE) }
