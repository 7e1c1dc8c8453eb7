package kernel

import (
	"net/netip"
	"strconv"
)

// MaxPeers bounds short ids, which have 12 bits.
const MaxPeers = 4096

// Addr is an IPv6 address, or an IPv4 address as IPv4-mapped, as the maps have
// it. Its zero value is no address.
type Addr [16]byte

// AddrOf returns a as Addr.
func AddrOf(a netip.Addr) Addr {
	if !a.IsValid() {
		return Addr{}
	}
	return a.As16()
}

// ToAddr returns a as netip.Addr, IPv4 as IPv4; the zero value gives the zero
// value.
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

// MACFlags are the flags of a MAC address.
type MACFlags uint16

// MACExpress is set for a MAC address that may be bypassed to and from.
const MACExpress MACFlags = 1

// MACEntry is struct mac_entry of bpf/weft.h: where a MAC address is.
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
	PeerKnown   PeerFlags = 1 << iota // the id is a peer's
	PeerFast                          // its frames go by VXLAN to the next hop
	PeerExpress                       // and may go past the VXLAN device; for a neighbour, may come so
	PeerDirect                        // and so may frames that have crossed the bridge
)

// PeerEntry is struct peer_entry of bpf/weft.h: how frames for a peer leave.
type PeerEntry struct {
	Flags   PeerFlags
	Next    uint16 // short id of the next hop
	MTU     uint16 // largest IP packet inside, bytes
	_       uint16
	Ifindex uint32 // underlay interface, for express
	Remote  Addr   // of the next hop
	Local   Addr   // of this host towards it
	Gateway Addr   // neighbour on the underlay to which packets go
}

// Remote is struct remote of bpf/weft.h: the neighbour that an outer address is.
type Remote struct {
	Peer  uint16
	Flags uint16
	_     uint32
	Local Addr // the address of this host that it sends to
}

// Traffic is struct traffic of bpf/weft.h: what went by VXLAN.
type Traffic struct {
	TxPackets, TxBytes           uint64 // this host's frames to the peer
	RxPackets, RxBytes           uint64 // the peer's frames to this host
	RelayedPackets, RelayedBytes uint64 // frames for the peer from others
}

// ConfigFlags are the flags of Config.
type ConfigFlags uint16

// ConfigExpress allows that frames pass by the bridge.
const ConfigExpress ConfigFlags = 1

// Config is struct config of bpf/weft.h: what this host is.
type Config struct {
	Port      uint32 // ifindex of the bridge's port
	TAP       uint32 // 0 while there is none
	VXLAN     uint32 // 0 if there is none
	Self      uint16 // own short id, 0 if none
	Flags     ConfigFlags
	VXLANPort uint16
	_         uint16
}

// Event is struct event of bpf/weft.h: a MAC address was seen where the maps do not
// have it.
type Event struct {
	Addr    [6]byte
	Peer    uint16 // behind which it was seen
	Ifindex uint32 // of the veth it was seen on, 0 if not known
	Old     uint16 // what the maps had, 0 if nothing
	_       uint16
}

// DropReason says why the kernel dropped a frame.
type DropReason uint32

// Reasons, as enum drop of bpf/weft.h has them. Append only.
const (
	DropShort         DropReason = iota // no whole Ethernet header
	DropSource                          // source zero or group, and no probe
	DropUnknownRemote                   // from an address that is no neighbour's
	DropVNI                             // ids that are nobody's, or this host's own as source
	DropSpoofed                         // a neighbour's probe with another's id
	DropTTL                             // passed on too often
	DropNoTAP                           // for the router, which is away
	DropRedirect                        // the kernel refused a step
	DropFormat                          // a tag or a probe that makes no sense
	DropLoop                            // its next hop is the one that it came from
	numDrops
)

var dropNames = [numDrops]string{
	"short", "source", "unknown_remote", "vni", "spoofed", "ttl", "no_tap", "redirect", "format", "loop",
}

// String is the reason's label in metrics and status.
func (r DropReason) String() string {
	if r < numDrops {
		return dropNames[r]
	}
	return "drop " + strconv.Itoa(int(r))
}
