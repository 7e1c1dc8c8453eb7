// Package track decides what a watcher of containers asks the engine about, and
// what became of a container. It is a step machine without goroutines.
//
// Events are hints: each marks its container, however often, and one question
// per marked container follows. So a flood of events costs what the containers
// that it is about cost, and a lost event is made up for by the next question.
package track

// maxMarked is how many containers may wait for a question; when there are
// more, one about all takes their place.
const maxMarked = 4096

// State is how a container is.
type State struct {
	Running bool
	// Since tells one run of a container from the next, as the engine says it.
	Since string
	// Shape has what may change while it runs, in whatever words.
	Shape string
}

// Change is what became of a container.
type Change int

// The changes. A container that was restarted between two questions has
// Stopped and then Started.
const (
	Started  Change = iota
	Stopped         // it may start again
	Gone            // it does not exist any more
	Reshaped        // it runs on, in another shape
)

// Tracker is the state of a watcher. Make it with New.
type Tracker struct {
	known  map[string]State
	marked map[string]bool
	queue  []string // the marked, in the order of their events
	all    bool
}

// New returns a Tracker that knows no container, with a question about all to ask.
func New() *Tracker {
	return &Tracker{known: make(map[string]State), marked: make(map[string]bool), all: true}
}

// Mark notes that something happened to a container.
func (t *Tracker) Mark(id string) {
	if t.all || t.marked[id] {
		return
	}
	if len(t.queue) >= maxMarked {
		t.MarkAll()
		return
	}
	t.marked[id] = true
	t.queue = append(t.queue, id)
}

// MarkRunning notes that something happened to a container that matters only if
// it runs. An engine may not answer about one that is on its way to it, and
// there is an event once it is there.
func (t *Tracker) MarkRunning(id string) {
	if t.known[id].Running {
		t.Mark(id)
	}
}

// MarkAll notes that anything may have happened.
func (t *Tracker) MarkAll() {
	t.all, t.queue = true, nil
	clear(t.marked)
}

// Next returns the next question: about all, or about one container. The
// question is taken as answered only by Listed or Asked.
func (t *Tracker) Next() (id string, all, ok bool) {
	switch {
	case t.all:
		return "", true, true
	case len(t.queue) > 0:
		return t.queue[0], false, true
	}
	return "", false, false
}

// Listed takes the answer to the question about all: the containers that
// exist. It returns those that are gone and marks those to ask about. What is
// marked while the question is on its way stays to be asked.
func (t *Tracker) Listed(ids []string) (gone []string) {
	t.all = false
	exists := make(map[string]bool, len(ids))
	for _, id := range ids {
		exists[id] = true
		if len(t.queue) < maxMarked && !t.marked[id] {
			t.marked[id] = true
			t.queue = append(t.queue, id)
		}
	}
	for id := range t.known {
		if !exists[id] {
			delete(t.known, id)
			gone = append(gone, id)
		}
	}
	return gone
}

// Asked takes the answer about one container, nil if it does not exist, and
// returns what became of it since the last.
func (t *Tracker) Asked(id string, now *State) []Change {
	if t.marked[id] {
		delete(t.marked, id)
		for i, q := range t.queue {
			if q == id {
				t.queue = append(t.queue[:i], t.queue[i+1:]...)
				break
			}
		}
	}
	before, known := t.known[id]
	if now == nil {
		delete(t.known, id)
		if before.Running {
			return []Change{Stopped, Gone}
		}
		return []Change{Gone}
	}
	t.known[id] = *now
	switch {
	case before.Running && now.Running && before.Since != now.Since:
		return []Change{Stopped, Started}
	case now.Running && !before.Running:
		return []Change{Started}
	case !now.Running && (before.Running || !known):
		return []Change{Stopped}
	case now.Running && before.Shape != now.Shape:
		return []Change{Reshaped}
	}
	return nil
}
