// Package rules compiles the policies of a cluster to nftables rules for the pods of one node. It
// is pure: the rules are data, which package policy writes to the kernel.
//
// A Compiler receives changes of pods, namespaces and policies, and returns the resulting changes
// for the kernel. If one pod changes, only a few set elements change. Compile does the same for a
// whole cluster at once.
//
// # Generated rules
//
//	map policy-ingress-4 { type ipv4_addr : verdict; 10.32.0.5 : goto policy-pod-in-PPPP }
//	  |                                                       (local pods that are isolated)
//	chain policy-pod-in-PPPP {                 one for each set of policies that applies to a pod
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
// If cluster policies have rules for the pods, the chain of the pods begins with a jump to the
// chain of tier Admin. If no other policy isolates the pods, the chain ends with a jump to the
// chain of tier Baseline instead of the last two rules:
//
//	chain policy-admin-in-WWWW {               one for each list of policies that decides for a pod
//	  |   ip saddr @policy-pods-SSSS-4 return                     action Pass: go on to the next tier
//	  |   ip saddr @policy-pods-SSSS-4 jump policy-deny-in-XXXX
//	chain policy-deny-in-XXXX {                one for each policy that denies
//	      limit rate 50/second log group 86
//	      counter drop
//	}
//
// The same chains and sets exist for IPv6, and for egress with source and destination swapped. A
// packet therefore takes one lookup by its address and meets only the rules of the policies that
// apply to its pod, however many policies there are.
//
// Names end in a hash of the contents: a list of selectors is compiled once even if many policies
// use it, and a process that restarts makes the same names.
//
// policy-ports-in and policy-ports-out contain the interface indexes of isolated pods' bridge
// ports instead of their addresses. They are for packets whose address does not identify the pod:
// multicast, broadcast and link-local packets. policy-isolated contains the addresses of pods that
// are isolated in any direction, and policy-self contains the pairs of each such address and
// itself.
//
// # Use
//
// The zero Compiler is not usable; make one with New. A Compiler is not safe for concurrent use.
package rules
