// Package resolve says what becomes of a request for the MAC address of an IP address, as all hosts know
// from bindings where the addresses are that weft gave. So ARP and neighbour discovery need no broadcast:
//
//	container asks --> bridge --> router of its host
//	                                |
//	    +---------------+-----------+----+-----------------------+
//	    | bound         | bound          | not bound,            | the sender says that a bound
//	    | elsewhere     | on this host   | or not reached        | address is at another MAC address
//	    v               v                v                       v
//	  Answer          Local            Flood                   False
//	  here, no        the container    to all hosts,           dropped
//	  frame leaves    answers itself   as any broadcast
//
// A host that cannot be reached is not answered for: its container would get frames that nobody
// delivers, and no error. Flooded, the request fails as on any Ethernet (host unreachable), or finds the
// address where something else took it over.
//
// An address that its host says to be elsewhere than a frame does is not followed: Moves tells the
// containers of this host of an address that moved, once its binding has.
//
// Nothing here opens a socket, reads a clock or logs.
package resolve

import (
	"net/netip"

	"github.com/weft-net/weft/internal/neighbour"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/ethernet"
)

// Place is where an IP address is, by the signed word of its host. The zero Place means that nobody is
// believed to have it.
type Place struct {
	MAC ethernet.MAC
	At  peer.Name
}

// IsZero reports whether nobody is believed to have the address.
func (p Place) IsZero() bool { return p.At.IsZero() }

// Verdict is what becomes of a frame of a container.
type Verdict uint8

// Verdicts.
const (
	Flood  Verdict = iota // it goes to all hosts
	Answer                // this host answers it, for the container of another host
	Local                 // a container of this host answers it
	False                 // it says that a bound address is at another MAC address
)

// Decide returns what becomes of a frame from a container of the host self. target and from are the
// places of the two addresses of m, zero for an invalid one. reached reports whether the host of target
// can be reached.
//
// The container that has the target is not answered, whatever it asks: its probe (RFC 5227, section
// 2.1.1) would find a conflict with itself.
func Decide(m neighbour.Message, self peer.Name, target, from Place, reached bool) Verdict {
	if !target.IsZero() {
		switch {
		case target.At == self:
			return Local
		case reached && target.MAC != ethernet.MAC(m.MAC):
			return Answer
		}
	}
	if IsFalse(m, from) {
		return False
	}
	return Flood
}

// IsFalse reports whether a frame says that a bound address is at another MAC address. from is the place
// of m.From.
func IsFalse(m neighbour.Message, from Place) bool {
	return m.From.IsValid() && !from.IsZero() && from.MAC != ethernet.MAC(m.MAC)
}

// Change is a change of the place of an address.
type Change struct {
	Addr     netip.Addr
	Old, New Place
}
