package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/hostfile"
)

// echo implements the interfaces of all routes, and answers with its requests.
type echo struct {
	ready bool
	err   error
	hang  chan struct{} // Prime waits for it, if set
}

func (e echo) handler() http.Handler {
	return Handler(StatusRoutes(e, nil), ContainerRoutes(e), ExposureRoutes(e), LeaseRoutes(e), NameRoutes(e), PeerRoutes(e), LifecycleRoutes(e))
}

func (e echo) Ready(context.Context) Ready { return Ready{Ready: e.ready, PID: 42} }

func (e echo) Report(_ context.Context, lists Lists) (*Report, error) {
	return &Report{Ready: e.ready, Version: "1.2.3", Router: Router{Targets: []string{"h2"}, NickName: "lists " + lists.String()}}, e.err
}

func (e echo) Attachments(context.Context) ([]Attachment, error) {
	return []Attachment{{ID: Exposed}}, e.err
}

func prefixes(as []Address) (ps []netip.Prefix) {
	for _, a := range as {
		ps = append(ps, a.Prefix)
	}
	return ps
}

func (e echo) Attach(_ context.Context, r AttachRequest) ([]netip.Prefix, error) {
	return prefixes(r.Addresses), e.err
}

func (e echo) Detach(_ context.Context, r AttachRequest) ([]netip.Prefix, error) {
	return prefixes(r.Addresses), e.err
}

func (e echo) Expose(_ context.Context, r ExposeRequest) ([]netip.Prefix, error) {
	return prefixes(r.Addresses), e.err
}

func (e echo) Hide(_ context.Context, r ExposeRequest) ([]netip.Prefix, error) {
	return prefixes(r.Addresses), e.err
}

func (e echo) Lease(_ context.Context, r LeaseRequest) (LeaseReply, func(), error) {
	return LeaseReply{Addresses: prefixes(r.Addresses), Bridge: r.Owner, MTU: 1376}, nil, e.err
}

func (e echo) Release(_ context.Context, r LeaseRequest) ([]netip.Prefix, error) {
	return prefixes(r.Addresses), e.err
}

func (e echo) Leases(context.Context) ([]Lease, error) {
	return []Lease{{Owner: "cni:a", Addresses: []netip.Prefix{netip.MustParsePrefix("10.32.0.1/12")}}}, e.err
}

func (e echo) Connect(context.Context, PeersRequest) error { return e.err }

func (e echo) Forget(context.Context, PeersRequest) error { return e.err }

func (e echo) RemovePeers(_ context.Context, r PeersRequest) ([]Removed, error) {
	return []Removed{{Peer: r.Peers[0], Addresses: 7}}, e.err
}

func (e echo) AddName(_ context.Context, r NameRequest) error { return wanted(r, e.err) }

func (e echo) RemoveName(_ context.Context, r NameRequest) error { return wanted(r, e.err) }

// wanted is an error unless r is someName.
func wanted(r NameRequest, err error) error {
	if r.Container != someName.Container || r.Hostname != someName.Hostname || !slices.Equal(r.Addresses, someName.Addresses) {
		return fmt.Errorf("asked for %+v", r)
	}
	return err
}

var someName = NameRequest{Container: "c", Hostname: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")}}

func (e echo) LookupName(_ context.Context, r LookupRequest) ([]string, error) {
	return []string{r.Name}, e.err
}

func (e echo) Ban(_ context.Context, r BanRequest) ([]Vote, error) {
	if len(r.Peers) != 1 || !r.Unban {
		return nil, errors.New("another request")
	}
	return []Vote{{Kind: VoteUnban, Peer: r.Peers[0], Needed: 3}}, nil
}

func (e echo) Adopt(_ context.Context, r AdoptRequest) error {
	if r.Ring != "0123" {
		return errors.New("another ring arrived")
	}
	return e.err
}

func (e echo) Prime(ctx context.Context) error {
	if e.hang == nil {
		return e.err
	}
	close(e.hang)
	<-ctx.Done()
	return ctx.Err()
}

func (e echo) Stop(context.Context) error { return e.err }

func (e echo) Reset(context.Context) error { return e.err }

// start serves b on a socket and returns the path.
func start(t *testing.T, b echo) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "api") // t.TempDir may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "run", "weft.sock")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, b.handler(), slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		os.RemoveAll(dir)
	})
	return path
}

func TestRoundTrips(t *testing.T) {
	c := NewClient(start(t, echo{ready: true}))
	ctx := t.Context()
	if r, err := c.Ready(ctx); err != nil || !r.Ready || r.PID != 42 {
		t.Errorf("ready: %+v, %v", r, err)
	}
	if r, err := c.Report(ctx); err != nil || r.Version != "1.2.3" || !slices.Equal(r.Router.Targets, []string{"h2"}) {
		t.Errorf("report: %+v, %v", r, err)
	}
	for lists, want := range map[Lists]string{NoLists: "lists ", ListNames | ListPeers: "lists peers,names", AllLists: "lists peers,relayed,routes,macs,ring,names,bindings,groups"} {
		if r, err := c.Summary(ctx, lists); err != nil || r.Router.NickName != want {
			t.Errorf("summary with %d: %+v, %v", lists, r, err)
		}
	}
	var whole strings.Builder
	if err := c.ReportJSON(ctx, &whole); err != nil || !strings.Contains(whole.String(), `"NickName": "lists peers,relayed,routes,macs,ring,names,bindings,groups"`) {
		t.Errorf("report as JSON: %s, %v", &whole, err)
	}
	if _, err := fetch[Report](ctx, c, "/report?lists=peers,all"); ClassOf(err) != Usage {
		t.Errorf("a list that does not exist: %v", err)
	}
	var text strings.Builder
	if err := c.StatusText(ctx, "", &text); err != nil || !strings.Contains(text.String(), "(lists )") {
		t.Errorf("the overview asks for lists: %s, %v", &text, err)
	}
	if err := c.StatusTextOf(ctx, "dns", "h2", &text); ClassOf(err) != Usage {
		t.Errorf("a view that cannot be limited: %v", err)
	}
	if err := c.StatusTextOf(ctx, BindingsView, "a b&?/", &text); err == nil || !strings.Contains(err.Error(), "status bindings a b&?/: this router knows no binding") {
		t.Errorf("bindings of nobody: %v", err)
	}
	if list, err := c.Attachments(ctx); err != nil || len(list) != 1 || list[0].ID != Exposed {
		t.Errorf("ps: %+v, %v", list, err)
	}
	var want []Address
	for _, s := range []string{"10.0.0.1/24", "net:10.1.0.0/16", "fd00::1/64"} {
		a, err := ParseAddress(s)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, a)
	}
	for name, call := range map[string]func() ([]netip.Prefix, error){
		"attach": func() ([]netip.Prefix, error) {
			return c.Attach(ctx, AttachRequest{Netns: "/x", Addresses: want})
		},
		"detach": func() ([]netip.Prefix, error) {
			return c.Detach(ctx, AttachRequest{Netns: "/x", Addresses: want})
		},
		"expose": func() ([]netip.Prefix, error) { return c.Expose(ctx, ExposeRequest{Addresses: want}) },
		"hide":   func() ([]netip.Prefix, error) { return c.Hide(ctx, ExposeRequest{Addresses: want}) },
	} {
		if got, err := call(); err != nil || !slices.Equal(got, prefixes(want)) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	if got, err := c.RemovePeers(ctx, PeersRequest{Peers: []string{"h3"}}); err != nil || len(got) != 1 || got[0].Peer != "h3" {
		t.Errorf("rmpeer: %v, %v", got, err)
	}
	if got, err := c.Ban(ctx, BanRequest{Peers: []string{"h2"}, Unban: true}); err != nil || len(got) != 1 || got[0].Needed != 3 {
		t.Errorf("ban: %v, %v", got, err)
	}
	if got, err := c.LookupName(ctx, "web"); err != nil || !slices.Equal(got, []string{"web"}) {
		t.Errorf("dns-lookup: %v, %v", got, err)
	}
	for name, call := range map[string]func() error{
		"dns-add": func() error { return c.AddName(ctx, someName) }, "dns-remove": func() error { return c.RemoveName(ctx, someName) },
		"connect": func() error { return c.Connect(ctx, PeersRequest{Peers: []string{"h2"}}) },
		"forget":  func() error { return c.Forget(ctx, PeersRequest{Peers: []string{"h2"}}) },
		"adopt":   func() error { return c.Adopt(ctx, AdoptRequest{Ring: "0123"}) },
		"prime":   func() error { return c.Prime(ctx) },
		"stop":    func() error { return c.Stop(ctx) },
		"reset":   func() error { return c.Reset(ctx) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestErrorsKeepTheirClassAndAreOneLine(t *testing.T) {
	for _, e := range []error{
		&Error{Class: Usage, Text: "no such subnet"},
		&Error{Class: Unavailable, Text: "not yet"},
		errors.New("disk:\n\tfull"),
	} {
		c := NewClient(start(t, echo{err: e}))
		_, err := c.Attach(t.Context(), AttachRequest{})
		if err == nil || ClassOf(err) != ClassOf(e) || err.Error() != strings.Join(strings.Fields(e.Error()), " ") {
			t.Errorf("%v came as %v of class %s", e, err, ClassOf(err))
		}
	}
}

func TestClientThatHangsUpEndsTheRequest(t *testing.T) {
	hang := make(chan struct{})
	c := NewClient(start(t, echo{hang: hang}))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-hang; cancel() }()
	if err := c.Prime(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("prime: %v", err)
	}
}

func TestRequestsThatMakeNoSense(t *testing.T) {
	h := echo{}.handler()
	for _, c := range []struct {
		method, path, body string
		code               int
	}{
		{"POST", "/attach", "", 400},
		{"POST", "/attach", "[]", 400},
		{"POST", "/attach", `{"netns":"/x","addresses":["10.0.0.0/8"]}`, 400},
		{"POST", "/attach", `{"nets":"/x"}`, 400},
		{"POST", "/attach", `{"netns":"` + strings.Repeat("x", maxBody) + `"}`, 400},
		{"GET", "/attach", "", 405},
		{"GET", "/nothing", "", 404},
		{"GET", "/status/nothing", "", 400},
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, strings.NewReader(c.body)))
		if w.Code != c.code {
			t.Errorf("%s %s %.40q: %d %s, want %d", c.method, c.path, c.body, w.Code, w.Body, c.code)
		}
	}
}

// Weave's clients read status from the status address; it must not change
// anything.
func TestReadOnly(t *testing.T) {
	h := Handler(StatusRoutes(echo{ready: true}, nil))
	for path, want := range map[string]int{"/status": 200, "/status/targets": 200, "/report": 200, "/ready": 200, "/ps": 404} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != want {
			t.Errorf("GET %s: %d, want %d", path, w.Code, want)
		}
	}
	for _, path := range []string{"/attach", "/stop", "/connect", "/status"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("POST", path, strings.NewReader("{}")))
		if w.Code < 400 {
			t.Errorf("POST %s: %d", path, w.Code)
		}
	}
	w := httptest.NewRecorder()
	Handler(StatusRoutes(echo{}, nil)).ServeHTTP(w, httptest.NewRequest("GET", "/status", nil))
	if w.Code != 503 || !strings.Contains(w.Body.String(), "Service: router") {
		t.Errorf("status of a router that is not ready: %d %s", w.Code, w.Body)
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	path := start(t, echo{})
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o711} {
		info, err := os.Stat(p)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", p, info.Mode(), err, want)
		}
	}
	if _, err := ListenUnix(path); err == nil || !strings.Contains(err.Error(), "another process already listens there") {
		t.Errorf("listen on a socket in use: %v", err)
	}
}

func TestSocketOfADeadRouterIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*hostfile.Socket).Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := NewClient(path).Ready(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(err.Error(), "no process listens on "+path) {
		t.Errorf("a dead router's socket: %v", err)
	}
	l, err = ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

// A call waits for the router that takes the place of one that was killed, and not for one
// that was stopped.
func TestClientAwaitsReplacement(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*hostfile.Socket).Listener.(*net.UnixListener).SetUnlinkOnClose(false)
	l.(*hostfile.Socket).Listener.Close()
	c := NewClient(path)
	c.AwaitReplacement(time.Minute)
	answered := make(chan error, 1)
	go func() {
		_, err := c.Ready(t.Context())
		answered <- err
	}()
	select {
	case err := <-answered:
		t.Fatalf("it does not wait: %v", err)
	case <-time.After(5 * dialEvery):
	}
	if l, err = ListenUnix(path); err != nil {
		t.Fatal(err)
	}
	server := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("{}")) })}
	go server.Serve(l)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	server.Close()
	if _, err := c.Ready(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after a stop: %v", err)
	}
}

func TestClientSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	_, err := NewClient(filepath.Join(dir, "none")).Ready(t.Context())
	if !errors.Is(err, ErrNotRunning) || !strings.HasSuffix(err.Error(), "start it with: weft launch") {
		t.Errorf("no socket: %v", err)
	}
	path := filepath.Join(dir, "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(time.Second))
			c.Read(make([]byte, 1))
			c.Close()
		}
	}()
	if _, err := NewClient(path).Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "ended before it answered") {
		t.Errorf("a router that dies: %v", err)
	}
}

func FuzzRequests(f *testing.F) {
	for _, s := range []string{`{}`, `{"netns":"/x","addresses":["net:default"]}`, `{"peers":["h2"],"replace":true}`, `{"addresses":[""]}`, `[`, `{"addresses":null}`} {
		f.Add("/attach", s)
		f.Add("/connect", s)
	}
	h := echo{}.handler()
	f.Fuzz(func(t *testing.T, path, body string) {
		r, err := http.NewRequest("POST", "http://weft/", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		switch path {
		case "/attach", "/expose", "/connect":
			r.URL.Path = path
		default:
			return
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 && w.Code != 400 {
			t.Fatalf("%s %q: %d %s", path, body, w.Code, w.Body)
		}
		if !json.Valid(w.Body.Bytes()) {
			t.Fatalf("%s %q: the reply is no JSON: %s", path, body, w.Body)
		}
	})
}

func TestErrorKeepsItsCause(t *testing.T) {
	err := fmt.Errorf("attach: %w", Errorf(Usage, "container %s: %w", "web", os.ErrNotExist))
	if ClassOf(err) != Usage || !errors.Is(err, os.ErrNotExist) || err.Error() != "attach: container web: file does not exist" {
		t.Errorf("%v has class %s", err, ClassOf(err))
	}
}
