// Package netdev makes and removes what weft needs in the kernel: network
// namespaces, the bridge, the veth pair of a container, its addresses and
// routes, the nftables rules of exposed addresses, and those that guard the fast
// datapath's port.
//
// It keeps no state: the kernel is asked each time, so that every operation
// may be repeated, also by another process after a crash. Unless a function
// takes the path of a namespace it works in the network namespace of the
// calling thread. All functions are safe for concurrent use, but two that
// change the same object at once may each see half of the other's work.
//
//	  namespace of the container            namespace of the router
//	+---------------------------+   +-----------------------------------+
//	|  ethwe  10.32.0.5/12      |   |  vethwe1a2b3c4d --+               |
//	|    |                      |   |        |          |               |
//	+----|----------------------+   +--------|----------|---------------+
//	     +------------ veth pair ------------+          | port
//	                                                  weft (bridge) -- vethwe-tap
//
// Names: interfaces of the host that begin with HostPrefix belong to weft, and
// so do the bridge and the nftables table; nothing else is changed, but for
// the sysctls that Sysctls.EnableForwarding names.
package netdev

import "regexp"

// Names of what weft owns in a host's network namespace.
const (
	BridgeName = "weft"       // the bridge
	TAPName    = "vethwe-tap" // the router's port of the bridge
	HostPrefix = "vethwe"     // every interface of the host that is not the bridge
	IfaceName  = "ethwe"      // the interface in a container
	// With the fast datapath the TAP is no port. The port is one end of a veth
	// pair, which has a carrier whether the router runs or not.
	PortName     = "vethwe-bridge"
	PortPeerName = "vethwe-pcap"
	VXLANName    = "vethwe-vxlan"
	TunnelName   = "vethwe-wg" // WireGuard, for the fast datapath
	TableName    = "weft"      // the nftables table, family inet; policies have one of family bridge too
	PolicyPrefix = "policy-"   // begins the names of chains and sets that enforce policies
)

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}$`)

// IsInterfaceName reports whether weft takes a text for the name of an interface. The
// kernel takes more, but such names are trouble in shells and rules.
func IsInterfaceName(s string) bool { return interfaceName.MatchString(s) }
