package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/connlimit"
	"github.com/weft-net/weft/internal/render"
)

const (
	// headTimeout bounds how long a client may take to send a head, from its first
	// byte on.
	headTimeout = 30 * time.Second
	// maxIntercepted bounds the body of an edited request or response in bytes.
	maxIntercepted = 32 << 20
)

// halfCloser is a connection whose write direction can be closed alone: TCP, unix,
// TLS.
type halfCloser interface {
	net.Conn
	CloseWrite() error
}

// serveConn serves one client until it disconnects or its last request has ended.
func (p *Proxy) serveConn(ctx context.Context, client halfCloser) {
	defer client.Close()
	stop := context.AfterFunc(ctx, func() { client.Close() })
	defer stop()
	if t, ok := client.(*tls.Conn); ok {
		hands, cancel := context.WithTimeout(ctx, headTimeout)
		err := t.HandshakeContext(hands)
		cancel()
		if err != nil {
			p.log.Info("a client of docker's proxy was refused", "addr", client.RemoteAddr(), "err", err)
			return
		}
	}
	br := bufio.NewReader(client)
	for {
		if _, err := br.Peek(1); err != nil {
			return
		}
		use(client)
		client.SetReadDeadline(time.Now().Add(headTimeout))
		head, err := readHead(br)
		client.SetReadDeadline(time.Time{})
		if err != nil {
			return
		}
		req, err := parseRequest(head)
		if err != nil {
			respondError(client, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
			return
		}
		var again bool
		if h := p.handlerOf(req); h != nil {
			again = p.intercept(ctx, client, br, req, h)
		} else {
			again = p.relay(ctx, client, br, req, head)
		}
		if !again || req.Close {
			return
		}
	}
}

// use keeps a client's connection open although others ask for room.
func use(client net.Conn) {
	if t, ok := client.(*tls.Conn); ok {
		client = t.NetConn()
	}
	if c, ok := client.(*connlimit.Conn); ok {
		c.Use()
	}
}

// respondError answers with an error in the engine's format.
func respondError(w io.Writer, code int, err error) error {
	body, jerr := json.Marshal(map[string]string{"message": oneLine(err)})
	if jerr != nil {
		body = []byte(`{"message":"failed"}`)
	}
	return respond(w, code, http.Header{"Content-Type": {"application/json"}}, body)
}

func oneLine(err error) string { return render.Text(strings.Join(strings.Fields(err.Error()), " ")) }

func respond(w io.Writer, code int, h http.Header, body []byte) error {
	r := http.Response{
		StatusCode: code, ProtoMajor: 1, ProtoMinor: 1, Header: h,
		ContentLength: int64(len(body)), Body: io.NopCloser(bytes.NewReader(body)),
	}
	if code == http.StatusNoContent {
		r.ContentLength, r.Body = 0, nil
	}
	return r.Write(w)
}

// relay passes one request to the engine and its response back, both unchanged. It
// reports whether the client's connection can take another request.
func (p *Proxy) relay(ctx context.Context, client halfCloser, br *bufio.Reader, req *http.Request, head []byte) (again bool) {
	up, err := p.dial(ctx)
	if err != nil {
		respondError(client, http.StatusBadGateway, err)
		return false
	}
	defer up.Close()
	if _, err := up.Write(head); err != nil {
		respondError(client, http.StatusBadGateway, fmt.Errorf("pass the request to docker: %w", err))
		return false
	}
	sent := make(chan error, 1)
	go func() { sent <- copyBody(up, br, requestFraming(req)) }()

	from := bufio.NewReader(up)
	resp, f, err := passHead(client, from, req)
	if err != nil {
		return false
	}
	if resp.StatusCode == http.StatusSwitchingProtocols || f.toEnd {
		tunnel(client, br, up, from, sent)
		return false
	}
	// If the client disconnects, its request is cancelled, as the engine itself would
	// do: logs and events never end by themselves.
	watched := make(chan error, 1)
	go func() {
		err := <-sent
		if err == nil {
			_, err = br.Peek(1)
		}
		if err != nil {
			up.Close()
		}
		watched <- err
	}()
	if err := copyBody(client, from, f); err != nil || resp.Close {
		client.Close() // ends the goroutine above, whatever it waits for
		up.Close()
		<-watched
		return false
	}
	return <-watched == nil
}

// passHead passes heads from the engine to the client, up to and including the final
// one: an engine may send 100 Continue first.
func passHead(client io.Writer, from *bufio.Reader, req *http.Request) (*http.Response, framing, error) {
	for {
		head, err := readHead(from)
		if err != nil {
			respondError(client, http.StatusBadGateway, fmt.Errorf("docker closed the connection before it answered: %w", err))
			return nil, framing{}, err
		}
		resp, f, err := parseResponse(head, req)
		if err != nil {
			respondError(client, http.StatusBadGateway, fmt.Errorf("read docker's answer: %w", err))
			return nil, framing{}, err
		}
		if _, err := client.Write(head); err != nil {
			return nil, framing{}, err
		}
		if resp.StatusCode >= 200 || resp.StatusCode == http.StatusSwitchingProtocols {
			return resp, f, nil
		}
	}
}

// tunnel copies both directions until the engine has closed its own. When the client
// closes its direction the tunnel passes that on and keeps the other open: it is the
// end of a container's input.
func tunnel(client halfCloser, br *bufio.Reader, up halfCloser, from *bufio.Reader, sent <-chan error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := <-sent; err != nil {
			up.Close()
			return
		}
		if _, err := io.Copy(up, br); err != nil {
			up.Close() // the client has disconnected
			return
		}
		up.CloseWrite()
	}()
	io.Copy(client, from)
	client.CloseWrite()
	client.Close()
	up.Close()
	<-done
}

// handler answers an intercepted request whose body has been read.
type handler func(ctx context.Context, req *http.Request, body []byte) (*response, error)

// response is a response whose body has been read.
type response struct {
	code   int
	header http.Header
	body   []byte
}

// intercept reads a request with its body and answers it with h. It reports whether
// the client's connection can take another request.
func (p *Proxy) intercept(ctx context.Context, client halfCloser, br *bufio.Reader, req *http.Request, h handler) (again bool) {
	if strings.EqualFold(req.Header.Get("Expect"), "100-continue") {
		if _, err := io.WriteString(client, "HTTP/1.1 100 Continue\r\n\r\n"); err != nil {
			return false
		}
	}
	body, err := readBody(br, requestFraming(req))
	if err != nil {
		respondError(client, http.StatusBadRequest, fmt.Errorf("read the request: %w", err))
		return false
	}
	resp, err := h(ctx, req, body)
	if err != nil {
		p.log.Warn("a request to docker failed", "request", req.Method+" "+req.URL.Path, "err", err)
		return respondError(client, http.StatusInternalServerError, err) == nil
	}
	return respond(client, resp.code, resp.header, resp.body) == nil
}

// readBody reads a body of up to maxIntercepted bytes.
func readBody(br *bufio.Reader, f framing) ([]byte, error) {
	raw := limited{left: maxIntercepted}
	if err := copyBody(&raw, br, f); err != nil {
		return nil, err
	}
	if !f.chunked {
		return raw.Bytes(), nil
	}
	return io.ReadAll(httputil.NewChunkedReader(&raw))
}

// limited is a buffer of bounded size: a Write beyond it fails.
type limited struct {
	bytes.Buffer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left -= len(b); l.left < 0 {
		return 0, fmt.Errorf("a body of more than %d bytes: %w", maxIntercepted, errTooLong)
	}
	return l.Buffer.Write(b)
}

// forward sends an intercepted request to the engine with that body, and reads the
// response.
func (p *Proxy) forward(ctx context.Context, req *http.Request, body []byte) (*response, error) {
	r, err := http.NewRequestWithContext(ctx, req.Method, "http://docker"+req.RequestURI, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header, r.Host = req.Header.Clone(), req.Host
	for _, own := range []string{"Content-Length", "Transfer-Encoding", "Connection", "Expect", "Te", "Trailer", "Keep-Alive"} {
		r.Header.Del(own)
	}
	resp, err := p.http.Do(r)
	if err != nil {
		return nil, fmt.Errorf("ask docker: %w", errors.Unwrap(err))
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxIntercepted+1))
	if err == nil && len(b) > maxIntercepted {
		err = errTooLong
	}
	if err != nil {
		return nil, fmt.Errorf("read docker's answer: %w", err)
	}
	resp.Header.Del("Content-Length")
	return &response{resp.StatusCode, resp.Header, b}, nil
}
