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
	"github.com/weft-net/weft/internal/udp"
)

const (
	// udpBatch is the number of queries that one system call receives. batchSize is the number of
	// queries that one goroutine answers at a time.
	udpBatch  = 32
	batchSize = 8
	// headerLen is the length of a message's header (RFC 1035, section 4.1.1).
	headerLen = 12
)

// socket is a UDP socket at one address. One goroutine reads. If several queries arrive at once,
// other goroutines answer them in small batches. Where CPUs are scarce, the kernel deschedules a
// busy thread for milliseconds; then only the queries of that thread's batch wait.
type socket struct {
	*Server
	conn *udp.Socket
	free chan *batch
	work chan *batch
	wg   sync.WaitGroup // all goroutines of the socket

	mu      sync.Mutex // guards replies
	replies udp.Writer // sends the answers to forwarded queries
}

// batch is a number of queries and their answers.
type batch struct {
	in, out []udp.Message // at most batchSize
	inBufs  [batchSize][maxUDP]byte
	outBufs [batchSize][maxUDP]byte
	scratch zone.Scratch
	w       udp.Writer
}

// fill copies as many queries as fit, and returns their number.
func (b *batch) fill(in []udp.Message) int {
	b.in = b.in[:0]
	for i := range min(len(in), batchSize) {
		// A message longer than any query is truncated, and then rejected as malformed.
		n := copy(b.inBufs[i][:], in[i].Buf[:in[i].N])
		b.in = append(b.in, udp.Message{Buf: b.inBufs[i][:n], N: n, Addr: in[i].Addr})
	}
	return len(b.in)
}

// openUDP opens and serves a socket at one address.
func (s *Server) openUDP(at netip.AddrPort) (*serving, error) {
	conn, err := udp.Listen(at.Addr().String(), int(at.Port()), udp.Linux)
	if err != nil {
		return nil, err
	}
	workers := runtime.GOMAXPROCS(0)
	k := &socket{Server: s, conn: conn, replies: conn.NewWriter(1), free: make(chan *batch, 2*workers), work: make(chan *batch, 2*workers)}
	v := &serving{ended: make(chan struct{}), close: func() { conn.Close() }}
	for range cap(k.free) {
		k.free <- &batch{w: conn.NewWriter(batchSize)}
	}
	for range workers {
		k.wg.Go(func() {
			for b := range k.work {
				k.answerAll(b)
				k.free <- b
			}
		})
	}
	s.wg.Go(func() {
		defer close(v.ended)
		defer conn.Close()
		k.serve()
		close(k.work)
		k.wg.Wait()
	})
	return v, nil
}

// serve reads queries until the socket is closed.
func (k *socket) serve() {
	r := k.conn.NewReader(udpBatch)
	own := &batch{w: k.conn.NewWriter(1)}
	for {
		in, err := r.ReadBatch()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if len(in) == 1 { // no other query waits
			own.fill(in)
			k.answerAll(own)
			continue
		}
		for len(in) > 0 {
			b := <-k.free // meanwhile queries queue in the kernel, which drops them if there are too many
			in = in[b.fill(in):]
			k.work <- b
		}
	}
}

// answerAll answers the queries of a batch, or starts to forward them.
func (k *socket) answerAll(b *batch) {
	b.out = b.out[:0]
	for _, m := range b.in {
		buf := b.outBufs[len(b.out)][:]
		if p, ok := k.answerQuick(buf[:0], m.Buf, &b.scratch); ok {
			b.out = append(b.out, udp.Message{Buf: p, N: len(p), Addr: m.Addr})
			continue
		}
		query, answer := k.parse(m.Buf)
		switch {
		case answer != nil:
			// If it cannot be packed, the client retries with another server.
			if p, err := answer.PackBuffer(buf); err == nil {
				b.out = append(b.out, udp.Message{Buf: p, N: len(p), Addr: m.Addr})
			}
		case query != nil:
			k.wg.Go(func() { k.forwardAndReply(query, m.Addr) })
		}
	}
	for out := b.out; len(out) > 0; {
		n, err := b.w.WriteBatch(out)
		if err == nil || errors.Is(err, net.ErrClosed) {
			return
		}
		out = out[min(n+1, len(out)):] // skip the client that cannot be reached
	}
}

// answerQuick appends the answer to a query to dst, if the zone can answer it without allocating.
func (k *socket) answerQuick(dst, query []byte, s *zone.Scratch) ([]byte, bool) {
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

// parse parses a query and returns its answer if no forwarding is needed, else the query. It
// returns neither if b is not a query. b is borrowed for the call.
func (k *socket) parse(b []byte) (query, answer *dns.Msg) {
	const response = 0x80 // the QR bit of the third byte
	if len(b) < headerLen || b[2]&response != 0 {
		return nil, nil // answering an answer could start an endless loop
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

// forwardAndReply forwards a query and sends the answer to the client.
func (k *socket) forwardAndReply(query *dns.Msg, client netip.AddrPort) {
	m, _ := k.Server.forwardQuery(k.ctx, query) // the error is counted, and the answer is SERVFAIL
	if k.ctx.Err() != nil {
		return // the server is closing; the client will query its next server
	}
	m.Truncate(udpSize(query))
	b, perr := m.Pack()
	if perr != nil {
		// The answer of the other server cannot be packed.
		if b, perr = fail(query, dns.RcodeServerFailure).Pack(); perr != nil {
			return
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, _ = k.replies.WriteBatch([]udp.Message{{Buf: slices.Clip(b), N: len(b), Addr: client}}) // the client may be gone
}
