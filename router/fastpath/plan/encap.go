package plan

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/weft-net/weft/router/wire"
)

// Encap is how IP packets between addresses of containers go to a neighbour. VXLAN carries all other frames.
type Encap uint8

// Encapsulations, which kernel.Encap has with the same numbers.
const (
	VXLAN Encap = iota
	IPIP        // RFC 2003, RFC 4213: without Ethernet header, behind an IPv4 header
	None        // without Ethernet header, as they are
)

// IPIPOverhead is the overhead of IPIP, in bytes.
const IPIPOverhead = 20

// String returns the word of users.
func (e Encap) String() string { return [...]string{"vxlan", "ipip", "none"}[e] }

// Family is the version of IP of packets of containers.
type Family uint8

// Families.
const (
	V4 Family = iota
	V6
)

var families = [...]Family{V4, V6}

// FamilyOf returns the family of an address.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return V4
	}
	return V6
}

// way is one encapsulation of plain packets of one family on a link.
type way struct {
	prober
	Encap
	family Family
	tried  bool // it is probed
}

func (w *way) end() {
	if w.tried {
		w.stop()
	}
	w.tried = false
}

// Encaps are encapsulations of plain packets, better ones first, then VXLAN for all other packets.
type Encaps [2]Encap

// Auto has all encapsulations, those with less overhead first.
var Auto = Encaps{None, IPIP}

// List returns the encapsulations before VXLAN.
func (e *Encaps) List() []Encap {
	if i := slices.Index(e[:], VXLAN); i >= 0 {
		return e[:i]
	}
	return e[:]
}

// set is for the peer.
func (e *Encaps) set() (set wire.Encaps) {
	for _, e := range e.List() {
		set |= 1 << e
	}
	return set
}

// orderWays puts the ways in the order of this end's offer. Others end.
func (l *Link) orderWays() {
	rank := func(w *way) int {
		if i := slices.Index(l.own.Encaps.List(), w.Encap); i >= 0 {
			return i
		}
		return len(l.ways)
	}
	slices.SortStableFunc(l.ways, func(a, b *way) int { return cmp.Compare(rank(a), rank(b)) })
}

// takes reports whether the peer uses and accepts an encapsulation.
func (l *Link) takes(e Encap) bool { return l.peer != nil && l.peer.Plain&(1<<e) != 0 }

// tryWays probes the ways of plain packets. One is tried only while no better one of its family is up.
func (l *Link) tryWays(now time.Time) {
	var up [len(families)]bool
	for _, w := range l.ways {
		from, to := l.ends(w.family)
		wanted := l.transport == clearText && slices.Contains(l.own.Encaps.List(), w.Encap) && l.takes(w.Encap)
		if up[w.family] || !wanted || l.cannot(w) != nil || !from.IsValid() || !to.IsValid() {
			w.end()
			continue
		}
		if !w.tried {
			w.tried = true
			w.begin(now)
		}
		w.update(now)
		w.send(now, func(n [NonceLen]byte, size int) {
			l.emit(PlainProbe{Encap: w.Encap, From: from, To: to, Src: l.own.ShortID, Dst: l.peer.ShortID, Nonce: n, Size: size})
		})
		up[w.family] = w.up
	}
}

func (l *Link) cannot(w *way) error {
	if l.cfg.Cannot == nil {
		return nil
	}
	return l.cfg.Cannot(w.Encap, w.family)
}

func (l *Link) ends(f Family) (own, peers netip.Addr) {
	if l.cfg.Ends == nil {
		return own, peers
	}
	return l.cfg.Ends(f)
}

// Encap returns how IP packets of a family go to the peer if all is known about their ends.
func (l *Link) Encap(f Family) Encap {
	for _, w := range l.ways {
		if w.family == f && w.up {
			return w.Encap
		}
	}
	return VXLAN
}

// Plain reports whether any packets go to the peer without VXLAN.
func (l *Link) Plain() bool { return l.Encap(V4) != VXLAN || l.Encap(V6) != VXLAN }

// Accepts reports whether plain packets may come from the peer: clear text is allowed, and both ends want them.
// A host that wants none does not keep its containers from forging them.
func (l *Link) Accepts() bool {
	return l.ready && l.transport == clearText && len(l.own.Encaps.List()) > 0 && (l.takes(IPIP) || l.takes(None))
}
