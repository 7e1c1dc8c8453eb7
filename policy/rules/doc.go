// Package rules compiles the policies of a cluster to rules of nftables, for the
// pods of one node. It is pure: what it makes is data, which package policy
// brings to the kernel.
//
// A Compiler is told of pods, namespaces and policies and says what has to change
// in the kernel since it was last asked, so that the change of one pod costs the
// change of a few elements. Compile is the same in one go.
//
// # What is made
//
//	map policy-ingress-4 { type ipv4_addr : verdict; 10.32.0.5 : goto policy-pod-in-PPPP }
//	  |                                                       (local pods that are isolated)
//	chain policy-pod-in-PPPP {                 one for each set of policies that some pod is under
//	  |   jump policy-in-AAAA
//	  |   jump policy-in-BBBB
//	  |   limit rate 50/second log group 86
//	  |   counter drop
//	chain policy-in-AAAA {                     one for each policy that applies to a local pod
//	      ip saddr @policy-pods-SSSS-4 meta l4proto tcp th dport 80 accept
//	      ip saddr @policy-blocks-TTTT-4 meta l4proto . th dport @policy-ports-UUUU accept
//	      ip saddr @policy-pods-SSSS-4 meta l4proto tcp ip daddr . th dport @policy-named-VVVV-4 accept
//	}
//
// Where policies of the whole cluster decide, the chain of the pods begins with a jump to those
// of tier Admin and, if no other policy isolates the pods, ends with one to those of
// tier Baseline, instead of the last two rules:
//
//	chain policy-admin-in-WWWW {               one for each list of policies that decide for some pod
//	  |   ip saddr @policy-pods-SSSS-4 return                     what is passed on to the next tier
//	  |   ip saddr @policy-pods-SSSS-4 jump policy-deny-in-XXXX
//	chain policy-deny-in-XXXX {                one for each policy that denies
//	      limit rate 50/second log group 86
//	      counter drop
//	}
//
// The same again for IPv6, and for egress with source and destination changed
// about. A packet so crosses one look-up by its address and the rules of the
// policies that its pod is under, however many policies there are.
//
// Names end in a hash of what the thing is made of: a list of selectors is
// compiled once however many policies have it, and a process that starts again
// makes the same names.
//
// policy-ports-in and -out have the ifindex of isolated pods' ports of the bridge
// instead of their addresses, for packets whose address does not tell which pod they
// reach or come from: those to groups and to all, and those with addresses of the
// link. policy-isolated has the addresses of pods that are
// isolated in any direction, policy-self the pairs of an address and itself.
//
// # Use
//
// A Compiler is not safe for concurrent use.
package rules
