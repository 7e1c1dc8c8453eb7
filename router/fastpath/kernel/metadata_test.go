package kernel

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/checksum"
)

func TestTag(t *testing.T) {
	tag := Metadata{Op: MetadataRelay, Reason: ReasonBig, Src: 0x123, Dst: 0xfff, TTL: 63, Addr: netip.MustParseAddr("192.0.2.1")}
	want := []byte{
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xb5, 1, 2, 1, 0x23, 0xf, 0xff, 63, 0, 0, 0,
		0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1,
	}
	if got := AppendMetadata([]byte{7}, tag); !bytes.Equal(got, append([]byte{7}, want...)) {
		t.Errorf("the tag is % x", got)
	}
	if got, ok := ParseMetadata(want); !ok || got != tag {
		t.Errorf("parsed %+v, %v", got, ok)
	}
	for _, b := range [][]byte{nil, want[:MetadataLen-1], with(want, 0, 1), with(want, 11, 1), with(want, 12, 8)} {
		if got, ok := ParseMetadata(b); ok {
			t.Errorf("parsed % x as %+v", b, got)
		}
	}
}

func TestProbeLength(t *testing.T) {
	for n, want := range map[int]int{0: MinProbeLen, MinProbeLen: MinProbeLen, 1514: 1514, 9014: 9014} {
		dirty := bytes.Repeat([]byte{0xff}, 10000)
		b := AppendProbe(dirty[:3], Probe{Nonce: [NonceLen]byte{1}}, n)
		if len(b) != 3+want || !bytes.Equal(b[3+MinProbeLen:], make([]byte, want-MinProbeLen)) {
			t.Errorf("a probe of %d has %d bytes", n, len(b)-3)
		}
	}
}

func TestEchoOfDamagedChecksum(t *testing.T) {
	b := probeFrame(2, [16]byte{7}, 201) // an odd length
	sum := checksum.Add(pseudoSum(b), checksum.Sum(b[probeUDP+8:]))
	sum = checksum.Add(sum, checksum.Sum(b[probeUDP:probeSum]))
	binary.BigEndian.PutUint16(b[probeSum:], ^sum)
	if n, summed, ok := ParseEcho(b); !ok || !summed || n != [16]byte{7} {
		t.Errorf("nonce % x, summed %v, ok %v", n, summed, ok)
	}
	for _, i := range []int{probeSum, probeUDP + 8, 200} {
		if _, summed, ok := ParseEcho(with(b, i, b[i]+1)); !ok || summed {
			t.Errorf("byte %d changed: summed %v, ok %v", i, summed, ok)
		}
	}
	for _, bad := range [][]byte{nil, b[:MinProbeLen-1], with(b, 5, 1), with(b, 11, 1), with(b, 13, 6)} {
		if _, _, ok := ParseEcho(bad); ok {
			t.Errorf("% x is taken for an echo", bad[:min(len(bad), 20)])
		}
	}
}

func FuzzParseMetadata(f *testing.F) {
	f.Add(AppendMetadata(nil, Metadata{Op: MetadataEcho, Src: 1, Dst: 2, TTL: 3, Addr: netip.MustParseAddr("2001:db8::1")}))
	f.Add(AppendProbe(nil, Probe{Src: 1, Dst: 2}, 100))
	f.Add(probeFrame(2, [16]byte{1, 2}, 60))
	for _, a := range [][2]netip.Addr{{ip4Here, ip4There}, {ip6Here, ip6There}} {
		b, _ := AppendPlainProbe(nil, PlainProbe{Src: 1, Dst: 2, Encap: EncapNone, From: a[0], To: a[1], Nonce: [16]byte{3}}, 100)
		b[14+ipLen(a[0])+8+plainOp] = probeEcho
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if tag, ok := ParseMetadata(b); ok {
			again, ok := ParseMetadata(AppendMetadata(nil, tag))
			if !ok || again != tag {
				t.Errorf("%+v became %+v, %v", tag, again, ok)
			}
		}
		if n, _, ok := ParseEcho(b); ok && !bytes.Equal(b[probeNonce:probeTo], n[:]) {
			t.Errorf("nonce % x of % x", n, b)
		}
		for _, e := range []Encap{EncapNone, EncapIPIP} {
			if n, _, ok := ParsePlainEcho(b, e); ok && !bytes.Contains(b, n[:]) {
				t.Errorf("nonce % x of % x, encapsulation %d", n, b, e)
			}
		}
	})
}
