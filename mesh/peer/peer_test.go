package peer

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
)

func TestParseNameReadsWhatStringPrints(t *testing.T) {
	for in, want := range map[string]Name{
		"02:ab:cd:00:00:01": {2, 0xab, 0xcd, 0, 0, 1},
		"2:AB:cd:0:0:1":     {2, 0xab, 0xcd, 0, 0, 1},
		"::1":               {0, 0, 0, 0, 0, 1},
		"2::":               {2, 0, 0, 0, 0, 0},
		"2::1:2":            {2, 0, 0, 0, 1, 2},
	} {
		got, err := ParseName(in)
		if err != nil || got != want {
			t.Errorf("%q: %s, %v; want %s", in, got, err, want)
		}
		if again, err := ParseName(got.String()); err != nil || again != got {
			t.Errorf("%s comes back as %s, %v", got, again, err)
		}
	}
	for _, in := range []string{"", "::", "1", "1:2:3:4:5", "1:2:3:4:5:6:7", "1:2:3::4:5:6", "g:1:1:1:1:1", "123:1:1:1:1:1",
		"ff:ff:ff:ff:ff:ff", "0:0:0:0:0:0", "::1::2", "1::2::3", ":1:2:3:4:5"} {
		if n, err := ParseName(in); err == nil {
			t.Errorf("%q is parsed as %s", in, n)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: an error of several lines", in)
		}
	}
}

func TestDerivedNameIsAUnicastLocalMAC(t *testing.T) {
	seen := make(map[Name]bool)
	for range 100 {
		id, err := NewIdentity(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		if seen[id.Name] || id.Name[0]&3 != 2 || !id.Name.Derived() {
			t.Fatalf("name %s", id.Name)
		}
		if _, err := net.ParseMAC(id.Name.String()); err != nil {
			t.Error(err)
		}
		seen[id.Name] = true
		again, err := IdentityFromSeed(id.Seed())
		if err != nil || again.Name != id.Name || again.Key() != id.Key() {
			t.Fatalf("from its seed comes %+v, %v", again, err)
		}
	}
	if _, err := IdentityFromSeed(make([]byte, 5)); err == nil {
		t.Error("a seed of 5 bytes is accepted")
	}
}

func TestSignatureHoldsForItsDomainAndKeyOnly(t *testing.T) {
	a, _ := NewIdentity(rand.Reader)
	b, _ := NewIdentity(rand.Reader)
	for name, pair := range map[string]struct {
		a, b Signer
		v    Verifier
	}{"ed25519": {a, b, Ed25519{}}, "cheap": {Cheap{Key{1}}, Cheap{Key{2}}, Cheap{}}} {
		sig := pair.a.Sign("d", []byte("m"))
		if !pair.v.Verify(pair.a.Key(), "d", []byte("m"), sig) {
			t.Errorf("%s: a valid signature fails", name)
		}
		if pair.v.Verify(pair.b.Key(), "d", []byte("m"), sig) || pair.v.Verify(pair.a.Key(), "e", []byte("m"), sig) ||
			pair.v.Verify(pair.a.Key(), "d", []byte("n"), sig) {
			t.Errorf("%s: a signature is valid for another domain, key or message", name)
		}
	}
}

func TestBookKeepsTheFirstKey(t *testing.T) {
	var b Book
	n := Name{1}
	if err := b.Bind(n, Key{1}, Via{}); err != nil {
		t.Fatal(err)
	}
	if err := b.Bind(n, Key{2}, Via{}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("another key: %v", err)
	}
	if k, ok := b.Lookup(n); !ok || k != (Key{1}) {
		t.Errorf("key %x", k)
	}
	b.Forget(n)
	if err := b.Bind(n, Key{2}, Via{}); err != nil {
		t.Errorf("after it was forgotten: %v", err)
	}
}

func TestDerivedNameAcceptsOnlyItsKey(t *testing.T) {
	var b Book
	id, _ := NewIdentity(rand.Reader)
	other, _ := NewIdentity(rand.Reader)
	if err := b.Bind(id.Name, other.Key(), Via{}); !errors.Is(err, ErrNameTaken) {
		t.Errorf("another key comes first: %v", err)
	}
	if err := b.Bind(id.Name, id.Key(), Via{}); err != nil {
		t.Errorf("its own key: %v", err)
	}
	b.Forget(id.Name)
	if err := b.Check(id.Name, other.Key()); !errors.Is(err, ErrNameTaken) {
		t.Errorf("another key after the name was forgotten: %v", err)
	}
	if err := id.Name.CheckOverride(); err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("a derived name as an override: %v", err)
	}
	for _, n := range []Name{{0, 0, 0, 0, 0, 1}, {2, 1}, {0x52, 0x54}} {
		if err := n.CheckOverride(); err != nil {
			t.Errorf("override %s: %v", n, err)
		}
	}
}

// A flood of names must not push out the name of a host that is away but owns addresses.
func TestBookIsBoundedAndKeepsWhatIsHeld(t *testing.T) {
	var b Book
	key := func(i int) Key { return Key{byte(i), byte(i >> 8), byte(i >> 16), 9} }
	name := func(i int) Name { return Name{0, 1, 0, byte(i >> 16), byte(i >> 8), byte(i)} }
	for i := range 3 {
		if err := b.Bind(name(i), key(i), Via{}); err != nil {
			t.Fatal(err)
		}
	}
	b.Hold(name(0))
	_ = b.Bind(name(1), key(1), Via{}) // used again: name 2 is the oldest now
	for i := 3; i < maxBound+1; i++ {
		if err := b.Bind(name(i), key(i), Via{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := b.Lookup(name(2)); ok {
		t.Error("the oldest binding is still there")
	}
	for i := maxBound + 1; i < 3*maxBound; i++ {
		_ = b.Bind(name(i), key(i), Via{})
	}
	if n := len(b.Bindings()); n != maxBound {
		t.Errorf("%d bindings, want %d", n, maxBound)
	}
	if _, ok := b.Lookup(name(0)); !ok {
		t.Error("a held binding was dropped")
	}
	if _, ok := b.Lookup(name(1)); ok {
		t.Error("a binding that nobody holds outlived newer ones")
	}
}

// A neighbour that brings names without end pushes out neither names that other neighbours
// brought, nor those of hosts that came themselves, whether it holds its own or not.
func TestNamesOfAFloodPushOutOnlyThemselves(t *testing.T) {
	honest, evil := Via{Neighbour: Name{2, 1}}, Via{Addr: netip.MustParseAddr("198.51.100.9")}
	own := func(i int) Via { return Via{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Own: true} }
	name := func(kind byte, i int) Name { return Name{0, kind, 0, 0, byte(i >> 8), byte(i)} }
	for _, held := range []bool{false, true} {
		var b Book
		bind := func(kind byte, i int, via Via) error {
			return b.Bind(name(kind, i), Key{kind, byte(i), byte(i >> 8)}, via)
		}
		for i := range 100 {
			if err := errors.Join(bind(1, i, honest), bind(2, i, own(i)), bind(3, i, Via{})); err != nil {
				t.Fatal(err)
			}
		}
		// One of them was brought by the neighbour, and came itself later.
		if err := errors.Join(bind(4, 1, evil), bind(4, 1, own(200))); err != nil {
			t.Fatal(err)
		}
		refused := 0
		for i := range 2 * maxBound {
			if bind(5, i, evil) != nil {
				refused++
			} else if held {
				b.Hold(name(5, i))
			}
		}
		for i := range 100 {
			for kind := byte(1); kind <= 3; kind++ {
				if _, ok := b.Lookup(name(kind, i)); !ok {
					t.Errorf("held %v: name %s was pushed out", held, name(kind, i))
				}
			}
		}
		if _, ok := b.Lookup(name(4, 1)); !ok {
			t.Errorf("held %v: the name of a host that came itself was pushed out", held)
		}
		if want := maxBound + 301; held && refused != want || !held && refused != 0 || len(b.Bindings()) != maxBound {
			t.Errorf("held %v: %d names were refused, %d are bound", held, refused, len(b.Bindings()))
		}
		if err := bind(6, 1, own(100)); err != nil {
			t.Errorf("held %v: a newcomer: %v", held, err)
		}
	}
}

func TestNameInJSON(t *testing.T) {
	in := map[Name]Name{{2, 1}: {2, 2}}
	b, err := json.Marshal(in)
	if err != nil || !bytes.Contains(b, []byte(`"02:01:00:00:00:00":"02:02:00:00:00:00"`)) {
		t.Fatalf("%s, %v", b, err)
	}
	var out map[Name]Name
	if err := json.Unmarshal(b, &out); err != nil || out[Name{2, 1}] != in[Name{2, 1}] {
		t.Errorf("%v, %v", out, err)
	}
}

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"02:ab:cd:00:00:01", "::1", "2::", ":::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		if again, err := ParseName(n.String()); err != nil || again != n || n.IsZero() || n == Broadcast {
			t.Fatalf("%q gives %s, which gives %s, %v", s, n, again, err)
		}
	})
}
