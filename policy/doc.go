// Package policy enforces a cluster's NetworkPolicies and ClusterNetworkPolicies on one node, with
// nftables.
//
// Package policy/model defines what policies mean and policy/rules compiles them; both are pure.
// This package writes the rules to the kernel, keeps them there, ends live connections that are no
// longer allowed, and logs denied flows.
//
// # Where packets are filtered
//
// Pods are connected to a bridge. Its own flags nf_call_iptables and nf_call_ip6tables pass bridged
// packets to the IP hooks of netfilter, whatever the sysctls of the host say. One set of chains
// therefore sees bridged and routed packets, after the destination is translated and before the
// source is:
//
//	table inet weft {
//	  chain policy-egress  { type filter hook forward priority filter
//	    ct state established,related accept
//	    icmpv6 type 130-137,143 accept            neighbour discovery and group membership
//	    meta l4proto igmp accept
//	    ip saddr @policy-isolated-4 jump policy-strict      (and daddr, and IPv6)
//	    ip saddr . ip daddr @policy-self-4 accept
//	    ip saddr vmap @policy-egress-4
//	  }
//	  chain policy-ingress { type filter hook forward priority filter + 1
//	    the first three and the self rule again
//	    meta pkttype broadcast-multicast meta mark vmap @policy-ports-in
//	    ip daddr 224.0.0.0/3 meta mark vmap @policy-ports-in            (and ff00::/8, fe80::/10)
//	    ip daddr vmap @policy-ingress-4
//	  }
//	  chain policy-host    { type filter hook input priority filter      pods to their own host
//	    as policy-egress
//	  }
//	  chain policy-output  { type filter hook output priority filter     the host to its pods
//	    ct state established,related accept
//	    ip daddr @policy-isolated-4 jump policy-strict
//	  }
//	  chain policy-prerouting { type filter hook prerouting priority mangle
//	    ip6 saddr fe80::/10 jump policy-link-local
//	  }
//	  chain policy-link-local {
//	    the first three of policy-egress
//	    meta mark vmap @policy-ports-out
//	  }
//	  chain policy-strict {
//	    ct state invalid counter drop
//	    ct state new tcp flags & (fin|syn|rst|ack) != syn counter drop
//	  }
//	  ... and the chains and sets of policy/rules
//	}
//	table bridge weft {
//	  chain policy-ports-in  { type filter hook forward priority filter
//	    packets to multicast groups, broadcast and fe80::/10: meta mark set meta oif
//	  }
//	  chain policy-ports-out { type filter hook prerouting priority filter
//	    packets from fe80::/10: meta mark set meta iif
//	  }
//	}
//
// A packet must pass both chains of the forward hook, because an accept ends only the chain that
// it is in. There are two chains on the hook, instead of one that jumps to the other, so that the
// graph of chains stays a tree. The kernel walks that graph in each transaction.
//
// policy-strict makes sure that a cut connection stays cut. Without it, connection tracking would
// take the next packet in the middle of a TCP connection, in either direction, for the first
// packet of a new flow. Packets that the host itself sends meet no other rule, so probes of the
// kubelet always pass.
//
// A multicast or broadcast frame leaves through many ports of the bridge, as one copy for each,
// and its destination address does not identify the pod behind a port. Chains on the bridge's own
// hooks therefore write the port to the mark of each copy; nothing else uses the mark of these
// packets. IPv6 link-local addresses, which the kernel assigns by itself, belong to no pod of the
// cluster. Packets from and to them are filtered by the port as well; otherwise pods could use
// them to bypass their policies.
//
// The chains on the hooks exist only while some pod of this node is isolated. Pods without
// policies, and hosts without Kubernetes, pay nothing.
//
// # Limits
//
// Policies trust source addresses. A container that can forge its source address (it has NET_RAW,
// and no eBPF program of weft prevents it) is treated as the owner of that address. UDP has no
// first packet: if a flow is cut and the other end may open flows itself, its next packet opens a
// new flow.
//
// # Pods that start and stop
//
// The API server reports a pod's address some time after the pod has it, and drops a pod that is
// deleted by force while it still runs. The CNI plugin therefore announces the addresses that it
// assigns (ExpectPod), waits until the kernel has the rules for them, connects the pod, and
// reports when the addresses are released (ForgetPod). Pods of other nodes are known from the API
// server only.
//
// # Lifecycle and concurrency
//
// Rules stay in the kernel when the process ends. A new process does not touch them until it knows
// all pods, namespaces and policies, and then updates them in one transaction. Rules that another
// program removes are restored within seconds.
//
// The zero Engine is not usable; make one with New. An Engine is safe for concurrent use.
package policy
