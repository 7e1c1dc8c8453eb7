// Package model says what the pods, namespaces and policies of a cluster are and
// what NetworkPolicy (networking.k8s.io/v1) and ClusterNetworkPolicy
// (policy.networking.k8s.io/v1alpha2) make of a flow between them.
//
// It is written to be read next to the API's documentation and not to be fast:
// Judge goes through policies one by one. The rules of the kernel come from
// policy/rules, and tests compare the two. Judge also answers `weft policy trace`
// and decides which live connections are cut.
//
// What the API leaves to the engine is decided so:
//
//   - Pods are known by their addresses. Pods of the host's network have none of
//     their own, and neither have pods that succeeded or failed; both are in no
//     selector and under no policy.
//   - A pod that is being deleted runs on until its grace period is over. It stays
//     under its policies for as long as it has its address; if a new pod has the
//     address already, the new one counts.
//   - A flow is judged by its addresses after the translation of destinations and
//     before that of sources, so a Service never matches, its endpoints do.
//   - A pod may always speak to itself, and a host to its own pods.
//   - A port that a policy names is looked up in the pod that the flow goes to.
//   - What of a policy cannot be understood matches nothing. The policy isolates
//     all the same: it fails closed.
//   - Frames to a group or to all are judged for each pod that they would reach.
//   - Of two policies of the whole cluster with one priority, that whose name sorts first
//     is asked first.
//   - What of a policy of the whole cluster cannot be understood, and peers that are nodes or domain
//     names, are everybody in a rule that denies and nobody in one that does not. A
//     policy of which the subject or the tier is not understood is for nobody, since a
//     slip there would else cut the cluster off.
//   - IPv6 addresses that are valid on the link only are nobody's, but what comes
//     from them and goes to them is judged as of the pods that have them.
//
// The zero Cluster is not usable; make one with NewCluster. Nothing here is safe
// for concurrent use, and nothing keeps what it is given but pointers to pods and
// policies, which must not change after that.
package model
