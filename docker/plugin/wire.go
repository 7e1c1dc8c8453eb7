package plugin

// Requests and replies of the engine. Fields that weft does not use are left out, and
// fields that newer engines add are ignored.

type capabilities struct {
	Scope, ConnectivityScope string
}

type ipamData struct {
	AddressSpace, Pool, Gateway string
	AuxAddresses                map[string]string
}

type createNetworkRequest struct {
	NetworkID          string
	Options            map[string]any
	IPv4Data, IPv6Data []ipamData
}

type networkRequest struct{ NetworkID string }

type endpointInterface struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

type createEndpointRequest struct {
	NetworkID, EndpointID string
	Interface             *endpointInterface
	Options               map[string]any
}

type createEndpointReply struct{ Interface endpointInterface }

type endpointRequest struct{ NetworkID, EndpointID string }

type joinRequest struct{ NetworkID, EndpointID, SandboxKey string }

type infoReply struct{ Value map[string]string }

type interfaceName struct{ SrcName, DstPrefix string }

type staticRoute struct {
	Destination string
	RouteType   int
	NextHop     string
}

// connected is the RouteType of a route without a next hop.
const connected = 1

type joinReply struct {
	InterfaceName interfaceName
	Gateway       string        `json:",omitempty"`
	GatewayIPv6   string        `json:",omitempty"`
	StaticRoutes  []staticRoute `json:",omitempty"`
}

type ipamCapabilities struct {
	// RequiresRequestReplay would make a starting engine repeat all requests; weft
	// has the state on disk.
	RequiresMACAddress, RequiresRequestReplay bool
}

type addressSpaces struct {
	LocalDefaultAddressSpace, GlobalDefaultAddressSpace string
}

type poolRequest struct {
	AddressSpace, Pool, SubPool string
	Options                     map[string]string
	V6                          bool
}

type poolReply struct {
	PoolID, Pool string
	Data         map[string]string
}

type poolIDRequest struct{ PoolID string }

type addressRequest struct {
	PoolID, Address string
	Options         map[string]string
}

type addressReply struct {
	Address string
	Data    map[string]string
}

type empty struct{}

// Keys and values of libnetwork's options.
const (
	genericOptions = "com.docker.network.generic"
	internalOption = "com.docker.network.internal"
	mtuOption      = "com.docker.network.driver.mtu"
	gatewayData    = "com.docker.network.gateway"
	requestType    = "RequestAddressType"
)

// Name is the name of both drivers.
const Name = "weft"

// MulticastOption is the option of a network that makes its containers send multicast
// over it, whatever their default route.
const MulticastOption = "weft.multicast"

// AddressesOption is the option of an endpoint that names more addresses for it than the
// one that the engine assigns, in the forms of weft attach, separated by blanks. For one
// container the engine accepts neither two addresses of one subnet nor a subnet within
// another; on a switch both make sense.
const AddressesOption = "weft.addresses"

// HostsOption is the option of an endpoint that makes the driver map the container's name to
// its addresses on the switch, in its /etc/hosts, before its process starts. It is the ID of
// the container, a blank and its hostname.
const HostsOption = "weft.hosts"

// AllowSpoofOption is the option of a network or an endpoint that lets its containers send
// with other addresses than theirs, as nested bridges, routers and VRRP do.
const AllowSpoofOption = "weft.allow-spoof"

// OutsideOption is the option of the address driver that makes it accept a subnet outside
// all address ranges. It gives any free address there that is requested; the user must ensure that
// no two hosts use the same address.
const OutsideOption = "weft.outside"

// weaveMulticast is the name of MulticastOption in Weave.
const weaveMulticast = "works.weave.multicast"

const (
	localSpace  = "weftlocal"
	globalSpace = "weftglobal"
)
