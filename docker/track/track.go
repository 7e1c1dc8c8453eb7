// Package track decides which containers a watcher asks the engine about, and what
// happened to them. It is a step machine without goroutines.
//
// Events are hints: each marks its container, and one question per marked container
// follows. A flood of events therefore costs one question per container, and the next
// question makes up for a lost event.
package track

// maxMarked is how many containers may wait for a question. If there are more, one
// question about all replaces them.
const maxMarked = 4096

// State is the state of a container.
type State struct {
	Running bool
	// Since is when this run of the container began, in the format of the engine. It
	// distinguishes one run from the next.
	Since string
	// Shape describes everything that may change while the container runs. Only
	// equality matters.
	Shape string
}

// Change is what happened to a container.
type Change int

// The changes. A container that was restarted between two questions has
// Stopped and then Started.
const (
	Started  Change = iota
	Stopped         // it may start again
	Gone            // it no longer exists
	Reshaped        // it still runs, with another Shape
)

// Tracker is the state of a watcher. Make it with New.
type Tracker struct {
	known  map[string]State
	marked map[string]bool
	queue  []string // marked containers, in the order of their events
	all    bool
}

// New returns a Tracker that knows no container, with a question about all to ask.
func New() *Tracker {
	return &Tracker{known: make(map[string]State), marked: make(map[string]bool), all: true}
}

// Mark records that something happened to a container.
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

// MarkRunning records that something happened to a container that matters only if it
// runs. An engine may not answer about a container that is starting, and sends an event
// when it has started.
func (t *Tracker) MarkRunning(id string) {
	if t.known[id].Running {
		t.Mark(id)
	}
}

// MarkAll records that anything may have happened.
func (t *Tracker) MarkAll() {
	t.all, t.queue = true, nil
	clear(t.marked)
}

// Next returns the next question: about all, or about one container. Only Listed or
// Asked answers it.
func (t *Tracker) Next() (id string, all, ok bool) {
	switch {
	case t.all:
		return "", true, true
	case len(t.queue) > 0:
		return t.queue[0], false, true
	}
	return "", false, false
}

// Listed takes the answer to the question about all: the containers that exist. It
// returns those that are gone and marks those to ask about. Containers that were marked
// while the question was under way stay marked.
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

// Asked takes the answer about one container, nil if it does not exist, and returns
// what happened to it since the last answer.
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
