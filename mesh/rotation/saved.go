package rotation

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/weft-net/weft/mesh/peer"
)

// savedState is what a Machine needs over a restart, as JSON.
type savedState struct {
	Passwords []savedPassword `json:"passwords"` // the preferred one first
	Offered   ID              `json:"offered"`
	Floor     rank            `json:"floor"`
	Replaced  []ID            `json:"replaced"`
	// Configured is the first password that the configuration had.
	Configured ID `json:"configured"`
}

type savedPassword struct {
	Text  string `json:"text"`
	ID    ID     `json:"id"`
	Time  int64  `json:"time"`
	Line  int    `json:"line"`
	Order []byte `json:"order,omitempty"` // encoded, without the text
}

// Saved returns what New needs to go on after a restart, nil if the configuration says it all.
// It has passwords in it.
func (m *Machine) Saved() []byte {
	s := savedState{Offered: m.offered, Floor: m.floor, Replaced: m.replaced, Configured: m.configured}
	later := len(m.replaced) > 0 || m.cfg.Gradual
	for _, h := range m.held {
		p := savedPassword{Text: h.Text, ID: h.ID, Time: h.time, Line: h.line}
		if h.order != nil {
			p.Order = h.order.signed
		}
		later = later || h.time > 0
		s.Passwords = append(s.Passwords, p)
	}
	if !later {
		return nil
	}
	b, err := json.Marshal(&s)
	if err != nil {
		panic(err) // all fields can be encoded
	}
	return b
}

var errSaved = errors.New("the stored passwords cannot be used")

// restore reads what Saved returned. On error the Machine is to be discarded or begun again.
func (m *Machine) restore(b []byte) error {
	var s savedState
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%w: %w", errSaved, err)
	}
	if len(s.Passwords) == 0 || len(s.Passwords) > MaxHeld || len(s.Replaced) > maxReplaced {
		return fmt.Errorf("%w: %d of them, %d former ones", errSaved, len(s.Passwords), len(s.Replaced))
	}
	for _, p := range s.Passwords {
		h := &held{Password: Password{p.Text, p.ID}, time: p.Time, line: p.Line}
		if len(p.Text) < MinText || m.find(p.ID) != nil {
			return fmt.Errorf("%w: a password of %d bytes", errSaved, len(p.Text))
		}
		if p.Order != nil {
			o, _, err := parseOrder(p.Order)
			if err != nil {
				return fmt.Errorf("%w: %w", errSaved, err)
			}
			if o.Password != p.ID || !o.verify(m.cfg.Verifier) {
				return fmt.Errorf("%w: an order is for another password, or its signature is wrong", errSaved)
			}
			o.giver = peer.IDOf(o.By)
			h.order = o
		}
		m.held = append(m.held, h)
	}
	m.offered, m.floor, m.replaced, m.configured = s.Offered, s.Floor, s.Replaced, s.Configured
	if m.find(m.offered) == nil {
		return fmt.Errorf("%w: the one that is offered is missing", errSaved)
	}
	slices.SortFunc(m.held, (*held).compare)
	return nil
}
