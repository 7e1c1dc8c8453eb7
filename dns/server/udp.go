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
	// udpBatch is how many queries one system call takes, and handed how many of
	// them one goroutine answers.
	udpBatch  = 32
	batchSize = 8
	// headerLen is the length of a message's header, RFC 1035, 4.1.1.
	headerLen = 12
)

// socket is a UDP socket at one address. One goroutine reads; where many queries
// come at once, others answer, some queries each: where CPUs are scarce the
// kernel holds a thread up for milliseconds, the more so the more it does, and then
// only those wait that this one has.
type socket struct {
	*Server
	conn *udp.Socket
	free chan *batch
	work chan *batch
	wg   sync.WaitGroup // of all that the socket has started

	mu      sync.Mutex // of later
	replies udp.Writer // for answers that others had to be asked for
}

// batch is queries and their answers.
type batch struct {
	in, out []udp.Message // at most handed
	inBufs  [batchSize][maxUDP]byte
	outBufs [batchSize][maxUDP]byte
	scratch zone.Scratch
	w       udp.Writer
}

// fill copies queries, as many as fit, and returns how many.
func (b *batch) fill(in []udp.Message) int {
	b.in = b.in[:0]
	for i := range min(len(in), batchSize) {
		// What is longer than any query gets cut, and then makes no sense.
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

// serve reads until the socket is closed.
func (k *socket) serve() {
	r := k.conn.NewReader(udpBatch)
	own := &batch{w: k.conn.NewWriter(1)}
	for {
		in, err := r.ReadBatch()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if len(in) == 1 { // nobody else waits
			own.fill(in)
			k.answerAll(own)
			continue
		}
		for len(in) > 0 {
			b := <-k.free // what comes meanwhile waits in the kernel, and is dropped if it is too much
			in = in[b.fill(in):]
			k.work <- b
		}
	}
}

// answerAll answers the queries of a batch, or has others asked.
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
			// If it cannot be packed, the client asks again, and others go on.
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
		out = out[min(n+1, len(out)):] // that one client cannot be reached
	}
}

// quick appends the answer to a query to dst, if it is one of those that the zone
// answers without ado.
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

// read reads a query and returns its answer; or the query, if others have to be
// asked; or nothing, if it is none. B is borrowed.
func (k *socket) parse(b []byte) (query, answer *dns.Msg) {
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
func (k *socket) forwardAndReply(query *dns.Msg, client netip.AddrPort) {
	m, _ := k.Server.forwardQuery(k.ctx, query) // what failed is counted, and the answer tells
	if k.ctx.Err() != nil {
		return // the server closes; the client asks the next one
	}
	m.Truncate(udpSize(query))
	b, perr := m.Pack()
	if perr != nil {
		// What the server sent cannot be sent on.
		if b, perr = fail(query, dns.RcodeServerFailure).Pack(); perr != nil {
			return
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	_, _ = k.replies.WriteBatch([]udp.Message{{Buf: slices.Clip(b), N: len(b), Addr: client}}) // a client that is gone is no fault of ours
}
