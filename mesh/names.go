package mesh

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/weft-net/weft/mesh/gossip"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/mesh/session"
)

// names is a peer.Book that is safe for concurrent use. It is used by handshakes and by
// the topology.
type names struct {
	// addrOf returns the source of a neighbour's session, the zero Addr if it has none. It
	// takes no lock. Constant.
	addrOf func(peer.Name) netip.Addr

	mu   sync.Mutex // no other lock is taken while it is held
	book peer.Book
}

// Check implements topology.Book.
func (n *names) Check(name peer.Name, key peer.Key) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Check(name, key)
}

// Bind implements topology.Book. All neighbours at one address share a part of the book.
func (n *names) Bind(name peer.Name, key peer.Key, via peer.Via) error {
	if a := n.addrOf(via.Neighbour); a.IsValid() {
		via = peer.Via{Addr: a}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Bind(name, key, via)
}

// Hold implements topology.Book.
func (n *names) Hold(name peer.Name) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.book.Hold(name)
}

// Release implements topology.Book.
func (n *names) Release(name peer.Name) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.book.Release(name)
}

// forget ends the binding of a name.
func (n *names) forget(name peer.Name) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.book.Forget(name)
}

// bindings returns all bindings and the number of the generation.
func (n *names) bindings() ([]peer.Binding, uint64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Bindings(), n.book.Generation()
}

func (n *names) generation() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.book.Generation()
}

// load adds bindings of an earlier run. It returns an error for each that is not valid.
func (n *names) load(bindings []peer.Binding) (errs []error) {
	for _, b := range bindings {
		err := b.Name.CheckOverride()
		if err == nil {
			err = n.Bind(b.Name, b.Key, b.Via)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("stored key of a name: %w", err))
		}
	}
	return errs
}

// ForgetName ends the binding of an overridden name to its key, and drops its entry and
// session, so that the next key that shows the name gets it. Call it for a peer that the
// mesh has removed, or that has lost its key. It neither blocks nor makes a callback, and
// does nothing for a derived name: nobody else can use one.
func (m *Mesh) ForgetName(name peer.Name) {
	if name == m.self || name.Derived() {
		return
	}
	m.channels[ChannelTopology].do(func(*gossip.Engine) {
		m.topo.Remove(name)
		m.book.forget(name)
		m.wakeTopology()
		m.wakeSaver()
	})
	m.mu.Lock()
	defer m.mu.Unlock()
	if n := (*m.neighbours.Load())[name]; n != nil && !m.closing {
		m.dismiss(n, session.CodeOther, errForgotten)
	}
}

var errForgotten = errors.New("the name was removed from the mesh")

// saveEvery is the shortest time between two writes of the bindings, which others can make
// change all the time.
const saveEvery = time.Second

// save writes the bindings to disk after they changed, until ctx is done, and once after
// that.
func (m *Mesh) save(ctx context.Context) {
	defer m.wg.Done()
	if m.cfg.SaveBindings == nil {
		return
	}
	var saved uint64
	failed := false
	for done := false; !done; {
		select {
		case <-ctx.Done():
			done = true
		case <-m.saverWake:
		}
		if saved == m.book.generation() && !failed {
			continue
		}
		list, generation := m.book.bindings()
		err := m.cfg.SaveBindings(list)
		if err != nil && !failed {
			m.log.Error("the keys of names given by users cannot be written; after a restart another key may take one of them", "err", err)
		}
		saved, failed = generation, err != nil
		if !done {
			select {
			case <-ctx.Done():
			case <-time.After(saveEvery):
			}
		}
	}
}

// wakeSaver makes save look for changes.
func (m *Mesh) wakeSaver() {
	select {
	case m.saverWake <- struct{}{}:
	default:
	}
}
