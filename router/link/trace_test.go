package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/trace"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/seal"
	"github.com/weft-net/weft/router/wire"
)

// TestStories plays testdata/*.txt: the two ends a and b of one link, joined by
// a session that loses nothing and a path that takes 5 ms. a has the lower name,
// so it offers keys. The numbers drawn at random are the same in each run.
func TestStories(t *testing.T) {
	trace.Run(t, "testdata/*.txt", func(t *testing.T) trace.World {
		return &story{t: t, now: start, mtu: 1500, iface: 1500, jitter: rand.New(rand.NewPCG(1, 1)), index: 100}
	})
}

// story is two machines, the path between them and what they did.
type story struct {
	t      *testing.T
	out    *trace.Output // of the command under way
	now    time.Time
	jitter *rand.Rand
	index  uint32 // the last receiver index that was given out
	mtu    int    // of the path: larger packets vanish
	iface  int    // of both interfaces: the kernel refuses larger packets
	frames uint64 // sent so far, as Config.Traffic tells
	busy   bool   // whether frames are sent all the time
	ends   [2]*storyEnd
	queue  []arrival // in order of time
}

// storyEnd is one end of the link.
type storyEnd struct {
	name  string
	addr  netip.AddrPort
	m     *Machine
	tx    *seal.Tx
	rx    map[uint32]bool // whether the first packet to an index was opened
	cut   bool            // whether the packets it sends are lost
	shown string          // the state that was last written down

	probes      []probed // since the last line of output
	probesSince time.Time
}

// probed is a run of probes of one size.
type probed struct {
	what  string
	times int
}

// arrival is a message or packet under way.
type arrival struct {
	at  time.Time
	run func()
}

// Do carries out one command of a story.
func (s *story) Do(c trace.Command, out *trace.Output) (err error) {
	s.out = out
	switch c.Name {
	case "start": // begin the link at both ends
		s.begin()
	case "run": // let time pass
		var d time.Duration
		if d, err = time.ParseDuration(c.Arg(0)); err == nil {
			s.run(d)
		}
	case "path": // path BYTES: the largest packet that passes
		s.mtu, err = strconv.Atoi(c.Arg(0))
	case "interface": // interface BYTES: the largest packet that the kernel sends
		s.iface, err = strconv.Atoi(c.Arg(0))
	case "busy": // frames are sent from now on
		s.busy = true
	case "quiet": // no more frames are sent
		s.busy = false
	case "cut": // what these ends send is lost
		for _, e := range s.ends {
			e.cut = slices.Contains(c.Args, e.name)
		}
	default:
		return errors.New("no such command")
	}
	s.flushProbes()
	return err
}

func (s *story) begin() {
	names := [2]peer.Name{low, high}
	var effects [2][]Effect
	for i := range s.ends {
		s.ends[i] = &storyEnd{name: string(rune('a' + i)), rx: make(map[uint32]bool),
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), 6783)}
	}
	for i, e := range s.ends {
		e.m, effects[i] = New(Config{Self: names[i], Peer: names[1-i], Suites: 3, Addr: s.ends[1-i].addr, Lanes: 1,
			MaxMTU: 1500, Secret: [32]byte{9}, Epoch: epoch, Jitter: s.jitter, Entropy: rand.NewChaCha8([32]byte{byte(i)}),
			NewIndex: func() uint32 { s.index++; return s.index }, Traffic: s.traffic}, s.now)
	}
	for i := range s.ends {
		s.step(i, effects[i])
	}
}

func (s *story) traffic() uint64 {
	if s.busy {
		s.frames++
	}
	return s.frames
}

func (s *story) printf(format string, args ...any) {
	s.flushProbes()
	s.line(s.now, fmt.Sprintf(format, args...))
}

func (s *story) line(at time.Time, text string) {
	s.out.Printf("%7.3fs %s", at.Sub(start).Seconds(), text)
}

// flushProbes writes down the probes that were sent since the last line: one
// line for each end, with the time of the first. A heartbeat has the size 0.
func (s *story) flushProbes() {
	for _, e := range s.ends {
		if e == nil || len(e.probes) == 0 {
			continue
		}
		var sizes []string
		for _, p := range e.probes {
			text := p.what
			if p.times > 1 {
				text += fmt.Sprintf(" (%d times)", p.times)
			}
			sizes = append(sizes, text)
		}
		s.line(e.probesSince, fmt.Sprintf("%s probes %s", e.name, strings.Join(sizes, ", ")))
		e.probes = nil
	}
}

// noteProbe adds a probe to those that flushProbes writes down.
func (s *story) noteProbe(e *storyEnd, what string) {
	if len(e.probes) == 0 {
		e.probesSince = s.now
	}
	if last := len(e.probes) - 1; last >= 0 && e.probes[last].what == what {
		e.probes[last].times++
		return
	}
	e.probes = append(e.probes, probed{what, 1})
}

// step carries out the effects of end i, and writes them down.
func (s *story) step(i int, effects []Effect) {
	e := s.ends[i]
	for _, f := range effects {
		switch f := f.(type) {
		case SendControl:
			s.printf("%s -> %s %s", e.name, s.ends[1-i].name, s.control(f.Msg))
			s.later(func() {
				out, err := s.ends[1-i].m.Control(s.now, f.Msg)
				if err != nil {
					s.t.Error(err)
				}
				s.step(1-i, out)
			})
		case SendProbe:
			s.probe(i, f)
		case InstallRx:
			s.printf("%s receives at index %d", e.name, f.Index)
			e.rx[f.Index] = false
		case RemoveRx:
			s.printf("%s no longer receives at index %d", e.name, f.Index)
			delete(e.rx, f.Index)
		case UseTx:
			if e.tx = f.Tx; f.Tx == nil {
				s.printf("%s has no key to send with", e.name)
			} else {
				s.printf("%s sends to index %d, %s", e.name, s.indexOf(f.Tx), f.Tx.Suite)
			}
		}
	}
	state, why := e.m.State()
	text := fmt.Sprintf("%s: %s", state, why)
	if state == Established {
		text = fmt.Sprintf("%s, mtu %d", state, e.m.MTU())
	}
	if text != e.shown {
		e.shown = text
		s.printf("%s is %s", e.name, text)
	}
}

func (s *story) control(msg []byte) string {
	c, _, err := wire.ParseControl(msg)
	if err != nil {
		s.t.Fatal(err)
	}
	switch c.Type {
	case wire.Offer:
		return fmt.Sprintf("offer: round +%d, index %d", c.Round-uint32(start.Unix()), c.Index)
	case wire.Answer:
		return fmt.Sprintf("answer to index %d: index %d", c.Offer, c.Index)
	case wire.Confirm:
		return "confirm"
	case wire.Renew:
		return "renew"
	}
	return fmt.Sprintf("message of type %d", c.Type)
}

// probe sends a probe, which the other end answers.
func (s *story) probe(i int, f SendProbe) {
	e, o := s.ends[i], s.ends[1-i]
	size := int(f.Body.Size)
	if size > s.iface {
		s.noteProbe(e, fmt.Sprintf("%d (refused by the kernel)", size))
		s.step(i, e.m.TooBig(s.now, size))
		return
	}
	s.noteProbe(e, strconv.Itoa(size))
	index := s.indexOf(e.tx)
	if e.cut || size > s.mtu {
		return
	}
	s.later(func() {
		if !s.open(1-i, index) {
			return
		}
		s.step(1-i, o.m.Asked(s.now))
		if o.cut || o.tx == nil {
			return
		}
		answer, to := f.Body, s.indexOf(o.tx)
		answer.Answer = true
		s.later(func() {
			if s.open(i, to) {
				s.step(i, e.m.Answered(s.now, answer))
			}
		})
	})
}

// indexOf returns the index of the packets that tx seals.
func (s *story) indexOf(tx *seal.Tx) uint32 {
	p, err := tx.Seal(wire.Data, 0, make([]byte, wire.HeaderLen, wire.Overhead), new(seal.Nonce))
	if err != nil {
		s.t.Fatal(err)
	}
	h, err := wire.ParseHeader(p)
	if err != nil {
		s.t.Fatal(err)
	}
	return h.Index
}

// open reports whether end i has a key for a packet to index.
func (s *story) open(i int, index uint32) bool {
	used, ok := s.ends[i].rx[index]
	if ok && !used {
		s.ends[i].rx[index] = true
		s.step(i, s.ends[i].m.FirstUse(s.now, index))
	}
	return ok
}

// later runs f when what is sent now arrives.
func (s *story) later(f func()) {
	s.queue = append(s.queue, arrival{s.now.Add(5 * time.Millisecond), f})
}

// run lets d pass, and does what is due on the way.
func (s *story) run(d time.Duration) {
	for end := s.now.Add(d); ; {
		next, who := end, -1
		for i, e := range s.ends {
			if t := e.m.Next(); !t.IsZero() && t.Before(next) {
				next, who = t, i
			}
		}
		switch {
		case len(s.queue) > 0 && !s.queue[0].at.After(next):
			a := s.queue[0]
			s.queue = s.queue[1:]
			s.now = a.at
			a.run()
		case who < 0:
			s.now = end
			return
		default:
			s.now = s.now.Add(max(next.Sub(s.now), time.Microsecond)) // a driver is never in time
			s.step(who, s.ends[who].m.Tick(s.now))
		}
	}
}
