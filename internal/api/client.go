package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// maxReply is the most bytes of a reply that are read: the report of a mesh
// of thousands of peers.
const maxReply = 256 << 20

// ErrNotRunning is the cause when nothing listens on the socket.
var ErrNotRunning = errors.New("weft is not running")

// Client calls the API of one router. Calls wait until ctx ends.
type Client struct {
	socket string
	http   http.Client
	// await is how long a call waits for a process that listens on the socket.
	await time.Duration
}

// dialEvery is how often a client looks for a router that is being replaced.
const dialEvery = 50 * time.Millisecond

// NewClient returns a client of the router that listens on socket.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return c.dial(ctx)
		},
	}
	return c
}

// AwaitReplacement makes calls wait for up to a time if the socket is there and no process
// listens on it: its router was killed, and another one is probably launched. A router that
// is stopped removes its socket.
func (c *Client) AwaitReplacement(atMost time.Duration) { c.await = atMost }

func (c *Client) dial(ctx context.Context) (net.Conn, error) {
	var d net.Dialer
	for end := time.Now().Add(c.await); ; {
		conn, err := d.DialContext(ctx, "unix", c.socket)
		if !errors.Is(err, syscall.ECONNREFUSED) || !time.Now().Before(end) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(dialEvery):
		}
	}
}

// Ready reports whether the router has finished starting.
func (c *Client) Ready(ctx context.Context) (Ready, error) {
	return fetch[Ready](ctx, c, "/ready")
}

// Report returns the state of everything, which may be tens of megabytes in a mesh that
// claims to be large. Programs that need a part of it use Summary.
func (c *Client) Report(ctx context.Context) (*Report, error) {
	return c.Summary(ctx, AllLists)
}

// Summary returns the state of the router with some of the lists of a Report. Omitted
// counts the entries of the others.
func (c *Client) Summary(ctx context.Context, lists Lists) (*Report, error) {
	r, err := fetch[Report](ctx, c, "/report?lists="+lists.String())
	if err != nil {
		return nil, err
	}
	return &r, nil
}

// ReportJSON writes the state of everything as JSON.
func (c *Client) ReportJSON(ctx context.Context, w io.Writer) error {
	const path = "/report"
	resp, err := c.do(ctx, http.MethodGet, path, "application/json", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return c.copy(w, path, resp)
	}
	return c.readRefusal(path, resp)
}

func (c *Client) copy(w io.Writer, path string, resp *http.Response) error {
	if _, err := io.Copy(w, io.LimitReader(resp.Body, maxReply)); err != nil {
		return c.explain(http.MethodGet, path, err)
	}
	return nil
}

// readRefusal returns the error in a reply other than 200.
func (c *Client) readRefusal(path string, resp *http.Response) error {
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return c.explain(http.MethodGet, path, err)
	}
	return refused(resp.StatusCode, b)
}

// StatusText writes a view of the state as text. The router makes the text, as a whole
// report of a large mesh takes seconds to encode and to read.
func (c *Client) StatusText(ctx context.Context, view string, w io.Writer) error {
	return c.StatusTextOf(ctx, view, "", w)
}

// StatusTextOf is StatusText of what a view has of a peer or an address; see Report.LimitedTo.
func (c *Client) StatusTextOf(ctx context.Context, view, of string, w io.Writer) error {
	path := "/status"
	if view != "" {
		path += "/" + view
	}
	if of != "" {
		path += "?of=" + url.QueryEscape(of)
	}
	resp, err := c.do(ctx, http.MethodGet, path, "text/plain", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// A router that is not ready answers 503, with the text.
	isText := strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain")
	if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusServiceUnavailable && isText {
		return c.copy(w, path, resp)
	}
	return c.readRefusal(path, resp)
}

// Attachments lists the containers of this host and the bridge itself.
func (c *Client) Attachments(ctx context.Context) ([]Attachment, error) {
	return fetch[[]Attachment](ctx, c, "/ps")
}

// Attach gives a container addresses and returns them.
func (c *Client) Attach(ctx context.Context, r AttachRequest) ([]netip.Prefix, error) {
	a, err := send[AddressReply](ctx, c, "/attach", r)
	return a.Addresses, err
}

// Detach takes addresses from a container and returns them.
func (c *Client) Detach(ctx context.Context, r AttachRequest) ([]netip.Prefix, error) {
	a, err := send[AddressReply](ctx, c, "/detach", r)
	return a.Addresses, err
}

// Guard makes the port of a container drop frames with addresses that are not the container's.
func (c *Client) Guard(ctx context.Context, r GuardRequest) error {
	_, err := send[Empty](ctx, c, "/guard", r)
	return err
}

// Expose gives the bridge addresses and returns them.
func (c *Client) Expose(ctx context.Context, r ExposeRequest) ([]netip.Prefix, error) {
	a, err := send[AddressReply](ctx, c, "/expose", r)
	return a.Addresses, err
}

// Hide takes addresses from the bridge and returns them.
func (c *Client) Hide(ctx context.Context, r ExposeRequest) ([]netip.Prefix, error) {
	a, err := send[AddressReply](ctx, c, "/hide", r)
	return a.Addresses, err
}

// AddName gives a host name addresses.
func (c *Client) AddName(ctx context.Context, r NameRequest) error {
	_, err := send[Empty](ctx, c, "/dns-add", r)
	return err
}

// RemoveName takes addresses from host names.
func (c *Client) RemoveName(ctx context.Context, r NameRequest) error {
	_, err := send[Empty](ctx, c, "/dns-remove", r)
	return err
}

// LookupName returns the answer of this host's DNS server: the addresses of a
// name, or the names of an address.
func (c *Client) LookupName(ctx context.Context, name string) ([]string, error) {
	a, err := send[LookupReply](ctx, c, "/dns-lookup", LookupRequest{Name: name})
	return a.Found, err
}

// Connect adds targets, or with Replace sets them.
func (c *Client) Connect(ctx context.Context, r PeersRequest) error {
	_, err := send[Empty](ctx, c, "/connect", r)
	return err
}

// Forget removes targets; sessions that are up stay.
func (c *Client) Forget(ctx context.Context, r PeersRequest) error {
	_, err := send[Empty](ctx, c, "/forget", r)
	return err
}

// RemovePeers takes over the address ranges of dead peers.
func (c *Client) RemovePeers(ctx context.Context, r PeersRequest) ([]Removed, error) {
	a, err := send[RemoveReply](ctx, c, "/rmpeer", r)
	return a.Removed, err
}

// Ban is the vote of this host's operator for the bans of peers, or for their ends. It
// returns at once.
func (c *Client) Ban(ctx context.Context, r BanRequest) ([]Vote, error) {
	reply, err := send[BanReply](ctx, c, "/ban", r)
	return reply.Votes, err
}

// Rotation returns the state of a change of the password.
func (c *Client) Rotation(ctx context.Context) (Rotation, error) {
	return fetch[Rotation](ctx, c, "/rotation")
}

// Rotate starts a change of the password of the mesh, or goes on with one.
func (c *Client) Rotate(ctx context.Context, r RotateRequest) (Rotation, error) {
	return send[Rotation](ctx, c, "/rotate", r)
}

// Password returns the password that the router offers to others.
func (c *Client) Password(ctx context.Context) ([]byte, error) {
	a, err := send[PasswordReply](ctx, c, "/password", Empty{})
	return a.Password, err
}

// Adopt leaves the ring of addresses for another one that the router has met.
func (c *Client) Adopt(ctx context.Context, r AdoptRequest) error {
	_, err := send[Empty](ctx, c, "/adopt", r)
	return err
}

// Prime waits until addresses can be given out.
func (c *Client) Prime(ctx context.Context) error {
	_, err := send[Empty](ctx, c, "/prime", Empty{})
	return err
}

// Stop makes the router leave the mesh; its process ends soon after.
func (c *Client) Stop(ctx context.Context) error {
	_, err := send[Empty](ctx, c, "/stop", Empty{})
	return err
}

// Reset hands the address ranges over, stops the router, and makes it remove everything
// that it made on the host.
func (c *Client) Reset(ctx context.Context) error {
	_, err := send[Empty](ctx, c, "/reset", Empty{})
	return err
}

func fetch[A any](ctx context.Context, c *Client, path string) (A, error) {
	return call[A](ctx, c, http.MethodGet, path, nil)
}

func send[A any](ctx context.Context, c *Client, path string, q any) (A, error) {
	b, err := json.Marshal(q)
	if err != nil {
		var none A
		return none, fmt.Errorf("POST %s: %w", path, err)
	}
	return call[A](ctx, c, http.MethodPost, path, bytes.NewReader(b))
}

func call[A any](ctx context.Context, c *Client, method, path string, body io.Reader) (A, error) {
	var a A
	resp, err := c.do(ctx, method, path, "application/json", body)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return a, c.explain(method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return a, refused(resp.StatusCode, b)
	}
	if err := json.Unmarshal(b, &a); err != nil {
		return a, fmt.Errorf("%s %s on %s: read the reply: %w", method, path, c.socket, err)
	}
	return a, nil
}

func (c *Client) do(ctx context.Context, method, path, accept string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://weft"+path, body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Accept", accept)
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.explain(method, path, err)
	}
	return resp, nil
}

// explain turns an error of the transport into one line that says what to do.
func (c *Client) explain(method, path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%w on this host (no socket at %s); start it with: weft launch", ErrNotRunning, c.socket)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w on this host (no process listens on %s); start it with: weft launch", ErrNotRunning, c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s: permission denied; only root may control weft: try with sudo", c.socket)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return fmt.Errorf("%s %s on %s: the router ended before it answered", method, path, c.socket)
	case errors.Is(err, context.Canceled):
		return fmt.Errorf("interrupted before the router answered: %w", context.Canceled)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s %s on %s: no answer in time: %w", method, path, c.socket, context.DeadlineExceeded)
	default:
		return fmt.Errorf("%s %s on %s: %w", method, path, c.socket, err)
	}
}

// refused returns the error in a reply that is not 200.
func refused(code int, body []byte) error {
	var e Error
	if json.Unmarshal(body, &e) == nil && e.Text != "" {
		return &e
	}
	text := strings.TrimSpace(string(body[:min(len(body), 200)]))
	return &Error{Class: Failed, Text: oneLine(fmt.Sprintf("the router answered %d %s: %s", code, http.StatusText(code), text))}
}
