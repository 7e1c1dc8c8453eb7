// Package cluster makes a Kubernetes cluster of machines of namespaces, for tests:
// an API server with etcd, controllers and scheduler on one, and on each node
// containerd, a kubelet and kube-proxy, as they are released. What makes the
// pods' network is the test's to install.
//
//	bed  10.99.0.0/24, and for nodes fd99::/64
//	  |--- control   etcd, kube-apiserver, kube-controller-manager, kube-scheduler
//	  |--- n1        containerd, kubelet, kube-proxy
//	  '--- n2        containerd, kubelet, kube-proxy
//
// Everything ends and goes with the process that made it, see package machine.
package cluster
