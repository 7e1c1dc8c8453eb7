package records

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/seed"
	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

var epoch = time.Unix(1_700_000_000, 0)

func nameOf(i int) peer.Name { return peer.Name{2, 0, 0, 0, byte(i >> 8), byte(i)} }

func signerOf(i int) peer.Cheap { return peer.Cheap{ID: peer.Key{1, byte(i >> 8), byte(i)}} }

// texts is a Map of texts, with what its Changed was told.
type texts struct {
	*Map[string]
	seen map[where]string // the shown values by owner and bucket
}

// where is a bucket of an owner.
type where struct {
	owner  peer.Name
	bucket uint8
}

func place(owner peer.Name, bucket uint8) where { return where{owner, bucket} }

func newTexts(t testing.TB, i int, start time.Time, limits Limits) *texts {
	x := &texts{seen: make(map[where]string)}
	x.Map = New(Config[string]{
		Use: "test", Self: nameOf(i), Signer: signerOf(i), Verifier: peer.Cheap{}, Start: start, Limits: limits,
		Decode: func(_ uint8, b []byte) (string, error) {
			if b[0] == '!' {
				return "", errors.New("begins with !")
			}
			return string(b), nil
		},
		Changed: func(owner peer.Name, bucket uint8, old, now string) {
			p := place(owner, bucket)
			if x.seen[p] != old {
				t.Errorf("%v changes from %q to %q, but was %q", p, old, now, x.seen[p])
			}
			if x.seen[p] = now; now == "" {
				delete(x.seen, p)
			}
		},
	})
	return x
}

// know reports to m that the topology has peers.
func (m *texts) know(peers ...int) [][]byte {
	known := make(map[peer.Name]peer.Key)
	for _, i := range peers {
		known[nameOf(i)] = signerOf(i).ID
	}
	return m.SetOwners(known)
}

func (m *texts) set(t testing.TB, bucket uint8, text string) [][]byte {
	t.Helper()
	d, err := m.Set(map[uint8][]byte{bucket: []byte(text)})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (m *texts) merge(t testing.TB, deltas ...[]byte) (news []byte) {
	t.Helper()
	return m.mergeFrom(t, 999, deltas...)
}

func (m *texts) mergeFrom(t testing.TB, from int, deltas ...[]byte) (news []byte) {
	t.Helper()
	for _, d := range deltas {
		n, err := m.Merge(nameOf(from), d)
		if err != nil {
			t.Fatal(err)
		}
		news = append(news, n...)
	}
	return news
}

func (m *texts) want(t *testing.T, owner int, bucket uint8, text string) {
	t.Helper()
	if got := m.seen[place(nameOf(owner), bucket)]; got != text {
		t.Errorf("bucket %d of peer %d: %q, want %q", bucket, owner, got, text)
	}
}

// emptyDigest is that of a copy without records.
func emptyDigest() []byte { return append([]byte{minLevel}, make([]byte, 8<<minLevel)...) }

// all returns all shown records of m as deltas.
func (m *texts) all(t testing.TB) (deltas [][]byte) {
	t.Helper()
	deltas, _, err := m.Missing(emptyDigest())
	if err != nil {
		t.Fatal(err)
	}
	return deltas
}

// check compares what Changed was told with All, and the counts with the records.
func (m *texts) check(t testing.TB) {
	t.Helper()
	all := 0
	for owner, v := range m.All() {
		all++
		if v == "" {
			t.Fatalf("an empty value of %s is shown", owner)
		}
	}
	if all != len(m.seen) {
		t.Fatalf("%d values are shown, but Changed was told of %d", all, len(m.seen))
	}
	cost, count := 0, 0
	shares := make(map[peer.Name]int)
	for _, o := range m.owners {
		sum := 0
		for _, r := range o.records {
			sum += r.cost
			if w := m.rows[r.row].records; o.shown && (r.place >= len(w) || w[r.place] != r) {
				t.Fatal("a shown record is not in its row")
			}
			if o.shown {
				count++
			}
		}
		if o != m.own {
			sum += ownerCost
			cost += sum
			shares[o.via] += sum
		}
		if sum != o.cost || sum > m.cfg.Limits.Owner {
			t.Fatalf("%s costs %d bytes, the map says %d, the limit is %d", o.name, sum, o.cost, m.cfg.Limits.Owner)
		}
	}
	if cost != m.cost || cost > m.cfg.Limits.Total || count != m.count || !maps.Equal(shares, m.shares) {
		t.Fatalf("%d bytes of records, of %v, and %d shown; the map says %d, %v and %d", cost, shares, count, m.cost, m.shares, m.count)
	}
	if m.waitlist.Bytes() > maxWaitlist {
		t.Fatalf("%d bytes wait", m.waitlist.Bytes())
	}
}

func TestSetAndDelete(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 2, epoch, Limits{})
	b.know(1)
	d := a.set(t, 7, "one")
	b.merge(t, d...)
	b.want(t, 1, 7, "one")
	if again := a.set(t, 7, "one"); again != nil {
		t.Error("an equal value was announced")
	}
	if news := b.merge(t, d...); news != nil {
		t.Error("a known record is reported as new")
	}
	gone := a.set(t, 7, "")
	b.merge(t, gone...)
	b.want(t, 1, 7, "")
	b.merge(t, d...) // a replay
	b.want(t, 1, 7, "")
	if none := a.set(t, 9, ""); none != nil {
		t.Error("the deletion of a bucket that does not exist was announced")
	}
	if _, err := a.Set(map[uint8][]byte{1: []byte("x"), 2: []byte("!")}); err == nil || a.Get(1) != "" {
		t.Errorf("a set with one bad payload: %v, and the other one is %q", err, a.Get(1))
	}
	a.check(t)
	b.check(t)
}

// Whoever signs a record, it must be its owner, in the topology, and not of the future.
func TestRefusedRecords(t *testing.T) {
	now := micros(epoch)
	ok := header{owner: nameOf(1), key: signerOf(1).ID, incarnation: now, version: 1, bucket: 3}
	with := func(change func(h *header)) header { h := ok; change(&h); return h }
	const domain = signDomain + "test"
	for what, c := range map[string]struct {
		raw    []byte
		reason string
	}{
		"signed by another key":       {sign(ok, []byte("x"), domain, signerOf(3)), "key"},
		"signed for another use":      {sign(ok, []byte("x"), signDomain+"other", signerOf(1)), "forged"},
		"a payload that is malformed": {sign(ok, []byte("!"), domain, signerOf(1)), "payload"},
		"incarnation of the future":   {sign(with(func(h *header) { h.incarnation = now + uint64(25*time.Hour/time.Microsecond) }), nil, domain, signerOf(1)), "ahead"},
		"last incarnation":            {sign(with(func(h *header) { h.incarnation = math.MaxUint64 }), nil, domain, signerOf(1)), "ahead"},
		"last version":                {sign(with(func(h *header) { h.version = math.MaxUint64 }), nil, domain, signerOf(1)), "ahead"},
		"as this peer":                {sign(with(func(h *header) { h.owner = nameOf(2) }), []byte("x"), domain, signerOf(3)), "key"},
	} {
		b := newTexts(t, 2, epoch, Limits{})
		b.know(1, 3)
		news, err := b.Merge(nameOf(3), c.raw)
		if news != nil || len(b.seen) != 0 {
			t.Errorf("%s: accepted", what)
		}
		if errors.Is(err, gossip.ErrMalformed) != (c.reason == "forged") {
			t.Errorf("%s: %v", what, err)
		}
		if n := b.Stats().Refused[c.reason]; n != 1 || len(b.Refused()) != 1 {
			t.Errorf("%s: not counted: %v", what, b.Stats().Refused)
		}
		b.Tick(epoch)
		if b.own.incarnation != now {
			t.Errorf("%s: this peer began incarnation %d", what, b.own.incarnation)
		}
		b.check(t)
	}
	b := newTexts(t, 2, epoch, Limits{})
	b.know(1)
	if _, err := b.Merge(nameOf(3), append(sign(ok, []byte("x"), domain, signerOf(1)), 0, 0, 0)); !errors.Is(err, gossip.ErrMalformed) || len(b.seen) != 0 {
		t.Errorf("a delta that is cut short: %v, and %v is stored", err, b.seen)
	}
}

// A name that is derived from a key accepts that key only, whatever the topology says.
func TestDerivedNames(t *testing.T) {
	b := newTexts(t, 2, epoch, Limits{})
	real, liar := signerOf(1), signerOf(9)
	name := peer.IDOf(real.ID).Name()
	h := header{owner: name, incarnation: micros(epoch), version: 1, bucket: 1}
	for _, c := range []struct {
		by    peer.Cheap
		shown int
	}{{liar, 0}, {real, 1}} {
		b.SetOwners(map[peer.Name]peer.Key{name: c.by.ID})
		if b.merge(t, sign(h, []byte("x"), signDomain+"test", c.by)); len(b.seen) != c.shown {
			t.Errorf("key %x: %d records are shown, want %d", c.by.ID[:3], len(b.seen), c.shown)
		}
	}
}

// Records of an owner that the topology loses are kept, but neither shown nor in the digest.
func TestLostOwner(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 2, epoch, Limits{})
	now := epoch
	b.Tick(now)
	before := b.Digest()
	b.know(1)
	deltas := append(a.all(t), a.set(t, 1, "x")...)
	b.merge(t, deltas...)
	b.know()
	b.want(t, 1, 1, "")
	if !bytes.Equal(b.Digest(), before) {
		t.Error("the digest has records of a lost owner")
	}
	b.know(1)
	b.want(t, 1, 1, "x")
	b.know()
	for range int(ForgetAfter/time.Second) + 1 {
		now = now.Add(time.Second)
		b.Tick(now)
	}
	if s := b.Stats(); s.Owners != 0 || s.Bytes != 0 {
		t.Errorf("after %v: %+v", ForgetAfter, s)
	}
	b.merge(t, deltas...) // a late copy from a neighbour only waits
	b.want(t, 1, 1, "")
	b.know(1)
	b.want(t, 1, 1, "x")
	b.check(t)
}

// A record may arrive before the topology entry of its owner. Junk from one neighbour does not
// displace the records that another one brings.
func TestRecordsWaitForTheirOwner(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 2, epoch, Limits{})
	d := a.set(t, 1, "x")
	if news := b.mergeFrom(t, 5, d...); news != nil {
		t.Error("a record that waits is passed on")
	}
	junk := make([]byte, 1000)
	for i := range 10_000 {
		h := header{owner: nameOf(20_000 + i), incarnation: micros(epoch), version: 1}
		b.mergeFrom(t, 6, sign(h, junk, signDomain+"test", signerOf(9)))
	}
	h := header{owner: nameOf(1), incarnation: micros(epoch) + 1000, version: 9, bucket: 1}
	b.mergeFrom(t, 6, sign(h, []byte("lie"), signDomain+"test", signerOf(9)))
	b.check(t)
	if s := b.Stats(); s.WaitDropped == 0 || s.Waiting > s.MaxWaiting {
		t.Errorf("the waitlist is not bounded: %+v", s)
	}
	if got := slices.Concat(b.know(1)...); !bytes.Equal(got, slices.Concat(d...)) {
		t.Error("the waiting record was not announced")
	}
	b.want(t, 1, 1, "x")
	b.Tick(epoch)
	b.Tick(epoch.Add(2 * waitLimits.TTL))
	if s := b.Stats(); s.Waiting != 0 {
		t.Errorf("%d bytes still wait", s.Waiting)
	}
}

// A restart supersedes all records of the former incarnation, whatever the clock says.
func TestRestart(t *testing.T) {
	for what, start := range map[string]time.Time{
		"clock is ahead": epoch.Add(time.Second), "clock went back": epoch.Add(-time.Hour), "clock is equal": epoch,
	} {
		old, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 2, epoch, Limits{})
		b.know(1)
		b.merge(t, old.set(t, 1, "gone")...)
		b.merge(t, old.set(t, 2, "stays")...)
		again := newTexts(t, 1, start, Limits{})
		again.know(2)
		again.Tick(epoch)
		again.set(t, 2, "stays")
		now := epoch
		for range 3 {
			again.merge(t, b.all(t)...)
			now = now.Add(time.Second)
			again.Tick(now)
			b.merge(t, again.all(t)...)
		}
		b.want(t, 1, 1, "")
		b.want(t, 1, 2, "stays")
		if !bytes.Equal(again.Digest(), b.Digest()) || again.Get(2) != "stays" {
			t.Errorf("%s: the two still differ", what)
		}
		if r := again.Refused(); r != nil {
			t.Errorf("%s: %v", what, r)
		}
		b.check(t)
		again.check(t)
	}
}

// The clock was far ahead at launch and is corrected: the records are accepted then.
func TestClockIsCorrected(t *testing.T) {
	a, b := newTexts(t, 1, epoch.Add(1000*24*time.Hour), Limits{}), newTexts(t, 2, epoch, Limits{})
	b.know(1)
	b.merge(t, a.set(t, 1, "x")...)
	b.want(t, 1, 1, "")
	a.SetTime(epoch)
	b.merge(t, a.Tick(epoch)...)
	b.want(t, 1, 1, "x")
	// And the other way: this peer believed in the wrong time.
	b.SetTime(epoch.Add(-48 * time.Hour))
	b.Tick(epoch)
	b.want(t, 1, 1, "")
	b.check(t)
}

// Two clones must not keep the mesh busy, and are reported.
func TestClones(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 1, epoch, Limits{})
	a.set(t, 1, "a")
	b.set(t, 1, "b")
	now, announced, rival := epoch, 0, false
	const seconds = 60
	for range seconds {
		now = now.Add(time.Second)
		a.merge(t, b.all(t)...)
		b.merge(t, a.all(t)...)
		announced += len(a.Tick(now)) + len(b.Tick(now))
		for _, r := range append(a.Refused(), b.Refused()...) {
			rival = rival || errors.Is(r.Cause, ErrRival)
		}
	}
	if most := 2 * (seconds*int(time.Second)/int(reclaimEvery) + 2); announced > most || !rival {
		t.Errorf("%d announcements in a minute, want at most %d; reported: %v", announced, most, rival)
	}
}

// The values of one owner have a limit, here and on other hosts.
func TestOwnerLimit(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{Owner: 1 << 30}), newTexts(t, 2, epoch, Limits{Owner: 100 << 10})
	b.know(1)
	big := bytes.Repeat([]byte("x"), MaxPayload)
	if _, err := a.Set(map[uint8][]byte{1: append(big, 'x')}); !errors.Is(err, ErrFull) {
		t.Errorf("a payload that is too large: %v", err)
	}
	for i := range 10 {
		b.merge(t, a.set(t, uint8(i), string(big))...)
	}
	b.check(t)
	if n := len(b.seen); n != 2 || b.Stats().Refused["owner-too-large"] != 8 {
		t.Errorf("%d values of 40 KB are stored, of 10: %v", n, b.Stats().Refused)
	}
	for i := range 2 {
		if b.set(t, uint8(i), string(big)) == nil {
			t.Error("nothing to announce")
		}
	}
	if _, err := b.Set(map[uint8][]byte{9: big}); !errors.Is(err, ErrFull) {
		t.Errorf("more values than the limit: %v", err)
	}
	b.set(t, 1, "less")
	b.check(t)
}

// A member makes up owners that the topology accepts. Beyond the total its owners lose, not
// those that other neighbours bring, and not the smaller ones that come over the same
// neighbour; never those of this peer.
func TestTotalLimit(t *testing.T) {
	limits := Limits{Owner: 256 << 10, Total: 1 << 20}
	b := newTexts(t, 0, epoch, limits)
	now := epoch
	b.Tick(now)
	var peers []int
	for i := range 200 {
		peers = append(peers, i)
	}
	b.know(peers...)
	b.set(t, 1, "own")
	honest := func(i, via int) { b.mergeFrom(t, via, newTexts(t, i, epoch, Limits{}).set(t, 1, "honest")...) }
	for i := 1; i < 40; i++ {
		honest(i, 500+i%5) // neighbour 500 is the one that brings the lies
	}
	big := bytes.Repeat([]byte("x"), 20<<10)
	lie := func(i int) {
		liar := newTexts(t, i, epoch, Limits{})
		for k := range 10 {
			b.mergeFrom(t, 500, liar.set(t, uint8(k), string(big))...)
		}
	}
	for i := 100; i < 160; i++ {
		lie(i)
		b.check(t)
	}
	for i := 100; i < 110; i++ { // again at once: they are banned, or displace others
		lie(i)
		b.check(t)
	}
	for i := 40; i < 60; i++ {
		honest(i, 500+i%5)
	}
	for i := 1; i < 60; i++ {
		b.want(t, i, 1, "honest")
	}
	b.want(t, 0, 1, "own")
	if s := b.Stats(); s.Dropped == 0 || s.Refused["no-place"] == 0 || s.Bytes > s.MaxBytes {
		t.Errorf("nothing was dropped: %+v", s)
	}
	// Owners that the topology has lost make place first.
	b.know(peers[:60]...)
	honest(61, 501)
	b.know(peers[:100]...)
	before := b.Stats().Dropped
	liar := newTexts(t, 99, epoch, Limits{})
	for k := range 10 {
		b.mergeFrom(t, 501, liar.set(t, uint8(k), string(big))...)
	}
	if b.Stats().Dropped == before {
		t.Error("no lost owner made place")
	}
	b.want(t, 99, 9, string(big))
	b.want(t, 1, 1, "honest")
	b.check(t)
	for n := range maps.Keys(b.banned) {
		if n == nameOf(1) {
			t.Error("an honest owner is banned")
		}
	}
	b.Tick(now.Add(2 * banFor))
	if len(b.banned) != 0 {
		t.Errorf("%d owners are banned for ever", len(b.banned))
	}
}

// One neighbour can make this peer check a limited number of signatures. Others are not
// affected.
func TestVerifyBudget(t *testing.T) {
	b := newTexts(t, 2, epoch, Limits{})
	b.Tick(epoch)
	b.know(1, 3)
	h := header{owner: nameOf(1), incarnation: micros(epoch), bucket: 1}
	for range verifyBurst + 100 {
		h.version++
		b.mergeFrom(t, 7, sign(h, []byte("x"), signDomain+"test", signerOf(1)))
	}
	if n := b.Stats().Refused["too-many"]; n != 100 {
		t.Errorf("%d records were refused, want 100", n)
	}
	b.mergeFrom(t, 8, newTexts(t, 3, epoch, Limits{}).set(t, 1, "x")...)
	b.want(t, 3, 1, "x")
	b.Tick(epoch.Add(time.Minute))
	if len(b.spent) != 0 {
		t.Error("full budgets are kept")
	}
}

func TestJoinKeepsTheNewer(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 2, epoch, Limits{})
	b.know(1)
	one := a.set(t, 1, "old")[0]
	other := a.set(t, 2, "other")[0]
	two := a.set(t, 1, "new")[0]
	joined := a.Join(slices.Concat(one, other), two)
	if len(joined) != len(other)+len(two) {
		t.Error("the older record of a bucket is still there")
	}
	b.merge(t, joined)
	b.want(t, 1, 1, "new")
	b.want(t, 1, 2, "other")
	if a.Join(make([]byte, gossip.MaxDelta), two) != nil {
		t.Error("bytes that are not a delta were joined")
	}
}

// Digests reveal a lost record at the cost of a few records, however many there are. Long
// answers come in parts.
func TestRepair(t *testing.T) {
	a, b := newTexts(t, 1, epoch, Limits{}), newTexts(t, 2, epoch, Limits{})
	var peers []int
	for i := range 300 {
		peers = append(peers, i)
	}
	a.know(peers...)
	b.know(peers...)
	big := string(bytes.Repeat([]byte("x"), 4000))
	for i := 3; i < 300; i++ {
		c := newTexts(t, i, epoch, Limits{})
		for k := range 8 {
			a.merge(t, c.set(t, uint8(k), big)...)
		}
	}
	rounds := 0
	for !bytes.Equal(a.Digest(), b.Digest()) {
		if rounds++; rounds > 20 {
			t.Fatal("the two still differ")
		}
		for _, p := range [][2]*texts{{a, b}, {b, a}} {
			deltas, _, err := p[0].Missing(p[1].Digest())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(slices.Concat(deltas...)); n > maxAnswer+gossip.MaxDelta {
				t.Fatalf("an answer of %d bytes", n)
			}
			p[1].merge(t, deltas...)
		}
	}
	if rounds < 2 {
		t.Error("10 MB came in one answer")
	}
	a.set(t, 9, "lost")
	deltas, _, err := a.Missing(b.Digest())
	if err != nil {
		t.Fatal(err)
	}
	if n := len(slices.Concat(deltas...)); n > 40<<10 {
		t.Errorf("the repair of one record takes %d bytes", n)
	}
	b.merge(t, deltas...)
	b.want(t, 1, 9, "lost")
	b.check(t)
}

// twin is the slow and obvious merge: it keeps all records and computes the maximum.
func twin(seen [][]byte) map[where]string {
	incarnation := make(map[peer.Name]uint64)
	for _, raw := range seen {
		h, _ := parseHeader(raw)
		incarnation[h.owner] = max(incarnation[h.owner], h.incarnation)
	}
	version, best := make(map[where]uint64), make(map[where]string)
	for _, raw := range seen {
		h, _ := parseHeader(raw)
		p := place(h.owner, h.bucket)
		if h.incarnation != incarnation[h.owner] || h.version < version[p] {
			continue
		}
		version[p] = h.version
		if best[p] = string(payload(raw)); best[p] == "" {
			delete(best, p)
		}
	}
	return best
}

// Merging is commutative, associative and idempotent, and agrees with the twin.
func TestMergeLaws(t *testing.T) {
	rng := seed.Rand(t)
	for range 100 {
		var deltas [][]byte
		for i := 1; i <= 4; i++ {
			for incarnation := range 1 + rng.IntN(3) {
				s := newTexts(t, i, epoch.Add(time.Duration(incarnation)*time.Second), Limits{})
				deltas = append(deltas, s.all(t)...)
				for range rng.IntN(12) {
					text := fmt.Sprint(rng.IntN(4))
					if rng.IntN(3) == 0 {
						text = ""
					}
					deltas = append(deltas, s.set(t, uint8(rng.IntN(5)), text)...)
				}
			}
		}
		want := twin(deltas)
		var digest []byte
		for range 4 {
			// In any order, with repetitions, and in parts that others merged before.
			order := slices.Clone(deltas)
			for range rng.IntN(len(deltas) + 1) {
				order = append(order, deltas[rng.IntN(len(deltas))])
			}
			rng.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			s, other := newTexts(t, 0, epoch, Limits{}), newTexts(t, 0, epoch, Limits{})
			s.know(1, 2, 3, 4)
			other.know(1, 2, 3, 4)
			cut := rng.IntN(len(order) + 1)
			s.merge(t, order[:cut]...)
			other.merge(t, order[cut:]...)
			s.merge(t, other.all(t)...)
			if news := s.merge(t, s.all(t)...); news != nil {
				t.Fatal("a known record is reported as new")
			}
			if !maps.Equal(s.seen, want) {
				t.Fatalf("got %v\nwant %v", s.seen, want)
			}
			if digest == nil {
				digest = s.Digest()
			}
			if !bytes.Equal(s.Digest(), digest) {
				t.Fatal("equal states have different digests")
			}
			s.check(t)
		}
	}
}

func FuzzMerge(f *testing.F) {
	a := newTexts(f, 1, epoch, Limits{})
	f.Add(slices.Concat(a.set(f, 1, "one")[0], a.set(f, 2, "two")[0]))
	f.Add(a.set(f, 1, "")[0])
	f.Add([]byte{0, 0, 0, 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := newTexts(t, 2, epoch, Limits{})
		s.know(1)
		before := s.Digest()
		// The fuzzer cannot sign, so the test signs its records.
		for i := 0; i < len(b); {
			h, err := parseHeader(b[i:])
			if err != nil {
				break
			}
			raw := b[i : i+h.length]
			name, key := nameOf(1), signerOf(1).ID
			copy(raw[5:], name[:])
			copy(raw[11:], key[:])
			sig := signerOf(1).Sign(signDomain+"test", raw[4:len(raw)-peer.SignatureLen])
			copy(raw[len(raw)-peer.SignatureLen:], sig[:])
			i += h.length
		}
		news, err := s.Merge(nameOf(3), b)
		if err != nil && (news != nil || !bytes.Equal(s.Digest(), before)) {
			t.Fatal("an error changed the state")
		}
		s.check(t)
		other := newTexts(t, 3, epoch, Limits{})
		other.know(1)
		other.merge(t, news)
		if !maps.Equal(other.seen, s.seen) {
			t.Fatalf("the returned records give %v, the delta %v", other.seen, s.seen)
		}
		if s.know(); len(s.seen) != 0 {
			t.Fatal("records of a lost owner are shown")
		}
		s.check(t)
	})
}

func FuzzMissing(f *testing.F) {
	a := newTexts(f, 1, epoch, Limits{})
	a.set(f, 1, "x")
	f.Add(a.Digest())
	f.Add([]byte{maxLevel})
	f.Add(append([]byte{maxLevel}, make([]byte, 8*rowCount)...))
	f.Fuzz(func(t *testing.T, b []byte) {
		deltas, _, err := a.Missing(b)
		if err == nil {
			s := newTexts(t, 2, epoch, Limits{})
			s.know(1)
			s.merge(t, deltas...)
		} else if !errors.Is(err, gossip.ErrMalformed) {
			t.Fatal(err)
		}
		a.Join(slices.Clone(b), b)
	})
}
