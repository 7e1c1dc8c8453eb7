package docker

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"

	"github.com/weft-net/weft/internal/poll"
)

// engine is a fake Docker engine.
type engine struct {
	mu     sync.Mutex
	all    map[string]string // id: StartedAt, "" if it does not run
	names  map[string]string // of those that were renamed
	events chan string       // IDs of containers that the stream reports as started, or whole events
	fail   int               // number of requests that fail
	asked  int               // about one container

	server *httptest.Server
}

func newEngine(t *testing.T) (*engine, *Client) {
	t.Helper()
	dir, err := os.MkdirTemp("", "weft")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "docker"))
	if err != nil {
		t.Fatal(err)
	}
	e := &engine{all: make(map[string]string), names: make(map[string]string), events: make(chan string)}
	e.server = httptest.NewUnstartedServer(http.HandlerFunc(e.serve))
	e.server.Listener.Close()
	e.server.Listener = l
	e.server.Start()
	t.Cleanup(func() {
		e.server.CloseClientConnections()
		e.server.Close()
		os.RemoveAll(dir)
	})
	c, err := NewClient("unix://" + filepath.Join(dir, "docker"))
	if err != nil {
		t.Fatal(err)
	}
	return e, c
}

func (e *engine) serve(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Api-Version", "1.41")
	_, path, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v"), "/")
	if path == "events" {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case id := <-e.events:
				if id == "" {
					return // the stream ends
				}
				if !strings.HasPrefix(id, "{") {
					id = fmt.Sprintf(`{"Type":"container","Action":"start","Actor":{"ID":%q}}`, id)
				}
				fmt.Fprintln(w, id)
				w.(http.Flusher).Flush()
			}
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fail > 0 && path != "_ping" {
		e.fail--
		http.Error(w, `{"message":"broken"}`, http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if path == "containers/json" {
		list := []map[string]any{}
		for id := range e.all {
			list = append(list, map[string]any{"Id": id})
		}
		json.NewEncoder(w).Encode(list)
		return
	}
	if id, ok := strings.CutSuffix(strings.TrimPrefix(path, "containers/"), "/json"); ok {
		e.asked++
		since, exists := e.all[id]
		if !exists {
			http.Error(w, `{"message":"no such container"}`, http.StatusNotFound)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{
			"Id": id, "Name": "/" + cmp.Or(e.names[id], "name-"+id), "State": map[string]any{"Running": since != "", "Pid": 7, "StartedAt": since},
		})
	}
}

func (e *engine) set(id, since string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if since == "gone" {
		delete(e.all, id)
	} else {
		e.all[id] = since
	}
}

func (e *engine) rename(id, name string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.names[id] = name
}

// notes is an Observer that records what it is called with.
type notes struct {
	mu   sync.Mutex
	list []string
}

func (n *notes) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, fmt.Sprintf(format, args...))
}

func (n *notes) Connected(context.Context, *client.Client) { n.note("connected") }
func (n *notes) Running(_ context.Context, c *Container)   { n.note("running %s %s", c.Name, c.Since) }
func (n *notes) Changed(_ context.Context, c *Container)   { n.note("changed %s", c.Name) }
func (n *notes) Stopped(_ context.Context, id string)      { n.note("stopped %s", id) }
func (n *notes) Gone(_ context.Context, id string)         { n.note("gone %s", id) }
func (n *notes) NetworkRemoved(_ context.Context, _ *client.Client, name string) {
	n.note("network %s removed", name)
}
func (n *notes) Listed(_ context.Context, ids []string) { n.note("listed %d", len(ids)) }

// timeout is how long a test waits for the watcher.
const timeout = 20 * time.Second

// want waits for notes, and clears them.
func (n *notes) want(t *testing.T, want ...string) {
	t.Helper()
	var got []string
	_ = poll.Until(timeout, 5*time.Millisecond, poll.True(func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		got = slices.Clone(n.list)
		return len(got) >= len(want)
	})) // what is compared below
	if !slices.Equal(got, want) {
		t.Fatalf("reported %q, want %q", got, want)
	}
	n.mu.Lock()
	n.list = nil
	n.mu.Unlock()
}

func TestWatcher(t *testing.T) {
	e, c := newEngine(t)
	var n notes
	w := NewWatcher(c, &n, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		w.Run(ctx)
		close(ended)
	}()
	n.want(t, "connected", "listed 0")
	if w.State() != "" {
		t.Errorf("state %q", w.State())
	}
	e.set("a", "1")
	e.events <- "a"
	n.want(t, "running name-a 1")
	e.set("a", "2")
	e.events <- "a"
	n.want(t, "stopped a", "running name-a 2")

	// It is renamed, which one event or the other reports. What happens to the
	// networks of a container that does not run causes no request.
	e.rename("a", "new")
	e.events <- `{"Type":"container","Action":"rename","Actor":{"ID":"a"}}`
	n.want(t, "changed new")
	e.rename("a", "newer")
	e.events <- `{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"a"}}}`
	n.want(t, "changed newer")
	e.events <- `{"Type":"network","Action":"destroy","Actor":{"ID":"n","Attributes":{"name":"weft","type":"weft"}}}`
	n.want(t, "network weft removed")
	e.set("z", "1")
	e.events <- `{"Type":"network","Action":"connect","Actor":{"ID":"n","Attributes":{"container":"z"}}}`
	e.events <- `{"Type":"network","Action":"disconnect","Actor":{}}`
	e.set("z", "gone")

	// A flood of events causes few requests.
	e.mu.Lock()
	before := e.asked
	e.mu.Unlock()
	for range 5000 {
		e.events <- "a"
	}
	e.set("a", "")
	e.events <- "a"
	n.want(t, "stopped a")
	e.mu.Lock()
	asked := e.asked - before
	e.mu.Unlock()
	if asked > 2500 {
		t.Errorf("5000 events made %d questions", asked)
	}

	// The engine answers with errors, then breaks the stream; events are lost meanwhile.
	e.mu.Lock()
	e.fail = 3
	e.mu.Unlock()
	e.set("b", "1")
	e.events <- "b"
	_ = poll.Until(timeout, 5*time.Millisecond, poll.True(func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.list = slices.DeleteFunc(n.list, func(s string) bool { return s == "connected" || strings.HasPrefix(s, "listed") })
		return slices.Contains(n.list, "running name-b 1")
	})) // want says what is missing
	n.want(t, "running name-b 1")
	e.set("a", "gone")
	e.events <- ""
	n.want(t, "connected", "gone a", "listed 1")

	cancel()
	select {
	case <-ended:
	case <-time.After(20 * time.Second):
		t.Error("the watcher does not end")
	}
}

func TestFind(t *testing.T) {
	e, c := newEngine(t)
	e.set("web", "1")
	k, err := c.Find(t.Context(), "/web")
	if err != nil || k.Name != "name-web" || !k.Running || k.Netns() != "/proc/7/ns/net" {
		t.Errorf("%+v, %v", k, err)
	}
	if _, err := c.Find(t.Context(), "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("nobody: %v", err)
	}
	for _, bad := range []string{"", "a/b", "../x", "a b", "-x", "?x"} {
		if _, err := c.Find(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "want an id or a name") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	e.server.CloseClientConnections()
	e.server.Close()
	if _, err := c.Find(t.Context(), "web"); err == nil || !strings.Contains(err.Error(), "does not run") {
		t.Errorf("without an engine: %v", err)
	}
}
