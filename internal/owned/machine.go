package owned

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weft-net/weft/internal/count"
)

const (
	// SweepInterval is how often each object is looked at although nothing reports a change.
	SweepInterval = 10 * time.Second
	// PollInterval is how often objects of Polled kinds are looked at.
	PollInterval = time.Second

	// A repair that failed is tried again after firstRetry, then after twice as long each
	// time up to lastRetry. A change that the kernel reports shortens that to changeRetry
	// after the last try.
	firstRetry  = 100 * time.Millisecond
	lastRetry   = 5 * time.Second
	changeRetry = 500 * time.Millisecond

	// More than maxRepairs repairs of one object within fightWindow are a fight with other
	// software. Then a repair waits for firstTruce, and for twice as long after each further
	// one up to lastTruce. The fight is over when the object was right for calmAfter.
	maxRepairs  = 6
	fightWindow = 10 * time.Second
	firstTruce  = time.Second
	lastTruce   = 30 * time.Second
	calmAfter   = time.Minute
)

// ErrWaits says that an object cannot be looked at or repaired because another one, which
// has a fault of its own, is missing. It is not reported.
var ErrWaits = errors.New("it waits for another object")

// Machine is the state of all objects. Make it with New. It is not safe for concurrent use.
type Machine struct {
	objects map[ID]*object
	repairs map[Kind]uint64
	reports []Report
}

// object is what the machine knows about one object.
type object struct {
	due    time.Time // when it must be looked at
	looked time.Time // when it was
	dirty  time.Time // when the kernel last reported a change that may concern it
	made   bool      // it was right once, so what differs now was changed by others
	faults []string  // of the last look, nil if it was right
	err    error     // why it could not be looked at or repaired
	said   string    // the last failure that was reported
	since  time.Time // when it was seen with a fault first

	tried time.Time     // the last repair
	hold  time.Time     // no repair before
	retry time.Duration // of the next failure

	recent  []time.Time   // repairs within fightWindow, maxRepairs+1 at most
	truce   time.Duration // not 0: in a fight
	began   time.Time     // of the fight
	fought  int           // repairs during the fight
	because string        // faults of the last repair
}

// New returns a Machine without objects.
func New() *Machine { return &Machine{objects: make(map[ID]*object), repairs: make(map[Kind]uint64)} }

// Declare adds an object, which must be looked at now. It is an error if its kind is not in
// Kinds. An object that is known stays as it is.
func (m *Machine) Declare(id ID, now time.Time) error {
	if rank(id.Kind) < 0 {
		return fmt.Errorf("declare %q of kind %q: the table of kinds lacks it", id.Name, id.Kind)
	}
	if m.objects[id] == nil {
		m.objects[id] = &object{due: now}
	}
	return nil
}

// Forget removes an object, which is weft's no longer.
func (m *Machine) Forget(id ID) { delete(m.objects, id) }

// Renew says that the desired state of an object is another one now: the next repair is not
// the fault of other software.
func (m *Machine) Renew(id ID, now time.Time) {
	if o := m.objects[id]; o != nil {
		o.made = false
		o.expedite(now)
	}
}

// Known reports whether an object is declared.
func (m *Machine) Known(id ID) bool { return m.objects[id] != nil }

// Changed reports changes in the kernel.
func (m *Machine) Changed(e Events, now time.Time) {
	for id, o := range m.objects {
		if i, _ := InfoOf(id.Kind); i.On&e != 0 {
			o.dirty = now
			o.expedite(later(now, o.looked.Add(i.Gap)))
		}
	}
}

// Look makes vital objects due, or all.
func (m *Machine) Look(all bool, now time.Time) {
	for id, o := range m.objects {
		if i, _ := InfoOf(id.Kind); all || i.Vital {
			o.expedite(now)
		}
	}
}

// expedite makes an object due at a time. After a failure that shortens the pause; a truce
// stays.
func (o *object) expedite(at time.Time) {
	o.due = earlier(o.due, at)
	if early := o.tried.Add(changeRetry); o.err != nil && o.truce == 0 && o.hold.After(early) {
		o.hold = early
	}
}

// Due returns the objects of slow kinds, or of all others, that must be looked at, in the
// order of repair.
func (m *Machine) Due(now time.Time, slow bool) (due []ID) {
	for id, o := range m.objects {
		if i, _ := InfoOf(id.Kind); i.Slow == slow && !o.due.After(now) {
			due = append(due, id)
		}
	}
	slices.SortFunc(due, compare)
	return due
}

// Next returns when an object of a slow kind, or of another, is due at the earliest; zero if
// there is none.
func (m *Machine) Next(slow bool) (next time.Time) {
	for id, o := range m.objects {
		if i, _ := InfoOf(id.Kind); i.Slow != slow {
			continue
		}
		if next.IsZero() || o.due.Before(next) {
			next = o.due
		}
	}
	return next
}

// Seen takes the result of a look: how the object differs from its desired state, in words,
// or why that is not known. The kernel was read at the time read or later: a change that was
// reported after that needs another look. It reports whether the object must be repaired now.
func (m *Machine) Seen(id ID, read, now time.Time, faults []string, err error) (repair bool) {
	o := m.objects[id]
	if o == nil {
		return false
	}
	i, _ := InfoOf(id.Kind)
	o.looked, o.due = now, now.Add(SweepInterval)
	if i.Polled {
		o.due = now.Add(PollInterval)
	}
	if o.dirty.After(read) {
		o.due = earlier(o.due, now.Add(i.Gap))
	}
	switch {
	case errors.Is(err, ErrWaits):
		o.faults, o.err = nil, nil
		return false
	case err != nil:
		m.failed(id, o, now, err)
		return false
	case len(faults) == 0:
		m.right(id, o, now)
		return false
	}
	if o.since.IsZero() {
		o.since = now
	}
	o.faults = faults
	if o.hold.After(now) {
		o.due = earlier(o.due, o.hold)
		return false
	}
	return true
}

// right takes note of an object without faults.
func (m *Machine) right(id ID, o *object, now time.Time) {
	if o.said != "" {
		m.report(Report{ID: id, Event: Recovered})
	}
	o.made, o.faults, o.err, o.said, o.retry, o.since = true, nil, nil, "", 0, time.Time{}
	if o.truce == 0 {
		return
	}
	if end := o.tried.Add(calmAfter); now.Before(end) {
		o.due = earlier(o.due, end)
		return
	}
	m.report(Report{ID: id, Event: Calm, Count: o.fought})
	o.truce, o.fought, o.recent, o.hold = 0, 0, nil, time.Time{}
}

// failed takes note of why an object could not be looked at or repaired.
func (m *Machine) failed(id ID, o *object, now time.Time, err error) {
	if o.since.IsZero() {
		o.since = now
	}
	o.err = err
	o.retry = min(max(2*o.retry, firstRetry), lastRetry)
	o.hold = later(o.hold, now.Add(o.retry))
	o.due = earlier(o.due, o.hold)
	if text := err.Error(); text != o.said {
		o.said = text
		m.report(Report{ID: id, Event: Failed, Faults: o.faults, Err: err})
	}
}

// Repaired takes the result of a repair that Seen asked for.
func (m *Machine) Repaired(id ID, now time.Time, err error) {
	o := m.objects[id]
	if o == nil {
		return
	}
	o.tried = now
	switch {
	case errors.Is(err, ErrWaits):
		o.faults, o.err = nil, nil
		return
	case err != nil:
		m.failed(id, o, now, err)
		return
	}
	first := !o.made
	o.because = strings.Join(o.faults, ", ")
	repair := Report{ID: id, Event: Repaired, Faults: o.faults}
	if o.said != "" {
		m.report(Report{ID: id, Event: Recovered})
	}
	o.made, o.faults, o.err, o.said, o.retry, o.since = true, nil, nil, "", 0, time.Time{}
	o.due = earlier(o.due, now.Add(PollInterval)) // whether it lasts
	if first {
		return
	}
	m.repairs[id.Kind]++
	o.recent = slices.DeleteFunc(append(o.recent, now), func(t time.Time) bool { return now.Sub(t) > fightWindow })
	switch {
	case o.truce > 0:
		o.fought++
		o.truce = min(2*o.truce, lastTruce)
		o.hold = now.Add(o.truce)
	case len(o.recent) > maxRepairs:
		o.truce, o.began, o.fought = firstTruce, o.recent[0], len(o.recent)
		o.hold = now.Add(o.truce)
		m.report(Report{ID: id, Event: Fight, Faults: repair.Faults, Count: o.fought})
	default:
		m.report(repair)
	}
	o.recent = o.recent[max(0, len(o.recent)-maxRepairs):]
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Event is what happened to an object.
type Event uint8

// Events of objects.
const (
	Repaired  Event = iota // other software had changed it
	Failed                 // it cannot be looked at, made or repaired
	Recovered              // after Failed
	Fight                  // other software changes it again and again
	Calm                   // after Fight
)

// Report is a line for the log.
type Report struct {
	ID     ID
	Event  Event
	Faults []string // Repaired, Failed and Fight: how it differed
	Err    error    // Failed
	Count  int      // repairs, for Fight and Calm
}

// maxReports bounds what Reports returns. Older reports are dropped.
const maxReports = 1000

func (m *Machine) report(r Report) {
	if len(m.reports) == maxReports {
		m.reports = m.reports[1:]
	}
	m.reports = append(m.reports, r)
}

// Reports returns what happened since the last call.
func (m *Machine) Reports() []Report {
	r := m.reports
	m.reports = nil
	return r
}

// Fault is an object that is not right, or that other software does not leave alone.
type Fault struct {
	ID    ID
	Text  string // for a user
	Since time.Time
	// Lasting: a repair failed, or a fight goes on. Other faults are about to be repaired.
	Lasting bool
}

// Faults returns the objects with faults, in the order of repair.
func (m *Machine) Faults() (faults []Fault) {
	for _, id := range slices.SortedFunc(maps.Keys(m.objects), compare) {
		o := m.objects[id]
		is := strings.Join(o.faults, ", ")
		switch {
		case o.err != nil && is != "":
			faults = append(faults, Fault{id, fmt.Sprintf("%s: %s, and weft cannot repair it: %v", id, is, o.err), o.since, true})
		case o.err != nil:
			faults = append(faults, Fault{id, fmt.Sprintf("%s: weft cannot look at it: %v", id, o.err), o.since, true})
		case o.truce > 0:
			state := "it is right now"
			if is != "" {
				state = "now " + is
			}
			faults = append(faults, Fault{id, fmt.Sprintf("%s: other software changes it again and again (%s); weft has repaired it %s since %s and waits %s between repairs; %s",
				id, o.because, count.Of(o.fought, "time", "times"), o.began.Format(time.TimeOnly), o.truce, state), o.began, true})
		case is != "":
			faults = append(faults, Fault{id, fmt.Sprintf("%s: %s", id, is), o.since, false})
		}
	}
	return faults
}

// Broken returns an error that names the vital objects that have a fault, nil if there are
// none.
func (m *Machine) Broken() error {
	var texts []string
	for _, f := range m.Faults() {
		o := m.objects[f.ID]
		if i, _ := InfoOf(f.ID.Kind); i.Vital && (len(o.faults) > 0 || o.err != nil) {
			texts = append(texts, f.Text)
		}
	}
	if len(texts) == 0 {
		return nil
	}
	return errors.New(strings.Join(texts, "; "))
}

// Repairs returns the number of repairs by kind, without zeros. It is a copy.
func (m *Machine) Repairs() map[Kind]uint64 { return maps.Clone(m.repairs) }
