// Package forward asks a host's own name servers what weft does not know.
//
// A Forwarder asks the servers in the order of the host's resolv.conf, those
// that failed lately last, and takes the first answer that is one. What comes
// truncated over UDP is asked for again over TCP. It holds no cache: the servers
// do.
//
// A server that asks weft in turn would have a query go round until all are
// busy. So each server is asked once for a name that nobody has; if that question
// arrives here, the server is left out.
package forward

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

const (
	// DefaultTimeout is how long all servers together are waited for. Clients
	// give up after about that time.
	DefaultTimeout = 5 * time.Second
	// maxForwards is how many queries are being forwarded at most; more are refused
	// at once, so that a dead server cannot use up the router's memory.
	maxForwards = 512
	// shunned is for how long a server that failed is asked last.
	demoteFor = 10 * time.Second
	// rounds is how often each server is asked before the query has failed.
	rounds = 2
	// probeName ends the names that servers are tested with. There is no such top
	// level domain.
	probeName = ".weft-loop-check."
	// ednsSize is the size of UDP answers that is asked for where a client has
	// left it open to the transport.
	ednsSize = 1232
)

// Forwarder asks servers. It is safe for concurrent use.
type Forwarder struct {
	timeout time.Duration
	slots   chan struct{}
	busy    atomic.Uint64 // queries refused as there was no slot
	now     func() time.Time

	mu      sync.Mutex // held while probes and servers are changed
	servers atomic.Pointer[[]*server]
	probes  map[string]*server // by name asked for; guarded by mu
}

type server struct {
	addr   netip.AddrPort
	failed atomic.Int64 // when, Unix nanoseconds; 0 for not since it last answered
	loops  atomic.Bool
	cause  atomic.Pointer[string] // of the last failure
}

// New returns a Forwarder without servers. Timeout is for a whole query.
func New(timeout time.Duration) *Forwarder {
	f := &Forwarder{timeout: timeout, slots: make(chan struct{}, maxForwards), now: time.Now, probes: make(map[string]*server)}
	f.servers.Store(&[]*server{})
	return f
}

// Status is what a Forwarder knows of a server.
type Status struct {
	Addr netip.AddrPort
	// Fault says why the server is asked last or not at all, "" if it is not.
	Fault string
}

// Status returns the servers in order.
func (f *Forwarder) Status() []Status {
	var list []Status
	for _, s := range *f.servers.Load() {
		st := Status{Addr: s.addr}
		switch {
		case s.loops.Load():
			st.Fault = "not asked: it asks this host in turn"
		case s.failedRecently(f.now()):
			st.Fault = "asked last: " + *s.cause.Load()
		}
		list = append(list, st)
	}
	return list
}

// Busy counts the queries that were refused because too many were under way.
func (f *Forwarder) Busy() uint64 { return f.busy.Load() }

// SetServers replaces the servers, and reports whether that changed something.
// What is known of those that stay is kept.
func (f *Forwarder) SetServers(addrs []netip.AddrPort) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := *f.servers.Load()
	if slices.EqualFunc(old, addrs, func(s *server, a netip.AddrPort) bool { return s.addr == a }) {
		return false
	}
	list := make([]*server, len(addrs))
	for i, a := range addrs {
		list[i] = &server{addr: a}
		if j := slices.IndexFunc(old, func(s *server) bool { return s.addr == a }); j >= 0 {
			list[i] = old[j]
		}
	}
	f.servers.Store(&list)
	return true
}

// Probe asks each server for a name of its own, so that IsProbe notices those
// that ask this host in turn. It returns when all have answered or the time is
// up.
func (f *Forwarder) Probe(ctx context.Context) {
	var wg sync.WaitGroup
	for _, s := range *f.servers.Load() {
		wg.Go(func() {
			name := randomLabel() + probeName
			f.mu.Lock()
			f.probes[name] = s
			f.mu.Unlock()
			s.loops.Store(false)
			ctx, cancel := context.WithTimeout(ctx, f.timeout)
			defer cancel()
			// Whether there is an answer does not matter: the query has come back
			// before, or never does.
			_, _ = exchange(ctx, "udp", s.addr, new(dns.Msg).SetQuestion(name, dns.TypeA))
			f.mu.Lock()
			delete(f.probes, name)
			f.mu.Unlock()
		})
	}
	wg.Wait()
}

func randomLabel() string {
	var b [16]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// IsProbe reports whether a query is one of this Forwarder's own probes, and takes
// note if it is. Such a query must not be forwarded; those of others are, so that
// they find their way home.
func (f *Forwarder) IsProbe(query *dns.Msg) bool {
	name := strings.ToLower(query.Question[0].Name)
	if !strings.HasSuffix(name, probeName) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.probes[name]
	if s != nil {
		s.loops.Store(true)
	}
	return s != nil
}

// Errors of Forward.
var (
	ErrNoServer = errors.New("the host has no name server that could be asked")
	ErrBusy     = fmt.Errorf("%d queries are being forwarded already", maxForwards)
)

// Forward asks the servers and returns the first answer, which has the query's
// id; or why there is none. The query is not kept and not changed.
func (f *Forwarder) Forward(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	select {
	case f.slots <- struct{}{}:
		defer func() { <-f.slots }()
	default:
		f.busy.Add(1)
		return nil, ErrBusy
	}
	servers := f.inOrder()
	if len(servers) == 0 {
		return nil, ErrNoServer
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	timeout := f.timeout / time.Duration(rounds*len(servers))
	var inconclusive *dns.Msg
	var last error
	for range rounds {
		for _, s := range servers {
			answer, err := s.ask(ctx, query, timeout)
			switch {
			case err != nil:
				last = err
				s.fail(f.now(), err)
			case conclusive(answer):
				s.failed.Store(0)
				return answer, nil
			default:
				// It may be that server's way of saying that it has no answer.
				inconclusive = answer
			}
		}
		if inconclusive != nil { // asked again, it would say the same
			return inconclusive, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// inOrder returns the servers to ask: those that work first.
func (f *Forwarder) inOrder() []*server {
	now := f.now()
	var good, bad []*server
	for _, s := range *f.servers.Load() {
		switch {
		case s.loops.Load():
		case s.failedRecently(now):
			bad = append(bad, s)
		default:
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

func (s *server) fail(now time.Time, err error) {
	text := err.Error()
	s.cause.Store(&text)
	s.failed.Store(now.UnixNano())
}

func (s *server) failedRecently(now time.Time) bool {
	at := s.failed.Load()
	return at != 0 && now.Sub(time.Unix(0, at)) < demoteFor
}

// willing reports whether another server would hardly say something better.
func conclusive(m *dns.Msg) bool {
	switch m.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return false
	}
	return true
}

// ask asks one server, again over TCP if the answer was cut short.
func (s *server) ask(ctx context.Context, query *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// The id and the port are drawn again, so that nobody can guess them.
	q := *query
	q.Id = dns.Id()
	answer, err := exchange(ctx, "udp", s.addr, &q)
	if err != nil {
		return nil, err
	}
	if answer.Truncated {
		// If TCP is blocked, the short answer is better than none.
		if full, err := exchange(ctx, "tcp", s.addr, &q); err == nil {
			answer = full
		}
	}
	answer.Id = query.Id
	answer.Question = query.Question
	return answer, nil
}

// exchange sends a query and returns its answer.
func exchange(ctx context.Context, network string, to netip.AddrPort, q *dns.Msg) (*dns.Msg, error) {
	wrap := func(err error) error {
		var late net.Error
		if ctx.Err() != nil || errors.As(err, &late) && late.Timeout() { // whatever it was that took so long
			err = errors.New("no answer in time")
		}
		return fmt.Errorf("ask %s over %s: %w", to, network, cause(err))
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, network, to.String())
	if err != nil {
		return nil, wrap(err)
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	conn := &dns.Conn{Conn: c, UDPSize: ednsSize}
	if opt := q.IsEdns0(); opt != nil {
		conn.UDPSize = max(conn.UDPSize, opt.UDPSize())
	}
	if err := conn.WriteMsg(q); err != nil {
		return nil, wrap(err)
	}
	for {
		m, err := conn.ReadMsg()
		switch {
		case ctx.Err() != nil, errors.As(err, new(*net.OpError)):
			return nil, wrap(err)
		case err == nil && answers(m, q):
			return m, nil
		case network == "tcp":
			return nil, wrap(errors.New("the answer makes no sense"))
		}
		// Over UDP it may be somebody else's.
	}
}

// cause leaves out what an error of package net says of the addresses.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// answers reports whether m answers q.
func answers(m, q *dns.Msg) bool {
	if !m.Response || m.Id != q.Id || m.Opcode != q.Opcode {
		return false
	}
	if len(m.Question) == 0 { // some servers leave it out where they fail
		return m.Rcode != dns.RcodeSuccess
	}
	a, b := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
