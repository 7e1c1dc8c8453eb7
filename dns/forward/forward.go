// Package forward sends queries that weft cannot answer to the host's own name servers.
//
// A Forwarder queries the servers in the order of the host's resolv.conf, except that servers
// which failed recently come last. It returns the first conclusive answer. An answer that is
// truncated over UDP is requested again over TCP. There is no cache: the servers have one.
//
// If a server forwards queries to weft in turn, a query would go round in a loop until all slots
// are in use. Each server is therefore probed with a random name that nobody has. If that query
// arrives here, the server is no longer used.
//
// The zero Forwarder is not usable; make one with New. A Forwarder is safe for concurrent use.
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
	// DefaultTimeout is the time that all servers together have to answer. Clients give up after
	// about that time.
	DefaultTimeout = 5 * time.Second
	// maxForwards limits the queries that are being forwarded. Further ones are refused at once,
	// so that a dead server cannot use up the router's memory.
	maxForwards = 512
	// demoteFor is the time for which a server that failed is queried last.
	demoteFor = 10 * time.Second
	// rounds is how often each server is queried before the forward fails.
	rounds = 2
	// probeName is the suffix of the names that servers are probed with. No such top-level domain
	// exists.
	probeName = ".weft-loop-check."
	// ednsSize is the size in bytes of UDP answers that is requested, unless the client requests a
	// larger one.
	ednsSize = 1232
)

// Forwarder forwards queries. It is safe for concurrent use.
type Forwarder struct {
	timeout time.Duration
	slots   chan struct{}
	busy    atomic.Uint64 // queries refused because no slot was free
	now     func() time.Time

	mu      sync.Mutex // held while probes or servers change
	servers atomic.Pointer[[]*server]
	probes  map[string]*server // pending probes by name; guarded by mu
}

type server struct {
	addr   netip.AddrPort
	failed atomic.Pointer[failure] // the last one; nil if it has answered since
	loops  atomic.Bool
}

type failure struct {
	at  time.Time
	err error
}

// New returns a Forwarder without servers. timeout limits the forward of one query.
func New(timeout time.Duration) *Forwarder {
	f := &Forwarder{timeout: timeout, slots: make(chan struct{}, maxForwards), now: time.Now, probes: make(map[string]*server)}
	f.servers.Store(&[]*server{})
	return f
}

// Status is the state of a server.
type Status struct {
	Addr netip.AddrPort
	// Fault states why the server is queried last or not at all; "" if neither.
	Fault string
}

// Status returns the servers in order.
func (f *Forwarder) Status() []Status {
	var list []Status
	for _, s := range *f.servers.Load() {
		st := Status{Addr: s.addr}
		if s.loops.Load() {
			st.Fault = "not asked: it forwards queries to this host"
		} else if err := s.recentFailure(f.now()); err != nil {
			st.Fault = "asked last: " + err.Error()
		}
		list = append(list, st)
	}
	return list
}

// Busy returns the number of queries that were refused because too many were being forwarded.
func (f *Forwarder) Busy() uint64 { return f.busy.Load() }

// SetServers replaces the servers and reports whether they changed. Servers that stay keep their
// state.
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

// Probe queries each server for a name of its own, so that IsProbe detects servers that forward to
// this host. It returns when all have answered or the time is up.
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
			// The answer does not matter: if there is a loop, the query has come back before.
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

// IsProbe reports whether a query is one of this Forwarder's own probes. If it is, its server is
// marked as a loop. Such a query must not be forwarded. Probes of other hosts must be, so that
// they return to those hosts.
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
	ErrNoServer = errors.New("the host has no usable name server")
	ErrBusy     = fmt.Errorf("%d queries are already being forwarded", maxForwards)
)

// Forward queries the servers and returns the first conclusive answer, with the id of the query.
// query is not changed and not kept.
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
				s.failed.Store(nil)
				return answer, nil
			default:
				// This may be how the server reports that it has no answer.
				inconclusive = answer
			}
		}
		if inconclusive != nil { // another query would give the same answer
			return inconclusive, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, last
}

// inOrder returns the servers to query: those that failed recently come last.
func (f *Forwarder) inOrder() []*server {
	now := f.now()
	var good, bad []*server
	for _, s := range *f.servers.Load() {
		switch {
		case s.loops.Load():
		case s.recentFailure(now) != nil:
			bad = append(bad, s)
		default:
			good = append(good, s)
		}
	}
	return append(good, bad...)
}

func (s *server) fail(now time.Time, err error) {
	s.failed.Store(&failure{now, err})
}

// recentFailure returns why the server failed a short time ago, nil if it did not.
func (s *server) recentFailure(now time.Time) error {
	if last := s.failed.Load(); last != nil && now.Sub(last.at) < demoteFor {
		return last.err
	}
	return nil
}

// conclusive reports whether another server would probably not give a better answer.
func conclusive(m *dns.Msg) bool {
	switch m.Rcode {
	case dns.RcodeServerFailure, dns.RcodeRefused, dns.RcodeNotImplemented:
		return false
	}
	return true
}

// ask queries one server over UDP, and again over TCP if the answer was truncated.
func (s *server) ask(ctx context.Context, query *dns.Msg, timeout time.Duration) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	// A new random id and port, so that an attacker cannot guess them.
	q := *query
	q.Id = dns.Id()
	answer, err := exchange(ctx, "udp", s.addr, &q)
	if err != nil {
		return nil, err
	}
	if answer.Truncated {
		// If TCP is blocked, the truncated answer is better than none.
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
		if ctx.Err() != nil || errors.As(err, &late) && late.Timeout() { // the timeout matters, not the operation that it interrupted
			err = errors.New("no answer in time")
		}
		return fmt.Errorf("query %s over %s: %w", to, network, cause(err))
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
			return nil, wrap(errors.New("the message is not an answer to the query"))
		}
		// Over UDP it may be a message from somebody else.
	}
}

// cause removes the addresses from an error of package net.
func cause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

// answers reports whether m is an answer to q.
func answers(m, q *dns.Msg) bool {
	if !m.Response || m.Id != q.Id || m.Opcode != q.Opcode {
		return false
	}
	if len(m.Question) == 0 { // some servers omit it in errors
		return m.Rcode != dns.RcodeSuccess
	}
	a, b := m.Question[0], q.Question[0]
	return len(m.Question) == 1 && a.Qtype == b.Qtype && a.Qclass == b.Qclass && strings.EqualFold(a.Name, b.Name)
}
