// Package netdev makes and removes weft's objects in the kernel: network namespaces,
// the bridge, veth pairs of containers with their addresses and routes, the nftables
// rules of exposed addresses, and those that guard the UDP port of the fast datapath.
//
// It keeps no state and reads the kernel's each time. So every operation may be
// repeated, also by another process after a crash. A function works in the network
// namespace of the calling thread unless it takes the path of a namespace. All
// functions are safe for concurrent use, but two that change the same object at once
// may each see half of the other's work.
//
//	  namespace of the container            namespace of the router
//	+---------------------------+   +-----------------------------------+
//	|  ethwe  10.32.0.5/12      |   |  vethwe1a2b3c4d --+               |
//	|    |                      |   |        |          |               |
//	+----|----------------------+   +--------|----------|---------------+
//	     +------------ veth pair ------------+          | port
//	                                                  weft (bridge) -- vethwe-tap
//
// Interfaces of the host whose name begins with HostPrefix belong to weft, and so do
// the bridge and the nftables tables. The package changes nothing else, except for the
// sysctls of Sysctls.EnableForwarding and the rule of DockerUserRule.
package netdev

import "regexp"

// Names of weft's objects in a host's network namespace.
const (
	BridgeName = "weft"       // the bridge
	TAPName    = "vethwe-tap" // the router's port of the bridge, without the fast datapath
	HostPrefix = "vethwe"     // prefix of all other interfaces on the host
	IfaceName  = "ethwe"      // the interface in a container
	// With the fast datapath the bridge's port is one end of a veth pair instead of the
	// TAP. It keeps its carrier while the router does not run.
	PortName     = "vethwe-bridge"
	PortPeerName = "vethwe-pcap"
	VXLANName    = "vethwe-vxlan"
	TunnelName   = "vethwe-wg" // WireGuard, for the fast datapath
	TableName    = "weft"      // the nftables table, family inet; policies have one of family bridge too
	PolicyPrefix = "policy-"   // prefix of chains and sets that enforce policies
)

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)

// IsInterfaceName reports whether weft accepts s as the name of an interface. The
// kernel accepts more names, but those cause trouble in shells and rules.
func IsInterfaceName(s string) bool { return interfaceName.MatchString(s) }
