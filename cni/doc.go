// Package cni is the CNI plugin, by version 1.1.0 of the specification
// (https://github.com/containernetworking/cni/blob/main/SPEC.md) and all back to
// 0.3.1. It runs once for each verb, on the host, and asks the router over its
// socket for addresses; the interface it makes itself:
//
//	runtime --ADD--> weft-cni --POST /lease--> router
//	                    |  <-- addresses --
//	                    |--POST /policy/expect--> who enforces policies, of pods only
//	                    +-- veth pair: IFNAME in the container, vethwe... on the bridge
//	                    +-- addresses, routes
//	         <-- result
//
// Configuration, all but name and type optional:
//
//	{ "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni",
//	  "bridge": "weft",              the router's
//	  "mtu": 1376,                   the bridge's
//	  "hairpinMode": true,           a container reaches itself through a Service
//	  "isDefaultGateway": true,      default route by the bridge, which gets an address
//	  "ipMasq": true,                what leaves by the bridge has the host's address
//	  "socket": "/run/weft/weft.sock", "stateDir": "/var/lib/weft",
//	  "ipam": { "type": "",          empty: the router's addresses; else another plugin
//	            "subnet": "10.32.1.0/24", "gateway": "10.32.1.1",
//	            "routes": [ { "dst": "10.0.0.0/8", "gw": "10.32.1.1" } ] },
//	  "dns": { ... },
//	  "capabilities": { "ips": true, "mac": true, "bandwidth": true } }
//
// Bandwidth is limited by a plugin that comes after, as that of the CNI project; the capability
// here has the fast datapath leave the interface to it from the beginning.
//
// Without ipam.subnet a container gets an address of each of the router's ranges,
// so both of IPv4 and of IPv6 where there are two. Without ipam.routes it gets a
// default route.
//
// Verbs may be repeated, after a crash too: an owner of addresses is the network,
// the container and the interface's name together, and ADD finds what an earlier
// one made. DEL works without a namespace and without a router: it leaves a file
// that the next router frees the addresses by. GC frees what belongs to none of the
// attachments that the runtime knows. STATUS waits some seconds for a router that is away, as while
// it is replaced.
//
// On Kubernetes a pod's interface is made only when its policies are in force for the addresses that
// it is going to have, and ADD ends when they are for its port of the bridge too.
package cni
