// Package flow distinguishes sparse flows, which send little, from bulk flows, so that
// packets of sparse flows need not wait behind those of bulk flows. A round trip beside
// a transfer at full speed then takes microseconds instead of as long as the queue of
// the transfer.
//
// This is the idea of the "new" flows of FQ-CoDel (RFC 8290, section 4.1), with a token
// bucket in place of a round of a scheduler. A flow is bulk once it exceeds its bucket
// of 2 MB/s with a burst of 16 KB, and sparse again after a pause that is longer than
// any queue, so that no packet of a flow overtakes an earlier one. The exception are
// fragments of datagrams, which have no ports: datagrams of the flow that are not
// fragmented may overtake them.
package flow

import (
	"encoding/binary"
	"hash/maphash"
	"time"

	"github.com/weft-net/weft/router/ethernet"
)

const (
	// buckets is the number of buckets. Flows may share one by chance.
	buckets = 4096
	// drain is the rate in bytes a second at which a flow stays sparse for ever, and
	// burst the number of bytes that it may send at once.
	drain = 2 << 20
	burst = 16 << 10
	// pause is the time without a packet after which a bulk flow is sparse again.
	pause = 60 * time.Millisecond
)

// Table remembers flows. Make it with New. It is not safe for concurrent use.
type Table struct {
	seed    maphash.Seed
	buckets [buckets]bucket
}

type bucket struct {
	at    time.Duration // of the last packet, when level was true
	level int64         // bytes
	bulk  bool
}

// New returns an empty Table. Flows share buckets by a hash with the seed, so that nobody can
// choose flows that collide.
func New(seed maphash.Seed) *Table { return &Table{seed: seed} }

// Sparse records that an Ethernet frame is sent at now, which never goes back, and
// reports whether its flow is sparse. Packets other than TCP and UDP are one flow
// for each pair of IP addresses, other frames one for each pair of MAC addresses.
func (t *Table) Sparse(now time.Duration, frame []byte) bool {
	b := &t.buckets[maphash.Bytes(t.seed, key(frame))%buckets]
	gap := now - b.at
	b.at = now
	if gap >= pause { // long enough for a burst to drain
		b.bulk, b.level = false, 0
	}
	b.level = max(0, b.level-int64(gap)*drain/int64(time.Second)) + int64(len(frame))
	if b.level > burst {
		b.bulk, b.level = true, burst
	}
	return !b.bulk
}

// Offsets and lengths in bytes of addresses in IP headers and of the ports behind them.
const (
	ip4Addrs, ip4Len = 12, 20
	ip6Addrs, ip6Len = 8, 40
	portsLen         = 4
	addrsLen         = 12 // of an Ethernet frame
	tcp, udp         = 6, 17
)

// key returns the bytes of a frame that identify its flow. They are contiguous: the
// addresses end the IP header, and the ports follow it.
func key(frame []byte) []byte {
	typ, at, ok := ethernet.Payload(frame)
	if !ok {
		return frame[:min(len(frame), addrsLen)]
	}
	switch b := frame[at:]; {
	case typ == ethernet.TypeIPv4 && len(b) >= ip4Len:
		// Without options, and not a fragment, which has no ports.
		if len(b) >= ip4Len+portsLen && b[0] == 0x45 && (b[9] == tcp || b[9] == udp) && binary.BigEndian.Uint16(b[6:])&0x3fff == 0 {
			return b[ip4Addrs : ip4Len+portsLen]
		}
		return b[ip4Addrs:ip4Len]
	case typ == ethernet.TypeIPv6 && len(b) >= ip6Len:
		if len(b) >= ip6Len+portsLen && (b[6] == tcp || b[6] == udp) {
			return b[ip6Addrs : ip6Len+portsLen]
		}
		return b[ip6Addrs:ip6Len]
	}
	return frame[:at]
}
