package datapath

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
)

// capture reads all frames that the underlay's bridge sees, until a frame that
// done accepts, and returns their bytes.
func capture(t *testing.T, lab *testbed.Lab, done func(frame []byte) bool) (wait func() []byte) {
	t.Helper()
	var seen []byte
	end := sniff(t, lab, func(frame []byte) bool {
		seen = append(seen, frame...)
		return done(frame)
	})
	return func() []byte { end(); return seen }
}

// sniff calls each for every frame that the underlay's bridge sees from or to h1, until it returns
// true. wait waits for that.
func sniff(t *testing.T, lab *testbed.Lab, each func(frame []byte) (done bool)) (wait func()) {
	t.Helper()
	all := uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8 // in network byte order
	var fd int
	err := netdev.Do(netdev.NSByName("weft-"+lab.Name+"-underlay"), func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		// h1 is the port of the first host, so each frame is seen once.
		i, err := net.InterfaceByName("h1")
		if err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	// The capture must not miss a frame of the bulk traffic.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	var end atomic.Int64 // in nanoseconds, once wait was called
	go func() {
		defer close(ended)
		defer unix.Close(fd)
		b := make([]byte, 65536)
		for end.Load() == 0 || time.Now().UnixNano() < end.Load() {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || each(b[:n]) {
				break
			}
		}
	}()
	return sync.OnceFunc(func() {
		end.Store(time.Now().Add(harness.Timeout).UnixNano())
		<-ended
	})
}

// lastWord ends a capture whose done is isLastWord.
const lastWord = "enough of it"

func isLastWord(frame []byte) bool { return bytes.Contains(frame, []byte(lastWord)) }

// checkSealed ends a capture and fails if it contains an IPv4 header of a packet between
// two containers.
func checkSealed(t *testing.T, lab *testbed.Lab, wait func() []byte, a, b netip.Addr) {
	t.Helper()
	say(t, lab, harness.At(1, ""), testbed.Addr4(2), lastWord)
	seen := wait()
	if !isLastWord(seen) {
		t.Fatal("the capture does not work")
	}
	if i := ofContainers(seen, a, b); i >= 0 {
		t.Errorf("frames of containers are on the underlay in clear: % x", seen[max(0, i-100):min(len(seen), i+20)])
	}
}

// ofContainers returns where the addresses of a packet between two containers are, -1 if nowhere. A host that
// allows clear text may probe with their addresses, as it does until the other one refuses it.
func ofContainers(seen []byte, a, b netip.Addr) int {
	for _, addrs := range [][]byte{append(a.AsSlice(), b.AsSlice()...), append(b.AsSlice(), a.AsSlice()...)} {
		for at := 0; ; at++ {
			i := bytes.Index(seen[at:], addrs)
			if i < 0 {
				break
			}
			at += i
			rest := seen[at+len(addrs):]
			if probe := len(rest) >= 12 && string(rest[8:12]) == "weft" && bytes.Equal(rest[:4], []byte{0x1a, 0x80, 0x1a, 0x80}); !probe {
				return at
			}
		}
	}
	return -1
}

// wantSealed fails the test if the underlay shows a packet between two containers in clear from now
// until end is called.
func wantSealed(t *testing.T, lab *testbed.Lab, a, b netip.Addr) (end func()) {
	t.Helper()
	var clear []byte // the first such frame
	tunnel, works := 0, false
	wait := sniff(t, lab, func(frame []byte) bool {
		if clear == nil && ofContainers(frame, a, b) >= 0 {
			clear = bytes.Clone(frame)
		}
		if bytes.Contains(frame, binary.BigEndian.AppendUint16(nil, 6785)) {
			tunnel++
		}
		works = isLastWord(frame)
		return works
	})
	return func() {
		t.Helper()
		say(t, lab, harness.At(1, ""), testbed.Addr4(2), lastWord)
		wait()
		switch {
		case !works || tunnel == 0:
			t.Errorf("the capture does not work: it saw %d packets of WireGuard", tunnel)
		case clear != nil:
			t.Errorf("the underlay shows a frame of containers in clear: % x", clear)
		default:
			t.Logf("%d packets of WireGuard, none of containers in clear", tunnel)
		}
	}
}

// say sends text in a UDP packet from a place.
func say(t *testing.T, lab *testbed.Lab, from testbed.Place, to netip.Addr, text string) {
	t.Helper()
	err := netdev.Do(lab.Netns(from), func() error {
		c, err := net.Dial("udp", net.JoinHostPort(to.String(), "9"))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// With a password the underlay shows no plain text.
func TestUnderlayShowsNoPlainText(t *testing.T) {
	t.Parallel()
	const secret, open, end = "what the containers say to each other", "what the hosts say to each other", "enough of it"
	for _, c := range []testbed.Config{{Password: "password of the lab"}, {Flags: []string{"--no-fastdp"}}} {
		c.Hosts = 2
		password := c.Password
		lab := harness.Up(t, c)
		a := harness.AddContainer(t, lab, 2, "a")[0].Addr()
		harness.AddContainer(t, lab, 1, "b")
		harness.Reach(t, lab, harness.At(1, "b"), a)
		wait := capture(t, lab, func(frame []byte) bool { return bytes.Contains(frame, []byte(end)) })
		for range 20 {
			say(t, lab, harness.At(1, "b"), a, secret)
		}
		harness.Reach(t, lab, harness.At(1, "b"), a) // sent later, over the same link
		say(t, lab, harness.At(1, ""), testbed.Addr4(2), open)
		say(t, lab, harness.At(1, ""), testbed.Addr4(2), end)
		seen := wait()
		if !bytes.Contains(seen, []byte(open)) || !bytes.Contains(seen, []byte(end)) {
			t.Fatal("the capture does not work")
		}
		port := func(p uint16) bool { return bytes.Contains(seen, binary.BigEndian.AppendUint16(nil, p)) }
		if !port(6783) && !port(6785) { // sleeve, WireGuard
			t.Error("no traffic of the mesh was captured")
		}
		if bytes.Contains(seen, []byte(secret)) {
			t.Errorf("with password %q the underlay shows what containers say", password)
		}
		if inner := a.As4(); bytes.Contains(seen, inner[:]) {
			t.Errorf("with password %q the underlay shows addresses of containers", password)
		}
	}
}

// Packets that exceed the path MTU arrive: as fragments, or smaller after an ICMP message.
func TestPacketsThatDoNotFitTheUnderlay(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab", UnderlayMTU: 1280})
	a := harness.AddContainer(t, lab, 1, "a", "net:default", "fd01::1/64")
	harness.AddContainer(t, lab, 2, "b", "net:default", "fd01::2/64")
	for _, to := range a {
		harness.Reach(t, lab, harness.At(2, "b"), to.Addr())
		p, err := testbed.NewPinger(lab.Netns(harness.At(2, "b")), to.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		for _, size := range []int{1200, 1300, 1320} {
			harness.Eventually(t, "a packet that fills the container's MTU gets through", func() bool {
				_, err := p.Once(size, time.Second)
				if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, unix.EMSGSIZE) {
					t.Fatal(err)
				}
				return err == nil
			})
		}
	}
}

// The status address serves the status as text, and metrics for Prometheus.
func TestStatusAddress(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab", Flags: []string{"--no-fastdp"}})
	harness.AddContainer(t, lab, 1, "a")
	get := func(path string, host ...string) (int, string) {
		var conn net.Conn
		client := http.Client{Transport: &http.Transport{DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			err := netdev.Do(lab.Netns(harness.At(1, "")), func() (err error) {
				conn, err = net.Dial(network, addr)
				return err
			})
			return conn, err
		}}, Timeout: harness.Timeout}
		q, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:6782"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		q.Host = strings.Join(host, "")
		resp, err := client.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	if code, text := get("/status"); code != http.StatusOK || !strings.Contains(text, "Service: router") {
		t.Errorf("/status: %d %q", code, text)
	}
	if code, text := get("/status/connections"); code != http.StatusOK || !strings.Contains(text, "established sleeve encrypted") {
		t.Errorf("/status/connections: %d %q", code, text)
	}
	if code, text := get("/status", "rebound.example.com"); code != http.StatusMisdirectedRequest || strings.Contains(text, "Service") {
		t.Errorf("/status by another name: %d %q", code, text)
	}
	_, metrics := get("/metrics")
	for _, want := range []string{
		`weft_connections{encryption="yes",state="established",type="sleeve"} 1`, "weft_connection_terminations_total ",
		`weft_ips{state="local-used"} 1`, "weft_max_ips 1.048576e+06", "weft_ipam_unreachable_count 0",
		"weft_ipam_unreachable_percentage 0", "weft_ipam_pending_allocates 0", "weft_ipam_pending_claims 0", "weft_flows ",
		`weft_link_bytes_total{direction="rx",`, `weft_link_packets_total{direction="tx",`, "weft_queue_depth{",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("/metrics lacks %s:\n%s", want, metrics)
		}
	}
	for _, path := range []string{"/ps", "/stop", "/attach"} {
		if code, text := get(path); code != http.StatusNotFound && code != http.StatusMethodNotAllowed {
			t.Errorf("%s on the read-only address: %d %q", path, code, text)
		}
	}
}
