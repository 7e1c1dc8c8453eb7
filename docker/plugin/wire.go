package plugin

// Requests and replies of the engine. Fields that weft has no use for are left
// out, and what newer engines add is ignored.

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
	// RequiresRequestReplay would have a starting engine ask for everything
	// again; weft has it on disk.
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

// Keys and values that libnetwork has for options.
const (
	genericOptions = "com.docker.network.generic"
	internalOption = "com.docker.network.internal"
	mtuOption      = "com.docker.network.driver.mtu"
	gatewayData    = "com.docker.network.gateway"
	requestType    = "RequestAddressType"
)

// Name is the name of both drivers.
const Name = "weft"

// MulticastOption is the option of a network that has its containers send
// multicast over it, whatever their default route.
const MulticastOption = "weft.multicast"

// AddressesOption is the option of an endpoint that names addresses which it is
// to have besides the one that the engine gives it, in the forms of weft attach
// with blanks between. The engine takes no two addresses of one subnet, and no
// subnet in another, for one container; on a switch both make sense.
const AddressesOption = "weft.addresses"

// OutsideOption is the option of the address driver that has it take a subnet
// outside of all ranges. Its addresses are given to those who name them, and
// nobody but they sees to it that no two have the same.
const OutsideOption = "weft.outside"

// weaveMulticast is what MulticastOption was called there.
const weaveMulticast = "works.weave.multicast"

const (
	localSpace  = "weftlocal"
	globalSpace = "weftglobal"
)
