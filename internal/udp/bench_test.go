package udp_test

import (
	"encoding/binary"
	"net"
	"testing"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/udp"
)

// The benchmark sends benchBatch datagrams of benchSize bytes over loopback and reads
// them, on one goroutine.
const (
	benchBatch = 128
	benchSize  = 1400
	segments   = 40 // of benchSize bytes in one message of less than 64 KB
)

// BenchmarkBatch compares this package with ReadBatch and WriteBatch of
// golang.org/x/net/ipv4, each with datagrams that cross the system call one by one and
// with UDP_SEGMENT and UDP_GRO. It reports nanoseconds for each datagram, sent and
// received.
//
//	go test ./internal/udp -run '^$' -bench Batch -count 10
func BenchmarkBatch(b *testing.B) {
	for name, offloads := range map[string]bool{"plain": false, "offloads": true} {
		b.Run(name+"/weft", func(b *testing.B) { benchWeft(b, offloads) })
		b.Run(name+"/xnet", func(b *testing.B) { benchXNet(b, offloads) })
	}
}

// benchRound calls round, which sends and receives a batch, and reports the cost.
func benchRound(b *testing.B, round func() error) {
	b.Helper()
	b.ReportAllocs()
	for b.Loop() {
		if err := round(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchBatch, "ns/datagram")
}

func benchWeft(b *testing.B, offloads bool) {
	k := udp.Linux
	k.Offloads = offloads
	from, to := listenOn(b, "127.0.0.1", k), listenOn(b, "127.0.0.1", k)
	w, r := from.NewWriter(64), to.NewReader(64)
	out := make([]udp.Message, benchBatch)
	for i := range out {
		out[i] = udp.Message{Buf: make([]byte, benchSize), N: benchSize, Addr: at("127.0.0.1", to)}
	}
	benchRound(b, func() error {
		if _, err := w.WriteBatch(out); err != nil {
			return err
		}
		for left := benchBatch; left > 0; {
			in, err := r.ReadBatch()
			if err != nil {
				return err
			}
			left -= len(in)
		}
		return nil
	})
}

func benchXNet(b *testing.B, offloads bool) {
	from, to := xnetSocket(b, offloads), xnetSocket(b, offloads)
	out, in := xnetMessages(to.LocalAddr(), offloads), make([]ipv4.Message, 64)
	for i := range in {
		in[i] = ipv4.Message{Buffers: [][]byte{make([]byte, 65535)}, OOB: make([]byte, unix.CmsgSpace(4))}
	}
	w, r := ipv4.NewPacketConn(from), ipv4.NewPacketConn(to)
	benchRound(b, func() error {
		for rest := out; len(rest) > 0; {
			n, err := w.WriteBatch(rest, 0)
			if err != nil {
				return err
			}
			rest = rest[n:]
		}
		for left := benchBatch; left > 0; {
			n, err := r.ReadBatch(in, 0)
			if err != nil {
				return err
			}
			for i := range in[:n] {
				left -= (in[i].N + benchSize - 1) / benchSize
				in[i].OOB = in[i].OOB[:cap(in[i].OOB)]
			}
		}
		return nil
	})
}

// xnetSocket is a socket with the options that udp.Listen sets.
func xnetSocket(b *testing.B, gro bool) *net.UDPConn {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	raw, err := c.SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	if e := raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
		if gro {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		}
	}); e != nil || err != nil {
		b.Fatal(e, err)
	}
	return c
}

// xnetMessages makes benchBatch datagrams, with offloads as many as fit in one message.
func xnetMessages(to net.Addr, offloads bool) (out []ipv4.Message) {
	size, oob := 1, []byte(nil)
	if offloads {
		size, oob = segments, make([]byte, unix.CmsgSpace(2))
		binary.NativeEndian.PutUint64(oob, uint64(unix.CmsgLen(2)))
		binary.NativeEndian.PutUint32(oob[8:], unix.IPPROTO_UDP)
		binary.NativeEndian.PutUint32(oob[12:], unix.UDP_SEGMENT)
		binary.NativeEndian.PutUint16(oob[unix.CmsgLen(0):], benchSize)
	}
	for left := benchBatch; left > 0; left -= size {
		m := ipv4.Message{Addr: to, OOB: oob}
		for range min(size, left) {
			m.Buffers = append(m.Buffers, make([]byte, benchSize))
		}
		out = append(out, m)
	}
	return out
}
