package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/weft-net/weft/ipam/addr"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
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
//	 4 claim ask    address 1+a
//	 5 claim answer status 1
//	 6 leave        holder 10
//	 7 leave ack    -
//	 8 prepare      ballot 10, proposal 2+n
//	 9 promise      status 1, promised 10, accepted 10, proposal 2+n, reason 2+n
//	10 accept       ballot 10, proposal 2+n
//	11 vote         status 1, promised 10, voter 10, key 32, signature 64, reason 2+n
//
// An address is a family, 4 or 6, followed by 4 or 16 bytes. A prefix is an address
// and a length. "2+n" is a length and that many bytes. An answer has the id of the
// message that it answers. Types are append-only. A reader ignores unknown types,
// and bytes after a body.
const messageFormat = 1

type messageType byte

const (
	msgRecords     messageType = 1
	msgSpaceAsk    messageType = 2
	msgSpaceAnswer messageType = 3
	msgClaimAsk    messageType = 4
	msgClaimAnswer messageType = 5
	msgLeave       messageType = 6
	msgLeaveAck    messageType = 7
	msgPrepare     messageType = 8
	msgPromise     messageType = 9
	msgAccept      messageType = 10
	msgVote        messageType = 11
)

// The status of an answer.
const (
	statusYes   = 0
	statusNo    = 1 // nothing free; the address is in use; refused
	statusOther = 2 // not the owner
)

var errMessage = errors.New("malformed")

// message has the fields of all types; each type uses some.
type message struct {
	kind     messageType
	id       uint64
	status   byte
	delta    []byte
	prefix   netip.Prefix
	addr     netip.Addr
	free     addr.Count
	holder   ring.Holder
	ballot   paxos.Ballot // of prepare and accept; promised in the answers
	accepted paxos.Ballot
	proposal []byte
	vote     ring.Vote
	reason   string
}

func appendAddr(b []byte, a netip.Addr) []byte {
	f := byte(6)
	if a.Is4() {
		f = 4
	}
	return append(append(b, f), a.AsSlice()...)
}

func appendBytes[T string | []byte](b []byte, v T) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(v)))
	return append(b, v...)
}

func (m *message) encode() []byte {
	b := []byte{messageFormat, byte(m.kind)}
	b = binary.BigEndian.AppendUint64(b, m.id)
	switch m.kind {
	case msgRecords:
		b = append(b, m.delta...)
	case msgSpaceAsk:
		b = appendAddr(b, m.prefix.Addr())
		b = append(b, byte(m.prefix.Bits()))
	case msgSpaceAnswer:
		b = append(b, m.status)
		b = binary.BigEndian.AppendUint64(b, m.free.Hi)
		b = binary.BigEndian.AppendUint64(b, m.free.Lo)
	case msgClaimAsk:
		b = appendAddr(b, m.addr)
	case msgClaimAnswer:
		b = append(b, m.status)
	case msgLeave:
		b = m.holder.Append(b)
	case msgPrepare, msgAccept:
		b = m.ballot.Append(b)
		b = appendBytes(b, m.proposal)
	case msgPromise:
		b = append(b, m.status)
		b = m.ballot.Append(b)
		b = m.accepted.Append(b)
		b = appendBytes(b, m.proposal)
		b = appendBytes(b, m.reason)
	case msgVote:
		b = append(b, m.status)
		b = m.ballot.Append(b)
		b = m.vote.Voter.Append(b)
		b = append(b, m.vote.Key[:]...)
		b = append(b, m.vote.Sig[:]...)
		b = appendBytes(b, m.reason)
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

func (f *fields) bytes() []byte { return f.take(int(binary.BigEndian.Uint16(f.take(2)))) }

func (f *fields) ballot() paxos.Ballot { return paxos.BallotFrom(f.take(paxos.BallotLen)) }

func (f *fields) holder() ring.Holder {
	return ring.Holder{Name: peer.NameFromBytes(f.take(peer.NameLen)), Incarnation: binary.BigEndian.Uint32(f.take(4))}
}

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
	case msgRecords:
		m.delta = f.b
	case msgSpaceAsk:
		a := f.addr()
		m.prefix = netip.PrefixFrom(a, int(f.byte()))
		f.bad = f.bad || !m.prefix.IsValid() || m.prefix.Masked() != m.prefix
	case msgSpaceAnswer:
		m.status = f.byte()
		m.free = addr.Count{Hi: f.uint64(), Lo: f.uint64()}
	case msgClaimAsk:
		m.addr = f.addr()
	case msgClaimAnswer:
		m.status = f.byte()
	case msgLeave:
		m.holder = f.holder()
	case msgPrepare, msgAccept:
		m.ballot = f.ballot()
		m.proposal = f.bytes()
	case msgPromise:
		m.status = f.byte()
		m.ballot, m.accepted = f.ballot(), f.ballot()
		m.proposal = f.bytes()
		m.reason = string(f.bytes())
	case msgVote:
		m.status = f.byte()
		m.ballot = f.ballot()
		m.vote.Voter = f.holder()
		copy(m.vote.Key[:], f.take(len(m.vote.Key)))
		copy(m.vote.Sig[:], f.take(len(m.vote.Sig)))
		m.reason = string(f.bytes())
	}
	if f.bad || format != messageFormat {
		return message{}, fmt.Errorf("ipam message of type %d, %d bytes: %w", m.kind, len(b), errMessage)
	}
	return m, nil
}
