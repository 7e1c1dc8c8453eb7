package icmp

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/weft-net/weft/router/ethernet"
)

var macs = []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}

// udp4 is a frame with an IPv4 packet of n bytes.
func udp4(n int, change func(ip []byte)) []byte {
	ip := make([]byte, n)
	copy(ip, []byte{0x45, 0, byte(n >> 8), byte(n), 0, 1, 0x40, 0, 64, 17, 0, 0, 10, 32, 0, 1, 10, 32, 0, 2, 0, 7, 0, 9})
	if change != nil {
		change(ip)
	}
	return append(append(bytes.Clone(macs), 8, 0), ip...)
}

func udp6(n int, change func(ip []byte)) []byte {
	ip := make([]byte, n)
	copy(ip, []byte{0x60, 0, 0, 0, byte((n - 40) >> 8), byte(n - 40), 17, 64})
	ip[8], ip[23], ip[24], ip[39] = 0xfd, 1, 0xfd, 2
	if change != nil {
		change(ip)
	}
	return append(append(bytes.Clone(macs), 0x86, 0xdd), ip...)
}

func tagged(frame []byte) []byte {
	return append(append(bytes.Clone(frame[:12]), 0x88, 0xa8, 0, 5, 0x81, 0, 0, 9), frame[12:]...)
}

func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name     string
		frame    []byte
		mtu, say int // the MTU to report; 0 for no answer
	}{
		{"IPv4", udp4(1400, nil), 1300, 1300},
		{"IPv4 in nested VLANs", tagged(udp4(1400, nil)), 1300, 1300},
		{"IPv4 tiny link", udp4(1400, nil), 300, 576},
		{"IPv4 that fits what may be said", udp4(560, nil), 300, 0},
		{"IPv4 without DF", udp4(1400, func(ip []byte) { ip[6] = 0 }), 1300, 0},
		{"IPv4 later fragment", udp4(1400, func(ip []byte) { ip[7] = 9 }), 1300, 0},
		{"IPv4 multicast", udp4(1400, func(ip []byte) { ip[16] = 224 }), 1300, 0},
		{"IPv4 broadcast", udp4(1400, func(ip []byte) { copy(ip[16:], []byte{255, 255, 255, 255}) }), 1300, 0},
		{"IPv4 from nobody", udp4(1400, func(ip []byte) { copy(ip[12:], []byte{0, 0, 0, 0}) }), 1300, 0},
		{"IPv4 echo", udp4(1400, func(ip []byte) { ip[9], ip[20] = 1, 8 }), 1300, 1300},
		{"IPv4 ICMP error", udp4(1400, func(ip []byte) { ip[9], ip[20] = 1, 3 }), 1300, 0},
		{"IPv6", udp6(1400, nil), 1300, 1300},
		{"IPv6 tagged", tagged(udp6(1400, nil)), 1300, 1300},
		{"IPv6 tiny link", udp6(1400, nil), 600, 1280},
		{"IPv6 that every link must carry", udp6(1280, nil), 600, 0},
		{"IPv6 multicast", udp6(1400, func(ip []byte) { ip[24] = 0xff }), 1300, 0},
		{"IPv6 echo", udp6(1400, func(ip []byte) { ip[6], ip[40] = 58, 128 }), 1300, 1300},
		{"IPv6 ICMP error", udp6(1400, func(ip []byte) { ip[6], ip[40] = 58, 2 }), 1300, 0},
		{"ARP", append(append(bytes.Clone(macs), 8, 6), make([]byte, 1400)...), 1300, 0},
		{"to a group MAC", append([]byte{0xff}, udp4(1400, nil)[1:]...), 1300, 0},
	} {
		got := TooBig(make([]byte, 0, MaxLen), c.frame, c.mtu)
		if c.say == 0 {
			if got != nil {
				t.Errorf("%s: an answer of %d bytes", c.name, len(got))
			}
			continue
		}
		check(t, c.name, c.frame, got, c.say)
	}
}

// check reads an answer as the container would.
func check(t *testing.T, name string, frame, got []byte, say int) {
	t.Helper()
	ip, off, ok := ethernet.ParseIP(got)
	sent, sentOff, _ := ethernet.ParseIP(frame)
	if !ok || ip.Src != sent.Dst || ip.Dst != sent.Src || off != sentOff || !bytes.Equal(got[:6], frame[6:12]) ||
		!bytes.Equal(got[6:12], frame[:6]) || !bytes.Equal(got[12:off], frame[12:off]) {
		t.Fatalf("%s: answer % x", name, got)
	}
	icmp := got[off+ip.ProtocolAt:]
	if ip.Version == 4 {
		if checksum(0, got[off:off+20]) != 0 || checksum(0, icmp) != 0 {
			t.Errorf("%s: wrong checksum", name)
		}
		if icmp[0] != 3 || icmp[1] != 4 || int(binary.BigEndian.Uint16(icmp[6:])) != say || ip.Len > MinMTU4 {
			t.Errorf("%s: % x, %d bytes", name, icmp[:8], ip.Len)
		}
	} else {
		pseudo := sum(0, got[off+8:off+40]) + uint32(len(icmp)) + 58
		if checksum(pseudo, icmp) != 0 {
			t.Errorf("%s: wrong checksum", name)
		}
		if icmp[0] != 2 || icmp[1] != 0 || int(binary.BigEndian.Uint32(icmp[4:])) != say || ip.Len > MinMTU6 {
			t.Errorf("%s: % x, %d bytes", name, icmp[:8], ip.Len)
		}
	}
	if !bytes.HasPrefix(frame[off:], icmp[8:]) {
		t.Errorf("%s: it does not quote the packet", name)
	}
}

func FuzzTooBig(f *testing.F) {
	f.Add(udp4(1400, nil), 1300)
	f.Add(tagged(udp6(1400, nil)), 1300)
	f.Fuzz(func(t *testing.T, b []byte, mtu int) {
		mtu &= 0xffff
		got := TooBig(nil, b, mtu)
		if got == nil {
			return
		}
		if len(got) > MaxLen {
			t.Fatalf("%d bytes", len(got))
		}
		if again := TooBig(nil, got, 100); again != nil {
			t.Fatal("an answer to an answer")
		}
		ip, off, _ := ethernet.ParseIP(got)
		say := int(binary.BigEndian.Uint16(got[off+ip.ProtocolAt+6:]))
		check(t, "fuzz", b, got, say)
	})
}
