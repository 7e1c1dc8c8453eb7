// Package tap is the switch's way to the containers of this host: the queues
// of a TAP device.
//
// Two drivers have the same contract. Device asks the kernel for virtio-net
// headers, so that frames come and go as GSO packets with their checksums left
// open. Plain, by github.com/songgao/water, is for kernels that refuse that: a
// frame of MTU size for each system call.
package tap

import (
	"errors"

	"github.com/weft-net/weft/router/offload"
)

// Headroom is how many bytes are kept free in front of a frame that is read,
// and Tailroom behind it, so that headers and tag are put around it in place.
const (
	Headroom = 64
	Tailroom = 16
)

// Offloads is what a queue takes and gives besides ordinary, complete frames.
type Offloads struct {
	Checksum bool // frames whose TCP or UDP checksum is left open
	TCP      bool // GSO packets of TCP segments
	UDP      bool // GSO packets of UDP datagrams
}

// String is what status shows.
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

// Frame is what a read gives: an Ethernet frame in Buf[Headroom:], and what is
// left to do to it. Buf has Tailroom bytes of capacity behind its length. All of
// it may be written.
type Frame struct {
	Header offload.Header
	Buf    []byte
	Sparse bool // what Prioritize was given said so
}

// Queue is one queue of a TAP. Each reader and each writer is for one
// goroutine.
type Queue interface {
	NewReader() Reader
	NewWriter() Writer
	Offloads() Offloads
	// Close ends all reads with os.ErrClosed.
	Close() error
}

// Reader reads batches.
type Reader interface {
	// ReadBatch waits until at least one frame has come, and returns those that
	// are there, up to some bound. They must be used until the next call.
	ReadBatch() ([]Frame, error)
}

// Prioritizer is a Reader that gives out first the frames of flows that send
// little, of all that have come. A batch is all light, or all not.
type Prioritizer interface {
	Reader
	// Prioritize sets what tells of each frame, in the order in which they come,
	// whether its flow is light. Without it none is. Call it before the first
	// read.
	Prioritize(sparse func(frame []byte) bool)
}

// Writer gives frames to the host.
type Writer interface {
	// Write gives one frame, the concatenation of parts, with what is left to
	// do to it: nothing but what Offloads of the queue tells. It does not wait.
	// Parts are borrowed for the call.
	Write(h offload.Header, parts [][]byte) error
}

// ErrOffload is returned by a Writer whose queue does not take what the header
// asks for.
var ErrOffload = errors.New("the device does not take unfinished frames")
