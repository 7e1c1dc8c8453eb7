package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/weft-net/weft/docker/track"
)

const (
	// A lost engine is tried again after the first, then after longer and longer times.
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	// pingEvery detects an engine that hangs: it sends no events either.
	pingEvery = 15 * time.Second
)

// Observer receives reports about containers. Its methods are called one at a time
// and block the watcher, so they must return quickly.
type Observer interface {
	// Connected is called when an engine answers after it did not, before any
	// report about its containers.
	Connected(ctx context.Context, api *client.Client)
	// Running is called for each run of a container, also for runs that began
	// before the watcher did.
	Running(ctx context.Context, c *Container)
	// Changed is called when a running container was renamed, or connected to a
	// network or disconnected from one.
	Changed(ctx context.Context, c *Container)
	// Stopped is called when a run has ended, and for containers that exist
	// and do not run when the watcher first sees them.
	Stopped(ctx context.Context, id string)
	// Gone is called when a container no longer exists.
	Gone(ctx context.Context, id string)
	// NetworkRemoved is called when a network was removed, by a user or a prune. Those that
	// were removed while no events came are not reported.
	NetworkRemoved(ctx context.Context, api *client.Client, name string)
	// Listed is called with all containers that exist, after each connection.
	Listed(ctx context.Context, ids []string)
}

// Watcher follows the containers of an engine. Run may be called once.
type Watcher struct {
	client   *Client
	observer Observer
	log      *slog.Logger

	state atomic.Pointer[string]
}

// NewWatcher returns a Watcher that reports to o.
func NewWatcher(c *Client, o Observer, log *slog.Logger) *Watcher {
	w := &Watcher{client: c, observer: o, log: log}
	w.setState("not asked yet")
	return w
}

// State returns why the engine does not answer, "" if it does.
func (w *Watcher) State() string { return *w.state.Load() }

func (w *Watcher) setState(why string) { w.state.Store(&why) }

// Run follows the engine until ctx ends, whether it is there or not.
func (w *Watcher) Run(ctx context.Context) {
	t := track.New()
	retry := firstRetry
	for ctx.Err() == nil {
		began := time.Now()
		err := w.follow(ctx, t)
		if ctx.Err() != nil {
			return
		}
		if answered := w.State() == ""; answered || time.Since(began) > lastRetry {
			retry = firstRetry
		}
		if w.State() != err.Error() {
			w.log.Info("no events from docker; trying again", "err", err)
		}
		w.setState(err.Error())
		select {
		case <-ctx.Done():
		case <-time.After(retry):
		}
		retry = min(2*retry, lastRetry)
	}
}

// follow is one connection to the engine, from its first answer to its end.
func (w *Watcher) follow(ctx context.Context, t *track.Tracker) error {
	api, err := w.client.Open()
	if err != nil {
		return err
	}
	defer api.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := ping(ctx, api); err != nil {
		return err
	}
	// Events first, so that nothing is missed between the list and them.
	stream := api.Events(ctx, client.EventsListOptions{Filters: make(client.Filters).
		Add("type", string(events.ContainerEventType), string(events.NetworkEventType)).
		Add("event", string(events.ActionStart), string(events.ActionDie), string(events.ActionDestroy),
			string(events.ActionRename), string(events.ActionConnect), string(events.ActionDisconnect))})
	w.log.Info("docker answers", "host", w.client.host, "api", api.ClientVersion())
	w.setState("")
	w.observer.Connected(ctx, api)
	t.MarkAll()
	alive := time.NewTicker(pingEvery)
	defer alive.Stop()
	for {
		// An engine drops events that nobody reads, so they are read between requests
		// too.
		w.drain(ctx, api, t, stream.Messages, false)
		id, all, ok := t.Next()
		switch {
		case ok && all:
			if err := w.list(ctx, api, t); err != nil {
				return err
			}
			continue
		case ok:
			if err := w.ask(ctx, api, t, id); err != nil {
				return err
			}
			continue
		}
		select {
		case m := <-stream.Messages:
			w.mark(ctx, api, t, m)
			w.drain(ctx, api, t, stream.Messages, true)
		case err := <-stream.Err:
			return fmt.Errorf("events of docker at %s ended: %w", w.client.host, err)
		case <-alive.C:
			if err := ping(ctx, api); err != nil {
				return err
			}
		}
	}
}

const (
	// settle is the longest pause between two events of a flood.
	settle = time.Millisecond
	// maxDrain bounds how long requests wait for events.
	maxDrain = 1024
)

// mark marks the container that an event is about, or reports the network.
func (w *Watcher) mark(ctx context.Context, api *client.Client, t *track.Tracker, m events.Message) {
	switch {
	case m.Type == events.NetworkEventType && m.Action == events.ActionDestroy:
		w.observer.NetworkRemoved(ctx, api, m.Actor.Attributes["name"])
	case m.Type == events.NetworkEventType:
		t.MarkRunning(m.Actor.Attributes["container"])
	case m.Action == events.ActionRename:
		t.MarkRunning(m.Actor.ID)
	default:
		t.Mark(m.Actor.ID)
	}
}

// drain marks the containers of all pending events and, with settled, of those that
// follow within settle, so that a flood about one container causes one request.
func (w *Watcher) drain(ctx context.Context, api *client.Client, t *track.Tracker, messages <-chan events.Message, settled bool) {
	wait := time.Duration(0)
	if settled {
		wait = settle
	}
	quiet := time.NewTimer(wait)
	defer quiet.Stop()
	for range maxDrain {
		select {
		case m := <-messages:
			w.mark(ctx, api, t, m)
			quiet.Reset(wait)
		case <-quiet.C:
			return
		}
	}
}

func ping(ctx context.Context, api *client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	_, err := api.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("docker does not answer: %w", context.DeadlineExceeded)
	}
	return err
}

// list asks about all containers.
func (w *Watcher) list(ctx context.Context, api *client.Client, t *track.Tracker) error {
	asking, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	r, err := api.ContainerList(asking, client.ContainerListOptions{All: true})
	if err != nil {
		return fmt.Errorf("list the containers of docker: %w", err)
	}
	ids := make([]string, 0, len(r.Items))
	for _, c := range r.Items {
		ids = append(ids, c.ID)
	}
	for _, id := range t.Listed(ids) {
		w.observer.Gone(ctx, id)
	}
	w.observer.Listed(ctx, ids)
	return nil
}

// ask asks about one container.
func (w *Watcher) ask(ctx context.Context, api *client.Client, t *track.Tracker, id string) error {
	c, err := inspect(ctx, api, id)
	var now *track.State
	switch {
	case err == nil:
		now = c.state()
	case !errors.Is(err, ErrNotFound):
		return err
	}
	for _, change := range t.Asked(id, now) {
		switch change {
		case track.Started:
			w.observer.Running(ctx, c)
		case track.Reshaped:
			w.observer.Changed(ctx, c)
		case track.Stopped:
			w.observer.Stopped(ctx, id)
		case track.Gone:
			w.observer.Gone(ctx, id)
		}
	}
	return nil
}
