package router

import (
	"errors"
	"net/netip"

	"github.com/weft-net/weft/internal/udp"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// readUDP carries packets from links to the TAP and to other links until the socket
// is closed.
func (r *Router) readUDP(ln *lane) error {
	reader := r.conn.NewReader(readBatch)
	if p, ok := reader.(udp.Prioritizer); ok {
		p.Prioritize(wire.Urgent)
	}
	for {
		in, err := reader.ReadBatch()
		if err != nil {
			return err
		}
		ln.now = r.since()
		for i := range in {
			r.fromUDP(ln, &in[i])
		}
		ln.flush()
	}
}

// fromUDP opens one packet and handles its frames. The memory of m is referred to
// until flush.
func (r *Router) fromUDP(ln *lane, m *udp.Message) {
	p := m.Buf[:m.N]
	h, err := wire.ParseHeader(p)
	if err != nil {
		r.drops.add(DropMalformed)
		return
	}
	key := (*r.keys.Load())[h.Index]
	if key == nil {
		r.drops.add(DropUnknownKey)
		return
	}
	l := key.link
	body, newest, ok := r.open(ln, key, h, p)
	if !ok {
		return
	}
	if newest && l.moved(m.Addr, ln.now) {
		r.notify(event{kind: moved, link: l, addr: m.Addr})
	}
	ln.sparse = wire.Urgent(p)
	l.rxPackets.Add(1)
	l.rxBytes.Add(uint64(m.N))
	end := wire.HeaderLen + len(body)
	switch h.Type {
	case wire.Data, wire.Partial:
		r.fromLink(ln, l, frame{buf: m.Buf, at: wire.HeaderLen, end: end, own: true, partial: h.Type == wire.Partial})
	case wire.Batch:
		for len(body) > 0 {
			var b []byte
			if b, body, err = wire.NextInBatch(body); err != nil {
				l.drops.add(DropMalformed)
				return
			}
			r.fromLink(ln, l, frame{buf: b, end: len(b)})
		}
	case wire.Fragment:
		r.fromParts(ln, l, body)
	case wire.Probe:
		b, err := wire.ParseProbe(body)
		if err != nil {
			l.drops.add(DropMalformed)
			return
		}
		if b.Answer {
			r.notify(event{kind: answered, link: l, probe: b})
			return
		}
		if l.mayAnswer(m.Addr) {
			ln.answerProbe(l, m.Addr, b)
		}
		if l.maxBody.Load() == 0 {
			r.notify(event{kind: asked, link: l})
		}
	default:
		l.drops.add(DropMalformed)
	}
}

// open opens a packet in place and reports the first use of its key. It is false, and the
// drop is counted, if the packet is not authentic.
func (r *Router) open(ln *lane, key *rxKey, h wire.Header, p []byte) (body []byte, newest, ok bool) {
	l := key.link
	body, newest, err := key.rx.Open(h, p, &ln.nonce)
	switch {
	case errors.Is(err, seal.ErrReplay):
		l.drops.add(DropReplay)
		return nil, false, false
	case err != nil:
		l.drops.add(DropForged)
		return nil, false, false
	}
	if !key.used.Load() && key.used.CompareAndSwap(false, true) {
		if !r.notify(event{kind: firstUse, link: l, index: h.Index}) {
			key.used.Store(false) // the next packet reports it
		}
	}
	return body, newest, true
}

// answerProbe sends a probe back to its sender. The lane does it, so that the
// control goroutine need not wake up.
func (ln *lane) answerProbe(l *sleeve, to netip.AddrPort, p wire.ProbeBody) {
	p.Answer = true
	b := ln.buffer(wire.HeaderLen + wire.ProbeLen + wire.AuthTagLen)
	p.Put(b[wire.HeaderLen:])
	ln.sealTo(l, to, wire.Probe, b[:wire.HeaderLen+wire.ProbeLen])
}

// fromParts reassembles frames. A complete frame is in the reassembler's memory, so
// it is handled before the lock is released.
func (r *Router) fromParts(ln *lane, l *sleeve, body []byte) {
	fh, part, err := wire.ParseFragment(body)
	if err != nil {
		l.drops.add(DropMalformed)
		return
	}
	l.parts.Lock()
	defer l.parts.Unlock()
	whole := l.parts.Add(fh, part, ln.now)
	l.countReassembly()
	if whole != nil {
		r.fromLink(ln, l, frame{buf: whole, end: len(whole)})
		ln.flushTAP()
	}
}
