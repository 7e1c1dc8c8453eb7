// Package daemon is the running router of one host: it puts mesh, allocators,
// switch, service discovery and Docker together, keeps records of what is attached,
// and serves the API that controls it all.
//
// Whatever must survive a crash is written down before it is done: an owner of
// addresses before the first is asked for, targets before they are dialled,
// exposures before the bridge has them. After a start the records are compared with
// the kernel and with the allocators, and all three are made to agree.
package daemon

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"regexp"

	"github.com/weft-net/weft/dns"
	"github.com/weft-net/weft/dns/forward"
	"github.com/weft-net/weft/dns/resolvconf"
	"github.com/weft-net/weft/docker"
	"github.com/weft-net/weft/docker/plugin"
	"github.com/weft-net/weft/docker/proxy"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/mesh"
	"github.com/weft-net/weft/mesh/peer"
	"github.com/weft-net/weft/router"
	"github.com/weft-net/weft/router/fastpath"
	"github.com/weft-net/weft/router/fastpath/kernel"
	"github.com/weft-net/weft/router/fastpath/plan"
)

// Defaults of a Config.
const (
	DefaultPort      = 6783
	DefaultRange     = "10.32.0.0/12"
	DefaultConnLimit = 200
	// DefaultStateDir is where a router keeps its state.
	DefaultStateDir = api.DefaultStateDir
	// DefaultMTU is the MTU of containers: with the overhead of an encrypted link
	// it fits the networks of all big clouds, the smallest of which has 1460 bytes.
	DefaultMTU = 1376
	// AutoMTU stands for an MTU that Check works out.
	AutoMTU = 0
	// DefaultDriverSocket is in the folder in which Docker looks for plugins; the
	// file's name is that of the driver.
	DefaultDriverSocket = "/run/docker/plugins/" + plugin.Name + ".sock"
	// DefaultProxyListen is where the proxy of Docker's API listens.
	DefaultProxyListen = "unix:///run/weft/docker.sock"
)

// Config configures a router. Start with DefaultConfig. The configurations of the
// parts hold what users decide; Run fills in the rest.
type Config struct {
	// Peers are the targets given at launch, HOST or HOST:PORT.
	Peers []string
	// Resume adds the targets of the last run.
	Resume bool

	Host netip.Addr // to listen on; the zero Addr: all
	// Port is the TCP and UDP port. The fast datapath uses the next two.
	Port   int
	Name   peer.Name // zero: derived from the key
	Bridge string
	// MTU is that of containers, in bytes of IP packet; AutoMTU: the largest that the interface of the
	// default route carries in any encapsulation that is allowed.
	MTU int
	// NoVXLAN: no packet of MTU bytes needs to fit into VXLAN.
	NoVXLAN bool
	// Filtered makes IP rules of the host see the frames that the bridge forwards: policies
	// and Services on the same network need that.
	Filtered bool

	// Mesh has Nickname (empty: the hostname), ConnLimit, Discover and the protocol
	// versions.
	Mesh mesh.Config
	// Passwords are those of the mesh, the one to offer first; without any it has none.
	// ReadPasswords reads them again while the router runs; nil if they cannot change.
	Passwords     []string
	ReadPasswords func() ([]string, error)
	// PasswordAdvice says how else the password is changed, if not by weft rotate.
	PasswordAdvice string
	// AllowPeersFrom are networks of containers in which peers may be all the same.
	AllowPeersFrom []netip.Prefix
	// Init says how the first ring of addresses is made. Expect 0 stands for as many
	// peers as there are targets, and this one.
	Init ipam.Init
	// Range is the IPv4 range, and Range6 the IPv6 range, that addresses come from;
	// the zero Prefix for none.
	Range, Range6 netip.Prefix
	// RangeGiven is set if the user chose Range, which then may overlap routes of
	// the host.
	RangeGiven bool
	// DefaultSubnet is the IPv4 subnet for requests that name none; the zero Prefix:
	// Range.
	DefaultSubnet netip.Prefix

	// Router has the offloads. Fast has Off, NoExpress, NoExpressTo and Trusted.
	Router router.Config
	Fast   fastpath.Settings
	// NoMasqLocal disables masquerading of external clients that reach a container
	// through a DNAT rule of this host.
	NoMasqLocal bool

	// DNS has Off, Domain, TTL, Listen, ResolvConf and Timeout. Without Listen it answers
	// on Docker's bridge and on weft's.
	DNS    dns.Config
	Docker DockerConfig

	kernelState kernelState   // at the start of the router
	guard       *kernel.Guard // of containers, nil if there is none
	goesOn      bool          // with the targets and peers of the last run

	StatusAddr string // ADDRESS:PORT for status and metrics; empty: off
	// StatusHosts are names in the Host header of requests to StatusAddr that are answered
	// besides loopback names and the address itself.
	StatusHosts []string
	Socket      string // of the control API
	StateDir    string
	PinDir      string // of the fast datapath; empty: beside the socket
	Sysctls     netdev.Sysctls
	LogLevel    slog.Level
	// Warnings are lines for the user on the configuration, for the log and each report.
	Warnings []string
	// Log is where the router logs; nil: nowhere.
	Log *slog.Logger
}

// DockerConfig configures the router as a part of Docker.
type DockerConfig struct {
	// Host is where the Docker engine listens, like unix:///var/run/docker.sock;
	// empty: the containers of this host are not Docker's.
	Host string
	// Driver makes the router Docker's network and address driver weft, which
	// Docker finds at DriverSocket.
	Driver       bool
	DriverSocket string
	// Proxy makes the router serve Docker's API with weft in it at ProxyListen,
	// unix:///PATH or tcp://HOST:PORT each. Without Driver there is none.
	Proxy       bool
	ProxyListen []string
	ProxyTLS    proxy.TLS
	ProxyConfig proxy.Config
}

// sockets returns where the router listens for Docker and its clients.
func (c *DockerConfig) sockets() (list []string) {
	if c.Host != "" && c.Driver {
		list = append(list, "unix://"+c.DriverSocket)
		if c.Proxy {
			list = append(list, c.ProxyListen...)
		}
	}
	return list
}

// DefaultConfig returns the configuration of a router that is launched without
// flags.
func DefaultConfig() *Config {
	return &Config{
		Port: DefaultPort, Bridge: netdev.BridgeName, MTU: DefaultMTU, Fast: fastpath.Settings{Encaps: plan.Auto},
		Mesh:  mesh.Config{ConnLimit: DefaultConnLimit, Discover: true},
		Range: netip.MustParsePrefix(DefaultRange),
		DNS: dns.Config{
			Domain: dns.DefaultDomain, TTL: dns.DefaultTTL, Timeout: forward.DefaultTimeout, ResolvConf: resolvconf.DefaultPath,
		},
		Docker: DockerConfig{
			Host: docker.DefaultHost, Driver: true, DriverSocket: DefaultDriverSocket, Proxy: true,
			ProxyListen: []string{DefaultProxyListen},
			ProxyConfig: proxy.Config{HostnameMatch: regexp.MustCompile("(.*)"), HostnameReplacement: "$1"},
		},
		StatusAddr: api.DefaultStatusAddr, Socket: api.DefaultSocket, StateDir: DefaultStateDir,
	}
}

// ranges returns the ranges that addresses come from.
func (c *Config) ranges() (list []netip.Prefix) {
	for _, r := range []netip.Prefix{c.Range, c.Range6} {
		if r.IsValid() {
			list = append(list, r)
		}
	}
	return list
}

// ringInit returns how the first ring is made by a router with these targets.
func (c *Config) ringInit(targets []string) ipam.Init {
	init := c.Init
	switch {
	case init.Expect > 0 || init.Mode == ipam.Seed:
	case init.Mode == ipam.Observer:
		init.Expect = max(1, len(targets))
	default:
		init.Expect = len(targets) + 1
	}
	return init
}

// Files in Config.StateDir.
const (
	storeFile    = "weft.db"
	identityFile = "identity.key"
	ipamFile     = "ipam.db"
	ipam6File    = "ipam6.db"
	// LogFile is the log of a router in the background.
	LogFile = "weft.log"
	// LaunchFile has the settings of a router that a service manager runs.
	LaunchFile = "launch.env"
)

// pinDir is where the fast datapath pins the objects that outlive the router: beside
// the socket, in a file system of its own.
func (c *Config) pinDir() string {
	if c.PinDir != "" {
		return c.PinDir
	}
	return filepath.Join(filepath.Dir(c.Socket), "bpf")
}

func (c *Config) path(file string) string { return filepath.Join(c.StateDir, file) }
