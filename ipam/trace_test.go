package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/internal/store"
	"github.com/weft-net/weft/internal/trace"
	"github.com/weft-net/weft/ipam/consensus"
	"github.com/weft-net/weft/ipam/paxos"
	"github.com/weft-net/weft/ipam/ring"
	"github.com/weft-net/weft/mesh/peer"
)

// TestStories plays testdata/*.txt: peers with one letter as their name, in a
// simulation that always draws the same numbers.
func TestStories(t *testing.T) {
	trace.Run(t, "testdata/*.txt", func(t *testing.T) trace.World {
		w := &storyWorld{sim: newSim(t, 1), start: time.Unix(1_700_000_000, 0), asked: make(map[uint64]string), old: make(map[string]*memDisk)}
		w.watcher = w
		return w
	})
}

// storyWorld is a sim that writes down what its nodes do.
type storyWorld struct {
	*sim
	start time.Time
	out   *trace.Output       // of the command under way
	asked map[uint64]string   // what each request is
	old   map[string]*memDisk // copies that save made
}

var errCommand = errors.New("no such command")

// node returns the node of a letter.
func (w *storyWorld) node(letter string) *node {
	for _, n := range w.nodes {
		if w.letter(n.cfg.Self) == letter {
			return n
		}
	}
	w.t.Fatalf("there is no peer %q", letter)
	return nil
}

func (w *storyWorld) name(letter string) peer.Name {
	return peer.Name{2, 5: letter[0] - 'a' + 1}
}

func (w *storyWorld) letter(n peer.Name) string { return string(rune('a' + n[5] - 1)) }

// letters replaces the names in a text by letters.
func (w *storyWorld) letters(text string) string {
	for i := range w.made {
		n := peer.Name{2, 5: byte(i + 1)}
		text = strings.ReplaceAll(text, n.String(), w.letter(n))
	}
	text = strings.ReplaceAll(text, paxos.Ballot{}.String(), "nothing")
	return strings.ReplaceAll(text, peer.Name{}.String(), "nobody")
}

func (w *storyWorld) printf(format string, args ...any) {
	w.out.Printf("%s", w.letters(fmt.Sprintf("%5.2fs ", w.now.Sub(w.start).Seconds())+fmt.Sprintf(format, args...)))
}

// Do carries out one command of a story.
func (w *storyWorld) Do(c trace.Command, out *trace.Output) error {
	w.out = out
	switch c.Name {
	case "start": // the next peer: start LETTER [range=PREFIX] [--ipalloc-init of the router]
		return w.add(c)
	case "run": // let time pass
		d, err := time.ParseDuration(c.Arg(0))
		w.run(d)
		return err
	case "cut": // the peers named cannot reach the others
		w.cut = func(a, b *node) bool {
			in := func(n *node) bool { return slices.Contains(c.Args, w.letter(n.cfg.Self)) }
			return in(a) != in(b)
		}
		return nil
	case "cut-pair": // two peers cannot reach each other, but all others
		w.cut = func(a, b *node) bool {
			return w.letter(a.cfg.Self) == c.Arg(0) && w.letter(b.cfg.Self) == c.Arg(1)
		}
		return nil
	case "isolate": // no peer can reach another one
		w.cut = func(a, b *node) bool { return true }
		return nil
	case "heal":
		w.cut = func(a, b *node) bool { return false }
		return nil
	case "duplicates-expected": // two rings give the same addresses
		w.duplicatesExpected = true
		return nil
	}
	n := w.node(c.Arg(0))
	switch c.Name {
	case "kill":
		n.kill()
	case "launch":
		n.launch()
	case "save": // copy the disk
		w.old[c.Arg(0)] = n.disk.clone()
	case "restore": // put the copy in its place
		n.disk = w.old[c.Arg(0)].clone()
	case "adopt": // adopt A B: the ring of B
		return n.adopt(w.node(c.Arg(1)).core.status().Ring)
	case "status":
		w.status(n)
	default:
		return w.request(n, c)
	}
	return nil
}

// add starts a peer.
func (w *storyWorld) add(c trace.Command) error {
	if got := string(rune('a' + w.made)); got != c.Arg(0) {
		return fmt.Errorf("the next peer is %s", got)
	}
	in := Init{Mode: Consensus, Expect: 1}
	switch {
	case c.Options["consensus"] != "":
		_, err := fmt.Sscan(c.Options["consensus"], &in.Expect)
		if err != nil {
			return err
		}
	case c.Options["seed"] != "":
		in = Init{Mode: Seed}
		for _, l := range strings.Split(c.Options["seed"], ",") {
			in.Seeds = append(in.Seeds, w.name(l))
		}
	case c.Arg(1) == "observer":
		in = Init{Mode: Observer}
	}
	addrRange := c.Options["range"]
	if addrRange == "" {
		addrRange = "10.32.0.0/24"
	}
	w.sim.add(addrRange, in)
	return nil
}

// request begins a request of a node.
func (w *storyWorld) request(n *node, c trace.Command) error {
	owner := c.Arg(1)
	begin := func(what string, f func(c *core, id uint64)) {
		n.do(func(core *core) {
			id := core.nextID()
			w.asked[id] = what
			f(core, id)
		})
	}
	switch c.Name {
	case "allocate": // allocate PEER OWNER [SUBNET]
		subnet := n.cfg.Range
		if c.Arg(2) != "" {
			subnet = pfx(c.Arg(2))
		}
		begin("allocate for "+owner, func(c *core, id uint64) { c.allocate(id, owner, subnet) })
	case "claim": // claim PEER OWNER ADDRESS/BITS
		begin("claim for "+owner, func(core *core, id uint64) { core.claim(id, owner, pfx(c.Arg(2))) })
	case "release": // release PEER OWNER ADDRESS
		n.do(func(core *core) { core.release(owner, netip.MustParseAddr(c.Arg(2))) })
	case "remove": // remove PEER DEAD...
		var dead []peer.Name
		for _, l := range c.Args[1:] {
			dead = append(dead, w.name(l))
		}
		begin("remove "+strings.Join(c.Args[1:], ", "), func(c *core, id uint64) { c.remove(id, dead, ByOperator) })
	case "handover":
		begin("handover", func(c *core, id uint64) { c.handover(id) })
	default:
		return errCommand
	}
	return nil
}

func (w *storyWorld) status(n *node) {
	s := n.core.status()
	w.printf("%s is %s", n.cfg.Self, s.State)
	for _, o := range s.Owners {
		unreachable := ""
		if o.Unreachable {
			unreachable = ", unreachable"
		}
		w.printf("  owner %s: %s addresses%s", o.Name, o.Addresses, unreachable)
	}
	for _, text := range s.Waiting {
		w.printf("  reason: %s", text)
	}
	for _, d := range s.Divergent {
		w.printf("  divergent: %s", d)
	}
	for _, c := range s.Conflicts {
		w.printf("  conflict: %s of %s, owned by %s, in use there %v", c.Address, c.Owner, c.Peer, c.InUse)
	}
}

// stepped writes down one step of a node: first what it writes, then its effects.
func (w *storyWorld) stepped(n *node, writes []store.Write, effects []effect) {
	if len(writes) > 0 {
		var buckets []string
		for _, wr := range writes {
			if !slices.Contains(buckets, wr.Bucket) {
				buckets = append(buckets, wr.Bucket)
			}
		}
		w.printf("%s writes %s", n.cfg.Self, strings.Join(buckets, ", "))
	}
	for _, e := range effects {
		switch e := e.(type) {
		case effSend:
			w.printf("%s -> %s %s", n.cfg.Self, e.to, w.message(e.msg))
		case effAnnounce:
			for _, item := range w.delta(e.delta) {
				w.printf("%s -> all %s", n.cfg.Self, item)
			}
		case effReply:
			w.printf("%s replies to %s: %s", n.cfg.Self, w.asked[e.id], replyText(e))
		case effWarn:
			text := e.msg
			for i := 0; i < len(e.args); i += 2 {
				text += fmt.Sprintf(" %v=%q", e.args[i], fmt.Sprint(e.args[i+1]))
			}
			w.printf("%s warns: %s", n.cfg.Self, text)
		}
	}
}

// repaired writes down what a node sent because a digest showed that it was
// missing.
func (w *storyWorld) repaired(from, to *node, delta []byte) {
	w.printf("%s -> %s (repair) %s", from.cfg.Self, to.cfg.Self, strings.Join(w.delta(delta), "; "))
}

func replyText(e effReply) string {
	switch {
	case e.err != nil:
		return e.err.Error()
	case e.prefix.IsValid():
		return e.prefix.String()
	case len(e.removed) > 0:
		var out []string
		for _, r := range e.removed {
			out = append(out, fmt.Sprintf("%s had %s addresses, heir %s", r.Name, r.Addresses, r.Heir))
		}
		return strings.Join(out, "; ")
	case !e.handover.Addresses.IsZero():
		return fmt.Sprintf("%s addresses to %s, %s without an owner", e.handover.Addresses, e.handover.Heir, e.handover.Unreachable)
	}
	return "done"
}

// message describes a message between two allocators.
func (w *storyWorld) message(b []byte) string {
	m, err := parseMessage(b)
	if err != nil {
		w.t.Fatal(err)
	}
	status := [...]string{statusYes: "yes", statusNo: "no", statusOther: "not the owner", statusToo: "yes, but catches up too", statusLater: "not now"}[m.status]
	switch m.kind {
	case msgRecords:
		return "records: " + strings.Join(w.ringDelta(m.body), "; ")
	case msgSpaceAsk:
		return "asks for space in " + m.prefix.String()
	case msgSpaceAnswer:
		return fmt.Sprintf("answers %s, %s free", status, m.free)
	case msgClaimAsk:
		return "asks for " + m.addr.String()
	case msgClaimAnswer:
		return "answers " + status
	case msgLeave, msgWish:
		a, err := ring.ParseAction(m.body)
		if err != nil {
			w.t.Fatal(err)
		}
		return "wants " + describe(a)
	case msgRound:
		text, err := consensus.Describe(m.body)
		if err != nil {
			w.t.Fatal(err)
		}
		return text
	case msgRefusal:
		return "does not agree: " + string(m.body)
	case msgStateAsk:
		return fmt.Sprintf("is at slot %d, and asks what is new", m.slot)
	case msgStateAnswer:
		actions, err := transfersIn(m.body)
		if err != nil {
			w.t.Fatal(err)
		}
		text := fmt.Sprintf("answers %s, is at slot %d", status, m.slot)
		for _, a := range actions {
			text += ", not decided: " + describe(a)
		}
		return text
	case msgBehind:
		return fmt.Sprintf("is at slot %d", m.slot)
	}
	return fmt.Sprintf("message of type %d", m.kind)
}

func describe(a *ring.Action) string {
	switch a.Kind {
	case ring.Transfer:
		return fmt.Sprintf("transfer of %s from %s to %s", a.Range, a.From, a.To)
	case ring.Leave, ring.Remove, ring.Ban:
		return fmt.Sprintf("%s of %s, heir %s", a.Kind, a.From, a.To)
	case ring.Voters:
		return fmt.Sprintf("voters %s", a.Voters)
	case ring.Adopt:
		return fmt.Sprintf("adoption of ring %s", a.Genesis.ID())
	}
	return a.Kind.String()
}

// delta describes a delta of the channel.
func (w *storyWorld) delta(b []byte) []string {
	if b[0] == deltaRing {
		return w.ringDelta(b[1:])
	}
	var out []string
	for b = b[1:]; len(b) > 0; {
		kind, n := b[0], int(binary.BigEndian.Uint16(b[1:]))
		item := b[3 : 3+n]
		b = b[3+n:]
		switch kind {
		case 2: // a value: the entries show who accepted it
			founders, err := ring.ParseHolders(item)
			if err != nil {
				w.t.Fatal(err)
			}
			out = append(out, fmt.Sprintf("election value: founders %s", founders))
			continue
		case 3:
			out = append(out, fmt.Sprintf("seal of %s", peer.NameFromBytes(item)))
			continue
		}
		text := fmt.Sprintf("election entry of %s: promised %s", peer.NameFromBytes(item), paxos.BallotFrom(item[9:]))
		if accepted := paxos.BallotFrom(item[19:]); !accepted.IsZero() {
			text += fmt.Sprintf(", accepted %s", accepted)
		}
		out = append(out, text)
	}
	return out
}

// ringDelta describes the records of a delta.
func (w *storyWorld) ringDelta(b []byte) []string {
	var out []string
	for b = b[17:]; len(b) > 0; {
		n := int(binary.BigEndian.Uint16(b))
		r := b[2 : 2+n]
		b = b[2+n:]
		if g, err := ring.ParseGenesis(r); err == nil {
			out = append(out, fmt.Sprintf("genesis of %s, signed by %s", g.Founders, g.Signers()))
			continue
		}
		d, err := ring.ParseDecision(r)
		if err != nil {
			out = append(out, "part of a snapshot")
			continue
		}
		text := fmt.Sprintf("decision %d:", d.Slot)
		for _, a := range d.Actions {
			text += " " + describe(a)
		}
		out = append(out, fmt.Sprintf("%s, %d votes", text, len(d.Votes)))
	}
	return out
}
