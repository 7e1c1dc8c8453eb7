package netdev_test

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/checksum"
	"github.com/weft-net/weft/internal/netdev"
)

const (
	flagRST = 1 << 2
	flagACK = 1 << 4
)

// segment is a TCP header (RFC 9293 section 3.1) with one byte behind it.
func segment(from, to netip.AddrPort, seq, ack uint32, flags byte) []byte {
	b := make([]byte, 21)
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], seq)
	binary.BigEndian.PutUint32(b[8:], ack)
	b[12], b[13] = 5<<4, flags
	binary.BigEndian.PutUint16(b[14:], 1000)
	b[20] = 'x'
	pseudo := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
	pseudo = append(pseudo, 0, unix.IPPROTO_TCP, 0, byte(len(b)))
	binary.BigEndian.PutUint16(b[16:], ^checksum.Add(checksum.Sum(pseudo), checksum.Sum(b)))
	return b
}

// rawTCP opens a socket in a namespace that sends TCP segments, and receives all that
// arrive there.
func rawTCP(t *testing.T, ns string) (f *os.File) {
	t.Helper()
	do(t, ns, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err == nil {
			f = os.NewFile(uintptr(fd), "raw")
		}
		return err
	})
	t.Cleanup(func() { f.Close() })
	return f
}

// sendRaw sends a segment with a socket of rawTCP.
func sendRaw(t *testing.T, f *os.File, to netip.Addr, b []byte) {
	t.Helper()
	c, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	if err := c.Control(func(fd uintptr) { failed = unix.Sendto(int(fd), b, 0, &unix.SockaddrInet4{Addr: to.As4()}) }); err != nil || failed != nil {
		t.Fatal(err, failed)
	}
}

// received returns the sources of the segments with a flag that have arrived at a socket of
// rawTCP, and forgets them.
func received(t *testing.T, f *os.File, flag byte) (from []string) {
	t.Helper()
	if err := f.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	for {
		n, err := f.Read(b)
		if err != nil {
			return from
		}
		if h := 4 * int(b[0]&15); n >= h+20 && b[h+13]&flag != 0 {
			from = append(from, netip.AddrFrom4([4]byte(b[12:])).String())
		}
	}
}

// A segment that conntrack calls invalid neither makes the host answer for a container, and
// so end its connection, nor leaves with the container's address.
func TestInvalidSegmentsOfExposedHosts(t *testing.T) {
	h := newExposed(t)
	h.expose(t, netdev.Exposure{Addr: pfx("10.32.0.1/24"), Masquerade: true})
	var l *net.TCPListener
	do(t, h.out, func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(192, 0, 2, 2)})
		return err
	})
	defer l.Close()
	server := l.Addr().(*net.TCPAddr).AddrPort()
	var client net.Conn
	do(t, h.c, func() (err error) { client, err = net.DialTimeout("tcp4", server.String(), timeout); return err })
	defer client.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	masked := accepted.RemoteAddr().(*net.TCPAddr).AddrPort()
	if masked.Addr().String() != "192.0.2.1" {
		t.Fatalf("the server sees %s", masked)
	}
	echo := func(what string) {
		t.Helper()
		if _, err := accepted.Write([]byte("hello")); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if err := client.SetReadDeadline(time.Now().Add(timeout)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(client, make([]byte, 5)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	echo("before")

	out := rawTCP(t, h.out)
	received(t, out, flagRST)
	// No connection has such a sequence number in its window.
	sendRaw(t, out, masked.Addr(), segment(server, masked, 1<<31, 1<<30, flagACK))
	echo("after a late segment")
	if from := received(t, out, flagRST); len(from) > 0 {
		t.Errorf("a late segment is answered by RST from %v", from)
	}
	// A closed port of the host is answered, and a socket of the host gets what is invalid.
	closed := netip.AddrPortFrom(masked.Addr(), 1)
	do(t, h.out, func() error {
		if c, err := net.DialTimeout("tcp4", closed.String(), timeout); err == nil {
			c.Close()
			t.Error("a closed port accepts")
		}
		return nil
	})
	if from := received(t, out, flagRST); len(from) != 1 {
		t.Errorf("a closed port is answered by RST from %v", from)
	}

	inside := rawTCP(t, h.c)
	container := netip.MustParseAddrPort("10.32.0.2:7")
	sendRaw(t, inside, server.Addr(), segment(container, server, 1, 1, flagACK|1<<1))
	sendRaw(t, inside, server.Addr(), segment(container, server, 1, 1, flagRST))
	echo("after segments of no connection")
	for _, from := range received(t, out, flagRST|flagACK) {
		if from == "10.32.0.2" {
			t.Error("a segment of no connection left with the address of the container")
		}
	}
}
