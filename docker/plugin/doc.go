// Package plugin is weft as the Docker engine sees it: a network driver and an
// address driver named weft, both on one socket.
//
// The engine finds the socket in its directory of plugins and sends HTTP POST
// requests with JSON bodies, libnetwork's remote API. They are spelled
// the same in every version from 1.10 to 29. A reply other than 200 has
// {"Err": text}, which the engine shows to its user.
//
//	POST /Plugin.Activate                  -> Implements: NetworkDriver, IpamDriver
//	POST /NetworkDriver.GetCapabilities    -> Scope local, ConnectivityScope global
//	     /NetworkDriver.CreateNetwork      NetworkID, Options, IPv4Data, IPv6Data
//	     /NetworkDriver.DeleteNetwork      NetworkID
//	     /NetworkDriver.CreateEndpoint     NetworkID, EndpointID, Interface -> Interface
//	     /NetworkDriver.EndpointOperInfo   NetworkID, EndpointID -> Value
//	     /NetworkDriver.Join               NetworkID, EndpointID, SandboxKey -> InterfaceName, Gateway, StaticRoutes
//	     /NetworkDriver.Leave              NetworkID, EndpointID
//	     /NetworkDriver.DeleteEndpoint     NetworkID, EndpointID
//	     /IpamDriver.RequestPool           AddressSpace, Pool, SubPool, V6 -> PoolID, Pool, Data
//	     /IpamDriver.ReleasePool           PoolID
//	     /IpamDriver.RequestAddress        PoolID, Address, Options -> Address
//	     /IpamDriver.ReleaseAddress        PoolID, Address
//
// and some that need no work. Each may be repeated, and what it removes may be gone:
// the engine repeats a request whose answer it did not see, even after engine and
// router were restarted.
//
// The requests for one container: RequestAddress, CreateEndpoint, Join, then the
// engine moves the interface that Join made into the container; Leave, DeleteEndpoint,
// ReleaseAddress. An engine that is killed sends the last three late or never. An
// endpoint therefore also ends when the kernel removed its interface with the
// container, or the engine moved it back to the host, and it stays so for a while.
//
// Addresses: each lease is an owner of its own in the allocator, which keeps it on
// disk; leases are found again by their owners' names. A pool needs no record, because
// its name contains everything about it. The engine wants each network to have a
// gateway. It is 0.0.0.0 unless the user names one: a switch has none, and no address
// is wasted.
package plugin
