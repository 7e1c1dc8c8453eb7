package names

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Unix(1_700_000_000, 0)

func nameOf(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func signerOf(i int) peer.Cheap { return peer.Cheap{ID: peer.Key{1, byte(i >> 8), byte(i)}} }

func newState(i int) *State { return newStateWith(i, nil, nil) }

func newStateWith(i int, ranges []netip.Prefix, owns func(peer.Name, netip.Addr) bool) *State {
	return New(Config{Self: nameOf(i), Signer: signerOf(i), Verifier: peer.Cheap{}, Start: epoch, Ranges: ranges, Owns: owns})
}

// setReached reports to s that it reaches peers. s itself is skipped.
func setReached(s *State, peers ...int) [][]byte {
	m := make(map[peer.Name]peer.Key)
	for _, i := range peers {
		m[nameOf(i)] = signerOf(i).ID
	}
	return s.SetOwners(m)
}

func entry(name, container, addr string) Entry {
	return Entry{Name: name, Container: container, Addr: netip.MustParseAddr(addr), Outside: true}
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
	a, b := newState(1), newState(2)
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
	a := newState(1)
	one, two := entry("n", "c1", "10.0.0.1"), entry("n", "c2", "10.0.0.1")
	change(t, a, nil, []Entry{one, two})
	wantLookup(t, a, "n", "[10.0.0.1]")
	change(t, a, []Entry{one}, nil)
	wantLookup(t, a, "n", "[10.0.0.1]")
	change(t, a, []Entry{two}, nil)
	wantLookup(t, a, "n", "unknown")
}

// manyEntries returns more names than one message holds.
func manyEntries() (all []Entry) {
	for i := range 20_000 {
		all = append(all, entry(fmt.Sprintf("a-name-that-is-not-so-short-%d.weft.internal", i), "0123456789abcdef", "10.32.0.1"))
	}
	return all
}

func TestManyNames(t *testing.T) {
	a, b := newState(1), newState(2)
	setReached(b, 1)
	in := manyEntries()
	merge(t, b, change(t, a, nil, in)...)
	if n := b.Table().Len(); n != len(in) {
		t.Errorf("%d entries, want %d", n, len(in))
	}
}

func TestEntryNeedsContainer(t *testing.T) {
	a := newState(1)
	if _, err := a.Change(nil, []Entry{{Name: "x", Addr: netip.MustParseAddr("10.32.0.1")}}); err == nil {
		t.Error("an entry without a container was accepted")
	}
}

func marked(s *State) []Listed {
	list, _ := s.List(1 << 20)
	Sort(list)
	s.Table().MarkRefused(list)
	return list
}

// checkTable compares the table with the result of List.
func checkTable(t testing.TB, s *State) {
	t.Helper()
	forward, reverse := make(map[string]map[netip.Addr]bool), make(map[netip.Addr]map[string]bool)
	for _, l := range marked(s) {
		if forward[l.Name] == nil {
			forward[l.Name] = make(map[netip.Addr]bool)
		}
		if reverse[l.Addr] == nil {
			reverse[l.Addr] = make(map[string]bool)
		}
		if l.Refused == "" {
			forward[l.Name][l.Addr], reverse[l.Addr][l.Name] = true, true
		}
	}
	if list, omitted := s.List(1 << 20); s.table.Len() != len(list) || omitted != 0 {
		t.Fatalf("the table has %d entries, %d are listed and %d omitted", s.table.Len(), len(list), omitted)
	}
	refused := 0
	for _, l := range marked(s) {
		if l.Refused != "" {
			refused++
		}
	}
	if n := s.table.CountRefused(func() bool { return false }); n != refused {
		t.Fatalf("%d entries are refused, want %d", n, refused)
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

// A peer that has many names does not push those of others out of a list.
func TestListIsSharedFairly(t *testing.T) {
	s := newState(0)
	setReached(s, 1, 2)
	change(t, s, nil, []Entry{entry("own.weft.internal", "c", "10.32.0.1")})
	var many []Entry
	for i := range 500 {
		many = append(many, entry(fmt.Sprintf("m%d.weft.internal", i), "c", "10.32.0.2"))
	}
	merge(t, s, change(t, newState(1), nil, many)...)
	merge(t, s, change(t, newState(2), nil, many[:20])...)
	for _, c := range []struct{ limit, own, first, second int }{{1000, 1, 500, 20}, {100, 1, 79, 20}, {30, 1, 15, 14}, {2, 0, 1, 1}, {0, 0, 0, 0}} {
		list, omitted := s.List(c.limit)
		got := make(map[peer.Name]int)
		for _, l := range list {
			got[l.Owner]++
		}
		if got[nameOf(0)] != c.own || got[nameOf(1)] != c.first || got[nameOf(2)] != c.second || omitted != 521-len(list) {
			t.Errorf("limit %d: %v and %d omitted, want %+v", c.limit, got, omitted, c)
		}
	}
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

// The names of a dead peer are not answered, and are answered again when it returns.
func TestNamesOfDeadPeer(t *testing.T) {
	a, b := newState(1), newState(2)
	setReached(b, 1)
	merge(t, b, change(t, a, nil, []Entry{entry("web", "c", "10.32.0.1")})...)
	setReached(b)
	wantLookup(t, b, "web", "unknown")
	if b.Table().Reverse(netip.MustParseAddr("10.32.0.1")) != nil || b.Table().Len() != 0 {
		t.Error("a dead peer's names are still shown")
	}
	checkTable(t, b)
	setReached(b, 1)
	wantLookup(t, b, "web", "[10.32.0.1]")
	checkTable(t, b)
}

// A peer has a limited number of names, and a change that exceeds it changes nothing.
func TestTooManyNames(t *testing.T) {
	a := newState(1)
	in := manyEntries()
	before := a.Table().Len()
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
		before = a.Table().Len()
	}
	if n := a.Table().Len(); n != before {
		t.Errorf("a change that failed changed something: %d entries, were %d", n, before)
	}
	checkTable(t, a)
}

// An address of the mesh is answered if it belongs to the peer that names it. Who owns it
// may change at any time.
func TestAddressesOfOtherPeers(t *testing.T) {
	owner := nameOf(1)
	owns := func(n peer.Name, a netip.Addr) bool { return n == owner && a.As4()[3] < 100 }
	ranges := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
	a, liar, b := newState(1), newState(3), newStateWith(2, ranges, owns)
	setReached(b, 1, 3)
	mine, theirs := entry("web", "c", "10.32.0.1"), entry("web", "c", "10.32.0.200")
	mine.Outside, theirs.Outside = false, false
	merge(t, b, change(t, a, nil, []Entry{mine, theirs})...)
	wantLookup(t, b, "web", "[10.32.0.1]")
	for _, e := range []Entry{entry("web", "c", "10.32.0.2"), entry("bank", "c", "10.32.0.1"), entry("x.prod", "c", "10.32.0.1")} {
		merge(t, b, change(t, liar, nil, []Entry{e})...)
	}
	wantLookup(t, b, "web", "[10.32.0.1]")
	wantLookup(t, b, "bank", "unknown")
	if got := b.Table().Reverse(mine.Addr); !slices.Equal(got, []string{"web"}) {
		t.Errorf("names of %s: %v", mine.Addr, got)
	}
	refused := 0
	for _, l := range marked(b) {
		if l.Refused != "" {
			refused++
		} else if l.Owner != nameOf(1) || l.Entry != mine {
			t.Errorf("answered: %v", l)
		}
	}
	if refused != 4 {
		t.Errorf("the list says that %d entries are not answered, want 4", refused)
	}
	owner = nameOf(3)
	b.Table().Refresh()
	wantLookup(t, b, "web", "[10.32.0.2]")
	wantLookup(t, b, "bank", "[10.32.0.1]")
	checkTable(t, b)
}

// An address outside the mesh is answered if the peer says so and no other peer has an
// address of its own in the mesh with that name.
func TestAddressesOutside(t *testing.T) {
	ranges := []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}
	owns := func(n peer.Name, _ netip.Addr) bool { return n == nameOf(1) }
	a, liar, b := newState(1), newState(3), newStateWith(2, ranges, owns)
	setReached(b, 1, 3)
	plain := entry("plain", "c", "192.0.2.7")
	plain.Outside = false
	merge(t, b, change(t, liar, nil, []Entry{plain, entry("db", "c", "192.0.2.7"), entry("web", "c", "192.0.2.7")})...)
	wantLookup(t, b, "plain", "unknown")
	wantLookup(t, b, "db", "[192.0.2.7]")
	wantLookup(t, b, "web", "[192.0.2.7]")
	inside := entry("web", "c", "10.32.0.1")
	merge(t, b, change(t, a, nil, []Entry{inside, entry("web", "c", "192.0.2.8")})...)
	wantLookup(t, b, "web", "[10.32.0.1 192.0.2.8]")
	if got := b.Table().Reverse(plain.Addr); !slices.Equal(got, []string{"db"}) {
		t.Errorf("names of %s: %v", plain.Addr, got)
	}
	// An address that is not the liar's own does not hide those of others.
	merge(t, b, change(t, liar, nil, []Entry{entry("web", "c", "10.32.0.9")})...)
	wantLookup(t, b, "web", "[10.32.0.1 192.0.2.8]")
	merge(t, b, change(t, a, []Entry{inside}, nil)...)
	wantLookup(t, b, "web", "[192.0.2.7 192.0.2.8]")
	checkTable(t, b)
}

func FuzzDecode(f *testing.F) {
	e := []Entry{entry("web", "c1", "10.32.0.1"), entry("web", "c2", "fd00::1")}
	e[1].Outside = false
	f.Add(encode(e), bucketOf("web"))
	f.Add([]byte{2, 1, 'a'}, byte(0))
	f.Fuzz(func(t *testing.T, b []byte, bucket byte) {
		entries, err := decode(bucket, b)
		if err != nil {
			return
		}
		for _, e := range entries {
			if err := e.Check(); err != nil || bucketOf(e.Name) != bucket {
				t.Fatalf("%v in bucket %d: %v", e, bucket, err)
			}
		}
		if again := encode(entries); !bytes.Equal(again, b) {
			t.Fatalf("%x is encoded again as %x", b, again)
		}
	})
}

// While the owner of an address is being asked, other names are answered, and the names that
// were answered before are answered as before.
func TestOwnersThatAnswerLate(t *testing.T) {
	asked, wait := make(chan bool), make(chan bool)
	slow := false
	owns := func(_ peer.Name, a netip.Addr) bool {
		if slow && a.As4()[3] == 1 {
			asked <- true
			<-wait
			return false
		}
		return true
	}
	s := newStateWith(1, []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}, owns)
	change(t, s, nil, []Entry{entry("late", "c", "10.32.0.1"), entry("web", "c", "10.32.0.2")})
	wantLookup(t, s, "late", "[10.32.0.1]")
	slow = true
	done := make(chan bool)
	go func() { s.Table().Refresh(); close(done) }()
	<-asked
	wantLookup(t, s, "late", "[10.32.0.1]")
	wantLookup(t, s, "web", "[10.32.0.2]")
	change(t, s, nil, []Entry{entry("web", "c", "10.32.0.3")}) // takes the lock for writing
	wantLookup(t, s, "web", "[10.32.0.2 10.32.0.3]")
	wait <- true
	<-done
	wantLookup(t, s, "late", "unknown")
}

// A name that changes while its answer is being found gets no answer of before.
func TestChangeWhileAnswering(t *testing.T) {
	var s *State
	first := true
	owns := func(peer.Name, netip.Addr) bool {
		if first {
			first = false
			change(t, s, []Entry{entry("web", "c", "10.32.0.1")}, []Entry{entry("web", "c", "10.32.0.2")})
		}
		return true
	}
	s = newStateWith(1, []netip.Prefix{netip.MustParsePrefix("10.32.0.0/12")}, owns)
	change(t, s, nil, []Entry{entry("web", "c", "10.32.0.1")})
	lookup(s, "web")
	wantLookup(t, s, "web", "[10.32.0.2]")
}
