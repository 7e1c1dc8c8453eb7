// Package cni is the CNI plugin. It implements all versions of the specification,
// 0.1.0 to 1.1.0 (https://github.com/containernetworking/cni/blob/main/SPEC.md). The
// runtime runs it on the host, once for each verb. It gets addresses from the router
// over the control socket and makes the interface itself:
//
//	runtime --ADD--> weft-cni --POST /lease--> router
//	                    |  <-- addresses --
//	                    |--POST /policy/expect--> policy engine, for pods only
//	                    +-- veth pair: IFNAME in the container, vethwe... on the bridge
//	                    |--POST /guard--> router
//	                    +-- addresses, routes
//	         <-- result
//
// Configuration, with the defaults of most fields. Only name and type are required:
//
//	{ "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni",
//	  "bridge": "weft",              the router's bridge
//	  "mtu": 1376,                   default: the MTU of the bridge
//	  "hairpinMode": true,           a container can reach itself through a Service
//	  "isDefaultGateway": true,      default route over the bridge, which gets an address
//	  "ipMasq": true,                masquerade packets that leave the overlay
//	  "allowSpoof": false,           containers may send with other addresses than theirs
//	  "socket": "/run/weft/weft.sock", "stateDir": "/var/lib/weft",
//	  "ipam": { "type": "",          empty: addresses of the router; else an IPAM plugin
//	            "subnet": "10.32.1.0/24", "gateway": "10.32.1.1",
//	            "routes": [ { "dst": "10.0.0.0/8", "gw": "10.32.1.1" } ] },
//	  "dns": { ... },
//	  "capabilities": { "ips": true, "mac": true, "bandwidth": true,
//	                    "io.kubernetes.cri.pod-annotations": true } }
//
// Before the interface can send, the plugin asks the router to guard its port, so that no
// frame with the addresses of others passes. With the last capability, which containerd and
// CRI-O have, a pod is not guarded whose annotation weft.internal/allow-spoof is "true".
//
// A later plugin of the chain limits the bandwidth, such as the one of the CNI project.
// With the capability bandwidth the express path does not bypass that limit, from the
// first packet on.
//
// Without ipam.subnet a container gets an address of each range of the router: of IPv4,
// and of IPv6 if the router has a second range. Without ipam.routes it gets a default
// route.
//
// Verbs may be repeated, even after a crash. The owner of an address is the network, the
// container and the name of the interface together, so ADD finds the result of an
// earlier ADD. DEL works without a namespace. Without a router it leaves a file, and the
// next router frees the addresses. GC frees the addresses of all attachments that the
// runtime does not list. ADD waits half a minute for a router that does not run, and STATUS
// for some seconds, since it may just be replaced.
//
// On Kubernetes the plugin makes the interface of a pod only when the pod's policies are
// enforced for its future addresses. ADD returns when they are enforced for its port of
// the bridge too.
package cni
