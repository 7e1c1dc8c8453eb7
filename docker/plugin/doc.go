// Package plugin is weft as the Docker engine sees it: a network driver and an
// address driver named weft, both on one socket.
//
// The engine finds the socket in its folder of plugins and sends HTTP POST
// requests with JSON bodies, libnetwork's remote API. The same words with the
// same letters are in every version from 1.10 to 29. A reply other than 200 has
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
// and some that need nothing done. Each may be repeated, and what is to be
// removed may be gone: the engine sends what it did not see the answer of again,
// also after both have been restarted.
//
// A container's life: RequestAddress, CreateEndpoint, Join, then the engine
// moves the interface that Join made into the container; Leave, DeleteEndpoint,
// ReleaseAddress. An engine that is killed sends the last three late or never,
// so an endpoint also ends when the kernel has taken its interface away with the
// container, or the engine has moved it back to the host, and it stays so for a while.
//
// Addresses: a lease is an owner of its own in the allocator, which has it on
// disk; leases are found again by the names of their owners. A pool needs no
// record, as its name has all of it. The gateway that the engine wants each
// network to have is 0.0.0.0 unless the user names one: there is none on a
// switch, and no address is lost to it.
package plugin
