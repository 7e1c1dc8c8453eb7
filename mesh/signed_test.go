package mesh

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/peer"
)

const kindSigned Kind = 250

func (n *node) acceptSigned() {
	n.HandleSigned(kindSigned, func(from peer.Name, msg []byte) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.got = append(n.got, fmt.Sprintf("%s %s", from, msg))
	})
}

func (n *node) received() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.got)
}

func (n *node) nameBytes() []byte { s := n.Self(); return s[:] }

// A member cannot ask for something in the name of another peer, nor have a message of
// another peer arrive twice, or at another destination.
func TestSourceOfSignedMessagesIsProved(t *testing.T) {
	t.Parallel()
	signed := []func(*node){(*node).acceptSigned}
	a := startWith(t, signed, noDiscovery)
	evil := startWith(t, signed, noDiscovery, to(a))
	c := startWith(t, signed, noDiscovery, to(evil))
	for _, n := range []*node{a, evil, c} {
		eventually(t, "a line", func() bool { return n.sees(a, evil, c) })
	}
	if err := c.SendSigned(a.Self(), kindSigned, []byte("give me space")); err != nil {
		t.Fatal(err)
	}
	want := []string{c.Self().String() + " give me space"}
	eventually(t, "the message arrives over the relay", func() bool { return slices.Equal(a.received(), want) })

	// evil sends in the name of c: without a signature, signed by itself, an old message
	// of c again, and one of c to evil.
	body := func(signer *node, to, from peer.Name, number uint64, payload string) []byte {
		var b []byte
		for _, v := range []uint64{c.instance, uint64(c.stamp()), number} {
			b = binary.BigEndian.AppendUint64(b, v)
		}
		b = append(b, payload...)
		sig := signer.Identity().Sign(messageDomain, signedBytes(to, from, kindSigned, b))
		return append(b, sig[:]...)
	}
	send := func(msg []byte) {
		t.Helper()
		rec := slices.Concat([]byte{recUnicast}, a.nameBytes(), c.nameBytes(), []byte{maxHops, byte(kindSigned)}, msg)
		if err := evil.direct(a.Self()).push(rec); err != nil {
			t.Fatal(err)
		}
	}
	refused := a.Status().Unproved
	original := body(c, a.Self(), c.Self(), 2, "second")
	for _, msg := range [][]byte{
		[]byte("give me space"),
		body(evil, a.Self(), c.Self(), 3, "forged"),
		body(c, evil.Self(), c.Self(), 4, "for another peer"),
		body(c, a.Self(), evil.Self(), 5, "of another peer"),
	} {
		send(msg)
	}
	send(original)
	send(original)
	want = append(want, c.Self().String()+" second")
	eventually(t, "five messages are refused", func() bool { return a.Status().Unproved == refused+5 })
	if got := a.received(); !slices.Equal(got, want) {
		t.Errorf("received %q, want %q", got, want)
	}
	if err := c.SendSigned(a.Self(), kindSigned, make([]byte, MaxSigned+1)); err == nil {
		t.Error("a message above the limit is sent")
	}
	if err := c.SendSigned(a.Self(), kindSigned, make([]byte, MaxSigned)); err != nil {
		t.Error(err)
	}
}

func TestLateSignedMessagesAreRefused(t *testing.T) {
	t.Parallel()
	var g signed
	from, known := peer.Name{2, 1}, func(peer.Name) bool { return true }
	now := time.Unix(1_700_000_000, 0)
	number := uint64(0)
	try := func(instance uint64, delay time.Duration) error {
		number++
		s := &signedMessage{instance: instance, number: number}
		if err := g.check(from, s, delay.Microseconds(), now); err != nil && !errors.Is(err, errLate) {
			return err
		}
		return g.accept(from, s, delay.Microseconds(), now, known)
	}
	const offset = -365 * 24 * time.Hour // the clock of the source is a year ahead
	for _, d := range []time.Duration{time.Second, 0, 50 * time.Second, maxLate} {
		if err := try(1, offset+d); err != nil {
			t.Errorf("after %v: %v", d, err)
		}
	}
	if err := try(1, offset+maxLate+time.Millisecond); !errors.Is(err, errLate) {
		t.Errorf("after more than %v: %v", maxLate, err)
	}
	number = 0
	if err := try(1, offset); !errors.Is(err, errRepeated) {
		t.Errorf("the first number again: %v", err)
	}
	// The source slept for an hour. Its messages are late from then on, and accepted after a
	// minute.
	number = 100
	slept := time.Hour
	if err := try(1, offset+slept); !errors.Is(err, errLate) {
		t.Errorf("after a sleep: %v", err)
	}
	now = now.Add(maxLate)
	for range 2 {
		if err := try(1, offset+slept); err != nil {
			t.Errorf("a minute later: %v", err)
		}
	}
	// A clock that drifts by 0.01% does not make messages late, however long it does.
	delay := offset + slept
	for range 1000 {
		now = now.Add(24 * time.Hour)
		delay += 24 * time.Hour / 10_000
		if err := try(1, delay); err != nil {
			t.Fatalf("drift: %v", err)
		}
	}
	number = 0
	if err := try(2, 0); err != nil {
		t.Errorf("the first message of the next incarnation: %v", err)
	}
}

func TestSourcesOfSignedMessagesAreBounded(t *testing.T) {
	t.Parallel()
	var g signed
	now := time.Unix(1_700_000_000, 0)
	name := func(i int) peer.Name { return peer.Name{2, 0, 0, byte(i >> 16), byte(i >> 8), byte(i)} }
	for i := range 2 * maxSigners {
		known := func(n peer.Name) bool { return n == name(0) || n == name(i) }
		if err := g.accept(name(i), &signedMessage{instance: 1, number: 1}, 0, now, known); err != nil {
			t.Fatal(err)
		}
	}
	if len(g.sources) > maxSigners {
		t.Errorf("%d sources are kept, want at most %d", len(g.sources), maxSigners)
	}
	if g.sources[name(0)] == nil {
		t.Error("a source that the mesh knows was dropped")
	}
}

// The window accepts each number once, compared with a set of all numbers.
func TestNumberWindowAcceptsEachNumberOnce(t *testing.T) {
	t.Parallel()
	rng := seed.Rand(t)
	var w numberWindow
	seen := make(map[uint64]bool)
	var highest uint64
	for range 200_000 {
		n := highest + uint64(rng.IntN(30)) - uint64(min(int(highest), rng.IntN(40)))
		switch rng.IntN(1000) {
		case 0:
			n = highest + uint64(rng.IntN(5000))
		case 1:
			n = highest - min(highest, uint64(rng.IntN(2000)))
		}
		want := !seen[n] && (n > highest || highest-n < windowLen)
		if n == 0 {
			continue // numbers begin with 1
		}
		if got := w.fresh(n); got != want {
			t.Fatalf("number %d after %d: fresh %t, want %t", n, highest, got, want)
		}
		if want {
			w.add(n)
			seen[n] = true
			highest = max(highest, n)
		}
	}
}

func FuzzSigned(f *testing.F) {
	id, err := peer.NewIdentity(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	f.Add(make([]byte, signedOverhead))
	f.Add(append(make([]byte, signedOverhead+3), id.Name[:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := parseSigned(b)
		if err != nil {
			if !errors.Is(err, errSignedMessage) {
				t.Fatal(err)
			}
			return
		}
		if len(s.payload) != len(b)-signedOverhead || len(s.signed) != len(b)-peer.SignatureLen || s.stamp < 0 {
			t.Fatalf("%d bytes are parsed as a payload of %d and %d signed ones, stamp %d", len(b), len(s.payload), len(s.signed), s.stamp)
		}
	})
}
