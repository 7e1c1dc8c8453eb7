// Package tap connects the switch to the containers of this host by the queues of a TAP
// device.
//
// Two drivers have the same contract. Device uses virtio-net headers, so that frames are
// GSO packets with partial checksums. If the kernel refuses these headers, Plain, by
// github.com/songgao/water, moves one frame of MTU size with each system call.
package tap

import (
	"errors"

	"github.com/weft-net/weft/router/offload"
)

// Headroom and Tailroom are the numbers of free bytes before and behind a frame that is
// read, in which headers and the authentication tag are written in place.
const (
	Headroom = 64
	Tailroom = 16
)

// Offloads are the frames that a queue reads and writes besides complete ordinary ones.
type Offloads struct {
	Checksum bool // frames with a partial TCP or UDP checksum
	TCP      bool // GSO packets of TCP segments
	UDP      bool // GSO packets of UDP datagrams
}

// String returns the text for status.
func (o Offloads) String() string {
	switch {
	case o.UDP:
		return "checksum, tso, uso"
	case o.TCP:
		return "checksum, tso"
	case o.Checksum:
		return "checksum"
	}
	return "none"
}

// Frame is an Ethernet frame in Buf[Headroom:], with a header that says what is left to
// do to it. Buf has Tailroom bytes of capacity behind its length. The reader's caller may
// write to all of it.
type Frame struct {
	Header offload.Header
	Buf    []byte
	Sparse bool // as the function of Prioritize reports
}

// Queue is one queue of a TAP. Each reader and each writer is for one
// goroutine.
type Queue interface {
	NewReader() Reader
	NewWriter() Writer
	Offloads() Offloads
	// Close ends all reads, also those that wait, with os.ErrClosed.
	Close() error
}

// Reopener is a Queue whose TAP can be made again.
type Reopener interface {
	// Reopen makes a TAP again that other software removed, with the same name. Readers and
	// writers go on with it; until then reads wait, and writes fail.
	Reopen() error
}

// Backlogger is a Queue that knows whether frames wait to be read.
type Backlogger interface {
	// Backlog reports whether the kernel holds frames that no reader has taken. It may be
	// called from any goroutine, and never waits.
	Backlog() bool
}

// Reader reads batches.
type Reader interface {
	// ReadBatch waits for at least one frame, and returns those that have come, up to
	// some bound. They are borrowed until the next call.
	ReadBatch() ([]Frame, error)
}

// Prioritizer is a Reader that returns frames of sparse flows before others that have
// come. All frames of a batch are sparse, or none is.
type Prioritizer interface {
	Reader
	// Prioritize sets the function that reports for each frame, in the order of
	// arrival, whether its flow is sparse. Without it none is. Call it before the
	// first read.
	Prioritize(sparse func(frame []byte) bool)
}

// Writer writes frames to the host.
type Writer interface {
	// Write writes one frame, the concatenation of parts, with a header that says
	// what is left to do to it, which must be in Offloads of the queue. It does not
	// wait. Parts are borrowed for the call.
	Write(h offload.Header, parts [][]byte) error
}

// ErrOffload is returned by a Writer whose queue does not have the offload that the
// header needs.
var ErrOffload = errors.New("the device does not take unfinished frames")
