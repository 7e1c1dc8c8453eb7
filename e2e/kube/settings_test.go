//go:build kube

package kube

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/api"
)

// Settings in the environment of the manifest take effect on every node.
func TestSettings(t *testing.T) {
	k := newClusterWithoutWeft(t, "iptables")
	n1 := k.Nodes[0].Addr.String()
	k.install("KUBE_PEERS="+n1, "CONN_LIMIT=50", "WEFT_MTU=1300", "WEFT_NO_FASTDP=1", "METRICS_ADDR=0.0.0.0:6782",
		"EXTRA_ARGS=--log-level debug")
	one, two := k.pod("one", "n1", ""), k.pod("two", "n2", "")
	k.waitAnswer("a pod reaches another", k.fromPod("one"), url(two, 8080), "two", one)
	for _, n := range k.Nodes {
		out, err := k.weft(n.Name, "report")
		if err != nil {
			t.Fatal(err)
		}
		var r api.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatal(err)
		}
		if r.Router.ConnLimit != 50 || r.Router.MTU != 1300 || !slices.Equal(r.Router.Targets, []string{n1}) {
			t.Errorf("%s has a limit of %d sessions, an MTU of %d and targets %q", n.Name, r.Router.ConnLimit, r.Router.MTU, r.Router.Targets)
		}
		k.waitUntil("other hosts can read the metrics of "+n.Name+", which show a sleeve link", func() error {
			out, err := k.fromHost(k.outside)(url(n.Addr.String(), 6782) + "metrics")
			if err == nil && !strings.Contains(out, `state="established",type="sleeve"} 1`) {
				err = errors.New(out)
			}
			return err
		})
	}
	logged := k.kubectl("-n", "kube-system", "logs", "-l", "app.kubernetes.io/name=weft", "--tail=-1")
	if !strings.Contains(logged, "level=DEBUG") {
		t.Error("--log-level debug in EXTRA_ARGS has no effect on the logs")
	}
}
