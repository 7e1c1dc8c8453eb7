package api

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"net/http"
	"strings"
	"time"
)

const (
	// maxReports is how many reports, also as text or as metrics, a router makes at once.
	maxReports = 2
	// maxReadOnly is how many of them may be for the read-only address, so that its
	// clients cannot keep root from reading the state.
	maxReadOnly = 1
	// maxWaiting is how many clients of the read-only address may wait for their turn, and
	// turnTimeout how long.
	maxWaiting  = 16
	turnTimeout = 2 * time.Second
	// reportTimeout bounds how long a client may take to read a report.
	reportTimeout = 30 * time.Second
)

// Reports serves the state of a router to the clients of all its doors. Make it with
// NewReports. A report of a large mesh is large, so few are made at once, each is written
// while it is encoded, and it ends when its client has gone.
type Reports struct {
	status   Status
	metrics  http.Handler  // nil: none
	turns    chan struct{} // one for each report that is being made
	readOnly chan struct{} // one for each of them on the read-only address
	waiting  chan struct{} // one for each client of the read-only address that has asked
}

// NewReports returns Reports on b. Metrics may be nil.
func NewReports(b Status, metrics http.Handler) *Reports {
	return &Reports{
		status: b, metrics: metrics, turns: make(chan struct{}, maxReports),
		readOnly: make(chan struct{}, maxReadOnly), waiting: make(chan struct{}, maxReadOnly+maxWaiting),
	}
}

// Control serves /ready, /report, /status and /metrics to root. Clients wait for their
// turn.
func (p *Reports) Control() Routes { return p.routes(p.turn) }

// ReadOnly serves the same to everybody. Clients that would wait for too long get 503 with
// Retry-After.
func (p *Reports) ReadOnly() Routes { return p.routes(p.readOnlyTurn) }

func (p *Reports) routes(turn func(context.Context) (done func(), err error)) Routes {
	inTurn := func(h http.HandlerFunc) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			done, err := turn(r.Context())
			if err != nil {
				w.Header().Set("Retry-After", "1")
				reply(w, nil, err)
				return
			}
			defer done()
			// A client that does not read must not keep others from their turn. The control
			// socket has no other limit.
			_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(reportTimeout))
			h(w, r)
		})
	}
	return func(mux *http.ServeMux) {
		mux.HandleFunc("GET /ready", func(w http.ResponseWriter, r *http.Request) {
			reply(w, p.status.Ready(r.Context()), nil)
		})
		mux.Handle("GET /report", inTurn(p.report))
		mux.Handle("GET /status", inTurn(p.view))
		mux.Handle("GET /status/{view}", inTurn(p.view))
		if p.metrics != nil {
			mux.Handle("GET /metrics", inTurn(p.metrics.ServeHTTP))
		}
	}
}

// errBusy is the answer to clients that would wait for too long.
var errBusy = Errorf(Unavailable, "too many clients read the state of the router at once; try again")

// turn waits until a report may be made. The caller calls done at the end of it.
func (p *Reports) turn(ctx context.Context) (done func(), err error) {
	select {
	case p.turns <- struct{}{}:
		return func() { <-p.turns }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *Reports) readOnlyTurn(ctx context.Context) (done func(), err error) {
	select {
	case p.waiting <- struct{}{}:
	default:
		return nil, errBusy
	}
	leave := func() { <-p.waiting }
	waiting, cancel := context.WithTimeout(ctx, turnTimeout)
	defer cancel()
	select {
	case p.readOnly <- struct{}{}:
	case <-waiting.Done():
		leave()
		return nil, errBusy
	}
	end, err := p.turn(waiting)
	if err != nil {
		<-p.readOnly
		leave()
		return nil, errBusy
	}
	return func() { end(); <-p.readOnly; leave() }, nil
}

func (p *Reports) report(w http.ResponseWriter, r *http.Request) {
	lists, err := AllLists, error(nil)
	if q := r.URL.Query(); q.Has("lists") {
		lists, err = parseLists(q.Get("lists"))
	}
	var report *Report
	if err == nil {
		report, err = p.status.Report(r.Context(), lists)
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	writeReport(w, r, report)
}

func writeReport(w http.ResponseWriter, r *http.Request, report *Report) {
	w.Header().Set("Content-Type", "application/json")
	if err := stream(r.Context(), w, report); err != nil {
		abort(r, err)
	}
}

// view answers with a view of the report as text, or with the report if the client accepts
// JSON. The parameter of limits the view to a peer or an address.
func (p *Reports) view(w http.ResponseWriter, r *http.Request) {
	of := r.URL.Query().Get("of")
	if err := cmp.Or(checkView(r.PathValue("view")), checkLimit(r.PathValue("view"), of)); err != nil {
		reply(w, nil, err)
		return
	}
	lists, isJSON := views[r.PathValue("view")].lists, strings.Contains(r.Header.Get("Accept"), "application/json")
	if isJSON {
		lists = AllLists
	}
	report, err := p.status.Report(r.Context(), lists)
	if err == nil {
		report, err = report.LimitedTo(r.PathValue("view"), of)
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	if isJSON {
		writeReport(w, r, report)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !report.Ready {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	out := bufio.NewWriterSize(whileAlive{r.Context(), w}, streamBuffer)
	if err := errors.Join(report.Text(out, r.PathValue("view")), out.Flush()); err != nil {
		abort(r, err)
	}
}

// abort ends an answer that cannot be completed, so that its client does not take it for a
// whole one. It returns if the client has gone.
func abort(r *http.Request, err error) {
	if r.Context().Err() == nil && err != nil {
		panic(http.ErrAbortHandler)
	}
}
