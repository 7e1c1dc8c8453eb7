package udp_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/internal/udp"
)

func listen(t testing.TB, host string) *udp.Socket { return listenOn(t, host, udp.Linux) }

func listenOn(t testing.TB, host string, k udp.Kernel) *udp.Socket {
	t.Helper()
	s, err := udp.Listen(host, 0, k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func at(host string, s *udp.Socket) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), s.LocalAddr().Port())
}

// messages makes n datagrams. The function returns their sizes.
func messages(n int, to netip.AddrPort, size func(i int) int) []udp.Message {
	out := make([]udp.Message, n)
	for i := range out {
		body := append(fmt.Appendf(nil, "message %d", i), make([]byte, size(i))...)
		out[i] = udp.Message{Buf: body, N: len(body), Addr: to}
	}
	return out
}

// expect reads messages until all have come, in order and as they were sent.
func expect(t *testing.T, r udp.Reader, from netip.AddrPort, want []udp.Message) {
	t.Helper()
	for len(want) > 0 {
		in, err := r.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		if len(in) > len(want) {
			t.Fatalf("%d more than were sent", len(in)-len(want))
		}
		for i, m := range in {
			if !bytes.Equal(m.Buf[:m.N], want[i].Buf[:want[i].N]) {
				t.Fatalf("got %d bytes, %.12q, want %d, %.12q", m.N, m.Buf[:m.N], want[i].N, want[i].Buf[:want[i].N])
			}
			if m.Addr != from {
				t.Fatalf("from %s, want %s", m.Addr, from)
			}
			if cap(m.Buf) > len(m.Buf) {
				t.Fatal("a message's capacity reaches into the next")
			}
		}
		want = want[len(in):]
	}
}

// lesser returns a kernel that lacks a feature and counts what it refuses.
func lesser(gro bool, segment syscall.Errno) (k udp.Kernel, refused *int) {
	k, refused = udp.Linux, new(int)
	if !gro {
		k.SetGRO = func(int) error { return unix.ENOPROTOOPT }
	}
	k.Mmsg = func(trap, fd uintptr, p unsafe.Pointer, n int) (int, syscall.Errno) {
		type mmsghdr struct {
			hdr unix.Msghdr
			n   uint32
		}
		if trap == unix.SYS_SENDMMSG && segment != 0 {
			for i, m := range unsafe.Slice((*mmsghdr)(p), n) {
				if m.hdr.Controllen > 0 {
					if i == 0 {
						*refused++
						return -1, segment
					}
					n = i
					break
				}
			}
		}
		return udp.Linux.Mmsg(trap, fd, p, n)
	}
	return k, refused
}

// kernels are those that sender and receiver may run on.
func kernels() map[string]udp.Kernel {
	all := map[string]udp.Kernel{"all": udp.Linux, "off": udp.Linux}
	k := all["off"]
	k.Offloads = false
	all["off"] = k
	all["no gro"], _ = lesser(false, 0)
	all["EIO"], _ = lesser(true, unix.EIO)
	all["EINVAL"], _ = lesser(true, unix.EINVAL)
	return all
}

func TestBatchesOfBothFamilies(t *testing.T) {
	for name, ka := range kernels() {
		for other, kb := range kernels() {
			for _, c := range []struct{ listen, from, to string }{
				{"", "", "127.0.0.1"}, {"", "", "::1"}, {"127.0.0.1", "127.0.0.1", "127.0.0.1"}, {"::1", "::1", "::1"},
				{"127.0.0.1", "", "127.0.0.1"},
			} {
				a, b := listenOn(t, c.from, ka), listenOn(t, c.listen, kb)
				w, r := a.NewWriter(16), b.NewReader(8)
				to := at(c.to, b)
				for what, out := range map[string][]udp.Message{
					"equal":        messages(200, to, func(int) int { return 90 }),
					"large":        messages(100, to, func(int) int { return 1300 }),
					"huge":         messages(5, to, func(int) int { return 60000 }),
					"any":          messages(100, to, func(i int) int { return i * 77 % 1400 }),
					"short behind": messages(100, to, func(i int) int { return 1000 - 500*((i+1)%7/6) }),
				} {
					if n, err := w.WriteBatch(out); n != len(out) || err != nil {
						t.Fatalf("%s to %s, %+v, %s: sent %d: %v", name, other, c, what, n, err)
					}
					expect(t, r, at(c.to, a), out)
				}
			}
		}
	}
}

// TestRefusal: a kernel that cannot segment is tried once, and nothing is lost.
func TestRefusal(t *testing.T) {
	for _, errno := range []syscall.Errno{unix.EINVAL, unix.EIO, unix.ENOPROTOOPT} {
		k, refused := lesser(false, errno)
		a, b := listenOn(t, "127.0.0.1", k), listen(t, "127.0.0.1")
		if got := a.Offloads(); got != "segment" {
			t.Errorf("before it is asked: %q", got)
		}
		w, r := a.NewWriter(4), b.NewReader(4)
		for range 3 {
			out := messages(150, at("127.0.0.1", b), func(i int) int { return 100 })
			if n, err := w.WriteBatch(out); n != 150 || err != nil {
				t.Fatalf("sent %d: %v", n, err)
			}
			expect(t, r, at("127.0.0.1", a), out)
		}
		if *refused != 1 || a.Offloads() != "none" {
			t.Errorf("%v: asked %d times, then %q", errno, *refused, a.Offloads())
		}
	}
}

// TestOneMessageForMany: the kernel accepts many datagrams as one, and returns them as
// one. Before Linux 5.11 virtual interfaces, including lo, do not carry them as one, and
// they come one by one.
func TestOneMessageForMany(t *testing.T) {
	type count struct{ calls, most int }
	var sent, received count
	k := udp.Linux
	k.Mmsg = func(trap, fd uintptr, p unsafe.Pointer, n int) (int, syscall.Errno) {
		done, errno := udp.Linux.Mmsg(trap, fd, p, n)
		c := &received
		if trap == unix.SYS_SENDMMSG {
			c = &sent
		}
		if errno == 0 {
			c.calls, c.most = c.calls+1, max(c.most, done)
		}
		return done, errno
	}
	a, b := listenOn(t, "127.0.0.1", k), listenOn(t, "127.0.0.1", k)
	if a.Offloads() != "segment, gro" {
		nstest.Lacks(t, "UDP_SEGMENT or UDP_GRO")
	}
	out := messages(40, at("127.0.0.1", b), func(int) int { return 1000 })
	for i := range out {
		out[i].N = 1000
	}
	if n, err := a.NewWriter(64).WriteBatch(out); n != 40 || err != nil {
		t.Fatal(n, err)
	}
	expect(t, b.NewReader(64), at("127.0.0.1", a), out)
	one := count{calls: 1, most: 1}
	if sent != one || received != one && !nstest.KernelBefore(t, 5, 11) {
		t.Errorf("for 40 datagrams: sent %+v, received %+v", sent, received)
	}
}

func TestCloseEndsReads(t *testing.T) {
	s := listen(t, "127.0.0.1")
	done := make(chan error)
	go func() {
		_, err := s.NewReader(1).ReadBatch()
		done <- err
	}()
	s.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read ended with %v", err)
	}
}

// TestTooBigIsReported sends more than the interface carries: the kernel must neither
// fragment it nor fail the other messages.
func TestTooBigIsReported(t *testing.T) {
	a, b := nstest.New(t, "a"), nstest.New(t, "b")
	for i, p := range []string{"192.0.2.%d/24", "2001:db8::%d/64"} {
		nstest.Veth(t, 1500, a, fmt.Sprint("u", i), netip.MustParsePrefix(fmt.Sprintf(p, 1)), b, fmt.Sprint("u", i), netip.MustParsePrefix(fmt.Sprintf(p, 2)))
	}
	var s *udp.Socket
	if err := netdev.Do(a, func() (err error) { s, err = udp.Listen("", 0, udp.Linux); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		to   string
		fits int
	}{{"192.0.2.2:9", 1472}, {"[2001:db8::2]:9", 1452}} {
		to := netip.MustParseAddrPort(c.to)
		big := udp.Message{Buf: make([]byte, 2000), N: c.fits + 1, Addr: to}
		fits := udp.Message{Buf: make([]byte, 2000), N: c.fits, Addr: to}
		n, err := s.NewWriter(4).WriteBatch([]udp.Message{fits, big})
		if n != 1 || !udp.IsTooBig(err) {
			t.Errorf("%s: sent %d: %v", c.to, n, err)
		}
		// Also among datagrams of one size, which go as one.
		n, err = s.NewWriter(4).WriteBatch([]udp.Message{big, big, fits})
		if n != 0 || !udp.IsTooBig(err) {
			t.Errorf("%s: sent %d: %v", c.to, n, err)
		}
		if s.Offloads() != "segment, gro" {
			t.Errorf("for a datagram that was too big, the socket has %q left", s.Offloads())
		}
		if n, err = s.NewWriter(4).WriteBatch([]udp.Message{fits, fits, fits}); n != 3 || err != nil {
			t.Errorf("%s: sent %d: %v", c.to, n, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	a, b := listen(t, ""), listen(t, "")
	w, r := a.NewWriter(4), b.NewReader(4)
	out := messages(10, at("127.0.0.1", b), func(i int) int { return 1000 - i/5 })
	if n := testing.AllocsPerRun(500, func() {
		if _, err := w.WriteBatch(out); err != nil {
			t.Error(err)
		}
		for got := 0; got < len(out); {
			in, err := r.ReadBatch()
			if err != nil {
				t.Error(err)
			}
			got += len(in)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestUrgentFirst: of the datagrams that wait in the socket, the reader returns urgent
// ones first, each kind in order, and new urgent ones do not hold up the others.
func TestUrgentFirst(t *testing.T) {
	a, b := listen(t, ""), listen(t, "")
	w, r := a.NewWriter(8), b.NewReader(8)
	r.(udp.Prioritizer).Prioritize(func(p []byte) bool { return p[0] == 1 })
	var sent [2]byte
	send := func(n int, kind byte) {
		t.Helper()
		// Of different lengths, so that they travel one by one.
		out := messages(n, at("127.0.0.1", b), func(i int) int { return 100 + i%2*50 })
		for i := range out {
			out[i].Buf[0], out[i].Buf[1] = kind, sent[kind]
			sent[kind]++
		}
		if _, err := w.WriteBatch(out); err != nil {
			t.Fatal(err)
		}
	}
	send(12, 0)
	send(3, 1)
	var got [2]byte
	batches := 0
	for got != sent {
		in, err := r.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range in {
			kind, n := m.Buf[0], m.Buf[1]
			if n != got[kind] {
				t.Fatalf("kind %d: %d came, %d is next", kind, n, got[kind])
			}
			got[kind]++
		}
		switch batches++; {
		case batches == 1 && got != [2]byte{0, 3}:
			t.Fatalf("the first batch left %v of %v", got, sent)
		case batches == 2 && got[0] == 0:
			t.Fatal("urgent ones hold up the rest")
		case batches < 10:
			send(1, 1) // for ever urgent
		}
	}
}

// TestMixedMessagesKeepOrder: a card may join urgent datagrams and others to one
// message, as they come from one peer. None overtakes one of its own kind.
func TestMixedMessagesKeepOrder(t *testing.T) {
	for _, kinds := range []string{"00 0001 11", "00 1000 11", "11 0110 11 00", "00 00 01 10 11 00 11"} {
		a, b := listen(t, ""), listen(t, "")
		w, r := a.NewWriter(8), b.NewReader(8)
		r.(udp.Prioritizer).Prioritize(func(p []byte) bool { return p[0] == 1 })
		var sent, got [2]byte
		for i, message := range strings.Fields(kinds) {
			// Of one length in a message, which travels as one.
			out := messages(len(message), at("127.0.0.1", b), func(int) int { return 100 + i })
			for j := range out {
				kind := message[j] - '0'
				out[j].Buf[0], out[j].Buf[1] = kind, sent[kind]
				sent[kind]++
			}
			if _, err := w.WriteBatch(out); err != nil {
				t.Fatal(err)
			}
		}
		for got != sent {
			in, err := r.ReadBatch()
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range in {
				if kind, n := m.Buf[0], m.Buf[1]; n != got[kind] {
					t.Fatalf("%s: of kind %d came %d, %d is next", kinds, kind, n, got[kind])
				}
				got[m.Buf[0]]++
			}
		}
	}
}

// TestUrgentBehindMixedKeepsItsPlace: no later datagram of its kind overtakes one that
// stayed behind a mixed message.
func TestUrgentBehindMixedKeepsItsPlace(t *testing.T) {
	a, b := listen(t, ""), listen(t, "")
	w, r := a.NewWriter(8), b.NewReader(8)
	r.(udp.Prioritizer).Prioritize(func(p []byte) bool { return p[0] == 1 })
	var sent, got [2]byte
	send := func(kinds string, length int) {
		t.Helper()
		out := messages(len(kinds), at("127.0.0.1", b), func(int) int { return length })
		for i := range out {
			kind := kinds[i] - '0'
			out[i].Buf[0], out[i].Buf[1] = kind, sent[kind]
			sent[kind]++
		}
		if _, err := w.WriteBatch(out); err != nil {
			t.Fatal(err)
		}
	}
	read := func() {
		t.Helper()
		in, err := r.ReadBatch()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range in {
			if kind, n := m.Buf[0], m.Buf[1]; n != got[kind] {
				t.Fatalf("of kind %d came %d, %d is next", kind, n, got[kind])
			}
			got[m.Buf[0]]++
		}
	}
	send("1", 100) // so that units are small
	read()
	long := strings.Repeat("0", 39) + "1"
	send(long, 1000)
	send(long, 1001)
	send("1", 100)
	read() // the two long ones, which fill a unit
	send("1", 100)
	for got != sent {
		read()
	}
}
