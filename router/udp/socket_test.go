package udp_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
	"github.com/weft-net/weft/router/udp"
)

func listen(t testing.TB, host string) *udp.Socket {
	t.Helper()
	s, err := udp.Listen(host, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func at(host string, s *udp.Socket) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(host), s.LocalAddr().Port())
}

func TestBatchesOfBothFamilies(t *testing.T) {
	for _, c := range []struct{ listen, from, to string }{
		{"", "", "127.0.0.1"}, {"", "", "::1"}, {"127.0.0.1", "127.0.0.1", "127.0.0.1"}, {"::1", "::1", "::1"},
		{"127.0.0.1", "", "127.0.0.1"},
	} {
		a, b := listen(t, c.from), listen(t, c.listen)
		out := make([]udp.Message, 100)
		for i := range out {
			body := fmt.Appendf(nil, "message %d", i)
			out[i] = udp.Message{Buf: body, N: len(body), Addr: at(c.to, b)}
		}
		if n, err := a.NewWriter(16).WriteBatch(out); n != 100 || err != nil {
			t.Fatalf("%+v: sent %d: %v", c, n, err)
		}
		in := make([]udp.Message, 8)
		for i := range in {
			in[i].Buf = make([]byte, 100)
		}
		r := b.NewReader(8)
		for got := 0; got < 100; {
			n, err := r.ReadBatch(in)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n {
				if want := fmt.Appendf(nil, "message %d", got); !bytes.Equal(in[i].Buf[:in[i].N], want) {
					t.Fatalf("%+v: got %q, want %q", c, in[i].Buf[:in[i].N], want)
				}
				if in[i].Addr != at(c.to, a) {
					t.Fatalf("%+v: from %s, want %s", c, in[i].Addr, at(c.to, a))
				}
				got++
			}
		}
	}
}

func TestCloseEndsReads(t *testing.T) {
	s := listen(t, "127.0.0.1")
	done := make(chan error)
	go func() {
		_, err := s.NewReader(1).ReadBatch([]udp.Message{{Buf: make([]byte, 10)}})
		done <- err
	}()
	s.Close()
	if err := <-done; !errors.Is(err, net.ErrClosed) {
		t.Errorf("read ended with %v", err)
	}
}

// TestTooBigIsTold sends more than the interface carries: the kernel must
// neither cut it in fragments nor fail the other messages.
func TestTooBigIsTold(t *testing.T) {
	a, b := nstest.New(t, "a"), nstest.New(t, "b")
	for i, p := range []string{"192.0.2.%d/24", "2001:db8::%d/64"} {
		nstest.Veth(t, 1500, a, fmt.Sprint("u", i), netip.MustParsePrefix(fmt.Sprintf(p, 1)), b, fmt.Sprint("u", i), netip.MustParsePrefix(fmt.Sprintf(p, 2)))
	}
	var s *udp.Socket
	if err := netdev.Do(a, func() (err error) { s, err = udp.Listen("", 0); return err }); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, c := range []struct {
		to   string
		fits int
	}{{"192.0.2.2:9", 1472}, {"[2001:db8::2]:9", 1452}} {
		to := netip.MustParseAddrPort(c.to)
		m := []udp.Message{
			{Buf: make([]byte, 2000), N: c.fits, Addr: to}, {Buf: make([]byte, 2000), N: c.fits + 1, Addr: to},
		}
		n, err := s.NewWriter(4).WriteBatch(m)
		if n != 1 || !udp.IsTooBig(err) {
			t.Errorf("%s: sent %d: %v", c.to, n, err)
		}
	}
}

func TestNoAllocation(t *testing.T) {
	a, b := listen(t, ""), listen(t, "")
	w, r := a.NewWriter(4), b.NewReader(4)
	out := []udp.Message{{Buf: make([]byte, 100), N: 100, Addr: at("127.0.0.1", b)}}
	in := []udp.Message{{Buf: make([]byte, 100)}}
	if n := testing.AllocsPerRun(500, func() {
		if _, err := w.WriteBatch(out); err != nil {
			t.Error(err)
		}
		if _, err := r.ReadBatch(in); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
