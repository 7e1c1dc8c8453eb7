// Package kube connects the router of a Kubernetes node to the API server: it watches the API
// server and controls the router through its control API.
//
//	API server                        this node
//	  Nodes ------------ targets ---------> router (its socket)
//	  Node.status <----- condition          |
//	  ConfigMap weft-peers <--> own line    | rmpeer of peers whose Node was deleted
//	  Pods, Namespaces, NetworkPolicies --> Policies
//	                                     /opt/cni/bin, /etc/cni/net.d: the plugin
//
// The ConfigMap weft-peers maps each peer to its Node. Each agent writes its own line once its
// router runs, and before a pod can get an address:
//
//	02-8c-5b-00-1f-d2: worker-1 0f8e6a0c-...    the peer's name: its Node and that Node's UID
//
// A line whose Node (name and UID) no longer exists is a sign that its peer is dead. When a Node is
// deleted, every agent checks the lines, one after the other. The quorum of the routers decides
// about the takeover (package ipam), so it does not matter how many agents act or which of them
// fail. Pods of the Node may live all the same, so the heir leaves the addresses unused for a time.
// The line is deleted after the addresses are taken over. Hosts that are in the mesh but are
// not Nodes have no line, and agents never touch them.
//
// Agents do not watch the ConfigMap: when n Nodes join, the API server would send n copies of n
// lines n times. They read it when a Node is deleted, and otherwise a few times a second all
// together.
//
// The decisions are in members.go and nodes.go, without API server or clock.
//
// An Agent is used by one goroutine, which calls Run once. Its zero value is not usable.
package kube
