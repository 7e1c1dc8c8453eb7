// Package flow tells flows that send little from those that send much, so that
// the packets of the former need not wait behind those of the latter. A round
// trip beside a transfer at full speed then takes microseconds, not as long as
// the transfer's queue.
//
// It is the idea of the "new" flows of FQ-CoDel (RFC 8290, section 4.1), with a
// bound in place of a round of a scheduler: each flow has a bucket that its
// bytes fill and that runs out at a fixed rate. A flow whose bucket overflows is
// heavy until it has paused for longer than queues are, so that no packet of a
// flow overtakes an earlier one. Only fragments of a flow's datagrams, which have
// no ports, may be overtaken by its whole ones.
package flow

import (
	"encoding/binary"
	"hash/maphash"
	"time"

	"github.com/weft-net/weft/router/ethernet"
)

const (
	// buckets is how many there are; flows share them by chance.
	buckets = 4096
	// drain is the rate in bytes a second that a flow may send for ever and stay
	// light, and burst the bytes that it may send at once.
	drain = 2 << 20
	burst = 16 << 10
	// pause is after how long without a packet a bulk flow is light again.
	pause = 60 * time.Millisecond
)

// Table is the memory of flows. Make one with New. Not safe for concurrent use.
type Table struct {
	seed    maphash.Seed
	buckets [buckets]bucket
}

type bucket struct {
	at    time.Duration // of the last packet, when level was true
	level int64         // bytes
	bulk  bool
}

// New returns a Table that has seen nothing. Which flows share a bucket is
// different for each, and not to be known.
func New() *Table { return &Table{seed: maphash.MakeSeed()} }

// Light takes in that an Ethernet frame of a flow is sent at now, which is a
// time that never goes back, and reports whether the flow sends little. What is
// no TCP or UDP is one flow for each pair of IP addresses, or of MAC addresses.
func (t *Table) Sparse(now time.Duration, frame []byte) bool {
	b := &t.buckets[maphash.Bytes(t.seed, key(frame))%buckets]
	gap := now - b.at
	b.at = now
	if gap >= pause { // in which a burst runs out
		b.bulk, b.level = false, 0
	}
	b.level = max(0, b.level-int64(gap)*drain/int64(time.Second)) + int64(len(frame))
	if b.level > burst {
		b.bulk, b.level = true, burst
	}
	return !b.bulk
}

// Offsets and lengths in bytes: of addresses in IP headers, and of ports behind.
const (
	ip4Addrs, ip4Len = 12, 20
	ip6Addrs, ip6Len = 8, 40
	portsLen         = 4
	addrsLen         = 12 // of an Ethernet frame
	tcp, udp         = 6, 17
)

// key returns the bytes of a frame that name its flow. They lie one behind the
// other: addresses at the end of the IP header, ports behind it.
func key(frame []byte) []byte {
	typ, at, ok := ethernet.Payload(frame)
	if !ok {
		return frame[:min(len(frame), addrsLen)]
	}
	switch b := frame[at:]; {
	case typ == ethernet.TypeIPv4 && len(b) >= ip4Len:
		// Without options, and no fragment, which has no ports.
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
