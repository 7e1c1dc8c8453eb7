// Package cluster makes a Kubernetes cluster of sandbox hosts for tests. One host runs
// etcd, the API server, the controllers and the scheduler; each node runs containerd, a
// kubelet and kube-proxy. All are released programs. The test installs the network for
// pods.
//
//	network  10.99.0.0/24, and for nodes fd99::/64
//	  |--- control   etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//	  |--- n1        containerd, kubelet, kube-proxy
//	  '--- n2        containerd, kubelet, kube-proxy
//
// Everything ends, and is removed, with the process that made it; see package sandbox.
package cluster
