package api

import (
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"slices"
	"text/template"
	"time"

	"github.com/weft-net/weft/internal/render"
)

// Report is the state of a router. Its keys in JSON are the names of its
// fields, so that a template works on both.
type Report struct {
	Ready       bool
	Version     string
	Router      Router
	IPAM        *IPAM   `json:",omitempty"` // nil: off
	IPAM6       *IPAM   `json:",omitempty"` // nil: off
	DNS         *DNS    `json:",omitempty"` // nil: off
	Docker      *Docker `json:",omitempty"` // nil: off
	Bindings    Bindings
	Multicast   Multicast
	Kernel      Kernel
	SpoofGuard  SpoofGuard
	Attachments []Attachment
	// Warnings are lines for the user on faults and restrictions.
	Warnings []string
	// Omitted counts the entries that lists leave out, by the name of the list, such as
	// Peers: a report is bounded however many peers a mesh claims to have, and the client
	// may not have asked for the list.
	Omitted map[string]int `json:",omitempty"`
}

// Kernel is the state of the objects in the kernel that weft owns.
type Kernel struct {
	// Repairs counts changes by other software that weft repaired, by kind of object.
	Repairs map[string]uint64
	// Faults are objects that weft cannot repair, or that other software changes again and
	// again. Warnings has their texts too.
	Faults []KernelFault `json:",omitempty"`
}

// KernelFault is an object that is not right.
type KernelFault struct {
	Kind, Name string
	Text       string // for the user
	Since      time.Time
	// Vital: no container can be connected while the object is not right.
	Vital bool
}

// SpoofGuard is the state of what drops frames of containers with addresses that are not theirs.
type SpoofGuard struct {
	Off string // why there is none, "" if there is
	// Containers are those of which frames were dropped since the router started.
	Containers []Spoofing `json:",omitempty"`
}

// Spoofing is a container of which frames were dropped.
type Spoofing struct {
	// ID is the owner in the allocator, Name for people, and Port the host's end of the veth.
	ID, Name, Port string
	Frames         map[string]uint64 // by reason
	Last           string            // why the last one was dropped, for people
	Time           time.Time         // when that was seen
}

// Docker is the state of the Docker engine of this host.
type Docker struct {
	Host       string // where it listens
	State      string // why the engine does not answer; "" if it does
	Containers int    // that run
	// DriverName and DriverSocket are of the network and address driver, empty
	// if there is none.
	DriverName, DriverSocket string
	// ProxyAddresses are where the proxy of Docker's API listens.
	ProxyAddresses []string
}

// Router is the state of mesh and switch.
type Router struct {
	Protocol           string
	ProtocolMinVersion int
	ProtocolMaxVersion int
	Name               string
	NickName           string
	Port               int
	// Banned says in a sentence that the voters banned this host, which peers say so, and what to
	// do; "" if none does. Warnings has it too.
	Banned string `json:",omitempty"`
	// Encryption reports whether a password is set. Without one, sessions and sleeve
	// links are encrypted but peers are not authenticated, and the fast datapath sends
	// frames in clear.
	Encryption      bool
	PeerDiscovery   bool
	ConnLimit       int // 0: none
	Interface       string
	MTU             int // of containers, in bytes
	Targets         []string
	TrustedSubnets  []netip.Prefix
	Peers           []Peer
	PeerConnections PeerConnections
	Connections     []Connection
	Relayed         []RelayedPeer
	UnicastRoutes   []UnicastRoute
	BroadcastRoutes []BroadcastRoute
	MACs            []MAC
	MACTable        MACTable
	Neighbours      Neighbours
	Queues          []Queue
	// Offloads describes what the kernel does for the router, by device: tap, udp.
	Offloads map[string]string
	// TerminationCount counts sessions that ended, for any reason.
	TerminationCount uint64
	// HandshakeFailures counts refused sessions by reason.
	HandshakeFailures map[string]uint64
	// MeshRefused counts what other peers sent and the mesh refused, by reason.
	MeshRefused map[string]uint64
	// Drops counts frames that were dropped before a link was chosen, by reason.
	Drops map[string]uint64
	// Flows is the number of MAC addresses of other hosts in the fast datapath. Weave
	// counted pairs of MAC addresses, as its kernel module had entries for those.
	Flows  int
	Fastdp Fastdp
}

// Fastdp is the state of the fast datapath in the kernel.
type Fastdp struct {
	Off   string // why there is none, "" if there is
	Peers []FastdpPeer
	Drops map[string]uint64 // frames, by reason
}

// FastdpPeer counts the frames that the kernel carried, by the peer at the other
// end. Bytes are of Ethernet frames.
type FastdpPeer struct {
	Name, NickName               string
	RxPackets, TxPackets         uint64
	RxBytes, TxBytes             uint64
	RelayedPackets, RelayedBytes uint64 // sent to the peer for other hosts
}

// Peer is one router of the mesh, this one among them.
type Peer struct {
	Name        string
	NickName    string
	Version     uint64 // of its entry in the topology
	ShortID     uint16 // in VNIs of the fast datapath, 0 for none
	Connections []PeerConnection
	// OmittedConnections counts those that are not listed.
	OmittedConnections int `json:",omitempty"`
}

// PeerConnections counts the sessions that all peers announce, by both of their ends.
type PeerConnections struct{ Established, Pending int }

// PeerConnection is a session as the peer at one end of it announces it.
type PeerConnection struct {
	Name        string
	NickName    string
	Address     string
	Outbound    bool
	Established bool
}

// The states of a Connection.
const (
	StateConnecting  = "connecting"  // dialling
	StatePending     = "pending"     // session up, link not proved yet
	StateEstablished = "established" // session and link up
	StateRetrying    = "retrying"    // waiting to dial again
	StateFailed      = "failed"      // refused; Info says why
	StateAway        = "away"        // the peer said that it stops
)

// Connection is a session of this router and the link beside it, or the
// attempt at one.
type Connection struct {
	Address  string // of the other end, host:port
	Outbound bool
	State    string
	Name     string // empty until the other end is known
	NickName string
	// Kind of the link: sleeve, fastdp; empty without one.
	Kind      string
	Express   bool // fastdp that bypasses the bridge
	Encrypted bool
	// Encap is the encapsulation of IP packets between containers: none, ipip or vxlan, or that of IPv4
	// and that of IPv6, like none/vxlan. All other frames use VXLAN. Empty if Kind is not fastdp.
	Encap string        `json:",omitempty"`
	MTU   int           // largest inner IP packet that passes whole, bytes; 0: unknown
	RTT   time.Duration // nanoseconds in JSON; 0: unknown
	// Info says what restricts the connection, and when it is tried again.
	Info string
	Counters
}

// Counters of a link, since it exists.
type Counters struct {
	RxPackets, TxPackets uint64
	RxBytes, TxBytes     uint64
	Drops                map[string]uint64 // frames, by reason
}

// UnicastRoute is the next hop to a peer.
type UnicastRoute struct{ Dest, Via string }

// BroadcastRoute are the peers to which broadcast frames of Source are passed on.
type BroadcastRoute struct {
	Source string
	Via    []string
}

// RelayedPeer is a peer without a direct link: other peers carry the frames to it.
type RelayedPeer struct {
	Name, NickName   string
	Via, ViaNickName string // the next hop
	// Sealed reports that frames to the peer are encrypted for it, so that no relay can
	// read them. Frames to all peers are not.
	Sealed bool
	Info   string // the cipher, or why not
}

// MACTable describes the MAC table.
type MACTable struct {
	// Entries counts all, also those that Router.MACs leaves out.
	Entries int
	// Moves counts addresses that were seen behind another peer than before.
	Moves uint64
	// Refused counts frames from addresses for which their peer has no space left.
	Refused uint64
	// Elsewhere counts frames from addresses that are bound to another peer, and so stay there.
	Elsewhere uint64
}

// Neighbours counts requests of containers of this host for the MAC address of an IP address: ARP and
// neighbour discovery.
type Neighbours struct {
	// Answered are those that this host answered, as it knows from bindings where the address is,
	// Local those for a container of this host, which answers itself, and Flooded those that went to
	// all hosts.
	Answered, Local, Flooded uint64
	// Announced counts the addresses that got another MAC address, which this host announced to its
	// containers, and Dropped those that it did not announce because too many did at once.
	Announced, Dropped uint64
}

// MAC is an FDB entry of the switch: the peer behind which a MAC address is.
type MAC struct {
	MAC      string
	Name     string
	NickName string
	LastSeen time.Time
	// Frames from and to the MAC address that the fast datapath carried.
	TxPackets, RxPackets uint64
	TxBytes, RxBytes     uint64
}

// Queue is a bounded queue; Drops counts entries dropped because it was full.
type Queue struct {
	Name  string
	Depth int
	Limit int
	Drops uint64
}

// IPAM is the state of one address range. Numbers of addresses are
// float64, as an IPv6 range may have more than 2^64.
type IPAM struct {
	// Status is "ready", or says what the allocator waits for.
	Status        string
	Range         netip.Prefix
	RangeNumIPs   float64
	ActiveIPs     int // in use on this host
	DefaultSubnet netip.Prefix
	Entries       []RingEntry
	Owners        []Owner
	// PendingAllocates and PendingClaims name the waiting owners and their reasons.
	PendingAllocates []string
	PendingClaims    []string
	// Decisions is the number of decisions of the ring, Voters those that vote on the
	// next one, and Quorum how many of them must agree.
	Decisions uint64
	Voters    []Voter
	Quorum    int
	Banned    []string // names of banned peers
	// Votes are what operators want and the voters have not decided.
	Votes     []Vote   `json:",omitempty"`
	LeftRings []string // rings that this router left and can go back to
	// Kept is what this router inherited from removed peers and leaves unused for a time.
	Kept []KeptIPs `json:",omitempty"`
	// Conflicts are addresses in use on this host that another peer owns.
	Conflicts []Conflict `json:",omitempty"`
}

// Conflict is an address in use on this host that another peer owns.
type Conflict struct {
	Address  netip.Addr
	Owner    string // the container that has it here, or Exposed
	Peer     string
	NickName string
	InUse    bool // the peer uses it too; otherwise this router still asks for it
}

// KeptIPs are addresses of a removed peer, which gets them back if it returns in time.
type KeptIPs struct {
	Peer     string
	NickName string
	NumIPs   float64
	Until    time.Time
	// Open is set once they are kept for nobody, and hosts that use some may claim those.
	Open bool `json:",omitempty"`
}

// RingEntry is a token of the ring: the addresses from it up to the next token,
// which may be beyond the end of the range, belong to Peer.
type RingEntry struct {
	Token    netip.Addr
	Size     float64
	Peer     string
	NickName string
	Since    uint64 // the decision of the ring that made it so; 0: the first division
}

// Voter is a peer that has a vote on decisions of the ring.
type Voter struct {
	Peer      string
	NickName  string
	Reachable bool
}

// Owner sums up what one peer owns of the ring.
type Owner struct {
	Peer      string
	NickName  string
	NumIPs    float64
	Active    int  // only known for this host
	Reachable bool // false: the peer cannot be asked for free addresses
}

// Multicast says which hosts want which multicast groups.
type Multicast struct {
	// Known counts the groups that hosts want, each once for each host, and Own those that containers of this
	// host want. All is set if this host gets the frames of all groups.
	Known, Own int
	All        bool
	// Frames of containers of this host to no single host: Pruned went only to hosts that want their group,
	// Unwanted to none as no other host wants it, and Flooded to all.
	Pruned, Unwanted, Flooded uint64
	Ignored                   uint64 // reports of containers for too many groups
	Groups                    []MulticastGroup
}

// MulticastGroup is a group that containers of a host want. Group is invalid for a host that wants all.
type MulticastGroup struct {
	Group    netip.Addr
	Peer     string
	NickName string
}

// Bindings says at which MAC address, on which host, the IP addresses are that weft gave on all
// hosts.
type Bindings struct {
	Known int // of all hosts
	Own   int // of this host
	// Refused counts the MAC and IP addresses that a host announces as its own, and that this
	// host does not believe to be there.
	Refused int
	Entries []Binding
}

// Binding is a MAC address with the IP addresses that weft gave to it.
type Binding struct {
	MAC       string
	Kind      string // container, host for its exposed addresses, or port for a network namespace
	Addresses []netip.Addr
	Peer      string // name of the peer that announced it
	NickName  string // of that peer
	// Refused says what of it this host does not believe, and why; "" if it believes all.
	Refused string `json:",omitempty"`
}

// matches reports whether the binding is of a peer, given by name or nickname, or has a MAC or IP
// address.
func (b *Binding) matches(of string) bool {
	if of == b.Peer || of == b.NickName {
		return true
	}
	if mac, err := net.ParseMAC(of); err == nil && mac.String() == b.MAC {
		return true
	}
	a, err := netip.ParseAddr(of)
	return err == nil && slices.Contains(b.Addresses, a.Unmap())
}

// DNS is the state of service discovery.
type DNS struct {
	Domain string
	// Address is the name server for containers, ADDRESS:PORT; "" if the server listens
	// on no address.
	Address   string
	Listening []DNSListener
	Upstream  []DNSUpstream
	TTL       int // seconds
	Entries   []DNSEntry
	Queries   []DNSQueries
	// Refused counts queries that were not forwarded as there were too many.
	Refused uint64
}

// DNSListener is a place where the server is configured to listen.
type DNSListener struct {
	Place     string // an address or an interface, with a port
	Addresses []netip.AddrPort
	Fault     string // why it does not listen on all of them
	Idle      bool   // there is no such interface, or it has no address
}

// DNSUpstream is a name server of the host.
type DNSUpstream struct {
	Address netip.AddrPort
	Fault   string // why it is asked last or not at all
}

// DNSEntry is one address of a host name.
type DNSEntry struct {
	Hostname    string
	Address     netip.Addr
	ContainerID string
	Origin      string // name of the peer that announced it
	NickName    string // of that peer
	// Refused says why this host does not answer the entry, "" if it does.
	Refused string `json:",omitempty"`
}

// DNSQueries counts queries.
type DNSQueries struct {
	Type, Result string
	Count        uint64
}

// Execute writes the report with a text/template, which has the function json. The
// template sees strings as package render encodes them: no name makes a line.
func (r *Report) Execute(w io.Writer, format string) error {
	t, err := parseTemplate(format)
	if err != nil {
		return err
	}
	if err := t.Execute(w, render.Strings(r)); err != nil {
		return Errorf(Usage, "%w", err)
	}
	return nil
}

// CheckTemplate returns an error if a template for Execute does not parse.
func CheckTemplate(format string) error {
	_, err := parseTemplate(format)
	return err
}

func parseTemplate(format string) (*template.Template, error) {
	t, err := template.New("report").Funcs(template.FuncMap{
		"json": func(v any) (string, error) {
			b, err := json.Marshal(v)
			return string(render.JSON(nil, b)), err
		},
	}).Option("missingkey=error").Parse(format)
	if err != nil {
		return nil, Errorf(Usage, "%w", err)
	}
	return t, nil
}
