package seal

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/wire"
)

func pair(t testing.TB, s Suite, lanes int) (*Tx, *Rx) {
	k := Key{1, 2, 3}
	tx, err := NewTx(s, k, 0xabcdef, lanes)
	if err != nil {
		t.Fatal(err)
	}
	rx, err := NewRx(s, k)
	if err != nil {
		t.Fatal(err)
	}
	return tx, rx
}

func sealed(t testing.TB, tx *Tx, lane uint8, body string) []byte {
	b := make([]byte, wire.HeaderLen, wire.Overhead+len(body))
	p, err := tx.Seal(wire.Data, lane, append(b, body...), new(Nonce))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func open(rx *Rx, p []byte) (string, bool, error) {
	h, err := wire.ParseHeader(p)
	if err != nil {
		return "", false, err
	}
	body, newest, err := rx.Open(h, bytes.Clone(p), new(Nonce))
	return string(body), newest, err
}

func TestSealOpen(t *testing.T) {
	for _, s := range []Suite{AES256GCM, ChaCha20Poly1305} {
		t.Run(s.String(), func(t *testing.T) {
			tx, rx := pair(t, s, 2)
			one, two, other := sealed(t, tx, 0, "one"), sealed(t, tx, 0, "two"), sealed(t, tx, 1, "other")
			if len(one) != wire.Overhead+3 || bytes.Contains(one, []byte("one")) {
				t.Errorf("sealed to % x", one)
			}
			for _, c := range []struct {
				p      []byte
				body   string
				newest bool
				err    error
			}{
				{two, "two", true, nil}, {one, "one", false, nil}, {other, "other", true, nil},
				{one, "", false, ErrReplay}, {two, "", false, ErrReplay}, {other, "", false, ErrReplay},
			} {
				body, newest, err := open(rx, c.p)
				if body != c.body || newest != c.newest || !errors.Is(err, c.err) {
					t.Errorf("open: %q, %v, %v; want %+v", body, newest, err, c)
				}
			}
			if tx.Packets() != 3 {
				t.Errorf("%d packets counted", tx.Packets())
			}
		})
	}
}

// TestEveryBitIsAuthenticated flips each bit of a packet; none may open, and
// none may spoil the window for the true packet.
func TestEveryBitIsAuthenticated(t *testing.T) {
	tx, rx := pair(t, AES256GCM, 1)
	p := sealed(t, tx, 0, "hello")
	for i := range len(p) * 8 {
		q := bytes.Clone(p)
		q[i/8] ^= 1 << (i % 8)
		if _, _, err := open(rx, q); !errors.Is(err, ErrForged) {
			t.Fatalf("bit %d flipped: %v", i, err)
		}
	}
	if _, _, err := open(rx, p); err != nil {
		t.Errorf("the true packet: %v", err)
	}
}

func TestCountersNeverRepeat(t *testing.T) {
	tx, _ := pair(t, AES256GCM, 3)
	seen := map[string]bool{}
	for i := range 3000 {
		p := sealed(t, tx, uint8(i%3), "")
		if c := string(p[4:12]); seen[c] {
			t.Fatalf("counter % x used twice", c)
		} else {
			seen[c] = true
		}
	}
	tx.lanes[1].next.Store(wire.MaxSequence)
	sealed(t, tx, 1, "last")
	if _, err := tx.Seal(wire.Data, 1, make([]byte, 12, 40), new(Nonce)); !errors.Is(err, ErrExhausted) {
		t.Errorf("beyond the last counter: %v", err)
	}
}

func TestChoose(t *testing.T) {
	both, chacha, none := Suites(3), Suites(1), Suites(1<<9)
	for _, c := range []struct {
		a, b Suites
		want string
	}{{both, both, "aes-256-gcm true"}, {both, chacha, "chacha20-poly1305 true"}, {chacha, both, "chacha20-poly1305 true"}, {both, none, "chacha20-poly1305 false"}} {
		s, ok := Choose(c.a, c.b)
		if got := fmt.Sprint(s, ok); got != c.want {
			t.Errorf("Choose(%b, %b) = %s, want %s", c.a, c.b, got, c.want)
		}
	}
}

// TestDeriveBindsEverything changes one thing at a time.
func TestDeriveBindsEverything(t *testing.T) {
	base := Direction{Shared: make([]byte, 32), Sender: peer.Name{2}, Receiver: peer.Name{4}, Index: 7}
	seen := map[Key]int{base.Derive(): -1}
	for i, change := range []func(*Direction){
		func(d *Direction) { d.Shared = append(bytes.Clone(d.Shared[:31]), 1) },
		func(d *Direction) { d.Session[31] = 1 },
		func(d *Direction) { d.OfferKey[0] = 1 },
		func(d *Direction) { d.AnsKey[0] = 1 },
		func(d *Direction) { d.Sender, d.Receiver = d.Receiver, d.Sender },
		func(d *Direction) { d.Index = 8 },
		func(d *Direction) { d.Suite = AES256GCM },
	} {
		d := base
		change(&d)
		k := d.Derive()
		if j, dup := seen[k]; dup {
			t.Errorf("changes %d and %d give one key", i, j)
		}
		seen[k] = i
	}
	if _, same := seen[base.Derive()]; !same {
		t.Error("not the same key twice")
	}
}

func TestNoAllocation(t *testing.T) {
	for _, s := range []Suite{AES256GCM, ChaCha20Poly1305} {
		if n := testing.AllocsPerRun(1000, cycle(t, s, 1400)); n != 0 {
			t.Errorf("%s: %v allocations a packet", s, n)
		}
	}
}

// cycle returns a function that seals and opens one packet.
func cycle(t testing.TB, s Suite, size int) func() {
	tx, rx := pair(t, s, 1)
	buf := make([]byte, wire.HeaderLen+size, wire.Overhead+size)
	var n1, n2 Nonce
	return func() {
		p, err := tx.Seal(wire.Data, 0, buf, &n1)
		if err != nil {
			t.Fatal(err)
		}
		h, _ := wire.ParseHeader(p)
		if _, _, err := rx.Open(h, p, &n2); err != nil {
			t.Fatal(err)
		}
	}
}

func BenchmarkSealOpen(b *testing.B) {
	for _, s := range []Suite{AES256GCM, ChaCha20Poly1305} {
		for _, size := range []int{64, 1400, 8900} {
			b.Run(fmt.Sprintf("%s/%d", s, size), func(b *testing.B) {
				f := cycle(b, s, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for b.Loop() {
					f()
				}
			})
		}
	}
}
