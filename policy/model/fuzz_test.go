package model_test

import (
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// policyWith returns a policy with arbitrary strings and numbers in its fields.
func policyWith(cidr, except, protocol, port string, from, to int32, word string) *networkingv1.NetworkPolicy {
	proto := corev1.Protocol(protocol)
	name, number := intstr.FromString(port), intstr.FromInt32(from)
	selector := &metav1.LabelSelector{
		MatchLabels:      map[string]string{word: word},
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: word, Operator: metav1.LabelSelectorOperator(word), Values: []string{word}}},
	}
	np := &networkingv1.NetworkPolicy{}
	np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress, networkingv1.PolicyType(word)}
	np.Spec.Ingress = []networkingv1.NetworkPolicyIngressRule{{
		From: []networkingv1.NetworkPolicyPeer{
			{IPBlock: &networkingv1.IPBlock{CIDR: cidr, Except: []string{except}}},
			{PodSelector: selector}, {NamespaceSelector: selector},
		},
		Ports: []networkingv1.NetworkPolicyPort{
			{Protocol: &proto}, {Protocol: &proto, Port: &name}, {Port: &number, EndPort: &to}, {Port: &number},
		},
	}}
	return np
}
