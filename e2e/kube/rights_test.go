//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// A new cluster is closed: its nodes agree on a password that one of them generated, which stays
// when the manifest is applied again. What weft may change is limited to the Node that it runs on.
func TestClosedByDefault(t *testing.T) {
	k := newCluster(t, "nftables")
	one, two := k.pod("one", "n1", ""), k.pod("two", "n2", "")
	password := func() string {
		return k.kubectl("-n", "kube-system", "get", "secret", "weft-generated", "-o", "jsonpath={.data.password}")
	}
	check := func(when string) {
		t.Helper()
		k.waitAnswer(when+" a pod reaches another", k.fromPod("one"), url(two, 8080), "two", one)
		for _, n := range k.Nodes {
			k.waitUntil(when+" the link of "+n.Name+" is encrypted", func() error { return k.encrypted(n.Name) })
		}
	}
	check("at first")
	generated := password()
	if len(generated) < 40 {
		t.Fatalf("the generated password is %q", generated)
	}
	k.install("WEFT_LOG_LEVEL=debug") // replaces the pods
	check("after the manifest was applied again")
	if again := password(); again != generated {
		t.Errorf("the password was %s and is %s", generated, again)
	}
	k.testRights()

	// What weft status warns of is an Event of the Node, and doctor is right in the pod.
	nft := func(command ...string) {
		t.Helper()
		if _, err := k.Nodes[0].Run(t.Context(), "nft", command...); err != nil {
			t.Fatal(err)
		}
	}
	nft("add", "table", "inet", "foreign")
	nft("add", "chain", "inet", "foreign", "passing", "{ type filter hook forward priority 0; policy drop; }")
	k.waitUntil("the Node has an Event", func() error {
		out := k.kubectl("get", "events", "--field-selector=involvedObject.kind=Node,involvedObject.name=n1,reason=WeftWarning", "-o", "jsonpath={.items[*].message}")
		if !strings.Contains(out, "chain passing of table inet foreign ends with policy drop") {
			return errors.New(out)
		}
		return nil
	})
	if out := k.kubectl("describe", "node", "n1"); !strings.Contains(out, "WeftWarning") {
		t.Errorf("kubectl describe node does not show it:\n%s", out)
	}
	nft("delete", "table", "inet", "foreign")
	k.waitUntil("doctor finds no fault in the pod", func() error {
		out, err := k.weft("n1", "doctor")
		if err == nil && strings.Contains(out, "FAIL") {
			err = errors.New(out)
		}
		return err
	})
}

// testRights tries, with the token of weft on n1, what concerns n1, other nodes, and nobody.
func (k *kube) testRights() {
	k.t.Helper()
	const (
		merge     = "application/merge-patch+json"
		strategic = "application/strategic-merge-patch+json"
		cm        = "/api/v1/namespaces/kube-system/configmaps/"
		secrets   = "/api/v1/namespaces/kube-system/secrets"
		events    = "/api/v1/namespaces/default/events"
	)
	pod := k.kubectl("-n", "kube-system", "get", "pod", "-l", "app.kubernetes.io/name=weft", "--field-selector=spec.nodeName=n1", "-o", "jsonpath={.items[0].metadata.name}")
	bound := k.kubectl("-n", "kube-system", "create", "token", "weft", "--bound-object-kind=Pod", "--bound-object-name="+pod)
	unbound := k.kubectl("-n", "kube-system", "create", "token", "weft")
	server := k.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}")
	condition := func(kind, status string) string {
		return fmt.Sprintf(`{"status":{"conditions":[{"type":%q,"status":%q,"reason":"WeftIsUp","message":"x"}]}}`, kind, status)
	}
	event := func(kind, name, host string) string {
		return fmt.Sprintf(`{"metadata":{"generateName":"test-"},"involvedObject":{"kind":%q,"name":%q,"namespace":%q},"source":{"component":"weft","host":%q},"type":"Warning","reason":"Test"}`,
			kind, name, map[string]string{"Node": "", "Pod": "default", "Secret": "default"}[kind], host)
	}
	line := func(key, value string) string { return fmt.Sprintf(`{"data":{%q:%q}}`, key, value) }
	var members map[string]string
	if err := json.Unmarshal([]byte(k.members()), &members); err != nil {
		k.t.Fatal(err)
	}
	keys := make(map[string]string) // by node
	for key, value := range members {
		name, _, _ := strings.Cut(value, " ")
		keys[name] = key
	}
	secret := k.kubectl("-n", "kube-system", "get", "secret", "weft-generated", "-o", "json")
	k.applyText(`{"apiVersion":"v1","kind":"Event","metadata":{"name":"foreign","namespace":"default"},"involvedObject":{"kind":"Pod","name":"one","namespace":"default"},` +
		`"source":{"component":"weft","host":"n2"},"type":"Warning","reason":"Test"}`)
	for _, c := range []struct {
		what, token, method, path, kind, body string
		denied                                string // part of the reason; "": allowed
	}{
		{"the condition of its own Node", bound, "PATCH", "/api/v1/nodes/n1/status", strategic, condition("NetworkUnavailable", "False"), ""},
		{"the condition of another Node", bound, "PATCH", "/api/v1/nodes/n2/status", strategic, condition("NetworkUnavailable", "True"), "may not change Node n2"},
		{"another condition", bound, "PATCH", "/api/v1/nodes/n1/status", strategic, condition("Ready", "False"), "the condition NetworkUnavailable only"},
		{"a label", bound, "PATCH", "/api/v1/nodes/n1/status", merge, `{"metadata":{"labels":{"a":"b"}}}`, "the condition NetworkUnavailable only"},
		{"an address", bound, "PATCH", "/api/v1/nodes/n1/status", strategic, `{"status":{"addresses":[{"type":"ExternalIP","address":"192.0.2.66"}]}}`, "the condition NetworkUnavailable only"},
		{"its own Node, with a token that names none", unbound, "PATCH", "/api/v1/nodes/n1/status", strategic, condition("NetworkUnavailable", "False"), "names no Node"},
		{"a taint", bound, "PATCH", "/api/v1/nodes/n1", merge, `{"spec":{"unschedulable":true}}`, "forbidden"},
		{"a line of its own", bound, "PATCH", cm + "weft-peers", merge, line("02-00-00-00-00-77", "n1 uid"), ""},
		{"a line of another Node", bound, "PATCH", cm + "weft-peers", merge, line("02-00-00-00-00-78", "n2 uid"), "the line of another Node"},
		{"another Node's line in its own name", bound, "PATCH", cm + "weft-peers", merge, line(keys["n2"], "n1 uid"), "the line of another Node"},
		{"the removal of a line", bound, "PATCH", cm + "weft-peers", merge, `{"data":{"02-00-00-00-00-77":null}}`, ""},
		{"another ConfigMap", bound, "PATCH", cm + "kube-root-ca.crt", merge, `{}`, "forbidden"},
		{"the password", bound, "PUT", secrets + "/weft-generated", "application/json", strings.Replace(secret, `"password": "`, `"password": "AAAA`, 1), "the password is there already"},
		{"an Event of its own Node", bound, "POST", events, "application/json", event("Node", "n1", "n1"), ""},
		{"an Event of a pod", bound, "POST", events, "application/json", event("Pod", "one", "n1"), ""},
		{"an Event of another Node", bound, "POST", events, "application/json", event("Node", "n2", "n1"), "may not write this Event"},
		{"an Event in the name of another Node", bound, "POST", events, "application/json", event("Pod", "one", "n2"), "may not write this Event"},
		{"an Event of a Secret", bound, "POST", events, "application/json", event("Secret", "x", "n1"), "may not write this Event"},
		{"the Event of another Node", bound, "PATCH", events + "/foreign", merge, `{"source":{"component":"weft","host":"n1"}}`, "may not write this Event"},
		{"a pod of its own Node", bound, "DELETE", "/api/v1/namespaces/default/pods/one?dryRun=All", "", "", ""},
		{"a pod of another Node", bound, "DELETE", "/api/v1/namespaces/default/pods/two?dryRun=All", "", "", "may not delete a pod of another Node"},
		{"a change of a pod", bound, "PATCH", "/api/v1/namespaces/default/pods/one", merge, `{"metadata":{"labels":{"a":"b"}}}`, "forbidden"},
		{"a new Secret", bound, "POST", secrets, "application/json", `{"metadata":{"name":"x"}}`, "forbidden"},
		{"another Secret", bound, "GET", secrets + "/weft", "", "", "forbidden"},
		{"all Secrets", bound, "GET", secrets, "", "", "forbidden"},
	} {
		ctx, cancel := context.WithTimeout(k.t.Context(), timeout)
		cmd := k.Command(ctx, "curl", "--silent", "--insecure", "--request", c.method, "--header", "Authorization: Bearer "+c.token,
			"--header", "Content-Type: "+c.kind, "--data-binary", "@-", server+c.path)
		cmd.Stdin = strings.NewReader(c.body)
		out, err := cmd.Output()
		cancel()
		failed := strings.Contains(string(out), `"status": "Failure"`) || strings.Contains(string(out), `"status":"Failure"`)
		if err != nil || failed != (c.denied != "") || !strings.Contains(string(out), c.denied) {
			k.t.Errorf("%s: %.500s, %v; want it denied because of %q", c.what, out, err, c.denied)
		}
	}
}
