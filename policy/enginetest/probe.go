package enginetest

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/policy/model"
)

// Probe is the first packet of a flow, with an ID in its last four bytes.
type Probe struct {
	model.Flow
	Sport uint16
	ID    uint32
}

// Frame returns the Ethernet frame of a probe.
func (p Probe) Frame(from, to net.HardwareAddr) []byte {
	b := append(append([]byte{}, to...), from...)
	payload := p.transport()
	if p.Src.Is4() {
		b = append(b, 0x08, 0x00)
		h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, byte(p.Protocol), 0, 0}
		binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
		h = append(append(h, p.Src.AsSlice()...), p.Dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[10:], ^checksum.Sum(h))
		return append(append(b, h...), payload...)
	}
	b = append(b, 0x86, 0xdd)
	h := []byte{0x60, 0, 0, 0, 0, 0, byte(p.Protocol), 64}
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h = append(append(h, p.Src.AsSlice()...), p.Dst.AsSlice()...)
	return append(append(b, h...), payload...)
}

func (p Probe) transport() []byte {
	id := binary.BigEndian.AppendUint32(nil, p.ID)
	ports := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Sport), p.Port)
	switch p.Protocol {
	case model.TCP:
		b := append(ports, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0) // a SYN
		return p.sum(append(b, id...), 16)
	case model.UDP:
		return p.sum(append(ports, append([]byte{0, 12, 0, 0}, id...)...), 6)
	case model.SCTP: // an INIT, RFC 9260 section 3.3.2, whose TSN is the ID
		b := append(ports, make([]byte, 8)...)
		b = append(b, 1, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1)
		b = append(b, id...)
		binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
		return b
	case unix.IPPROTO_ICMPV6:
		return p.sum(append([]byte{128, 0, 0, 0, ports[0], ports[1], 0, 1}, id...), 2)
	}
	b := append([]byte{8, 0, 0, 0, ports[0], ports[1], 0, 1}, id...)
	binary.BigEndian.PutUint16(b[2:], ^checksum.Sum(b))
	return b
}

// sum fills in the checksum at an offset, with the pseudo header of RFC 9293.
func (p Probe) sum(b []byte, at int) []byte {
	pseudo := append(append(p.Src.AsSlice(), p.Dst.AsSlice()...), 0, byte(p.Protocol))
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(len(b)))
	binary.BigEndian.PutUint16(b[at:], ^checksum.Sum(append(pseudo, b...)))
	return b
}

// ProbeID returns the ID of a frame, 0 if it can have none.
func ProbeID(frame []byte) uint32 {
	if len(frame) < 14+20 {
		return 0
	}
	var end int
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		end = 14 + int(binary.BigEndian.Uint16(frame[16:]))
	case 0x86dd:
		end = 14 + 40 + int(binary.BigEndian.Uint16(frame[18:]))
	default:
		return 0
	}
	if end > len(frame) || end < 14+20 {
		return 0
	}
	return binary.BigEndian.Uint32(frame[end-4:])
}

// GroupMAC returns the multicast or broadcast MAC address for an IP address (RFC 1112, RFC 2464).
func GroupMAC(a netip.Addr) net.HardwareAddr {
	b := a.AsSlice()
	switch {
	case a.Is6():
		return net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}
	case b[0] == 255:
		return net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	}
	return net.HardwareAddr{0x01, 0x00, 0x5e, b[1] & 0x7f, b[2], b[3]}
}
