package server

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"

	"github.com/miekg/dns"

	"github.com/weft-net/weft/dns/zone"
	"github.com/weft-net/weft/router/udp"
)

const (
	// udpBatch is how many queries one system call takes.
	udpBatch = 32
	// maxReaders is how many goroutines read one socket at most.
	maxReaders = 1
	// headerLen is the length of a message's header, RFC 1035, 4.1.1.
	headerLen = 12
)

// socket is a UDP socket at one address. What the zone knows is answered by the
// goroutine that reads, many queries at a time: it takes less than it would to
// hand them to others. There are several of them, as the kernel may hold one up
// for some milliseconds.
type socket struct {
	*Server
	conn   *udp.Socket
	asking sync.WaitGroup // goroutines that ask others

	mu    sync.Mutex // of later
	later udp.Writer // for answers that others had to be asked for
}

// openUDP opens and serves a socket at one address.
func (s *Server) openUDP(at netip.AddrPort) (*serving, error) {
	conn, err := udp.Listen(at.Addr().String(), int(at.Port()), udp.Linux)
	if err != nil {
		return nil, err
	}
	k := &socket{Server: s, conn: conn, later: conn.NewWriter(1)}
	v := &serving{ended: make(chan struct{}), close: func() { conn.Close() }}
	s.wg.Go(func() {
		defer close(v.ended)
		defer k.asking.Wait()
		var readers sync.WaitGroup
		defer readers.Wait()
		for range min(runtime.GOMAXPROCS(0), maxReaders) {
			readers.Go(func() {
				defer conn.Close() // the others end too, and Listen opens it again
				k.serve()
			})
		}
	})
	return v, nil
}

// serve answers until the socket is closed.
func (k *socket) serve() {
	r, w := k.conn.NewReader(udpBatch), k.conn.NewWriter(udpBatch)
	var out []udp.Message
	var bufs [][]byte // of the answers
	var scratch zone.Scratch
	for {
		in, err := r.ReadBatch()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		out = out[:0]
		for _, m := range in {
			if len(out) == len(bufs) {
				bufs = append(bufs, make([]byte, maxUDP))
			}
			if b, ok := k.quick(bufs[len(out)][:0], m.Buf[:m.N], &scratch); ok {
				out = append(out, udp.Message{Buf: b, N: len(b), Addr: m.Addr})
				continue
			}
			query, answer := k.read(m.Buf[:m.N])
			switch {
			case answer != nil:
				// If it can not be packed, the client asks again, and others go on.
				if b, err := answer.PackBuffer(bufs[len(out)]); err == nil {
					out = append(out, udp.Message{Buf: b, N: len(b), Addr: m.Addr})
				}
			case query != nil:
				k.asking.Go(func() { k.ask(query, m.Addr) })
			}
		}
		for len(out) > 0 {
			n, err := w.WriteBatch(out)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				break
			}
			out = out[min(n+1, len(out)):] // that one client can not be reached
		}
	}
}

// quick appends the answer to a query to dst, if it is one of those that the zone
// answers without ado.
func (k *socket) quick(dst, query []byte, s *zone.Scratch) ([]byte, bool) {
	b, qtype, ok := k.zone.Quick(dst, query, maxUDP, s)
	if ok {
		typ := typeA
		if qtype == dns.TypeAAAA {
			typ = typeAAAA
		}
		k.counts[typ][resultAnswer].Add(1)
	}
	return b, ok
}

// read reads a query and returns its answer; or the query, if others have to be
// asked; or nothing, if it is none. B is borrowed.
func (k *socket) read(b []byte) (query, answer *dns.Msg) {
	const response = 0x80 // of the third byte
	if len(b) < headerLen || b[2]&response != 0 {
		return nil, nil // answering an answer could go on for ever
	}
	query = new(dns.Msg)
	if err := query.Unpack(b); err != nil || len(query.Question) != 1 {
		if len(query.Question) != 1 {
			query.Question = nil
		}
		query.Id, query.Answer, query.Ns, query.Extra = binary.BigEndian.Uint16(b), nil, nil, nil
		k.counts[typeOther][resultRefused].Add(1)
		return nil, fail(query, dns.RcodeFormatError)
	}
	if answer = k.answer(query); answer != nil {
		answer.Truncate(udpSize(query))
		return nil, answer
	}
	return query, nil
}

// ask has others answer a query of a client.
func (k *socket) ask(query *dns.Msg, client netip.AddrPort) {
	m, _ := k.Server.ask(k.ctx, query) // what failed is counted, and the answer tells
	if k.ctx.Err() != nil {
		return // the server closes; the client asks the next one
	}
	m.Truncate(udpSize(query))
	b, perr := m.Pack()
	if perr != nil {
		// What the server sent can not be sent on.
		if b, perr = fail(query, dns.RcodeServerFailure).Pack(); perr != nil {
			return
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, _ = k.later.WriteBatch([]udp.Message{{Buf: slices.Clip(b), N: len(b), Addr: client}}) // a client that is gone is no fault of ours
}
