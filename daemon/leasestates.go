package daemon

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/store"
)

// A lease ends when its owner is released. A runtime that is killed, or loses its own state,
// releases nothing. So the router also ends a lease once it knows, for leaseGrace without a
// break, that both are gone: the interface, by the ports of the bridge, and the namespace, by
// its path. In a container the router does not see the namespaces. A veth pair goes with its
// namespace, or if somebody deletes it there. So a port that existed and is gone is enough
// then, after portGrace. While the router does not know, as after a pause of the host, the lease
// stays.

const (
	bucketLeases = "leases"
	// leaseGrace is how long interface and namespace must have been gone.
	leaseGrace = 5 * time.Minute
	// portGrace is how long the interface must have been gone if the router cannot see the
	// namespace.
	portGrace = 15 * time.Minute
	// sweepGap is the longest time between two sweeps of one series: a host that was paused
	// has not watched meanwhile.
	sweepGap = 6 * sweepEvery
	// maxReleased bounds the releases that are remembered, and releasedTTL is how long at
	// least, if there are so many.
	maxReleased = 4096
	releasedTTL = time.Minute
)

// leaseRecord has what is known of an owner, without its addresses.
type leaseRecord struct {
	Name    string `json:"name,omitempty"`
	Netns   string `json:"netns,omitempty"`
	NetnsID uint64 `json:"netnsID,omitempty"`
	Port    string `json:"port,omitempty"` // once the interface was made
}

// leaseStates is what the leases remember of their owners. Its zero value has no records on
// disk.
type leaseStates struct {
	mu       sync.Mutex
	tab      *store.Table[leaseRecord]    // nil: not kept
	working  map[string][]*workingRequest // by owner
	turns    map[string]uint64            // successful requests, by owner
	issued   map[string]int64             // when the last of them was issued, see api.LeaseRequest
	lastTurn uint64
	released map[string]releasedOwner

	gone  map[string]time.Time // since when an owner is known to be gone; sweep only
	swept time.Time            // sweep only
}

// workingRequest is a request at work.
type workingRequest struct {
	issued int64 // see api.LeaseRequest
	cancel context.CancelFunc
}

// releasedOwner is the last release of an owner.
type releasedOwner struct {
	issued int64     // see api.LeaseRequest
	at     time.Time // when the router heard of it
}

// begin returns a context for a request, which end ends.
func (s *leaseStates) begin(ctx context.Context, r api.LeaseRequest) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	w := &workingRequest{r.Issued, cancel}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.working == nil {
		s.working = make(map[string][]*workingRequest)
	}
	s.working[r.Owner] = append(s.working[r.Owner], w)
	return ctx, func() {
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		rest := slices.DeleteFunc(s.working[r.Owner], func(o *workingRequest) bool { return o == w })
		if s.working[r.Owner] = rest; len(rest) == 0 {
			delete(s.working, r.Owner)
		}
	}
}

// end ends the requests of an owner that are at work and were issued before a release, and notes
// the release. A request or a release that does not say when it was issued counts as older, or as
// later.
func (s *leaseStates) end(r api.LeaseRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.working[r.Owner] {
		if r.Issued == 0 || w.issued < r.Issued {
			w.cancel()
		}
	}
	if r.Issued == 0 {
		return
	}
	now := time.Now()
	if s.released == nil {
		s.released = make(map[string]releasedOwner)
	}
	maps.DeleteFunc(s.released, func(_ string, o releasedOwner) bool {
		return len(s.released) >= maxReleased && now.Sub(o.at) > releasedTTL
	})
	if len(s.released) < maxReleased {
		s.released[r.Owner] = releasedOwner{max(r.Issued, s.released[r.Owner].issued), now}
	}
}

// isReleased reports whether the owner was released after the request was issued.
func (s *leaseStates) isReleased(r api.LeaseRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, ok := s.released[r.Owner]
	return ok && r.Issued != 0 && o.issued > r.Issued
}

// nextTurn notes that a request of an owner succeeded.
func (s *leaseStates) nextTurn(r api.LeaseRequest) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.turns == nil {
		s.turns, s.issued = make(map[string]uint64), make(map[string]int64)
	}
	s.lastTurn++
	s.turns[r.Owner] = s.lastTurn
	s.issued[r.Owner] = max(s.issued[r.Owner], r.Issued)
	return s.lastTurn
}

// isOld reports whether a release was issued before a request of the owner that succeeded.
func (s *leaseStates) isOld(r api.LeaseRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return r.Issued != 0 && r.Issued < s.issued[r.Owner]
}

func (s *leaseStates) turn(owner string) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.turns[owner]
}

// record returns the record of an owner, the zero record if there is none.
func (s *leaseStates) record(owner string) leaseRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tab == nil {
		return leaseRecord{}
	}
	return s.tab.Records[owner]
}

// recorded returns the owners that have a record.
func (s *leaseStates) recorded() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tab == nil {
		return nil
	}
	return slices.Collect(maps.Keys(s.tab.Records))
}

// note changes the record of an owner.
func (s *leaseStates) note(owner string, change func(*leaseRecord)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tab == nil {
		return nil
	}
	before := s.tab.Records[owner]
	now := before
	if change(&now); now == before {
		return nil
	}
	return s.tab.Put(owner, now)
}

// forget removes what is known of an owner without addresses. A record that stays on disk does
// no harm: the next lease of the owner replaces it.
func (s *leaseStates) forget(owner string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.turns, owner)
	delete(s.issued, owner)
	if s.tab != nil {
		if _, known := s.tab.Records[owner]; known {
			_ = s.tab.Delete(owner)
		}
	}
}

// adopt records the port of an owner, which the kernel has.
func (ls *leases) adopt(p netdev.UsedPort) error {
	return ls.note(p.Owner, func(rec *leaseRecord) {
		rec.Port = p.Name
		if p.PortUser.Name != "" {
			rec.Name = p.PortUser.Name
		}
	})
}

// endGone ends the leases whose interface and namespace have been gone for leaseGrace. Alive
// are the owners that have a port.
func (ls *leases) endGone(now time.Time, alive map[string]string) {
	if ls.gone == nil || now.Sub(ls.swept) > sweepGap {
		ls.gone = make(map[string]time.Time) // it was not watched
	}
	ls.swept = now
	present := make(map[string]bool)
	for _, l := range ls.list() {
		present[l.Owner] = true
		grace := ls.graceOf(l.Owner, alive)
		if grace == 0 {
			delete(ls.gone, l.Owner)
			continue
		}
		since, known := ls.gone[l.Owner]
		if !known {
			ls.gone[l.Owner] = now
		} else if now.Sub(since) >= grace {
			ls.endOne(l.Owner, alive)
		}
	}
	maps.DeleteFunc(ls.gone, func(owner string, _ time.Time) bool { return !present[owner] })
}

// endOne ends one lease, unless its owner came back.
func (ls *leases) endOne(owner string, alive map[string]string) {
	ls.mu.Lock()
	working := len(ls.working[owner]) > 0
	ls.mu.Unlock()
	if working {
		return
	}
	defer ls.lock(owner)()
	if ls.graceOf(owner, alive) == 0 {
		return
	}
	had := ls.addresses.owned(owner)
	if err := ls.addresses.take(owner, had); err != nil {
		ls.log.Warn("the addresses of an owner that is gone could not be freed", "owner", owner, "err", err)
		return
	}
	name := ls.record(owner).Name
	ls.forget(owner)
	ls.log.Info("released the addresses of an owner whose interface and namespace are gone", "owner", owner, "name", name, "addresses", had)
}

// graceOf returns how long an owner that is gone keeps its addresses; 0 if it lives, or the
// router does not know.
func (ls *leases) graceOf(owner string, alive map[string]string) time.Duration {
	rec := ls.record(owner)
	if _, lives := alive[owner]; lives || rec.Port != "" && linkExists(rec.Port) {
		return 0
	}
	switch gone, seen := ls.netnsGone(rec); {
	case seen && gone:
		return leaseGrace
	case !seen && rec.Port != "":
		return portGrace
	}
	return 0
}

// netnsGone reports whether the namespace of a record is gone: nothing, or another namespace,
// is at its path. Seen is false if the router cannot see the folder, as in a container.
func (ls *leases) netnsGone(rec leaseRecord) (gone, seen bool) {
	if rec.Netns == "" {
		return false, false
	}
	path := filepath.Clean(rec.Netns)
	if strings.HasPrefix(path, "/proc/") {
		if ls.sysctls != "" && ls.sysctls != netdev.ProcSys {
			return false, false // the /proc of a container
		}
	} else if _, err := os.Stat(filepath.Dir(path)); err != nil {
		rest, varRun := strings.CutPrefix(path, "/var/run/")
		path = "/run/" + rest
		if _, err := os.Stat(filepath.Dir(path)); err != nil || !varRun {
			return false, false
		}
	}
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); err {
	case nil:
		return rec.NetnsID != 0 && st.Ino != rec.NetnsID, true
	case unix.ENOENT:
		return true, true
	}
	return false, false
}

// attachments lists the leases as containers.
func (ls *leases) attachments() (list []api.Attachment) {
	for _, l := range ls.list() {
		rec := ls.record(l.Owner)
		iface := l.Owner[strings.LastIndex(l.Owner, ":")+1:]
		list = append(list, api.Attachment{ID: l.Owner, Name: l.Name, Netns: rec.Netns, Interface: iface, Port: rec.Port, Addresses: l.Addresses})
	}
	return list
}
