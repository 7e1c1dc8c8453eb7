// Package proxy relays the API of a Docker engine and adds weft to it: a container
// that is created through the proxy has its addresses before its process starts.
//
//	docker CLI ---> proxy ----------------------------------> engine
//	                  |  create: edited, then the container is  ^
//	                  |  connected to networks of weft's driver +
//	                  |  start, restart: edits /etc/hosts afterwards
//	                  |  inspect, networks/create: edited
//	                  '- everything else: byte for byte
//
// Ways to give a container its address before its process runs:
//
//   - A hook of the OCI runtime (prestart, createRuntime). It runs at the right
//     moment. But Docker takes hooks only from a registered runtime, so it would
//     need a wrapper of runc in daemon.json and a restart of the engine.
//   - Attaching after create and before start. There is no network namespace yet.
//   - Attaching right after start, with an entrypoint that waits for the interface,
//     as Weave did. This changes the container, needs a volume and fails on images
//     with unusual users or file systems. Restarts by Docker itself would have to
//     be noticed.
//   - Connecting the created container to a network of weft's driver. The engine
//     then attaches it during start, before the process, and again at each restart
//     and after a reboot, without the proxy.
//
// The proxy does the last. Each subnet has a Docker network: the network weft is
// the default subnet, others are created on demand and named after their subnet.
// The first address of WEFT_CIDR selects the network. Further addresses are an
// option of the endpoint, because the engine would refuse most of them; the driver
// adds them once the interface is in the container. The container keeps the network
// that its user chose. A container with --net none is created on an internal network
// of weft's instead, because the engine connects such a container to nothing else.
//
// All other requests are copied byte for byte: heads are parsed only to find where a
// message ends, and sent on unchanged. So API versions, headers, chunk sizes and
// trailers stay as they are. A connection that either side turns into a stream
// (attach, exec, build) becomes a tunnel whose two directions end independently.
package proxy
