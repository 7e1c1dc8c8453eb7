package router

import "sync/atomic"

// Reason says why a frame or a packet was dropped.
type Reason int

// Reasons. Their names are labels of metrics. Append only.
const (
	DropMalformed   Reason = iota // malformed frame or packet
	DropUnknownKey                // packet for a receive key that does not exist, or no longer
	DropForged                    // not sealed under the key it names
	DropReplay                    // received before, or too old to know
	DropUnknownPeer               // from or to a peer that is not in the routes
	DropNoRoute                   // no route to the peer
	DropLinkDown                  // the next link is not established
	DropHops                      // crossed too many links
	DropLooped                    // our own frame came back
	DropReserved                  // for bridges only, like spanning tree
	DropBadSource                 // source address is zero or a group
	DropTooBig                    // too big for the next link; the sender got an ICMP message
	DropReassembly                // fragments came too late, or there were too many
	DropSend                      // the kernel refused the packet
	DropTAP                       // the kernel refused the frame
	DropBusy                      // a queue to the control goroutine was full
	DropMisrouted                 // of a peer whose frames the routes do not lead over that neighbour
	DropNoKey                     // for a peer over relays, while there were no keys with it
	DropUnsealed                  // of a peer over relays, which could read and change it
	DropSpoofed                   // of another peer, with the source address of a container of this host
	DropFalseAddr                 // says that a bound IP address is at another MAC address
	numReasons
)

var reasonNames = [numReasons]string{
	"malformed", "unknown_key", "forged", "replay", "unknown_peer", "no_route", "link_down", "hops", "looped",
	"reserved", "bad_source", "too_big", "reassembly", "send", "tap", "busy", "misrouted", "no_key", "unsealed", "spoofed", "false_address",
}

// String is the reason's label in metrics and status.
func (r Reason) String() string { return reasonNames[r] }

// drops counts by reason. It is safe for concurrent use.
type drops [numReasons]atomic.Uint64

func (d *drops) add(r Reason) { d[r].Add(1) }

// counts returns the counters that are not zero.
func (d *drops) counts() map[string]uint64 {
	var m map[string]uint64
	for r := range d {
		if n := d[r].Load(); n > 0 {
			if m == nil {
				m = make(map[string]uint64)
			}
			m[Reason(r).String()] = n
		}
	}
	return m
}
