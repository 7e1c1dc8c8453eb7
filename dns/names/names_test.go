package names

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Unix(1_700_000_000, 0)

func nameOf(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func signerOf(i int) peer.Cheap { return peer.Cheap{ID: peer.Key{1, byte(i >> 8), byte(i)}} }

func newState(i int, incarnation uint64) *State {
	return New(Config{Self: nameOf(i), Signer: signerOf(i), Verifier: peer.Cheap{}, Incarnation: incarnation})
}

// setReached reports to s that it reaches peers. s itself is skipped.
func setReached(s *State, peers ...int) [][]byte {
	m := make(map[peer.Name]peer.Key)
	for _, i := range peers {
		if nameOf(i) != s.cfg.Self {
			m[nameOf(i)] = signerOf(i).ID
		}
	}
	return s.SetPeers(m)
}

func entry(name, container, addr string) Entry {
	return Entry{Name: name, Container: container, Addr: netip.MustParseAddr(addr)}
}

func change(t testing.TB, s *State, out, in []Entry) [][]byte {
	t.Helper()
	d, err := s.Change(out, in)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func merge(t testing.TB, s *State, deltas ...[]byte) (news []byte) {
	t.Helper()
	for _, d := range deltas {
		n, err := s.Merge(nameOf(999), d)
		if err != nil {
			t.Fatal(err)
		}
		news = append(news, n...)
	}
	return news
}

// allRecords returns all records of a state as deltas.
func allRecords(t testing.TB, s *State) [][]byte {
	t.Helper()
	deltas, _, err := s.Missing([]byte{digestList})
	if err != nil {
		t.Fatal(err)
	}
	return deltas
}

func lookup(s *State, name string) string {
	addrs, known := s.Table().Lookup(nil, name)
	if !known {
		return "unknown"
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return fmt.Sprint(addrs)
}

func wantLookup(t *testing.T, s *State, name, want string) {
	t.Helper()
	if got := lookup(s, name); got != want {
		t.Errorf("%s: %s, want %s", name, got, want)
	}
}

func TestCanonical(t *testing.T) {
	for in, want := range map[string]string{
		"web": "web", "WEB.Weft.Internal.": "web.weft.internal", "_http._tcp.a": "_http._tcp.a", "a-b.c": "a-b.c", "1.2": "1.2",
	} {
		if got, err := Canonical(in); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, bad := range []string{
		"", ".", "a..b", ".a", "-a", "a-", "a-.b", "a b", "a\x00", "é", "*.a", "a/b", strings.Repeat("a", 64),
		strings.Repeat("a.", 127) + "a", "a..",
	} {
		if got, err := Canonical(bad); err == nil {
			t.Errorf("%q is accepted as %q", bad, got)
		}
	}
}

// A name is deleted by a newer record of its bucket without the name.
func TestAddAndRemoveNames(t *testing.T) {
	a, b := newState(1, 10), newState(2, 10)
	setReached(b, 1)
	web1, web2 := entry("web.weft.internal", "c1", "10.32.0.1"), entry("web.weft.internal", "c2", "10.32.0.2")
	db := entry("db.prod.weft.internal", "c2", "fd00::2")
	merge(t, b, change(t, a, nil, []Entry{web1, web2, db})...)
	for _, s := range []*State{a, b} {
		wantLookup(t, s, "web.weft.internal", "[10.32.0.1 10.32.0.2]")
		wantLookup(t, s, "db.prod.weft.internal", "[fd00::2]")
		wantLookup(t, s, "prod.weft.internal", "[]") // a domain that has names below it
		wantLookup(t, s, "x.prod.weft.internal", "unknown")
		if got := s.Table().Reverse(netip.MustParseAddr("10.32.0.2")); !slices.Equal(got, []string{"web.weft.internal"}) {
			t.Errorf("names of 10.32.0.2: %v", got)
		}
		if got := s.Table().Len(); got != 3 {
			t.Errorf("%d entries", got)
		}
	}
	merge(t, b, change(t, a, a.Own(func(e Entry) bool { return e.Container == "c2" }), nil)...)
	wantLookup(t, b, "web.weft.internal", "[10.32.0.1]")
	wantLookup(t, b, "db.prod.weft.internal", "unknown")
	wantLookup(t, b, "prod.weft.internal", "unknown")
	merge(t, b, change(t, a, []Entry{web1}, nil)...)
	wantLookup(t, b, "weft.internal", "unknown")
	if n := b.Table().Len(); n != 0 {
		t.Errorf("%d entries are left", n)
	}
	if d := change(t, a, []Entry{web1}, nil); d != nil {
		t.Error("the removal of a missing entry was announced")
	}
}

func TestTwoContainersShareNameAndAddress(t *testing.T) {
	a := newState(1, 10)
	one, two := entry("n", "c1", "10.0.0.1"), entry("n", "c2", "10.0.0.1")
	change(t, a, nil, []Entry{one, two})
	wantLookup(t, a, "n", "[10.0.0.1]")
	change(t, a, []Entry{one}, nil)
	wantLookup(t, a, "n", "[10.0.0.1]")
	change(t, a, []Entry{two}, nil)
	wantLookup(t, a, "n", "unknown")
}

// The names of a dead peer are not answered, and are answered again when it returns.
func TestNamesOfDeadPeer(t *testing.T) {
	a, b := newState(1, 10), newState(2, 10)
	now := epoch
	b.Tick(now)
	setReached(b, 1)
	web := entry("web", "c", "10.32.0.1")
	deltas := change(t, a, nil, []Entry{web})
	merge(t, b, deltas...)
	setReached(b)
	wantLookup(t, b, "web", "unknown")
	if b.Table().Reverse(web.Addr) != nil || len(b.List()) != 0 {
		t.Error("a dead peer's names are still shown")
	}
	setReached(b, 1)
	wantLookup(t, b, "web", "[10.32.0.1]")
	setReached(b)
	for range 2 * int(ForgetAfter/time.Second) {
		now = now.Add(time.Second)
		b.Tick(now)
	}
	if len(b.owners) != 1 {
		t.Errorf("still %d owners after %v", len(b.owners), 2*ForgetAfter)
	}
	merge(t, b, deltas...) // a late copy from a neighbour is not accepted
	if len(b.owners) != 1 {
		t.Error("a neighbour revived a dead peer")
	}
	setReached(b, 1)
	wantLookup(t, b, "web", "[10.32.0.1]")
}

// Records that arrive before their owner is reported wait for it.
func TestRecordsWaitForOwner(t *testing.T) {
	a, b := newState(1, 10), newState(2, 10)
	deltas := change(t, a, nil, []Entry{entry("web", "c", "10.32.0.1")})
	if news := merge(t, b, deltas...); news != nil {
		t.Error("a record of an unknown peer is reported as new")
	}
	wantLookup(t, b, "web", "unknown")
	announced := setReached(b, 1)
	wantLookup(t, b, "web", "[10.32.0.1]")
	if !bytes.Equal(slices.Concat(announced...), slices.Concat(deltas...)) {
		t.Error("the waiting record was not announced")
	}
	// The buffer is bounded, and records in it expire.
	for i := range 20_000 {
		b.addWaiting(header{owner: nameOf(7), version: uint64(i)}, make([]byte, 200))
	}
	if b.waitingBytes > maxWaiting {
		t.Errorf("%d bytes wait, at most %d", b.waitingBytes, maxWaiting)
	}
	b.Tick(epoch)
	b.Tick(epoch.Add(2 * waitingTimeout))
	if len(b.waiting) != 0 || b.waitingBytes != 0 {
		t.Errorf("%d records of %d bytes still wait", len(b.waiting), b.waitingBytes)
	}
}

// A restart supersedes all records of the former incarnation.
func TestRestartSupersedes(t *testing.T) {
	for what, incarnation := range map[string]uint64{"clock is ahead": 20, "clock went back": 5, "clock is equal": 10} {
		old, b := newState(1, 10), newState(2, 10)
		setReached(b, 1)
		merge(t, b, change(t, old, nil, []Entry{entry("gone", "c", "10.32.0.1"), entry("stays", "c", "10.32.0.2")})...)
		again := newState(1, incarnation)
		setReached(again, 2)
		again.Tick(epoch)
		change(t, again, nil, []Entry{entry("stays", "c", "10.32.0.2")})
		now := epoch
		for range 3 {
			merge(t, again, allRecords(t, b)...)
			now = now.Add(time.Second)
			again.Tick(now)
			merge(t, b, allRecords(t, again)...)
		}
		wantLookup(t, b, "gone", "unknown")
		wantLookup(t, b, "stays", "[10.32.0.2]")
		wantLookup(t, again, "stays", "[10.32.0.2]")
		if !bytes.Equal(again.Digest(), b.Digest()) {
			t.Errorf("%s: the two still differ", what)
		}
		if r := again.Refused(); r != nil {
			t.Errorf("%s: %v", what, r)
		}
	}
}

// Two clones must not keep the mesh busy, and must be reported to the user.
func TestClonesAreRateLimited(t *testing.T) {
	a, b := newState(1, 10), newState(1, 10)
	change(t, a, nil, []Entry{entry("a", "c", "10.32.0.1")})
	change(t, b, nil, []Entry{entry("b", "c", "10.32.0.2")})
	now, announced, rival := epoch, 0, false
	const seconds = 60
	for range seconds {
		now = now.Add(time.Second)
		merge(t, a, allRecords(t, b)...)
		merge(t, b, allRecords(t, a)...)
		announced += len(a.Tick(now)) + len(b.Tick(now))
		for _, r := range append(a.Refused(), b.Refused()...) {
			rival = rival || errors.Is(r.Cause, ErrRival)
		}
	}
	if most := 2 * (seconds*int(time.Second)/int(reclaimEvery) + 2); announced > most {
		t.Errorf("%d announcements in a minute, want at most %d", announced, most)
	}
	if !rival {
		t.Error("the clone is not reported")
	}
}

func TestForgedRecordsAreRefused(t *testing.T) {
	b := newState(2, 10)
	setReached(b, 1, 3)
	forge := func(r *record) []byte { return r.raw }
	web := []Entry{entry("web", "c", "10.32.0.1")}
	h := header{owner: nameOf(1), incarnation: 10, version: 1, bucket: bucketOf("web")}
	cases := map[string][]byte{
		"signed by another peer": forge(newRecord(h, web, signerOf(3))),
		"signature broken":       forge(newRecord(h, web, signerOf(1))),
		"in the wrong bucket":    forge(newRecord(header{owner: nameOf(1), incarnation: 10, version: 1, bucket: bucketOf("web") + 1}, web, signerOf(1))),
		"as this peer itself":    forge(newRecord(header{owner: nameOf(2), incarnation: 99, version: 1, bucket: bucketOf("web")}, web, signerOf(3))),
	}
	broken := cases["signature broken"]
	broken[len(broken)-1] ^= 1
	for i := range broken[len(broken)-peer.SignatureLen:] {
		broken[len(broken)-peer.SignatureLen+i] ^= 0x55
	}
	for what, d := range cases {
		if news := merge(t, b, d); news != nil {
			t.Errorf("%s: accepted", what)
		}
		if len(b.Refused()) != 1 {
			t.Errorf("%s: not refused", what)
		}
	}
	// A forged record does not prevent the merge of a valid record behind it.
	merge(t, b, append(slices.Clone(broken), newRecord(h, web, signerOf(1)).raw...))
	wantLookup(t, b, "web", "[10.32.0.1]")
	if b.Tick(epoch); b.own.incarnation != 10 {
		t.Errorf("a forged record made this peer begin incarnation %d", b.own.incarnation)
	}
}

func TestPeerWithNewKey(t *testing.T) {
	b := newState(2, 10)
	setReached(b, 1)
	merge(t, b, change(t, newState(1, 10), nil, []Entry{entry("web", "c", "10.32.0.1")})...)
	fresh := New(Config{Self: nameOf(1), Signer: signerOf(50), Verifier: peer.Cheap{}, Incarnation: 20})
	b.SetPeers(map[peer.Name]peer.Key{nameOf(1): signerOf(50).ID})
	wantLookup(t, b, "web", "unknown")
	merge(t, b, change(t, fresh, nil, []Entry{entry("new", "c", "10.32.0.1")})...)
	wantLookup(t, b, "new", "[10.32.0.1]")
}

// manyEntries returns more names than one message holds.
func manyEntries() (all []Entry) {
	for i := range 20_000 {
		all = append(all, entry(fmt.Sprintf("a-name-that-is-not-so-short-%d.weft.internal", i), "0123456789abcdef", "10.32.0.1"))
	}
	return all
}

func TestManyNames(t *testing.T) {
	a, b := newState(1, 10), newState(2, 10)
	setReached(b, 1)
	in := manyEntries()
	merge(t, b, change(t, a, nil, in)...)
	if n := b.Table().Len(); n != len(in) {
		t.Errorf("%d entries, want %d", n, len(in))
	}
}

// A peer has a limited number of names, and a change that exceeds it changes nothing.
func TestTooManyNames(t *testing.T) {
	a := newState(1, 10)
	in := manyEntries()
	before := a.Digest()
	for container := 0; ; container++ {
		for i := range in {
			in[i].Container = fmt.Sprintf("c%d", container)
		}
		_, err := a.Change(nil, in)
		if errors.Is(err, ErrFull) {
			break
		}
		if err != nil || container > 100 {
			t.Fatalf("%d entries for container %d: %v", len(in), container, err)
		}
		before = a.Digest()
	}
	if !bytes.Equal(a.Digest(), before) {
		t.Error("a change that failed changed something")
	}
}

func TestEntryNeedsContainer(t *testing.T) {
	a := newState(1, 10)
	if _, err := a.Change(nil, []Entry{{Name: "x", Addr: netip.MustParseAddr("10.32.0.1")}}); err == nil {
		t.Error("an entry without a container was accepted")
	}
}

// twin is the slow and obvious merge: it keeps all records and computes the maximum.
type twin struct{ seen []*record }

func (w *twin) entries() map[Listed]bool {
	incarnation := make(map[peer.Name]uint64)
	for _, r := range w.seen {
		incarnation[r.owner] = max(incarnation[r.owner], r.incarnation)
	}
	type place struct {
		owner  peer.Name
		bucket uint8
	}
	best := make(map[place]*record)
	for _, r := range w.seen {
		p := place{r.owner, r.bucket}
		if r.incarnation == incarnation[r.owner] && (best[p] == nil || r.version > best[p].version) {
			best[p] = r
		}
	}
	m := make(map[Listed]bool)
	for _, r := range best {
		for _, e := range r.entries {
			m[Listed{e, r.owner}] = true
		}
	}
	return m
}

// Merging is commutative, associative and idempotent, and agrees with the twin.
func TestMergeLaws(t *testing.T) {
	rng := seed.Rand(t)
	const peers = 4
	for range 60 {
		var deltas [][]byte
		var w twin
		for i := 1; i <= peers; i++ {
			for incarnation := range 1 + rng.IntN(3) {
				s := newState(i, uint64(10+incarnation))
				deltas = append(deltas, allRecords(t, s)...)
				for range rng.IntN(12) {
					e := entry(fmt.Sprintf("n%d", rng.IntN(6)), fmt.Sprintf("c%d", rng.IntN(2)), fmt.Sprintf("10.32.0.%d", 1+rng.IntN(4)))
					if rng.IntN(3) == 0 {
						deltas = append(deltas, change(t, s, []Entry{e}, nil)...)
					} else {
						deltas = append(deltas, change(t, s, nil, []Entry{e})...)
					}
				}
			}
		}
		for _, d := range deltas {
			r, err := parseRecord(d)
			if err != nil {
				t.Fatal(err)
			}
			w.seen = append(w.seen, r)
		}
		want := w.entries()
		var digest []byte
		for range 4 {
			// In any order, with repetitions, and in parts that other peers joined or merged
			// before.
			order := slices.Clone(deltas)
			for range rng.IntN(len(deltas) + 1) {
				order = append(order, deltas[rng.IntN(len(deltas))])
			}
			rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			s, other := newState(0, 1), newState(0, 1)
			for _, x := range []*State{s, other} {
				setReached(x, 1, 2, 3, 4)
			}
			cut := rng.IntN(len(order) + 1)
			merge(t, s, order[:cut]...)
			merge(t, other, order[cut:]...)
			merge(t, s, allRecords(t, other)...)
			if news := merge(t, s, allRecords(t, s)...); news != nil {
				t.Fatal("a known record is reported as new")
			}
			got := make(map[Listed]bool)
			for _, l := range s.List() {
				got[l] = true
			}
			if !maps.Equal(got, want) {
				t.Fatalf("got %v\nwant %v", got, want)
			}
			if digest == nil {
				digest = s.Digest()
			}
			if !bytes.Equal(s.Digest(), digest) {
				t.Fatal("equal states have different digests")
			}
			checkTable(t, s)
		}
	}
}

// checkTable compares the table with the result of List.
func checkTable(t testing.TB, s *State) {
	t.Helper()
	forward, reverse := make(map[string]map[netip.Addr]bool), make(map[netip.Addr]map[string]bool)
	for _, l := range s.List() {
		if forward[l.Name] == nil {
			forward[l.Name] = make(map[netip.Addr]bool)
		}
		if reverse[l.Addr] == nil {
			reverse[l.Addr] = make(map[string]bool)
		}
		forward[l.Name][l.Addr], reverse[l.Addr][l.Name] = true, true
	}
	if len(forward) != len(s.table.forward) || len(reverse) != len(s.table.reverse) || s.table.Len() != len(s.List()) {
		t.Fatalf("the table has %d names, %d addresses and %d entries, want %d, %d and %d",
			len(s.table.forward), len(s.table.reverse), s.table.Len(), len(forward), len(reverse), len(s.List()))
	}
	for name, want := range forward {
		got, _ := s.table.Lookup(nil, name)
		if len(got) != len(want) || slices.ContainsFunc(got, func(a netip.Addr) bool { return !want[a] }) {
			t.Fatalf("%s: %v, want %v", name, got, want)
		}
	}
	for a, want := range reverse {
		got := s.table.Reverse(a)
		if len(got) != len(want) || slices.ContainsFunc(got, func(n string) bool { return !want[n] }) {
			t.Fatalf("%s: %v, want %v", a, got, want)
		}
	}
}

func TestJoinKeepsTheNewer(t *testing.T) {
	a, b := newState(1, 10), newState(2, 10)
	setReached(b, 1)
	one := change(t, a, nil, []Entry{entry("web", "c", "10.32.0.1"), entry("db", "c", "10.32.0.3")})[0]
	two := change(t, a, []Entry{entry("web", "c", "10.32.0.1")}, []Entry{entry("web", "c", "10.32.0.2")})[0]
	joined := a.Join(slices.Clone(one), two)
	if len(joined) >= len(one)+len(two) {
		t.Error("the older record of a bucket is still there")
	}
	merge(t, b, joined)
	wantLookup(t, b, "web", "[10.32.0.2]")
	wantLookup(t, b, "db", "[10.32.0.3]")
	if a.Join(make([]byte, gossip.MaxDelta), two) != nil {
		t.Error("bytes that are not a delta were joined")
	}
}

// The sums reveal a lost record, and the table of sums does so in a mesh of thousands of peers.
func TestRepair(t *testing.T) {
	a, b := newState(1, 10), newState(2, 10)
	many := []int{1, 2}
	for i := range maxList + 100 {
		many = append(many, 100+i)
	}
	setReached(a, many...)
	setReached(b, many...)
	change(t, a, nil, []Entry{entry("lost", "c", "10.32.0.1")})
	merge(t, b, change(t, a, nil, []Entry{entry("kept", "c", "10.32.0.1")})...)
	repair := func() {
		for range 2 {
			for _, p := range [][2]*State{{a, b}, {b, a}} {
				deltas, _, err := p[0].Missing(p[1].Digest())
				if err != nil {
					t.Fatal(err)
				}
				merge(t, p[1], deltas...)
			}
		}
		if !bytes.Equal(a.Digest(), b.Digest()) {
			t.Fatal("the two still differ")
		}
	}
	repair()
	wantLookup(t, b, "lost", "[10.32.0.1]")
	for _, i := range many[2:] {
		merge(t, a, allRecords(t, newState(i, 10))...)
	}
	repair()
	if a.Digest()[0] != digestTable {
		t.Fatalf("the digest of %d owners is not a table", len(a.owners))
	}
	s := newState(100, 20)
	merge(t, b, change(t, s, nil, []Entry{entry("late", "c", "10.32.0.9")})...)
	deltas, _, err := b.Missing(a.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(slices.Concat(deltas...)); n > 4<<10 {
		t.Errorf("one change of one peer costs %d bytes", n)
	}
	repair()
	wantLookup(t, a, "late", "[10.32.0.9]")
}

func FuzzMerge(f *testing.F) {
	a := newState(1, 10)
	d := change(f, a, nil, []Entry{entry("web.weft.internal", "c1", "10.32.0.1"), entry("db", "c2", "fd00::1")})
	f.Add(slices.Concat(d...))
	f.Add(change(f, a, []Entry{entry("db", "c2", "fd00::1")}, nil)[0])
	f.Add([]byte{0, 0, 0, 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newState(2, 10)
		setReached(s, 1)
		before := s.Digest()
		// The fuzzer cannot sign, so the test signs its records.
		for i := 0; i < len(b); {
			h, err := parseHeader(b[i:])
			if err != nil {
				break
			}
			if h.format == recordFormat {
				raw := b[i : i+h.length]
				name, key := nameOf(1), signerOf(1).ID
				copy(raw[5:], name[:])
				copy(raw[11:], key[:])
				sig := signerOf(1).Sign(signDomain, raw[4:len(raw)-peer.SignatureLen])
				copy(raw[len(raw)-peer.SignatureLen:], sig[:])
			}
			i += h.length
		}
		news, err := s.Merge(nameOf(3), b)
		if err != nil {
			if news != nil || !bytes.Equal(s.Digest(), before) {
				t.Fatal("an error changed the state")
			}
			return
		}
		checkTable(t, s)
		for _, l := range s.List() {
			if err := l.Check(); err != nil {
				t.Fatal(err)
			}
		}
		other := newState(3, 10)
		setReached(other, 1)
		merge(t, other, news)
		if len(other.List()) != len(s.List()) {
			t.Fatalf("the returned records have %d entries, the delta %d", len(other.List()), len(s.List()))
		}
		setReached(s)
		if s.Table().Len() != 0 {
			t.Fatal("entries of an unreachable peer are shown")
		}
	})
}

func FuzzMissing(f *testing.F) {
	a := newState(1, 10)
	change(f, a, nil, []Entry{entry("web", "c1", "10.32.0.1")})
	f.Add(a.Digest())
	f.Add([]byte{digestTable})
	f.Add(append([]byte{digestTable}, make([]byte, 8*rows)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		deltas, _, err := a.Missing(b)
		if err == nil {
			s := newState(2, 10)
			setReached(s, 1)
			merge(t, s, deltas...)
		}
		a.Join(slices.Clone(b), b)
	})
}

func FuzzCanonical(f *testing.F) {
	f.Add("Web.weft.internal.")
	f.Add("a..b")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Canonical(s)
		if err != nil {
			return
		}
		if again, err := Canonical(c); err != nil || again != c {
			t.Fatalf("%q: %q, then %q, %v", s, c, again, err)
		}
	})
}
