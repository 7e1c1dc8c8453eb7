package policytest

import (
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/network-policy-api/apis/v1alpha2"
	"sigs.k8s.io/yaml"

	"github.com/weft-net/weft/policy/model"
)

// Manifest parses a cluster from YAML. The error includes the parts that the model cannot read.
func Manifest(text string) (model.Snapshot, error) {
	s := model.Snapshot{Node: Node, Namespaces: map[string]labels.Set{}}
	var errs []error
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var kind metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &kind); err != nil {
			return s, err
		}
		switch kind.Kind {
		case "Namespace":
			var ns corev1.Namespace
			errs = append(errs, yaml.UnmarshalStrict([]byte(doc), &ns))
			s.Namespaces[ns.Name] = ns.Labels
		case "Pod":
			var p corev1.Pod
			errs = append(errs, yaml.UnmarshalStrict([]byte(doc), &p))
			pod, err := model.PodOf(&p)
			s.Pods, errs = append(s.Pods, pod), append(errs, err)
		case "NetworkPolicy":
			var np networkingv1.NetworkPolicy
			errs = append(errs, yaml.UnmarshalStrict([]byte(doc), &np))
			policy, err := model.PolicyOf(&np)
			s.Policies, errs = append(s.Policies, policy), append(errs, err)
		case "ClusterNetworkPolicy":
			var cnp v1alpha2.ClusterNetworkPolicy
			errs = append(errs, yaml.UnmarshalStrict([]byte(doc), &cnp))
			policy, err := model.ClusterPolicyOf(&cnp)
			s.Cluster, errs = append(s.Cluster, policy), append(errs, err)
		default:
			errs = append(errs, fmt.Errorf("unknown kind %q", kind.Kind))
		}
	}
	return s, errors.Join(errs...)
}
