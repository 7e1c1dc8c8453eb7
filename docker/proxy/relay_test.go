package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const timeout = 20 * time.Second

// newTestProxy starts an engine that calls serve for each connection, and a proxy in
// front of it. Dial connects to the proxy.
func newTestProxy(t *testing.T, serve func(c *net.UnixConn)) (dial func() *net.UnixConn) {
	t.Helper()
	// A short path: those of t.TempDir can be too long for a socket.
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	engine, err := net.Listen("unix", filepath.Join(dir, "engine"))
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := engine.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(timeout))
			go func() {
				defer c.Close()
				serve(c.(*net.UnixConn))
			}()
		}
	}()
	p, err := New(Config{
		Host: "unix://" + filepath.Join(dir, "engine"), Log: slog.New(slog.DiscardHandler),
		DNS: func() (netip.Addr, string, bool) { return netip.Addr{}, "", false },
	})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "proxy"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		engine.Close()
		os.RemoveAll(dir)
	})
	return func() *net.UnixConn {
		c, err := net.Dial("unix", filepath.Join(dir, "proxy"))
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(timeout))
		t.Cleanup(func() { c.Close() })
		return c.(*net.UnixConn)
	}
}

// readN reads n bytes.
func readN(t *testing.T, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	if got, err := io.ReadFull(r, b); err != nil {
		t.Fatalf("read %d of %d bytes: %v: %q", got, n, err, b[:min(got, 200)])
	}
	return string(b)
}

// chunked writes a body in chunks of odd sizes, with an extension and a trailer.
func chunked(body []byte) string {
	var b strings.Builder
	for i := 1; len(body) > 0; i = i*3 + 1 {
		n := min(i, len(body))
		fmt.Fprintf(&b, "%X;ext=%d\r\n%s\r\n", n, i, body[:n])
		body = body[n:]
	}
	return b.String() + "0\r\nX-Sum: 1\r\n\r\n"
}

// Requests that the proxy does not edit pass byte for byte, and the connection takes
// another request afterwards.
func TestRelayChangesNoByte(t *testing.T) {
	big := bytes.Repeat([]byte("\x00\xff\r\n0123456789"), 20_000)
	for _, c := range []struct{ name, request, response string }{
		{"plain", "GET /v1.41/info HTTP/1.1\r\nhost: docker\r\nX-oDD:  two  blanks \r\n\r\n", "HTTP/1.1 200 OK\r\nApi-Version: 1.41\r\ncontent-length: 2\r\n\r\nok"},
		{"length", fmt.Sprintf("POST /images/load HTTP/1.1\r\nHost: d\r\nContent-Length: %d\r\n\r\n%s", len(big), big), fmt.Sprintf("HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n%s", len(big), big)},
		{"chunks", "POST /build?x=%2f HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n" + chunked(big), "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(big)},
		{"no body", "HEAD /_ping HTTP/1.1\r\nHost: d\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"},
		{"204", "POST /containers/x/kill HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 204 No Content\r\nDate: x\r\n\r\n"},
		{"304", "POST /containers/x/stop HTTP/1.1\r\nHost: d\r\n\r\n", "HTTP/1.1 304 Not Modified\r\n\r\n"},
		{"continue", "POST /images/load HTTP/1.1\r\nHost: d\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"},
		{"lone newlines", "GET /info HTTP/1.1\nHost: d\n\n", "HTTP/1.1 200 OK\nContent-Length: 1\n\nx"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := make(chan string, 2)
			dial := newTestProxy(t, func(e *net.UnixConn) {
				b := make([]byte, len(c.request))
				n, _ := io.ReadFull(e, b)
				got <- string(b[:n])
				io.WriteString(e, c.response)
				io.Copy(io.Discard, e)
			})
			client := dial()
			for range 2 {
				go io.WriteString(client, c.request)
				if r := readN(t, client, len(c.response)); r != c.response {
					t.Fatalf("the response came as %q", r[:min(300, len(r))])
				}
				if r := <-got; r != c.request {
					t.Fatalf("the request came as %q", r[:min(300, len(r))])
				}
			}
		})
	}
}

// In a connection that became a stream each direction ends independently.
func TestStreams(t *testing.T) {
	for _, response := range []string{
		"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: application/vnd.docker.raw-stream\r\n\r\n",
	} {
		dial := newTestProxy(t, func(e *net.UnixConn) {
			r := bufio.NewReader(e)
			head, err := readHead(r)
			if err != nil || !bytes.Contains(head, []byte("/attach")) {
				return
			}
			io.WriteString(e, response)
			input, err := io.ReadAll(r) // to the end of the client's direction
			if err != nil {
				return
			}
			fmt.Fprintf(e, "%d bytes and more", len(input))
		})
		client := dial()
		io.WriteString(client, "POST /v1.41/containers/x/attach?stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")
		if got := readN(t, client, len(response)); got != response {
			t.Fatalf("%q", got)
		}
		if _, err := client.Write(make([]byte, 300_000)); err != nil {
			t.Fatal(err)
		}
		client.CloseWrite()
		if rest, err := io.ReadAll(client); err != nil || string(rest) != "300000 bytes and more" {
			t.Errorf("%v, %q", err, rest)
		}
	}
}

// Logs and events never end by themselves: they end when their client disconnects.
func TestDisconnectCancelsTheRequest(t *testing.T) {
	gone := make(chan error, 1)
	dial := newTestProxy(t, func(e *net.UnixConn) {
		r := bufio.NewReader(e)
		readHead(r)
		io.WriteString(e, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
		_, err := r.ReadByte()
		gone <- err
	})
	client := dial()
	io.WriteString(client, "GET /events HTTP/1.1\r\nHost: d\r\n\r\n")
	r := bufio.NewReader(client)
	readHead(r)
	if got := readN(t, r, 8); got != "3\r\nabc\r\n" {
		t.Fatalf("%q", got) // the chunk must come at once, not when a buffer is full
	}
	client.Close()
	select {
	case err := <-gone:
		if err == nil {
			t.Error("the engine received data after the client had disconnected")
		}
	case <-time.After(timeout):
		t.Error("the connection to the engine stays open")
	}
}

func TestErrorsHaveTheEnginesFormat(t *testing.T) {
	dial := newTestProxy(t, func(e *net.UnixConn) {
		readHead(bufio.NewReader(e)) // and sends no answer
	})
	for request, code := range map[string]int{
		"GET /info HTTP/1.1\r\nHost: d\r\n\r\n":                                      http.StatusBadGateway,
		"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Length: 2\r\n\r\n{}": http.StatusInternalServerError,
		"nonsense\r\n\r\n": http.StatusBadRequest,
	} {
		client := dial()
		io.WriteString(client, request)
		r, err := http.ReadResponse(bufio.NewReader(client), nil)
		if err != nil {
			t.Fatalf("%q: %v", request, err)
		}
		body, _ := io.ReadAll(r.Body)
		if r.StatusCode != code || !strings.HasPrefix(string(body), `{"message":"`) {
			t.Errorf("%q: %d %s, want %d", request, r.StatusCode, body, code)
		}
	}
}

func FuzzHeads(f *testing.F) {
	f.Add([]byte("POST / HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\nrest"))
	f.Add([]byte("GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcrest"))
	f.Add([]byte("GET / HTTP/1.0\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		head, err := readHead(r)
		if err != nil {
			return
		}
		if !bytes.HasPrefix(b, head) {
			t.Fatalf("the head of %q was read as %q", b, head)
		}
		req, err := parseRequest(head)
		if err != nil {
			return
		}
		var body bytes.Buffer
		if copyBody(&body, r, requestFraming(req)) != nil {
			return
		}
		rest, _ := io.ReadAll(r)
		if all := string(head) + body.String() + string(rest); all != string(b) {
			t.Fatalf("%q became %q", b, all)
		}
		// The engine, which uses net/http, must see the same end of the message.
		buffered := bufio.NewReader(bytes.NewReader(b))
		theirs, err := http.ReadRequest(buffered)
		if err != nil {
			t.Fatalf("net/http refuses %q: %v", b, err)
		}
		if _, err := io.Copy(io.Discard, theirs.Body); err != nil {
			return
		}
		left, _ := io.ReadAll(buffered)
		if string(left) != string(rest) {
			t.Fatalf("after %q net/http leaves %q, the proxy %q", b, left, rest)
		}
	})
}
