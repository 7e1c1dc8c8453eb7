package records

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
)

const (
	// ForgetAfter is how long records are kept after the topology lost their owner. It is
	// longer than most partitions and restarts, so these cost no exchange of records.
	ForgetAfter = 10 * time.Minute
	// maxAhead is how far an incarnation may be ahead of the clock: the difference between
	// the clocks of two hosts, as for versions of topology entries.
	maxAhead = 24 * time.Hour
	// reclaimEvery is the minimum interval between new incarnations that this peer begins
	// because another uses its name. It prevents two clones from keeping the mesh busy.
	reclaimEvery = 10 * time.Second
)

// Limits bound the memory of a Map, in bytes. They count what a record costs: its encoding,
// its place in the indexes, and what the use needs for its value.
type Limits struct {
	// Owner bounds the records of one owner. The default of 16 MiB is enough for a host
	// with 25,000 host names.
	Owner int
	// Total bounds the records of all owners but this peer. The default of 64 MiB is
	// enough for 1,000 hosts with 75 host names each, and leaves a router below
	// 200 MB with all else that it stores.
	Total int
}

const (
	defaultOwner = 16 << 20
	defaultTotal = 64 << 20
	// recordCost is the memory for a record besides its encoding and its value, and
	// ownerCost that for an owner, so that many small ones cannot evade the limits.
	recordCost = 256
	ownerCost  = 512
)

// Config configures a Map.
type Config[V any] struct {
	// Use names the use, for example "dns names". It is part of each signature, so no
	// record of one use is valid in another.
	Use      string
	Self     peer.Name
	Signer   peer.Signer
	Verifier peer.Verifier
	// Start is the time of launch. It is the number of the first incarnation.
	Start time.Time
	// Decode parses the payload of a bucket, which is not empty. It may keep the payload,
	// but must not change it.
	Decode func(bucket uint8, payload []byte) (V, error)
	// Cost returns the memory that the use needs for a value, in bytes. It may be nil.
	Cost func(v V) int
	// Changed is called when the value of a shown bucket changes. A bucket without a value
	// has the zero V. It may be nil.
	Changed func(owner peer.Name, bucket uint8, old, now V)
	// Limits that are 0 have their defaults.
	Limits Limits
}

// Map is one peer's copy of all records of one use. Make one with New.
type Map[V any] struct {
	cfg      Config[V]
	domain   string // of signatures
	own      *owner[V]
	owners   map[peer.Name]*owner[V]
	known    map[peer.Name]peer.Key // the owners in the topology, without this peer
	rows     [rowCount]row[V]
	count    int // records in rows
	cost     int // of the records of others
	shares   map[peer.Name]int
	banned   map[peer.Name]time.Time // until when an owner that lost its place is refused
	waitlist waitlist
	spent    map[peer.Name]*budget

	now   time.Time // of the last Tick
	clock time.Time // the time as most peers see it

	rival       uint64    // the highest incarnation that another peer used in this peer's name
	lastReclaim time.Time // when this peer last began a new incarnation for that reason
	refused     gossip.Refusals
	stats       Stats
	digest      []byte // cached; nil after a change
	cursor      int    // the row at which the next long answer to a digest begins
}

// owner is the records of one peer.
type owner[V any] struct {
	name        peer.Name
	key         peer.Key
	incarnation uint64
	records     []*record[V] // in order of bucket
	newest      uint64       // highest version
	cost        int
	shown       bool
	lostAt      time.Time // when the topology lost it; zero while shown
	via         peer.Name // the neighbour that brought its first record
}

func (o *owner[V]) find(bucket uint8) (int, bool) {
	return slices.BinarySearchFunc(o.records, bucket, func(r *record[V], b uint8) int { return cmp.Compare(r.bucket, b) })
}

// get returns the record of a bucket, nil if there is none.
func (o *owner[V]) get(bucket uint8) *record[V] {
	if i, ok := o.find(bucket); ok {
		return o.records[i]
	}
	return nil
}

// ErrFull is the cause if this peer's own values exceed a limit.
var ErrFull = errors.New("too many values on this host")

// New returns a Map that has one empty record of this peer, which announces the incarnation.
func New[V any](cfg Config[V]) *Map[V] {
	cfg.Limits.Owner = cmp.Or(cfg.Limits.Owner, defaultOwner)
	cfg.Limits.Total = cmp.Or(cfg.Limits.Total, defaultTotal)
	m := &Map[V]{
		cfg: cfg, domain: signDomain + cfg.Use, clock: cfg.Start,
		owners: make(map[peer.Name]*owner[V]), shares: make(map[peer.Name]int), banned: make(map[peer.Name]time.Time),
		spent:    make(map[peer.Name]*budget),
		waitlist: waitlist{gossip.NewWaitlist[waitKey, waiting](waitLimits)},
		own:      &owner[V]{name: cfg.Self, key: cfg.Signer.Key(), shown: true},
	}
	m.owners[cfg.Self] = m.own
	m.begin(micros(cfg.Start))
	return m
}

func micros(t time.Time) uint64 { return uint64(max(0, t.UnixMicro())) }

// begin begins an incarnation of this peer with its present values, and returns its records.
func (m *Map[V]) begin(incarnation uint64) (raws [][]byte) {
	old := m.own.records
	m.own.records, m.own.incarnation, m.own.newest, m.own.cost = nil, incarnation, 0, 0
	for _, r := range old {
		m.removeRow(r)
	}
	for _, r := range old {
		if len(payload(r.raw)) > 0 {
			raws = append(raws, m.publish(r.bucket, payload(r.raw), r.value).raw)
		}
	}
	if raws == nil {
		var none V
		raws = append(raws, m.publish(0, nil, none).raw)
	}
	return raws
}

// publish makes the next version of a bucket of this peer.
func (m *Map[V]) publish(bucket uint8, body []byte, value V) *record[V] {
	h := header{owner: m.cfg.Self, key: m.own.key, incarnation: m.own.incarnation, version: m.own.newest + 1, bucket: bucket}
	r := m.newRecord(h, sign(h, body, m.domain, m.cfg.Signer), value)
	m.put(m.own, r)
	return r
}

// newRecord returns the record with an encoding, which it keeps.
func (m *Map[V]) newRecord(h header, raw []byte, value V) *record[V] {
	h.length, h.format = len(raw), recordFormat
	return &record[V]{header: h, raw: raw, value: value, cost: m.costOf(len(payload(raw)), value), sum: sumOf(raw), row: rowOf(h.owner, h.bucket)}
}

// costOf returns the memory of a record with a payload of n bytes.
func (m *Map[V]) costOf(n int, value V) int {
	cost := recordCost + minRecord + n
	if n > 0 && m.cfg.Cost != nil {
		cost += m.cfg.Cost(value)
	}
	return cost
}

// put stores a record and returns the one that it replaces.
func (m *Map[V]) put(o *owner[V], r *record[V]) (old *record[V]) {
	i, found := o.find(r.bucket)
	cost := r.cost
	if found {
		old = o.records[i]
		cost -= old.cost
		o.records[i] = r
		if o.shown {
			m.removeRow(old)
		}
	} else {
		o.records = slices.Insert(o.records, i, r)
	}
	if o.shown {
		m.addRow(r)
	}
	o.newest = max(o.newest, r.version)
	m.charge(o, cost)
	return old
}

// charge adds to the cost of an owner.
func (m *Map[V]) charge(o *owner[V], cost int) {
	o.cost += cost
	if o == m.own {
		return
	}
	m.cost += cost
	if m.shares[o.via] += cost; m.shares[o.via] == 0 {
		delete(m.shares, o.via)
	}
}

// Own yields the buckets of this peer that have a payload, with their values.
func (m *Map[V]) Own() iter.Seq2[uint8, V] {
	return func(yield func(uint8, V) bool) {
		for _, r := range m.own.records {
			if len(payload(r.raw)) > 0 && !yield(r.bucket, r.value) {
				return
			}
		}
	}
}

// Get returns the value of a bucket of this peer, the zero V if it has none.
func (m *Map[V]) Get(bucket uint8) (v V) {
	if r := m.own.get(bucket); r != nil {
		v = r.value
	}
	return v
}

// All yields the shown values of all peers in order of owner and bucket.
func (m *Map[V]) All() iter.Seq2[peer.Name, V] {
	return func(yield func(peer.Name, V) bool) {
		for _, n := range slices.SortedFunc(maps.Keys(m.owners), peer.Name.Compare) {
			o := m.owners[n]
			for _, r := range o.records {
				if o.shown && len(payload(r.raw)) > 0 && !yield(n, r.value) {
					return
				}
			}
		}
	}
}

// Owned is a part of a value with the peer that announced it.
type Owned[T any] struct {
	Owner peer.Name
	Value T
}

// List returns the elements of the shown values of all peers in order of owner and bucket, and how
// many it leaves out as there are more than limit. If so, no peer loses a part of an equal share to
// another one that has more. It takes time in proportion to the limit and the number of records. The
// caller owns the list.
func List[T any](m *Map[[]T], limit int) (list []Owned[T], omitted int) {
	sizes := make(map[peer.Name]int)
	for owner, elements := range m.All() {
		sizes[owner] += len(elements)
	}
	owners := slices.SortedFunc(maps.Keys(sizes), func(a, b peer.Name) int { return cmp.Or(cmp.Compare(sizes[a], sizes[b]), a.Compare(b)) })
	shares := make(map[peer.Name]int, len(owners))
	for i, o := range owners {
		shares[o] = min(sizes[o], limit/(len(owners)-i))
		omitted += sizes[o] - shares[o]
		limit -= shares[o]
	}
	for owner, elements := range m.All() {
		n := min(len(elements), shares[owner])
		shares[owner] -= n
		for _, e := range elements[:n] {
			list = append(list, Owned[T]{owner, e})
		}
	}
	return list, omitted
}

// Set replaces the payloads of some buckets of this peer. An empty payload deletes the
// bucket. It returns the deltas to announce, none if nothing changed. On error nothing is
// changed.
func (m *Map[V]) Set(payloads map[uint8][]byte) (deltas [][]byte, err error) {
	values := make(map[uint8]V, len(payloads))
	total := m.own.cost
	for bucket, body := range payloads {
		old := m.own.get(bucket)
		if old == nil && len(body) == 0 || old != nil && slices.Equal(payload(old.raw), body) {
			continue
		}
		if len(body) > MaxPayload {
			return nil, fmt.Errorf("bucket %d: %d bytes, want at most %d: %w", bucket, len(body), MaxPayload, ErrFull)
		}
		value, err := m.decode(bucket, body)
		if err != nil {
			return nil, fmt.Errorf("bucket %d: %w", bucket, err)
		}
		values[bucket] = value
		total += m.costOf(len(body), value)
		if old != nil {
			total -= old.cost
		}
	}
	if total > m.cfg.Limits.Owner && len(values) > 0 && total > m.own.cost {
		return nil, fmt.Errorf("%d bytes, want at most %d: %w", total, m.cfg.Limits.Owner, ErrFull)
	}
	var raws [][]byte
	for _, bucket := range slices.Sorted(maps.Keys(values)) {
		before := m.Get(bucket)
		r := m.publish(bucket, payloads[bucket], values[bucket])
		m.tell(m.cfg.Self, bucket, before, r.value)
		raws = append(raws, r.raw)
	}
	return gossip.Pack(slices.Values(raws)), nil
}

func (m *Map[V]) decode(bucket uint8, body []byte) (v V, err error) {
	if len(body) == 0 {
		return v, nil
	}
	return m.cfg.Decode(bucket, body)
}

func (m *Map[V]) tell(owner peer.Name, bucket uint8, old, now V) {
	if m.cfg.Changed != nil {
		m.cfg.Changed(owner, bucket, old, now)
	}
}

// SetOwners reports the peers of the topology that can be reached, with the keys of their
// entries, and returns the deltas to announce. From now on only records of these peers are
// accepted and shown. The Map keeps the argument.
//
// The topology has bound overridden names to their keys (peer.Book). A derived name with a
// key that is not its own is left out here, whatever the topology says.
func (m *Map[V]) SetOwners(known map[peer.Name]peer.Key) (deltas [][]byte) {
	delete(known, m.cfg.Self)
	maps.DeleteFunc(known, func(n peer.Name, k peer.Key) bool { return n.Derived() && n.Matches(peer.IDOf(k)) != nil })
	m.known = known
	for name, o := range m.owners {
		if o == m.own {
			continue
		}
		key, present := known[name]
		if present && key != o.key { // the peer lost its disk and has a new key
			m.drop(o)
			continue
		}
		m.show(o, present)
	}
	var raws [][]byte
	for _, w := range m.waitlist.take(func(n peer.Name) bool { _, ok := known[n]; return ok }) {
		if m.stale(&w.Value.header, w.Value.raw) {
			continue
		}
		r, err := m.check(w.From, w.Value.header, w.Value.raw)
		if err != nil {
			m.refuse(w.From, w.Key.owner, err)
		} else if r != nil && m.accept(w.From, r) {
			raws = append(raws, r.raw)
		}
	}
	return gossip.Pack(slices.Values(raws))
}

// show shows the records of an owner, or hides them.
func (m *Map[V]) show(o *owner[V], shown bool) {
	if o.shown == shown {
		return
	}
	o.shown, o.lostAt = shown, time.Time{}
	if !shown {
		o.lostAt = m.now
	}
	var none V
	for _, r := range o.records {
		if shown {
			m.addRow(r)
			m.tell(o.name, r.bucket, none, r.value)
		} else {
			m.removeRow(r)
			m.tell(o.name, r.bucket, r.value, none)
		}
	}
}

// clearRecords deletes all records of an owner.
func (m *Map[V]) clearRecords(o *owner[V]) {
	var none V
	for _, r := range o.records {
		if o.shown {
			m.removeRow(r)
			m.tell(o.name, r.bucket, r.value, none)
		}
		m.charge(o, -r.cost)
	}
	o.records, o.newest = nil, 0
}

// drop deletes an owner of the Map.
func (m *Map[V]) drop(o *owner[V]) {
	m.clearRecords(o)
	m.charge(o, -ownerCost)
	delete(m.owners, o.name)
}

// SetTime tells the Map the time by which it accepts incarnations. Clocks of hosts differ:
// pass the best estimate of what most peers think it is.
func (m *Map[V]) SetTime(clock time.Time) { m.clock = clock }

// newest returns the highest sum of incarnation and version that a record may have now.
func (m *Map[V]) newest() uint64 { return micros(m.clock.Add(maxAhead)) }

// ahead reports whether the numbers of a record are ahead of the clock.
func (m *Map[V]) ahead(h *header) bool {
	newest := m.newest()
	return h.incarnation > newest || h.version > newest-h.incarnation
}

// Tick drops what has expired and reclaims this peer's name. It returns the deltas to
// announce. Call it about once a second; now must not go back.
func (m *Map[V]) Tick(now time.Time) (deltas [][]byte) {
	m.now = now
	for _, o := range m.owners {
		switch {
		case o == m.own:
		case o.incarnation > m.newest(): // the estimate of the time was corrected
			m.drop(o)
		case o.shown:
		case o.lostAt.IsZero():
			o.lostAt = now
		case now.Sub(o.lostAt) >= ForgetAfter:
			m.drop(o)
		}
	}
	m.waitlist.Expire(now)
	for n, b := range m.spent {
		if b.full(now) {
			delete(m.spent, n)
		}
	}
	maps.DeleteFunc(m.banned, func(_ peer.Name, until time.Time) bool { return !now.Before(until) })
	if m.own.incarnation > m.newest() {
		// The clock of this host was a day ahead when the router was launched. No other peer
		// has accepted such a record.
		return gossip.Pack(slices.Values(m.begin(micros(m.clock))))
	}
	if m.rival >= m.own.incarnation && m.rival < math.MaxUint64 && (m.lastReclaim.IsZero() || now.Sub(m.lastReclaim) >= reclaimEvery) {
		if !m.lastReclaim.IsZero() { // the first time it is only a clock that went back
			m.refuse(peer.Name{}, m.cfg.Self, ErrRival)
		}
		m.lastReclaim = now
		deltas = gossip.Pack(slices.Values(m.begin(m.rival + 1)))
	}
	return deltas
}
