package kernel

import (
	"net/netip"
	"slices"
	"strconv"

	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// MaxPeers bounds short ids, which have 12 bits.
const MaxPeers = 4096

// Addr is an address in the maps: IPv6, or IPv4 as IPv4-mapped. The zero value is no
// address.
type Addr [16]byte

// AddrOf returns a as Addr.
func AddrOf(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// ToAddr returns a as netip.Addr, IPv4 as IPv4. The zero value becomes the zero value.
func ToAddr(a Addr) netip.Addr {
	if a == (Addr{}) {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a).Unmap()
}

// MACKey is struct mac of bpf/weft.h.
type MACKey struct {
	Addr [6]byte
	_    [2]byte
}

// Neighbour is struct neighbour of bpf/weft.h: where an IP address is.
type Neighbour struct {
	MAC   [6]byte
	Peer  uint16 // short id of its host, 0 if not known
	Since uint64 // when this host heard of it, on the clock of MACEntry.Seen
}

// MACFlags are the flags of a MAC address.
type MACFlags uint16

// MACExpress allows frames from and to a MAC address to bypass the bridge.
const MACExpress MACFlags = 1

// MACEntry is struct mac_entry of bpf/weft.h: the place of a MAC address.
type MACEntry struct {
	Peer    uint16 // short id
	Flags   MACFlags
	Ifindex uint32 // of the host's end of its veth, 0 if not known or elsewhere
	Seen    uint64 // time of CLOCK_BOOTTIME in ns when a frame came from it, to the second

	TxPackets, TxBytes uint64 // from it
	RxPackets, RxBytes uint64 // to it
}

// PeerFlags are the flags of a short id.
type PeerFlags uint16

// Flags of a short id.
const (
	PeerKnown   PeerFlags = 1 << iota // a peer has the id
	PeerFast                          // frames for it go to the next hop by VXLAN
	PeerExpress                       // they may bypass the VXLAN device; from a neighbour they may come so
	PeerDirect                        // so may frames that crossed the bridge
	PeerAny                           // any neighbour may relay its frames: From is too short
	PeerPlain                         // IP packets without VXLAN may come from it
)

// Encap is how IP packets between addresses that are known to be at containers go to a neighbour. VXLAN
// carries all other frames.
type Encap uint8

// Encapsulations. The numbers are on the wire, in probes.
const (
	EncapVXLAN Encap = iota
	EncapIPIP        // RFC 2003, RFC 4213: without Ethernet header, behind an IPv4 header
	EncapNone        // without Ethernet header, as they are
)

// PeerEntry is struct peer_entry of bpf/weft.h: how frames for a peer leave.
type PeerEntry struct {
	Flags PeerFlags
	Next  uint16 // short id of the next hop
	MTU   uint16 // largest IP packet inside, bytes
	// Encap4 and Encap6 are those of packets of IPv4 and IPv6 between known addresses, if the peer is
	// the next hop.
	Encap4, Encap6 Encap
	Ifindex        uint32 // underlay interface, for express
	Remote         Addr   // of the next hop
	Local          Addr   // of this host towards it
	Gateway        Addr   // next hop on the underlay
	// From are the short ids of the neighbours that may relay frames of the peer.
	From [plan.MaxFrom]uint16
}

// Remote is struct remote of bpf/weft.h: the neighbour that has an outer address.
type Remote struct {
	Peer  uint16
	Flags uint16
	_     uint32
	Local Addr     // the address of this host that it sends to
	Key   peer.Key // identity that it proved
}

// Traffic is struct traffic of bpf/weft.h: counters of VXLAN.
type Traffic struct {
	TxPackets, TxBytes           uint64 // from this host to the peer
	RxPackets, RxBytes           uint64 // from the peer to this host
	RelayedPackets, RelayedBytes uint64 // from other peers to the peer
}

// ConfigFlags are the flags of Config.
type ConfigFlags uint16

// Flags of Config.
const (
	ConfigExpress ConfigFlags = 1 << iota // frames may bypass the bridge
	ConfigPlain                           // a peer has PeerPlain
)

// Config is struct config of bpf/weft.h: this host.
type Config struct {
	Port      uint32 // ifindex of the bridge's port
	TAP       uint32 // 0 while there is none
	VXLAN     uint32 // 0 if there is none
	Self      uint16 // short id of this host, 0 if none
	Flags     ConfigFlags
	VXLANPort uint16
	_         uint16
	_         uint32
	// Until is when the programs stop forwarding between hosts, on the clock of
	// MACEntry.Seen; 0 for never.
	Until uint64
}

// Fingerprint stands for a setting or a secret, which it does not reveal.
type Fingerprint [16]byte

// Binding is struct binding of bpf/weft.h: the configuration for which the state in the
// kernel is valid. The first fingerprint stands for all settings, each of the others for
// one password; zero ones are unused.
type Binding [8]Fingerprint

// Covers reports whether state that was written under old is valid under b: the settings
// are the same, and every password of old is one of b.
func (b Binding) Covers(old Binding) bool {
	for _, f := range old[1:] {
		if f != (Fingerprint{}) && !slices.Contains(b[1:], f) {
			return false
		}
	}
	return b[0] == old[0]
}

// Event is struct event of bpf/weft.h: a MAC address was seen in another place than the
// maps have.
type Event struct {
	Addr    [6]byte
	Peer    uint16 // that it was seen behind
	Ifindex uint32 // of the veth that it was seen on, 0 if not known
	Old     uint16 // short id in the maps, 0 if none
	_       uint16
}

// DropReason says why the kernel dropped a frame.
type DropReason uint32

// Reasons, as enum drop of bpf/weft.h has them. Append only.
const (
	DropShort         DropReason = iota // no whole Ethernet header
	DropSource                          // source address is zero or a group, and it is not a probe
	DropUnknownRemote                   // from an address that no neighbour has
	DropVNI                             // unknown ids, or the id of this host as source
	DropSpoofed                         // probe of a neighbour with the id of another peer
	DropTTL                             // forwarded too often
	DropNoTAP                           // for the router, which does not run
	DropRedirect                        // the kernel refused to forward it
	DropFormat                          // malformed metadata header or probe
	DropLoop                            // the next hop is where it came from
	DropMisrouted                       // of a peer whose frames the routes do not lead over that neighbour
	DropExpired                         // the router has been away for too long
	DropCongestion                      // marked by a router, and the sender does not know marks (RFC 6040)
	numDrops
)

var dropNames = [numDrops]string{
	"short", "source", "unknown_remote", "vni", "spoofed", "ttl", "no_tap", "redirect", "format", "loop", "misrouted", "expired", "congestion",
}

// String returns the label of the reason in metrics and status.
func (r DropReason) String() string {
	if r < numDrops {
		return dropNames[r]
	}
	return "drop " + strconv.Itoa(int(r))
}
