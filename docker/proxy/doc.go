// Package proxy is a Docker engine's API with weft in it: containers that are
// made through it have their addresses before their process starts.
//
//	docker CLI ---> proxy ----------------------------------> engine
//	                  |  create: edited, then the container is  ^
//	                  |  put on networks of weft's driver ------+
//	                  |  start, restart: /etc/hosts afterwards
//	                  |  inspect, networks/create: edited
//	                  '- everything else: byte for byte
//
// How a container gets its address before its process runs. Considered:
//
//   - A hook of the OCI runtime (prestart, createRuntime). It runs at the right
//     moment, but Docker takes hooks only from a runtime of its own: a wrapper of
//     runc registered in daemon.json, and an engine that is restarted for it.
//   - Attaching after create and before start. There is no network namespace yet.
//   - Attaching right after start, with the entrypoint wrapped by a program that
//     waits for the interface, as weave did: it changes what the container is,
//     needs a volume, breaks on images with unusual users or file systems, and
//     every restart that Docker does by itself has to be noticed and waited for.
//   - Connecting the created container to a network of weft's own driver. The
//     engine then does it all within start, before the process, and again at
//     each restart and after a reboot, without the proxy.
//
// The last is what the proxy does. A network is a subnet there: the first address
// of WEFT_CIDR decides which, weft for the default subnet, or one that is made
// when it is needed and named after its subnet. Further addresses are an option
// of the endpoint, as the engine would refuse most of them; the driver adds them
// when the interface has come to the container. The container keeps the network
// that its user chose beside weft's. One that was to have none gets a network of
// weft's that is internal, as the engine connects a container that has none to
// nothing.
//
// What passes untouched is copied at the level of bytes: heads are read to know
// where a message ends, and sent on as they came. So versions of the API, headers,
// chunk sizes and trailers of either side stay what they are, and a connection
// that either side turns into a stream (attach, exec, build) becomes one, each
// direction of which may end by itself.
package proxy
