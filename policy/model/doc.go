// Package model defines the pods, namespaces and policies of a cluster, and the verdict that
// NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy
// (policy.networking.k8s.io/v1alpha2) give for a flow between pods.
//
// The code follows the API's documentation and is not optimised: Judge evaluates policies one by
// one. Package policy/rules compiles policies to kernel rules, and tests compare the two. Judge
// also answers `weft policy trace` and selects the live connections to cut.
//
// The API leaves these points to the implementation:
//
//   - Pods are identified by their addresses. Pods in the host's network have no addresses of
//     their own, and neither have pods that succeeded or failed. No selector matches such a pod,
//     and no policy applies to it.
//   - A pod that is being deleted runs until its grace period is over. Policies apply to it as
//     long as it has its address. If a new pod already has the same address, the new pod owns it.
//   - A flow is evaluated with its addresses after the translation of the destination and before
//     that of the source. A Service therefore never matches; its endpoints do.
//   - A pod may always connect to itself, and a host to its own pods.
//   - A named port in a policy is looked up in the pod that receives the flow.
//   - Unreadable parts of a policy match nothing. The policy still isolates its pods: it fails
//     closed.
//   - Multicast and broadcast frames are evaluated for each pod that they would reach.
//   - Of two cluster policies with the same priority, the one whose name sorts first is evaluated
//     first.
//   - Unreadable parts of a cluster policy, and peers that are nodes or domain names, match
//     everything in a rule that denies and nothing in any other rule. A cluster policy with an
//     unreadable subject or tier applies to no pod, because a mistake there could otherwise cut
//     off the whole cluster.
//   - IPv6 link-local addresses belong to no pod, but packets from and to them are evaluated as
//     packets of the pods that use them.
//
// The zero Cluster is not usable; make one with NewCluster. Nothing in this package is safe for
// concurrent use. A Cluster keeps pointers to the pods and policies that it is given; they must
// not change after that.
package model
