package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"text/template"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// apiVersions are the kinds that a cluster serves, as Helm knows them.
type apiVersions []string

func (a apiVersions) Has(kind string) bool { return slices.Contains(a, kind) }

// recent are kinds that clusters serve since Kubernetes 1.30.
var recent = apiVersions{"admissionregistration.k8s.io/v1/ValidatingAdmissionPolicy"}

// renderChart renders the chart as Helm does. It implements only those functions of Helm that the
// chart uses, and fails on others.
func renderChart(t *testing.T, namespace string, served apiVersions, change func(values map[string]any)) string {
	t.Helper()
	b, err := os.ReadFile("chart/values.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(b, &values); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(values)
	}
	text, err := os.ReadFile("chart/templates/weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	tmpl, err := template.New("weft.yaml").Option("missingkey=error").Funcs(template.FuncMap{
		"quote": func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"toYaml": func(v any) (string, error) {
			b, err := yaml.Marshal(v)
			return strings.TrimSuffix(string(b), "\n"), err
		},
		"nindent": func(n int, text string) string {
			indent := "\n" + strings.Repeat(" ", n)
			return indent + strings.ReplaceAll(text, "\n", indent)
		},
	}).Parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := tmpl.Execute(&out, map[string]any{
		"Values": values, "Release": map[string]any{"Namespace": namespace}, "Capabilities": map[string]any{"APIVersions": served},
	}); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

var update = flag.Bool("update", false, "write weft.yaml as the chart renders it")

func TestChartRendersTheManifest(t *testing.T) {
	got := renderChart(t, "kube-system", recent, nil)
	if *update {
		if err := os.WriteFile("weft.yaml", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the chart does not render weft.yaml, but\n%s", got)
	}
}

// The values that users of charts expect reach the DaemonSet.
func TestChartTakesValues(t *testing.T) {
	out := renderChart(t, "weft", recent, func(values map[string]any) {
		maps.Copy(values, map[string]any{
			"resources":        map[string]any{"requests": map[string]any{"cpu": "1"}, "limits": map[string]any{"memory": "1Gi"}},
			"imagePullSecrets": []any{map[string]any{"name": "registry"}},
			"nodeSelector":     map[string]any{"network": "weft"},
			"tolerations":      []any{map[string]any{"key": "dedicated", "operator": "Exists"}},
			"affinity":         map[string]any{"nodeAffinity": map[string]any{}},
			"podAnnotations":   map[string]any{"a/b": "c"}, "podLabels": map[string]any{"team": "net"},
			"priorityClassName": "high",
			"updateStrategy":    map[string]any{"type": "OnDelete"},
		})
	})
	objects(t, out)
	d := daemonSet(t, out).Spec
	p := d.Template.Spec
	if r := p.Containers[0].Resources; r.Limits.Memory().String() != "1Gi" || r.Requests.Cpu().String() != "1" {
		t.Errorf("resources are %v", r)
	}
	if len(p.ImagePullSecrets) != 1 || p.ImagePullSecrets[0].Name != "registry" || p.NodeSelector["network"] != "weft" || len(p.NodeSelector) != 1 ||
		len(p.Tolerations) != 1 || p.Tolerations[0].Key != "dedicated" || p.Affinity == nil || p.PriorityClassName != "high" {
		t.Errorf("the pod is %+v", p)
	}
	if m := d.Template.ObjectMeta; m.Annotations["a/b"] != "c" || m.Labels["team"] != "net" || m.Labels["app.kubernetes.io/name"] != "weft" {
		t.Errorf("labels %v, annotations %v", m.Labels, m.Annotations)
	}
	if d.UpdateStrategy.Type != appsv1.OnDeleteDaemonSetStrategyType {
		t.Errorf("the update strategy is %v", d.UpdateStrategy)
	}
}

// The schema, by which Helm refuses values that are misspelled, knows all values, and no other.
func TestSchemaKnowsTheValues(t *testing.T) {
	type schema struct {
		Properties           map[string]*schema
		AdditionalProperties any
	}
	var s schema
	b, err := os.ReadFile("chart/values.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile("chart/values.yaml"); err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(b, &values); err != nil {
		t.Fatal(err)
	}
	var compare func(path string, s *schema, values map[string]any)
	compare = func(path string, s *schema, values map[string]any) {
		for name, v := range values {
			in := s.Properties[name]
			if in == nil {
				t.Errorf("the schema lacks %s%s", path, name)
				continue
			}
			if inner, ok := v.(map[string]any); ok && in.Properties != nil {
				compare(path+name+".", in, inner)
			}
		}
	}
	compare("", &s, values)
	for name := range s.Properties {
		// Helm itself adds global.
		if _, ok := values[name]; !ok && name != "global" {
			t.Errorf("the schema has %s, which is no value", name)
		}
	}
	if s.AdditionalProperties != false {
		t.Error("the schema allows values that are misspelled")
	}
}

func TestChartTakesSettings(t *testing.T) {
	out := renderChart(t, "weft", recent, func(values map[string]any) {
		values["settings"] = map[string]any{"IPALLOC_RANGE": "10.40.0.0/16", "CONN_LIMIT": 50}
	})
	if strings.Contains(out, "kube-system") {
		t.Errorf("the namespace of the release is not used everywhere:\n%s", out)
	}
	env := make(map[string]string)
	for _, e := range daemonSet(t, out).Spec.Template.Spec.Containers[0].Env {
		env[e.Name] = e.Value
	}
	if env["IPALLOC_RANGE"] != "10.40.0.0/16" || env["CONN_LIMIT"] != "50" {
		t.Errorf("environment is %v", env)
	}
}

// objects returns the kinds and names of a manifest, each object of which must be one that the API
// server knows, field by field.
func objects(t *testing.T, manifest string) (list []string) {
	t.Helper()
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		var meta metav1.PartialObjectMetadata
		if err := yaml.Unmarshal([]byte(doc), &meta); err != nil {
			t.Fatalf("%v in\n%s", err, doc)
		}
		kinds := map[string]any{
			"ServiceAccount": &corev1.ServiceAccount{}, "ConfigMap": &corev1.ConfigMap{}, "Secret": &corev1.Secret{},
			"ClusterRole": &rbacv1.ClusterRole{}, "ClusterRoleBinding": &rbacv1.ClusterRoleBinding{}, "Role": &rbacv1.Role{},
			"RoleBinding": &rbacv1.RoleBinding{}, "DaemonSet": &appsv1.DaemonSet{},
			"ValidatingAdmissionPolicy":        &admissionv1.ValidatingAdmissionPolicy{},
			"ValidatingAdmissionPolicyBinding": &admissionv1.ValidatingAdmissionPolicyBinding{},
		}
		if err := yaml.UnmarshalStrict([]byte(doc), kinds[meta.Kind]); err != nil {
			t.Errorf("%s %s: %v", meta.Kind, meta.Name, err)
		}
		list = append(list, meta.Kind+" "+meta.Name)
	}
	return list
}

// Clusters before Kubernetes 1.30 do not know the kind ValidatingAdmissionPolicy. A user who gives a
// Secret of another name, or wants no password, gets no right to the generated one.
func TestChartLeavesOut(t *testing.T) {
	all := objects(t, renderChart(t, "kube-system", recent, nil))
	for _, want := range []string{"ValidatingAdmissionPolicy weft", "ValidatingAdmissionPolicyBinding weft", "Secret weft-generated"} {
		if !slices.Contains(all, want) {
			t.Errorf("the chart has no %s, but %q", want, all)
		}
	}
	old := objects(t, renderChart(t, "kube-system", nil, nil))
	if want := slices.DeleteFunc(slices.Clone(all), func(o string) bool { return strings.HasPrefix(o, "Validating") }); !slices.Equal(old, want) {
		t.Errorf("on an old cluster the chart has %q, want %q", old, want)
	}
	open := renderChart(t, "kube-system", recent, func(values map[string]any) {
		values["password"].(map[string]any)["generated"] = ""
	})
	if list := objects(t, open); len(list) != len(all)-1 || strings.Contains(open, "GENERATED") || strings.Contains(open, "[secrets]") {
		t.Errorf("without a generated password the chart has %q:\n%s", list, open)
	}
	named := renderChart(t, "kube-system", recent, func(values map[string]any) {
		values["password"].(map[string]any)["generated"] = "another"
	})
	if strings.Contains(named, "weft-generated") || strings.Count(named, "another") < 4 {
		t.Errorf("the generated Secret has no other name:\n%s", named)
	}
}

// daemonSet returns the DaemonSet of a manifest.
func daemonSet(t *testing.T, manifest string) *appsv1.DaemonSet {
	t.Helper()
	for doc := range strings.SplitSeq(manifest, "\n---\n") {
		var d appsv1.DaemonSet
		if err := yaml.UnmarshalStrict([]byte(doc), &d); err == nil && d.Kind == "DaemonSet" {
			return &d
		}
	}
	t.Fatal("there is no DaemonSet")
	return nil
}

// Kubernetes sets variables such as WEFT_PORT for a Service named weft, which the router
// would read as a flag.
func TestServicesSetNoVariables(t *testing.T) {
	b, err := os.ReadFile("weft.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if links := daemonSet(t, string(b)).Spec.Template.Spec.EnableServiceLinks; links == nil || *links {
		t.Error("the DaemonSet has no enableServiceLinks: false")
	}
}

// No container is privileged or has CAP_SYS_ADMIN, and each drops all capabilities that it
// does not list.
func TestNoPrivilegedContainers(t *testing.T) {
	for _, file := range []string{"weft.yaml", "uninstall.yaml"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		spec := daemonSet(t, string(b)).Spec.Template.Spec
		if len(spec.InitContainers) > 0 || spec.HostPID || spec.HostIPC {
			t.Errorf("%s has init containers or host namespaces other than the network", file)
		}
		for _, c := range spec.Containers {
			s := c.SecurityContext
			if s == nil || s.Privileged != nil || s.Capabilities == nil || len(s.Capabilities.Drop) != 1 || s.Capabilities.Drop[0] != "ALL" {
				t.Errorf("%s: container %s does not drop all other capabilities", file, c.Name)
				continue
			}
			if slices.Contains(s.Capabilities.Add, "SYS_ADMIN") {
				t.Errorf("%s: container %s has CAP_SYS_ADMIN", file, c.Name)
			}
		}
	}
}
