// Package packets makes TCP and UDP frames for tests: correct ones of every kind that
// matters to offloads, random or specified.
package packets

import (
	"encoding/binary"
	"math/rand/v2"
)

// Spec specifies a frame. The zero Spec is an IPv4 TCP segment without payload.
type Spec struct {
	Six      bool
	UDP      bool
	Tags     int // VLAN tags
	Options  int // IPv4 options or an IPv6 destination header: bytes, a multiple of 8
	TCPOpts  int // bytes, a multiple of 4
	Flow     byte
	TOS, TTL byte
	DF       bool
	ID       uint16
	Fragment uint16 // IPv4 flags and offset besides DF; for IPv6 a fragment header if not 0
	Seq, Ack uint32
	Stamp    byte // fills the TCP options
	Flags    byte // of TCP
	Window   uint16
	Urgent   uint16
	Payload  []byte
	NoSum    bool // UDP without a checksum
	BadSum   bool
	BadIPSum bool
	Padding  int // behind the IP packet
}

// sum is RFC 1071, one word after the other.
func sum(s uint32, b []byte) uint32 {
	for ; len(b) > 1; b = b[2:] {
		s += uint32(binary.BigEndian.Uint16(b))
		s = s>>16 + s&0xffff
	}
	if len(b) > 0 {
		s += uint32(b[0]) << 8
	}
	return s>>16 + s&0xffff
}

// Frame builds the frame.
func (s Spec) Frame() []byte {
	b := []byte{2, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 1}
	for i := range s.Tags {
		b = append(b, 0x81, 0, 0, byte(i+5))
	}
	l4 := s.transport()
	proto := byte(6)
	if s.UDP {
		proto = 17
	}
	ip := len(b) + 2
	var pseudo []byte
	if s.Six {
		b = append(b, 0x86, 0xdd, 0x60|s.TOS>>4, s.TOS<<4, 0, s.Flow, 0, 0, proto, s.TTL)
		addrs := make([]byte, 32)
		addrs[0], addrs[15], addrs[16], addrs[31] = 0xfd, 1, 0xfd, 2+s.Flow
		b = append(b, addrs...)
		if s.Options > 0 {
			b[ip+6] = 60
			h := make([]byte, s.Options)
			h[0], h[1], h[2], h[3] = proto, byte(s.Options/8-1), 1, byte(s.Options-4) // PadN
			b = append(b, h...)
		}
		if s.Fragment != 0 {
			b[ip+6] = 44
			b = append(b, proto, 0, byte(s.Fragment>>8), byte(s.Fragment), 0, 0, 0, 1)
		}
		binary.BigEndian.PutUint16(b[ip+4:], uint16(len(b)-ip-40+len(l4)))
		pseudo = append(pseudo, addrs...)
	} else {
		hl := 20 + s.Options
		b = append(b, 8, 0, 0x40|byte(hl/4), s.TOS, 0, 0, 0, 0, 0, 0, s.TTL, proto, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2+s.Flow)
		for range s.Options {
			b = append(b, 1) // no operation
		}
		h := b[ip:]
		binary.BigEndian.PutUint16(h[2:], uint16(hl+len(l4)))
		binary.BigEndian.PutUint16(h[4:], s.ID)
		off := s.Fragment
		if s.DF {
			off |= 0x4000
		}
		binary.BigEndian.PutUint16(h[6:], off)
		v := ^uint16(sum(0, h))
		if s.BadIPSum {
			v ^= 0x55
		}
		binary.BigEndian.PutUint16(h[10:], v)
		pseudo = append(pseudo, h[12:20]...)
	}
	pseudo = binary.BigEndian.AppendUint16(append(pseudo, 0, proto), uint16(len(l4)))
	at := 16
	if s.UDP {
		at = 6
	}
	v := ^uint16(sum(sum(0, pseudo), l4))
	switch {
	case s.UDP && s.NoSum:
		v = 0
	case v == 0:
		v = 0xffff
	}
	if s.BadSum {
		v ^= 0x1234
	}
	binary.BigEndian.PutUint16(l4[at:], v)
	return append(append(b, l4...), make([]byte, s.Padding)...)
}

func (s Spec) transport() []byte {
	b := []byte{0x30, s.Flow, 0x14, 0x51}
	if s.UDP {
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(s.Payload)))
		return append(append(b, 0, 0), s.Payload...)
	}
	b = binary.BigEndian.AppendUint32(b, s.Seq)
	b = binary.BigEndian.AppendUint32(b, s.Ack)
	b = append(b, byte(20+s.TCPOpts)/4<<4, s.Flags)
	b = binary.BigEndian.AppendUint16(b, s.Window)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint16(b, s.Urgent)
	for range s.TCPOpts {
		b = append(b, s.Stamp)
	}
	return append(b, s.Payload...)
}

// Mix makes n frames of a few flows, whose streams go on with all that happens
// to streams: sizes that change, options, marks, flags, gaps, repetitions,
// fragments, and frames that are no streams at all.
func Mix(r *rand.Rand, n int) (all [][]byte) {
	flows := make([]Spec, 1+r.IntN(6))
	for i := range flows {
		flows[i] = Spec{Six: r.IntN(2) == 0, UDP: r.IntN(3) == 0, Tags: max(0, r.IntN(5)-2), Flow: byte(i), TTL: 64, DF: r.IntN(4) > 0, ID: uint16(r.Uint32()),
			Seq: r.Uint32(), Ack: r.Uint32(), Flags: 0x10, Window: 500, TCPOpts: 12 * r.IntN(2), Stamp: 1,
			Payload: random(r, 1+r.IntN(1400))}
	}
	one := func(p int) bool { return r.IntN(p) == 0 }
	for len(all) < n {
		f := &flows[r.IntN(len(flows))]
		for range 1 + r.IntN(12) {
			s := *f
			s.Payload = random(r, len(f.Payload))
			if one(12) {
				s.Payload = s.Payload[:r.IntN(len(s.Payload)+1)]
			}
			if one(25) {
				s.Payload = random(r, 1+r.IntN(1400))
			}
			if one(20) {
				s.Flags |= []byte{1, 8, 9, 2, 4, 0x20, 0x40, 0x80}[r.IntN(8)]
			}
			if one(30) {
				s.TOS ^= byte(1 + r.IntN(3))
			}
			if one(40) {
				s.TTL--
			}
			if one(40) {
				s.Urgent = 7
			}
			if one(30) {
				f.Ack++
			}
			if one(40) {
				f.Window++
			}
			if one(40) {
				f.Stamp++
			}
			if one(40) {
				f.DF = !f.DF
			}
			if one(40) {
				s.Seq += 10
			}
			if one(40) {
				s.Options = 8
			}
			if one(40) {
				s.Fragment = []uint16{0x2000, 5, 0x2005}[r.IntN(3)]
			}
			s.NoSum, s.BadSum, s.BadIPSum = one(40), one(40), one(40)
			if one(30) {
				s.Padding = r.IntN(6)
			}
			all = append(all, s.Frame())
			f.Seq += uint32(len(s.Payload))
			if !one(5) || f.Flow&1 == 0 {
				f.ID++
			}
			if one(30) {
				all = append(all, random(r, r.IntN(80)))
			}
			if one(40) && len(all) > 1 {
				all[len(all)-1], all[len(all)-2] = all[len(all)-2], all[len(all)-1]
			}
			if one(40) {
				all = append(all, append([]byte(nil), all[len(all)-1]...))
			}
		}
	}
	return all[:n]
}

func random(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}
