package ipam

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

// The format of a unicast message between two allocators; numbers are big-endian:
//
//	 0        1      2    10
//	+--------+------+----+------
//	| format | type | id | body ...
//	+--------+------+----+------
//	  1 = 1    1      8
//
//	type            body
//	 1 records      a delta of the ring, to the end
//	 2 space ask    prefix 2+a
//	 3 space answer status 1, free 16
//	 4 claim ask    address 1+a, 1 if a container of the sender uses it 1
//	 5 claim answer status 1, Unix seconds 8, removed peer 6
//	 6 leave        the action that gives everything of the sender to its heir, to the end
//	 7 wish         an action that the sender wants to be decided, to the end
//	 8 round        a message between voters, see package consensus, to the end
//	 9 behind       the slot of the last decision that the sender knows, 8
//	10 refusal      why the sender does not agree to a wish, UTF-8, to the end
//	11 state ask    slot 8, genesis of the sender's ring 16
//	12 state answer status 1, slot 8, slot at the start 8, length 2, action, length, action ... to the end
//
// An address is a family, 4 or 6, followed by 4 or 16 bytes. A prefix is an address
// and a length. An answer has the id of the message that it answers, and a wish the slot
// of the last decision that its sender knows. The status of a state answer is other if its
// sender has no ring or another one, and too if its sender may be as old as the
// asker. Its second slot is that of the ring on the disk of the sender when it was started, all
// ones for none; its actions are the transfers that the asker signed and that are not decided. Types are
// append-only. A reader ignores unknown types, and bytes after a body.
const messageFormat = 1

type messageType byte

const (
	msgRecords     messageType = 1
	msgSpaceAsk    messageType = 2
	msgSpaceAnswer messageType = 3
	msgClaimAsk    messageType = 4
	msgClaimAnswer messageType = 5
	msgLeave       messageType = 6
	msgWish        messageType = 7
	msgRound       messageType = 8
	msgBehind      messageType = 9 // also the answer to a leave
	msgRefusal     messageType = 10
	msgStateAsk    messageType = 11
	msgStateAnswer messageType = 12
)

// The status of an answer.
const (
	statusYes   = 0
	statusNo    = 1 // nothing free; the address is in use
	statusOther = 2 // not the owner
	statusToo   = 3 // of a state answer: the sender catches up too
	statusKept  = 4 // of a claim answer: the address is kept for a removed peer
	statusLater = 5 // of a claim answer: the address is free, but the sender does not give it now
)

var errMessage = gossip.ErrMalformed

// message has the fields of all types; each type uses some.
type message struct {
	kind   messageType
	id     uint64
	status byte
	body   []byte // of records, leave, wish, round, refusal and state
	prefix netip.Prefix
	addr   netip.Addr
	free   addr.Count
	slot   uint64
	disk   uint64 // of a state answer: the slot at the start
	inUse  bool   // of a claim ask
	until  time.Time
	name   peer.Name // of a claim answer: for whom the address is kept until then
}

func appendAddr(b []byte, a netip.Addr) []byte {
	f := byte(6)
	if a.Is4() {
		f = 4
	}
	return append(append(b, f), a.AsSlice()...)
}

func (m *message) encode() []byte {
	b := []byte{messageFormat, byte(m.kind)}
	b = binary.BigEndian.AppendUint64(b, m.id)
	switch m.kind {
	case msgRecords, msgLeave, msgWish, msgRound, msgRefusal:
		b = append(b, m.body...)
	case msgSpaceAsk:
		b = appendAddr(b, m.prefix.Addr())
		b = append(b, byte(m.prefix.Bits()))
	case msgSpaceAnswer:
		b = append(b, m.status)
		b = binary.BigEndian.AppendUint64(b, m.free.Hi)
		b = binary.BigEndian.AppendUint64(b, m.free.Lo)
	case msgClaimAsk:
		b = appendAddr(b, m.addr)
		if m.inUse {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	case msgClaimAnswer:
		b = append(b, m.status)
		b = binary.BigEndian.AppendUint64(b, uint64(m.until.Unix()))
		b = append(b, m.name[:]...)
	case msgBehind:
		b = binary.BigEndian.AppendUint64(b, m.slot)
	case msgStateAsk:
		b = binary.BigEndian.AppendUint64(b, m.slot)
		b = append(b, m.body...)
	case msgStateAnswer:
		b = append(b, m.status)
		b = binary.BigEndian.AppendUint64(b, m.slot)
		b = binary.BigEndian.AppendUint64(b, m.disk)
		b = append(b, m.body...)
	}
	return b
}

// fields takes fields off the front of a slice. After the first missing field it
// returns zeros and sets bad.
type fields struct {
	b   []byte
	bad bool
}

func (f *fields) take(n int) []byte {
	if f.bad || len(f.b) < n {
		f.bad = true
		return make([]byte, n)
	}
	v := f.b[:n]
	f.b = f.b[n:]
	return v
}

func (f *fields) byte() byte     { return f.take(1)[0] }
func (f *fields) uint64() uint64 { return binary.BigEndian.Uint64(f.take(8)) }

func (f *fields) addr() (a netip.Addr) {
	switch f.byte() {
	case 4:
		a = netip.AddrFrom4([4]byte(f.take(4)))
	case 6:
		a = netip.AddrFrom16([16]byte(f.take(16)))
		f.bad = f.bad || a.Is4In6()
	default:
		f.bad = true
	}
	return a
}

func parseMessage(b []byte) (message, error) {
	f := fields{b: b}
	format := f.byte()
	m := message{kind: messageType(f.byte()), id: f.uint64()}
	switch m.kind {
	case msgRecords, msgLeave, msgWish, msgRound, msgRefusal:
		m.body = f.b
	case msgSpaceAsk:
		a := f.addr()
		m.prefix = netip.PrefixFrom(a, int(f.byte()))
		f.bad = f.bad || !m.prefix.IsValid() || m.prefix.Masked() != m.prefix
	case msgSpaceAnswer:
		m.status = f.byte()
		m.free = addr.Count{Hi: f.uint64(), Lo: f.uint64()}
	case msgClaimAsk:
		m.addr = f.addr()
		m.inUse = f.byte() == 1
	case msgClaimAnswer:
		m.status = f.byte()
		m.until = time.Unix(int64(f.uint64()), 0)
		m.name = peer.NameFromBytes(f.take(peer.NameLen))
	case msgBehind:
		m.slot = f.uint64()
	case msgStateAsk:
		m.slot = f.uint64()
		m.body = f.take(len(ring.ID{}))
	case msgStateAnswer:
		m.status = f.byte()
		m.slot, m.disk = f.uint64(), f.uint64()
		m.body = f.b
	}
	if f.bad || format != messageFormat {
		return message{}, fmt.Errorf("ipam message of type %d, %d bytes: %w", m.kind, len(b), errMessage)
	}
	return m, nil
}
