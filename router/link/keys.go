package link

import (
	"crypto/ecdh"
	"fmt"
	"slices"
	"time"

	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// Lifetimes of keys. New keys are agreed well before two minutes are over, so that a few
// repeated messages do not make them late.
const (
	RenewAge     = 90 * time.Second  // when new keys are requested
	MaxAge       = 180 * time.Second // when old keys are no longer used, with or without new ones
	RenewPackets = 1 << 30           // sent under one key, likewise
	// OldKeyLifetime is how long a receive key stays after the first use of its successor,
	// for packets under way that were sealed under it.
	OldKeyLifetime = 10 * time.Second
	// retry is the time after which an unanswered offer is repeated. The session
	// loses no messages, but its two ends may begin at different times.
	retry = 2 * time.Second
	// pace is the least time between two agreements. They cost CPU, and a peer might
	// request them without end.
	pace = time.Second
	// repeats is the number of times that an offer is repeated before a fresh one is
	// made.
	repeats = 3
	// maxRx bounds receive keys. An honest peer needs three: one in use, its successor, and
	// one that is being agreed on. A peer that agrees on keys all the time and never uses
	// them makes older ones go.
	maxRx = 4
)

// keys is the key agreement. One end offers and the other answers; package wire
// draws the exchange. The end with the lower name offers, so that both never offer
// at the same time.
type keys struct {
	tx *seal.Tx

	// round is the round of the newest offer that was made or answered. The first
	// one of the offering end is its time in seconds, so that a late message of its
	// earlier machine for the same peer never looks newer. The answering end begins
	// at 0, as its clock may be ahead or its machine younger.
	round      uint32
	agreedAt   time.Time
	answeredAt time.Time
	renewAt    time.Time // offering end: when to offer; answering end: when to request an offer

	// The offering end, while an offer is open.
	offered *offered
	// The answering end: the newest answer, until a packet or a confirm shows
	// that the offering end has its keys.
	answered *answered

	rx []rxKey // in order of age, the newest last
}

type offered struct {
	priv  *ecdh.PrivateKey
	msg   wire.Control
	again time.Time // when to repeat it
	times int       // it was repeated
}

type answered struct {
	tx    *seal.Tx
	index uint32 // of our receive key
	offer wire.Control
	msg   wire.Control
}

type rxKey struct {
	index uint32
	gone  time.Time // when to remove it; zero for not yet
}

func (m *Machine) offers() bool { return m.cfg.Self.Compare(m.cfg.Peer) < 0 }

// offer begins a round.
func (m *Machine) offer(now time.Time) {
	k := &m.keys
	priv, err := curve.GenerateKey(m.cfg.Entropy)
	if err != nil {
		m.unusable = fmt.Sprintf("make a key: %v", err)
		k.renewAt = now.Add(retry)
		return
	}
	if k.offered != nil {
		m.do(RemoveRx{k.offered.msg.Index}) // it was not answered
	}
	k.round++
	o := &offered{priv: priv, again: now.Add(retry)}
	o.msg = wire.Control{Type: wire.Offer, Round: k.round, Index: m.cfg.NewIndex(), Suites: uint16(m.cfg.Suites)}
	copy(o.msg.Key[:], priv.PublicKey().Bytes())
	k.offered = o
	m.send(o.msg)
}

func (m *Machine) send(c wire.Control) { m.do(SendControl{c.Append(nil)}) }

// Control handles a message of link control from the peer. If it is invalid, Control
// returns an error and the machine does not change.
func (m *Machine) Control(now time.Time, msg []byte) ([]Effect, error) {
	c, known, err := wire.ParseControl(msg)
	if err != nil {
		return nil, err
	}
	if !known {
		return nil, nil
	}
	switch c.Type {
	case wire.Offer:
		err = m.onOffer(now, c)
	case wire.Answer:
		err = m.onAnswer(now, c)
	case wire.Confirm:
		m.onConfirm(now, c)
	case wire.Renew:
		if m.offers() && m.keys.offered == nil && now.Sub(m.keys.agreedAt) >= pace {
			m.offer(now)
		}
	}
	if err != nil {
		return m.flush(), fmt.Errorf("link control from peer %s: %w", m.cfg.Peer, err)
	}
	return m.Tick(now), nil
}

// onOffer answers. Our receive key is in place before the other end hears of
// it. We send under the old key until we know that the other end has ours.
func (m *Machine) onOffer(now time.Time, c wire.Control) error {
	k := &m.keys
	if m.offers() {
		return fmt.Errorf("offer received from the responder")
	}
	if k.answered != nil && k.answered.offer == c {
		m.send(k.answered.msg)
		return nil
	}
	if c.Round <= k.round {
		return nil // repeated, and already handled
	}
	if now.Sub(k.answeredAt) < pace {
		return nil // it will be repeated
	}
	k.answeredAt = now
	suite, ok := seal.Choose(m.cfg.Suites, seal.Suites(c.Suites))
	if !ok {
		m.unusable = fmt.Sprintf("no cipher in common: the peer offers %#x, this router has %#x", c.Suites, m.cfg.Suites)
		return fmt.Errorf("%s", m.unusable)
	}
	priv, err := curve.GenerateKey(m.cfg.Entropy)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	a := &answered{offer: c, index: m.cfg.NewIndex()}
	a.msg = wire.Control{Type: wire.Answer, Round: c.Round, Index: a.index, Suite: uint8(suite), Offer: c.Index}
	copy(a.msg.Key[:], priv.PublicKey().Bytes())
	rx, tx, err := m.derive(priv, c.Key, c.Key, a.msg.Key, suite, a.index, c.Index)
	if err != nil {
		m.do(RemoveRx{a.index})
		return err
	}
	if k.answered != nil {
		m.removeRx(k.answered.index) // of a round that failed
	}
	k.round, k.answered, a.tx = c.Round, a, tx
	m.installRx(a.index, rx)
	m.send(a.msg)
	return nil
}

// onAnswer ends a round at the offering end: it has both keys, and the other
// end receives under the new one already.
func (m *Machine) onAnswer(now time.Time, c wire.Control) error {
	k := &m.keys
	if k.offered == nil || c.Round != k.offered.msg.Round || c.Offer != k.offered.msg.Index {
		return nil // repeated, or to what an earlier machine offered
	}
	suite := seal.Suite(c.Suite)
	if !m.cfg.Suites.Has(suite) {
		return fmt.Errorf("the answer chose %s, which was not offered", suite)
	}
	o := k.offered.msg
	rx, tx, err := m.derive(k.offered.priv, c.Key, o.Key, c.Key, suite, o.Index, c.Index)
	if err != nil {
		return err
	}
	k.offered = nil
	m.installRx(o.Index, rx)
	m.useTx(now, tx)
	m.send(wire.Control{Type: wire.Confirm, Round: c.Round})
	return nil
}

func (m *Machine) onConfirm(now time.Time, c wire.Control) {
	if a := m.keys.answered; a != nil && a.msg.Round == c.Round {
		m.keys.answered = nil
		m.useTx(now, a.tx)
	}
}

// FirstUse reports that the first packet was opened under the receive key at index.
func (m *Machine) FirstUse(now time.Time, index uint32) []Effect {
	k := &m.keys
	if a := k.answered; a != nil && a.index == index {
		k.answered = nil
		m.useTx(now, a.tx) // the other end has keys of this round
	}
	i := slices.IndexFunc(k.rx, func(r rxKey) bool { return r.index == index })
	for j := range max(i, 0) {
		if k.rx[j].gone.IsZero() {
			k.rx[j].gone = now.Add(OldKeyLifetime)
		}
	}
	return m.Tick(now)
}

// derive makes both keys of a round.
func (m *Machine) derive(priv *ecdh.PrivateKey, theirs, offerKey, ansKey [32]byte, s seal.Suite, rxIndex, txIndex uint32) (*seal.Rx, *seal.Tx, error) {
	pub, err := curve.NewPublicKey(theirs[:])
	if err != nil {
		return nil, nil, fmt.Errorf("read the peer's key: %w", err)
	}
	shared, err := priv.ECDH(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("agree on a key: %w", err) // a point of low order
	}
	d := seal.Direction{Shared: shared, Session: m.cfg.Secret, OfferKey: offerKey, AnsKey: ansKey, Suite: s}
	d.Sender, d.Receiver, d.Index = m.cfg.Peer, m.cfg.Self, rxIndex
	rx, err := seal.NewRx(s, d.Derive())
	if err != nil {
		return nil, nil, err
	}
	d.Sender, d.Receiver, d.Index = m.cfg.Self, m.cfg.Peer, txIndex
	tx, err := seal.NewTx(s, d.Derive(), txIndex, m.cfg.Lanes)
	return rx, tx, err
}

func (m *Machine) installRx(index uint32, rx *seal.Rx) {
	for len(m.keys.rx) >= maxRx {
		m.removeRx(m.keys.rx[0].index)
	}
	m.keys.rx = append(m.keys.rx, rxKey{index: index})
	m.do(InstallRx{index, rx})
}

func (m *Machine) removeRx(index uint32) {
	m.keys.rx = slices.DeleteFunc(m.keys.rx, func(r rxKey) bool { return r.index == index })
	m.do(RemoveRx{index})
}

func (m *Machine) useTx(now time.Time, tx *seal.Tx) {
	k := &m.keys
	first := k.tx == nil
	m.unusable = ""
	k.tx, k.agreedAt = tx, now
	k.renewAt = now.Add(m.cfg.RenewAfter)
	if !m.offers() {
		// The other end offers by itself. This end requests an offer only if it does not.
		k.renewAt = k.renewAt.Add(2 * retry)
	}
	m.do(UseTx{tx})
	if first {
		m.beat.next = now
	}
}

func (m *Machine) tickKeys(now time.Time) {
	k := &m.keys
	for _, r := range slices.Clone(k.rx) {
		if !r.gone.IsZero() && !now.Before(r.gone) {
			m.removeRx(r.index)
		}
	}
	if k.tx != nil && now.Sub(k.agreedAt) >= MaxAge {
		k.tx = nil
		m.do(UseTx{nil})
		m.unusable = fmt.Sprintf("keys could not be renewed for %s", MaxAge)
	}
	if k.tx != nil && k.tx.Packets() >= m.cfg.RenewPackets && k.renewAt.After(now) {
		k.renewAt = now
	}
	switch {
	case k.offered != nil:
		o := k.offered
		if now.Before(o.again) {
			break
		}
		if o.times++; o.times > repeats {
			m.offer(now)
			break
		}
		o.again = now.Add(retry)
		m.send(o.msg)
	case k.renewAt.IsZero() || now.Before(k.renewAt):
	case m.offers():
		m.offer(now)
	case k.answered == nil:
		m.send(wire.Control{Type: wire.Renew})
		k.renewAt = now.Add(retry)
	}
}

// next returns when the keys need the next step.
func (k *keys) next(m *Machine) (t time.Time) {
	first := func(u time.Time) {
		if !u.IsZero() && (t.IsZero() || u.Before(t)) {
			t = u
		}
	}
	for _, r := range k.rx {
		first(r.gone)
	}
	if k.tx != nil {
		first(k.agreedAt.Add(MaxAge))
	}
	switch {
	case k.offered != nil:
		first(k.offered.again)
	case m.offers() || k.answered == nil:
		first(k.renewAt)
	}
	return t
}
