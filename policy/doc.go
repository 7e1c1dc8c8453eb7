// Package policy enforces a cluster's NetworkPolicies and ClusterNetworkPolicies on one node,
// with nftables.
//
// Package policy/model says what policies mean, policy/rules compiles them; both
// are pure. This package brings the rules to the kernel, keeps them there, cuts
// live connections that are not allowed any more, and tells what was denied.
//
// # Where packets are judged
//
// Pods hang on a bridge. The sysctls net.bridge.bridge-nf-call-iptables and
// -ip6tables, which kube-proxy needs too, show bridged packets to the hooks of
// IP, so one place sees what is bridged and what is routed, after the destination
// was translated and before the source is:
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
//	  ... and what policy/rules draws
//	}
//	table bridge weft {
//	  chain policy-ports-in  { type filter hook forward priority filter
//	    packets to groups, to all and to fe80::/10: meta mark set meta oif
//	  }
//	  chain policy-ports-out { type filter hook prerouting priority filter
//	    packets from fe80::/10: meta mark set meta iif
//	  }
//	}
//
// A packet must pass both chains of the forward hook: an accept ends only the
// chain it is in. Two chains on the hook instead of one that goes on to the other
// keep the graph of chains a tree, which the kernel walks on each transaction.
//
// policy-strict is what makes a cut last: without it connection tracking would
// take the next packet in the middle of a TCP connection, in whichever direction
// it goes, for the first of a new flow. What the host itself sends is never judged
// otherwise, so probes of the kubelet always pass.
//
// A frame to a group leaves by many ports of the bridge, as a copy each, and by
// its address it is not known whose port that is. The bridge's own hook writes
// the port to the copy's mark, where no one else has a use for it. IPv6 addresses
// that are valid on the link only, which the kernel gives by itself, are nobody's in
// the cluster; what comes from them and goes to them is judged by the port too, else
// pods could speak to each other past their policies.
//
// The chains on the hooks are there only while some pod of this node is isolated.
// Pods without policies, and hosts without Kubernetes, pay nothing.
//
// # What is not done
//
// Addresses are taken as they are: a container that may forge its source address
// (it has NET_RAW, and no program of the platform prevents it) is judged as whom
// it claims to be. UDP has no first packet: when a flow is cut and the other end
// may open flows by itself, its next packet opens one.
//
// # Pods that come and go
//
// The API server shows a pod's address some time after the pod has it, and forgets one that is
// deleted by force while it still runs. So the CNI plugin says which addresses it gives (ExpectPod),
// waits until the kernel has the rules for them, plugs the pod in, and says when it has taken
// them back (ForgetPod). Pods of other nodes are known by the API server only.
//
// # Life
//
// Rules stay in the kernel when the process ends. A new process leaves them be
// until it has been told of all pods, namespaces and policies, and then changes
// them in one transaction to what they should be. What others remove comes back
// within seconds.
package policy
