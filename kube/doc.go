// Package kube is what weft does on a Kubernetes node beside the router: it
// follows the API server and tells the router by its control API.
//
//	API server                        this node
//	  Nodes ------------ targets ---------> router (its socket)
//	  Node.status <----- condition          |
//	  ConfigMap weft-peers <--> own line    | rmpeer of peers whose Node is gone
//	  Pods, Namespaces, NetworkPolicies --> Policies
//	                                     /opt/cni/bin, /etc/cni/net.d: the plugin
//
// Which peer is on which Node stands in the ConfigMap weft-peers. Each agent
// writes its own line, once its router runs and before a pod can get an address:
//
//	02-8c-5b-00-1f-d2: worker-1 0f8e6a0c-...    the peer's name: its Node and that Node's UID
//
// A line whose Node (name and UID) no longer exists is of a dead peer. Every
// agent looks when a Node goes, one after the other, and the quorum of the routers
// decides (ipam), so it does not matter how many act or which of them fail. The
// line goes once the addresses are taken over. Hosts that are in the mesh and no
// Nodes have no line, and are never touched.
//
// Nobody watches the ConfigMap: with n Nodes, n that join would have the API server
// send n times n copies of n lines. It is read when a Node goes, and else a few times a
// second by all of them together.
//
// The decisions are in members.go and nodes.go, without API server or clock.
package kube
