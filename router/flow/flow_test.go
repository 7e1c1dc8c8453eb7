package flow

import (
	"encoding/binary"
	"hash/maphash"
	"testing"
	"time"
)

// packet is an untagged frame with an IPv4 packet of a flow, n bytes long.
func packet(proto byte, src, dst, sport, dport uint16, n int) []byte {
	b := make([]byte, n)
	b[12], b[13] = 0x08, 0x00
	ip := b[14:]
	ip[0], ip[9] = 0x45, proto
	binary.BigEndian.PutUint16(ip[2:], uint16(n-14))
	binary.BigEndian.PutUint16(ip[14:], src)
	binary.BigEndian.PutUint16(ip[18:], dst)
	binary.BigEndian.PutUint16(ip[20:], sport)
	binary.BigEndian.PutUint16(ip[22:], dport)
	return b
}

func TestFlowsOfTheirOwn(t *testing.T) {
	table := New(maphash.MakeSeed())
	bulk, ping := packet(tcp, 1, 2, 1000, 80, 1500), packet(tcp, 1, 2, 1001, 80, 66)
	now := time.Duration(0)
	var sparse int
	for range 10_000 {
		now += 10 * time.Microsecond
		if table.Sparse(now, bulk) {
			sparse++
		}
		if !table.Sparse(now, ping) && now > time.Second {
			t.Fatalf("a flow of %d bytes is bulk beside another", len(ping))
		}
		now += 10 * time.Microsecond
	}
	// 1500 bytes each 20 us: a burst is gone after 11.
	if sparse > 12 {
		t.Errorf("%d packets of bulk passed as sparse", sparse)
	}
}

// TestHeavyUntilItPauses: a flow that was bulk is sparse again only after a
// pause, however little it sends meanwhile, and one below the rate is sparse for
// ever.
func TestBulkUntilItPauses(t *testing.T) {
	table := New(maphash.MakeSeed())
	f := packet(udp, 1, 2, 3, 4, 1000)
	now := time.Second
	for range 100 {
		table.Sparse(now, f)
	}
	for range 1000 {
		now += pause - 1
		if table.Sparse(now, f) {
			t.Fatalf("sparse at %s, while its packets may still wait", now)
		}
	}
	now += pause
	for range 10_000 {
		if !table.Sparse(now, f) {
			t.Fatalf("bulk at %s, below the rate", now)
		}
		now += time.Duration(len(f)) * time.Second / drain
	}
	for range 100 {
		table.Sparse(now, f)
	}
	if !table.Sparse(now+1000*time.Hour, f) {
		t.Error("bulk after weeks")
	}
}

func TestWhatIsAFlow(t *testing.T) {
	for _, x := range []struct {
		name string
		a, b []byte
		same bool
	}{
		{"ports", packet(tcp, 1, 2, 3, 4, 60), packet(tcp, 1, 2, 3, 5, 60), false},
		{"length", packet(tcp, 1, 2, 3, 4, 60), packet(tcp, 1, 2, 3, 4, 1500), true},
		{"no ports", packet(1, 1, 2, 3, 4, 60), packet(1, 1, 2, 5, 6, 60), true},
		{"fragments", fragment(packet(udp, 1, 2, 3, 4, 60)), fragment(packet(udp, 1, 2, 5, 6, 60)), true},
		{"addresses", packet(1, 1, 2, 3, 4, 60), packet(1, 1, 3, 3, 4, 60), false},
	} {
		if got := string(key(x.a)) == string(key(x.b)); got != x.same {
			t.Errorf("%s: one flow is %t, want %t", x.name, got, x.same)
		}
	}
}

func fragment(b []byte) []byte {
	b[14+6], b[14+7] = 0x20, 0x10
	return b
}

func FuzzSparse(f *testing.F) {
	f.Add(packet(tcp, 1, 2, 3, 4, 60), int64(1))
	f.Add([]byte{}, int64(-1))
	f.Add(packet(udp, 1, 2, 3, 4, 60)[:20], int64(1<<62))
	table := New(maphash.MakeSeed())
	f.Fuzz(func(t *testing.T, b []byte, now int64) {
		table.Sparse(time.Duration(now), b)
		if len(key(b)) > len(b) {
			t.Error("a key from behind the frame")
		}
	})
}

func BenchmarkSparse(b *testing.B) {
	table, f := New(maphash.MakeSeed()), packet(tcp, 1, 2, 3, 4, 1500)
	for i := range b.N {
		table.Sparse(time.Duration(i)*time.Microsecond, f)
	}
}
