// Package daemon is the long-running half of weft: one router with its
// addresses, what is attached to it, and the API that controls it.
//
// What must survive a crash is written down before it is done: an owner of
// addresses before the first is asked for, targets before they are dialled,
// exposures before the bridge has them. After a start the record is compared
// with the kernel and with the allocator, and both are brought in line.
package daemon

import (
	"log/slog"
	"net/netip"
	"path/filepath"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/docker/proxy"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/mesh/peer"
)

// DefaultStateDir is where a router keeps its state unless told otherwise.
const DefaultStateDir = api.DefaultStateDir

// Config is what a router is launched with. The command line has checked it.
type Config struct {
	// Peers are the targets given at launch, HOST or HOST:PORT.
	Peers []string
	// Resume goes on with the targets of the last run, and with Peers.
	Resume bool

	Host     netip.Addr // to listen on; the zero Addr: all
	Port     int        // TCP and UDP; the fast datapath has the next one
	Name     peer.Name  // zero: made from the key
	NickName string

	// Passwords: the first is offered, each is accepted. None: anybody who
	// reaches this host can join.
	Passwords      []string
	TrustedSubnets []netip.Prefix
	NoDiscovery    bool
	ConnLimit      int // sessions; 0: no limit

	IPAllocInit IPAllocInit
	// Range is the address universe, the zero Prefix for none.
	Range         netip.Prefix
	RangeGiven    bool         // by the user, who then may overlap routes of the host
	DefaultSubnet netip.Prefix // as Range unless given
	Range6        netip.Prefix // the zero Prefix: none

	MTU int // of containers, bytes of IP packet
	// NoFastdp has all frames go by sleeve; NoExpress has those of the fast
	// datapath cross the bridge.
	NoFastdp, NoExpress bool
	NoExpressTo         []netip.Prefix // peers there have no express path
	// NoMasqLocal shows containers the address of clients whose packets this host
	// has translated to them.
	NoMasqLocal bool
	// NoTAPOffload and NoUDPOffload are for kernels and cards with faults.
	NoTAPOffload, NoUDPOffload bool

	// DNS says where service discovery listens and what it answers; who it is and
	// what it knows of the mesh is filled in by Assemble.
	DNS dns.Config

	Bridge     string
	LogLevel   slog.Level
	StatusAddr string // empty: off
	Socket     string
	StateDir   string
	PinDir     string // of the fast datapath; empty: beside the socket

	// DockerHost is where the Docker engine listens, like
	// unix:///var/run/docker.sock; empty: this host's containers are not Docker's.
	DockerHost string
	// PluginSocket is where Docker finds its drivers named weft; empty: there are
	// none.
	PluginSocket string
	// Proxy is Docker's API with weft in it, as far as users decide; nil: there
	// is none. Without drivers there is none either.
	Proxy *proxy.Config
	// ProxyListen is where that is, unix:///PATH or tcp://HOST:PORT each.
	ProxyListen []string
	ProxyTLS    proxy.TLS

	// ProtocolMin and ProtocolMax narrow what this router speaks, for tests
	// of mixed meshes; zero: what this build speaks.
	ProtocolMin, ProtocolMax int
}

// DefaultMTU is the MTU of containers: with the overhead of an encrypted link
// it fits the networks of all big clouds, of 1460 bytes the smallest.
const DefaultMTU = 1376

// InitKind says how the first ring is made.
type InitKind string

// The kinds.
const (
	InitConsensus InitKind = "consensus" // a majority agrees
	InitSeed      InitKind = "seed"      // the named peers share it, by decree
	InitObserver  InitKind = "observer"  // others make it
)

// IPAllocInit is the value of --ipalloc-init.
type IPAllocInit struct {
	Kind InitKind
	// Quorum, for InitConsensus, is how many peers the mesh is expected to
	// have at the beginning; 0: as many as there are targets, and this one.
	Quorum int
	Seeds  []peer.Name // for InitSeed
}

// Files in Config.StateDir.
const (
	storeFile    = "weft.db"
	identityFile = "identity.key"
	ipamFile     = "ipam.db"
	ipam6File    = "ipam6.db"
	// LogFile is where launch sends the output of a router in the background.
	LogFile = "weft.log"
	// LaunchFile is where launch writes what a router that a service manager runs
	// is given.
	LaunchFile = "launch.env"
)

// pinDir is where the fast datapath pins what outlives the router: beside the
// socket, in a file system of its own.
func (c *Config) pinDir() string {
	if c.PinDir != "" {
		return c.PinDir
	}
	return filepath.Join(filepath.Dir(c.Socket), "bpf")
}

func (c *Config) path(file string) string { return filepath.Join(c.StateDir, file) }
