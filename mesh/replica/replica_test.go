package replica

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/records"
)

var epoch = time.Unix(1_700_000_000, 0)

// host is a replica of texts, with what it announced.
type host struct {
	*Replica[*records.Map[string]]
	id peer.Cheap

	mu      sync.Mutex
	deltas  [][]byte
	changed int
	log     bytes.Buffer
}

func newHost(n byte) *host {
	h := &host{id: peer.Cheap{ID: peer.Key{n}}}
	h.Replica = New(Config{
		What: "texts", Now: func() time.Time { return epoch }, Log: slog.New(slog.NewTextHandler(&h.log, nil)), //nolint:forbidigo // tests read it
		Announce: func(delta []byte) {
			h.Read(func(*records.Map[string]) {}) // no lock is held
			h.mu.Lock()
			defer h.mu.Unlock()
			h.deltas = append(h.deltas, delta)
		},
		Changed: func() {
			h.Read(func(*records.Map[string]) {})
			h.mu.Lock()
			defer h.mu.Unlock()
			h.changed++
		},
	}, records.New(records.Config[string]{
		Use: "texts", Self: nameOf(n), Signer: h.id, Verifier: h.id, Start: epoch,
		Decode: func(_ uint8, b []byte) (string, error) {
			if string(b) == "bad" {
				return "", errors.New("it is bad")
			}
			return string(b), nil
		},
	}))
	return h
}

func nameOf(n byte) peer.Name { return peer.Name{2, n} }

func (h *host) set(t *testing.T, text string) {
	t.Helper()
	err := h.Change(func(m *records.Map[string]) ([][]byte, error) { return m.Set(map[uint8][]byte{0: []byte(text)}) })
	if err != nil {
		t.Fatal(err)
	}
}

// all returns the texts that a host knows of others.
func (h *host) all() (texts []string) {
	h.Read(func(m *records.Map[string]) {
		for _, s := range m.All() {
			texts = append(texts, s)
		}
	})
	return texts
}

// What one host changes reaches the other through the channel, and is gone with its peer.
func TestChangesReachOthers(t *testing.T) {
	a, b := newHost(1), newHost(2)
	b.PeersChanged(map[peer.Name]peer.Key{nameOf(1): a.id.ID})
	a.set(t, "hello")
	if len(a.deltas) != 1 || a.changed != 1 {
		t.Fatalf("%d deltas and %d calls of Changed, want one of each", len(a.deltas), a.changed)
	}
	before := b.changed
	if news, err := b.Channel().Merge(nameOf(1), a.deltas[0]); err != nil || len(news) == 0 {
		t.Fatalf("merge: %d bytes of news, %v", len(news), err)
	}
	if got := b.all(); len(got) != 1 || got[0] != "hello" || b.changed != before+1 {
		t.Errorf("the other host knows %q, Changed was called %d times", got, b.changed-before)
	}
	if news, err := b.Channel().Merge(nameOf(1), a.deltas[0]); err != nil || news != nil || b.changed != before+1 {
		t.Errorf("the same again: %d bytes of news, %v, Changed was called %d times", len(news), err, b.changed-before)
	}
	b.PeersChanged(nil)
	if got := b.all(); len(got) > 0 {
		t.Errorf("the peer is gone and its texts stay: %q", got)
	}
}

// A copy that lacks something gets it by digests.
func TestDigests(t *testing.T) {
	a, b := newHost(1), newHost(2)
	a.PeersChanged(map[peer.Name]peer.Key{nameOf(2): b.id.ID})
	b.PeersChanged(map[peer.Name]peer.Key{nameOf(1): a.id.ID})
	a.set(t, "hello")
	deltas, _, err := a.Channel().Missing(b.Channel().Digest())
	if err != nil || len(deltas) != 1 {
		t.Fatalf("%d deltas, %v", len(deltas), err)
	}
	if _, err := b.Channel().Merge(nameOf(1), a.Channel().Join(deltas[0], a.deltas[0])); err != nil || len(b.all()) != 1 {
		t.Errorf("merge: %v, then %q", err, b.all())
	}
}

// A change that fails announces nothing.
func TestFailedChange(t *testing.T) {
	a := newHost(1)
	err := a.Change(func(m *records.Map[string]) ([][]byte, error) { return m.Set(map[uint8][]byte{0: []byte("bad")}) })
	if err == nil || len(a.deltas) > 0 || a.changed > 0 {
		t.Errorf("%v; %d deltas, %d calls of Changed", err, len(a.deltas), a.changed)
	}
}

// A peer that sends the same wrong record again and again fills no log, and the counts can be read
// while a merge goes on.
func TestRefusals(t *testing.T) {
	a, b, liar := newHost(1), newHost(2), newHost(3)
	liar.Replica = New(Config{Announce: liar.cfg.Announce}, records.New(records.Config[string]{
		Use: "texts", Self: nameOf(1), Signer: a.id, Verifier: a.id, Start: epoch,
		Decode: func(_ uint8, b []byte) (string, error) { return string(b), nil },
	}))
	b.PeersChanged(map[peer.Name]peer.Key{nameOf(1): a.id.ID})
	liar.set(t, "bad")
	now := epoch
	for range 3 {
		if _, err := b.Channel().Merge(nameOf(3), liar.deltas[0]); err != nil {
			t.Fatal(err)
		}
		now = now.Add(TickEvery)
		b.Tick(now)
	}
	if n := strings.Count(b.log.String(), "it is bad"); n != 1 || !strings.Contains(b.log.String(), "what=texts") {
		t.Errorf("%d lines, want one:\n%s", n, b.log.String())
	}
	b.Read(func(*records.Map[string]) { // as long as a merge
		s := b.Stats()
		s.Refused["payload"]++ // the caller owns it
		if s := b.Stats(); s.Refused["payload"] != 3 {
			t.Errorf("%d records refused, want 3", s.Refused["payload"])
		}
	})
	b.Tick(now.Add(2 * logEvery))
	if _, err := b.Channel().Merge(nameOf(3), liar.deltas[0]); err != nil {
		t.Fatal(err)
	}
	b.Tick(now.Add(3 * logEvery))
	if n := strings.Count(b.log.String(), "it is bad"); n != 2 {
		t.Errorf("%d lines after minutes, want another one", n)
	}
}

// All methods may be called at once; the race detector looks.
func TestConcurrentUse(t *testing.T) {
	a, b := newHost(1), newHost(2)
	a.set(t, "hello")
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for i := range 100 {
				b.PeersChanged(map[peer.Name]peer.Key{nameOf(1): a.id.ID})
				_, _ = b.Channel().Merge(nameOf(1), a.deltas[0])
				b.set(t, strings.Repeat("x", i))
				_ = b.Channel().Digest()
				_ = b.Stats()
				b.Tick(epoch)
			}
		})
	}
	all.Wait()
	if len(b.all()) != 2 {
		t.Errorf("it knows %q", b.all())
	}
}
