// Package server answers DNS queries over UDP and TCP: from a zone if the zone is responsible,
// else from a forwarder. The zero Server is not usable; make one with New. A Server is safe for
// concurrent use.
package server

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/dns/forward"
	"github.com/weft-net/weft/dns/zone"
)

const (
	// maxUDP is the maximum size of a message over UDP in bytes, whatever size the client accepts.
	// Messages of this size cross all networks without fragmentation (RFC 9715). Larger messages
	// use TCP.
	maxUDP = 1232
	// maxConns is the maximum number of TCP connections to one address, and maxConnsEach of those
	// from one client. Further ones take the place of the oldest.
	maxConns     = 256
	maxConnsEach = 32
)

// Server answers queries at any number of addresses. It is safe for concurrent use.
type Server struct {
	zone    *zone.Zone
	forward *forward.Forwarder
	ctx     context.Context // cancelled by Close
	end     context.CancelFunc
	counts  [typeOther + 1][resultRefused + 1]atomic.Uint64
	listeners
}

// New returns a Server that does not listen yet.
func New(z *zone.Zone, f *forward.Forwarder) *Server {
	s := &Server{zone: z, forward: f}
	s.ctx, s.end = context.WithCancel(context.Background())
	s.listeners.serving = make(map[endpoint]*serving)
	return s
}

// Types and results by which queries are counted.
const (
	typeA = iota
	typeAAAA
	typePTR
	typeOther
)

const (
	resultAnswer = iota // answered from the zone
	resultNoData
	resultNXDomain
	resultForwarded
	resultFailed // forwarding failed
	resultRefused
)

var (
	typeNames   = [...]string{"A", "AAAA", "PTR", "other"}
	resultNames = [...]string{"answer", "nodata", "nxdomain", "forwarded", "servfail", "refused"}
)

// Count is the number of queries of a type with a result.
type Count struct {
	Type, Result string
	Queries      uint64
}

// Counts returns the counts that are not zero.
func (s *Server) Counts() (list []Count) {
	for t := range s.counts {
		for r := range s.counts[t] {
			if n := s.counts[t][r].Load(); n > 0 {
				list = append(list, Count{typeNames[t], resultNames[r], n})
			}
		}
	}
	return list
}

func typeOf(q *dns.Msg) int {
	if len(q.Question) == 1 {
		switch q.Question[0].Qtype {
		case dns.TypeA:
			return typeA
		case dns.TypeAAAA:
			return typeAAAA
		case dns.TypePTR:
			return typePTR
		}
	}
	return typeOther
}

// Resolve answers a query from the zone or by forwarding. The answer is never nil. If forwarding
// fails, the answer is SERVFAIL and the error is the reason.
func (s *Server) Resolve(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	if m := s.answer(query); m != nil {
		return m, nil
	}
	return s.forwardQuery(ctx, query)
}

// fail returns an answer with an error code and no records.
func fail(query *dns.Msg, code int) *dns.Msg {
	m := new(dns.Msg).SetRcode(query, code)
	m.RecursionAvailable = true
	if opt := query.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, opt.Do())
	}
	return m
}

// answer answers a query if that is possible without forwarding, and returns nil otherwise.
func (s *Server) answer(query *dns.Msg) *dns.Msg {
	m, result := s.answerLocally(query)
	if m != nil {
		s.counts[typeOf(query)][result].Add(1)
	}
	return m
}

func (s *Server) answerLocally(query *dns.Msg) (*dns.Msg, int) {
	opt := query.IsEdns0()
	switch {
	case query.Opcode != dns.OpcodeQuery:
		return fail(query, dns.RcodeNotImplemented), resultRefused
	case len(query.Question) != 1:
		return fail(query, dns.RcodeFormatError), resultRefused
	case opt != nil && opt.Version() != 0:
		return fail(query, dns.RcodeBadVers), resultRefused
	}
	if m, ok := s.zone.Answer(query); ok {
		m.RecursionAvailable = true
		if opt != nil {
			m.SetEdns0(maxUDP, opt.Do()) // RFC 3225: the DO bit is copied from the query
		}
		return m, resultOf(m)
	}
	if q := query.Question[0].Qtype; q == dns.TypeAXFR || q == dns.TypeIXFR {
		return fail(query, dns.RcodeRefused), resultRefused
	}
	if s.forward.IsProbe(query) {
		return fail(query, dns.RcodeNameError), resultNXDomain
	}
	return nil, 0
}

// forwardQuery forwards a query and returns the answer, which is never nil.
func (s *Server) forwardQuery(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	m, err := s.forward.Forward(ctx, query)
	result := resultForwarded
	if err != nil {
		m, result = fail(query, dns.RcodeServerFailure), resultFailed
	}
	s.counts[typeOf(query)][result].Add(1)
	return m, err
}

func resultOf(m *dns.Msg) int {
	switch {
	case m.Rcode == dns.RcodeNameError:
		return resultNXDomain
	case m.Rcode == dns.RcodeRefused:
		return resultRefused
	case len(m.Answer) == 0:
		return resultNoData
	}
	return resultAnswer
}

// ServeDNS implements dns.Handler.
func (s *Server) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	m, err := s.Resolve(s.ctx, query)
	if errors.Is(err, context.Canceled) {
		return // the server is closing; the client will query its next server
	}
	size := dns.MaxMsgSize
	if w.RemoteAddr().Network() == "udp" {
		size = udpSize(query)
	}
	m.Truncate(size)
	_ = w.WriteMsg(m) // the client may be gone
}

// udpSize returns the maximum size in bytes of the answer to a query over UDP.
func udpSize(query *dns.Msg) int {
	if opt := query.IsEdns0(); opt != nil {
		return int(min(max(opt.UDPSize(), dns.MinMsgSize), maxUDP))
	}
	return dns.MinMsgSize
}
