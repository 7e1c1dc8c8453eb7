package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/render"
)

// slowStatus makes reports that wait for release, and counts them.
type slowStatus struct {
	echo
	begun   chan struct{}
	release chan struct{}
}

func (s slowStatus) Report(ctx context.Context, _ Lists) (*Report, error) {
	s.begun <- struct{}{}
	select {
	case <-s.release:
		return &Report{Ready: true}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serveStatus serves on a loopback address, and returns it.
func serveStatus(t *testing.T, h http.Handler, hosts ...string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- ServeStatus(ctx, l, h, slog.New(slog.DiscardHandler), hosts) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

func TestHostHeader(t *testing.T) {
	addr := serveStatus(t, Handler(StatusRoutes(echo{ready: true}, nil)), "metrics.example.com", "192.0.2.9")
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	for host, want := range map[string]int{
		"": 400, addr: 200, "localhost": 200, "localhost:" + port: 200, "LOCALHOST.": 200, "127.0.0.1": 200, "127.9.9.9:1": 200,
		"[::1]:" + port: 200, "[::1]": 200, "[::ffff:127.0.0.1]": 200, "metrics.example.com": 200, "Metrics.Example.COM:80": 200, "192.0.2.9:6782": 200,
		"evil.example.com": 421, "evil.example.com:" + port: 421, "localhost.evil.example.com": 421, "127.0.0.1.evil.example.com": 421,
		"192.0.2.1": 421, "[fd00::1]": 421, "0.0.0.0": 421, "a b": 400, "localhost:x:y": 421,
	} {
		for _, path := range []string{"/status", "/report", "/ready", "/nothing"} {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host)
			resp, err := http.ReadResponse(bufio.NewReader(c), nil)
			c.Close()
			if err != nil {
				t.Fatal(err)
			}
			code := want
			if path == "/nothing" && want == 200 {
				code = 404
			}
			if host == "" {
				code = resp.StatusCode // Go answers an empty Host as the standard says
			}
			if resp.StatusCode != code {
				t.Errorf("Host %q, %s: %d, want %d", host, path, resp.StatusCode, code)
			}
		}
	}
}

// A router makes two reports at once at most, of which one is for the address that everybody
// reaches, and answers 503 to clients that would wait for long.
func TestReportsAreBounded(t *testing.T) {
	b := slowStatus{begun: make(chan struct{}, 100), release: make(chan struct{})}
	p := NewReports(b, nil)
	open, root := Handler(p.ReadOnly()), Handler(p.Control())
	answers := make(chan *httptest.ResponseRecorder, 100)
	ask := func(h http.Handler) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", "/report", nil))
		answers <- w
	}
	go ask(open)
	<-b.begun
	const asked = 60
	for range asked {
		go ask(open)
	}
	for range asked { // some at once, those that wait after a while
		w := <-answers
		if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
			t.Fatalf("a client too many: %d %v", w.Code, w.Header())
		}
	}
	go ask(root)
	<-b.begun // although the read-only address is busy
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := httptest.NewRecorder()
	root.ServeHTTP(w, httptest.NewRequest("GET", "/report", nil).WithContext(ctx))
	if len(b.begun) > 0 {
		t.Error("a third report is made")
	}
	close(b.release)
	for range 2 {
		if w := <-answers; w.Code != http.StatusOK {
			t.Errorf("a report: %d %s", w.Code, w.Body)
		}
	}
	go ask(open)
	if w := <-answers; w.Code != http.StatusOK {
		t.Errorf("afterwards: %d %s", w.Code, w.Body)
	}
}

// A report ends when its client goes, whether it is being made or written.
func TestReportEndsWithItsClient(t *testing.T) {
	b := slowStatus{begun: make(chan struct{}, 1), release: make(chan struct{})}
	h := Handler(NewReports(b, nil).ReadOnly())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/status", nil).WithContext(ctx))
	}()
	<-b.begun
	cancel()
	<-ended

	r := largeReport(2000)
	ctx, cancel = context.WithCancel(t.Context())
	written := 0
	err := stream(ctx, writerFunc(func(p []byte) (int, error) {
		if written += len(p); written > 1<<20 {
			cancel()
		}
		return len(p), nil
	}), r)
	if !errors.Is(err, context.Canceled) || written > 2<<20 {
		t.Errorf("after its client went, %d bytes were written: %v", written, err)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// largeReport has n peers with 20 connections each.
func largeReport(n int) *Report {
	r := &Report{Ready: true, Router: Router{Peers: make([]Peer, n)}}
	for i := range r.Router.Peers {
		r.Router.Peers[i] = Peer{Name: fmt.Sprint(i), NickName: "n", Connections: make([]PeerConnection, 20)}
	}
	return r
}

// A large report is written while it is encoded: encoding takes no memory that grows with
// the report.
func TestReportIsStreamed(t *testing.T) {
	r := largeReport(8000)
	var size, most uint64
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	err := stream(t.Context(), writerFunc(func(p []byte) (int, error) {
		if size += uint64(len(p)); size>>22 != (size-uint64(len(p)))>>22 { // every 4 MB
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc)
		}
		return len(p), nil
	}), r)
	if err != nil || size < 20<<20 {
		t.Fatalf("%d bytes, %v", size, err)
	}
	if grown := int64(most) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("%d bytes of report need %d bytes of memory", size, grown)
	}
}

// fill sets everything in v to something.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		v.SetString("a\x1b<é\u009b>")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(-7)
	case reflect.Uint64, reflect.Uint16:
		v.SetUint(7)
	case reflect.Float64:
		v.SetFloat(1 << 60)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.SetMapIndex(key, value)
	case reflect.Struct:
		switch v.Addr().Interface().(type) {
		case *time.Time, *netip.Addr, *netip.AddrPort, *netip.Prefix:
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	}
}

func TestStreamIsJSON(t *testing.T) {
	var full Report
	fill(reflect.ValueOf(&full).Elem())
	for name, v := range map[string]any{
		"full": &full, "empty": &Report{}, "no pointer": Report{}, "null": (*Report)(nil), "empty lists": &Report{Warnings: []string{}, Attachments: []Attachment{{}}},
		"bytes": []byte{1, 2}, "number": 7, "empty struct": Empty{}, "omitted": &Attachment{}, "embedded": Connection{},
	} {
		want, err := json.MarshalIndent(v, "", indent)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := stream(t.Context(), &got, v); err != nil || got.String() != string(render.JSON(nil, want))+"\n" {
			t.Errorf("%s: %v\n%s\nwant\n%s", name, err, got.String(), want)
		}
	}
}

// Clients that connect and send nothing, or only a part of a request, keep nobody out, and
// are not kept for ever.
func TestSilentClientsKeepNobodyOut(t *testing.T) {
	addr := serveStatus(t, Handler(StatusRoutes(echo{ready: true}, nil)))
	var silent []net.Conn
	for i := range 3 * statusLimits.conns {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if i%2 == 0 {
			io.WriteString(c, "GET /status HTTP/1.1\r\n")
		}
		silent = append(silent, c)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 20 {
		resp, err := client.Get("http://" + addr + "/ready")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("beside silent clients: %s", resp.Status)
		}
	}
	closed := 0
	for _, c := range silent[:statusLimits.conns] {
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, c); err == nil || !strings.Contains(err.Error(), "timeout") {
			closed++
		}
	}
	if closed != statusLimits.conns {
		t.Errorf("%d of the oldest %d silent clients were closed", closed, statusLimits.conns)
	}
}
