package main

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/ipam"
	"github.com/weft-net/weft/kube"
)

// parse returns the configuration of the router for the environment of a pod on Node n1, in a
// cluster with count Nodes.
func parse(t *testing.T, env map[string]string, count int) (*daemon.Config, error) {
	t.Helper()
	lookup := func(k string) (string, bool) { v, ok := env[k]; return v, ok }
	s, err := kube.ReadSettings(lookup)
	if err != nil {
		t.Fatal(err)
	}
	s.NodeName = "n1"
	var nodes []*corev1.Node
	for i := range count {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("n%d", i+1)}}
		n.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.0.0.%d", i+1)}}
		nodes = append(nodes, n)
	}
	return routerConfig(s, nodes, lookup)
}

func TestRouterConfig(t *testing.T) {
	for _, c := range []struct {
		name  string
		env   map[string]string
		nodes int
		want  func(*daemon.Config) bool
	}{
		{"no settings", nil, 3, func(c *daemon.Config) bool {
			return slices.Equal(c.Peers, []string{"10.0.0.2", "10.0.0.3"}) && !c.Resume && c.Init.Expect == 3 && c.NoMasqLocal && c.DNS.Off &&
				c.Docker.Host == "" && c.Mesh.Nickname == "n1" && c.Range.String() == daemon.DefaultRange && !c.RangeGiven
		}},
		{"no API server", nil, 0, func(c *daemon.Config) bool { return c.Resume && len(c.Peers) == 0 }},
		{"another first ring", map[string]string{"IPALLOC_INIT": "consensus=5", "NO_MASQ_LOCAL": "0"}, 3, func(c *daemon.Config) bool {
			return c.Init.Expect == 5 && !c.NoMasqLocal
		}},
		{"other peers", map[string]string{"KUBE_PEERS": "a.example, b.example"}, 3, func(c *daemon.Config) bool {
			return slices.Equal(c.Peers, []string{"a.example", "b.example"}) && c.Init.Expect == 3
		}},
		{"other peers and no API server", map[string]string{"KUBE_PEERS": "a.example"}, 0, func(c *daemon.Config) bool {
			return slices.Equal(c.Peers, []string{"a.example"}) && !c.Resume
		}},
		{"all settings", map[string]string{
			"IPALLOC_RANGE": "10.40.0.0/16", "IPALLOC_RANGE6": "fd00::/64", "CONN_LIMIT": "0", "METRICS_ADDR": "0.0.0.0:6782",
			"EXTRA_ARGS": "--log-level debug --no-express", "WEFT_MTU": "1300", "WEFT_PASSWORD": "long enough",
		}, 3, func(c *daemon.Config) bool {
			return c.Range.String() == "10.40.0.0/16" && c.DefaultSubnet == c.Range && c.RangeGiven && c.Range6.String() == "fd00::/64" &&
				c.Mesh.ConnLimit == 0 && c.StatusAddr == "0.0.0.0:6782" && c.LogLevel == slog.LevelDebug && c.Fast.NoExpress && c.MTU == 1300 &&
				slices.Equal(c.Passwords, []string{"long enough"})
		}},
		{"no status address", map[string]string{"METRICS_ADDR": "off"}, 3, func(c *daemon.Config) bool { return c.StatusAddr == "" }},
		{"no status address, by a flag", map[string]string{"EXTRA_ARGS": "--status-addr="}, 3, func(c *daemon.Config) bool { return c.StatusAddr == "" }},
		{"a name for the status address", map[string]string{"WEFT_STATUS_HOST": "metrics.example.com"}, 3, func(c *daemon.Config) bool {
			return slices.Equal(c.StatusHosts, []string{"metrics.example.com"})
		}},
		{"a flag wins", map[string]string{"IPALLOC_RANGE": "10.40.0.0/16", "EXTRA_ARGS": "--ipalloc-range=10.50.0.0/16"}, 3, func(c *daemon.Config) bool {
			return c.Range.String() == "10.50.0.0/16" && c.DefaultSubnet == c.Range
		}},
	} {
		got, err := parse(t, c.env, c.nodes)
		if err != nil || !c.want(got) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

// A variable of the router counts only if no setting of the manifest decides the same.
func TestSettingsOfTheManifestWinOverVariablesOfTheRouter(t *testing.T) {
	variables := map[string]string{
		"WEFT_NICKNAME": "other", "WEFT_NO_DNS": "0", "WEFT_DOCKER_API": "unix:///var/run/docker.sock", "WEFT_NO_MASQ_LOCAL": "0",
		"WEFT_IPALLOC_RANGE": "10.50.0.0/16", "WEFT_IPALLOC_RANGE6": "fd05::/64", "WEFT_IPALLOC_INIT": "observer",
		"WEFT_CONN_LIMIT": "5", "WEFT_STATUS_ADDR": "127.0.0.1:5",
	}
	never := func(c *daemon.Config) bool { return c.Mesh.Nickname == "n1" && c.DNS.Off && c.Docker.Host == "" }
	for _, c := range []struct {
		name     string
		settings map[string]string
		nodes    int
		want     func(*daemon.Config) bool
	}{
		{"all settings", map[string]string{
			"IPALLOC_RANGE": "10.40.0.0/16", "IPALLOC_RANGE6": "fd00::/64", "IPALLOC_INIT": "consensus=7", "CONN_LIMIT": "0", "METRICS_ADDR": "0.0.0.0:6782",
		}, 3, func(c *daemon.Config) bool {
			return c.Range.String() == "10.40.0.0/16" && c.Range6.String() == "fd00::/64" && c.Init.Mode == ipam.Consensus && c.Init.Expect == 7 &&
				c.Mesh.ConnLimit == 0 && c.StatusAddr == "0.0.0.0:6782" && c.NoMasqLocal
		}},
		{"no settings", nil, 3, func(c *daemon.Config) bool {
			return c.Range.String() == "10.50.0.0/16" && c.Range6.String() == "fd05::/64" && c.Init.Mode == ipam.Consensus && c.Init.Expect == 3 &&
				c.Mesh.ConnLimit == 5 && c.StatusAddr == "127.0.0.1:5" && c.NoMasqLocal
		}},
		{"no settings and no API server", map[string]string{"WEFT_RESUME": "0"}, 0, func(c *daemon.Config) bool {
			return c.Init.Mode == ipam.Observer && c.Resume
		}},
		{"further arguments", map[string]string{"IPALLOC_RANGE": "10.40.0.0/16", "EXTRA_ARGS": "--ipalloc-range=10.60.0.0/16 --conn-limit=6"}, 3, func(c *daemon.Config) bool {
			return c.Range.String() == "10.60.0.0/16" && c.Mesh.ConnLimit == 6
		}},
	} {
		env := maps.Clone(variables)
		maps.Copy(env, c.settings)
		got, err := parse(t, env, c.nodes)
		if err != nil || !never(got) || !c.want(got) {
			t.Errorf("%s: %+v, %v", c.name, got, err)
		}
	}
}

func TestSettingErrorsAreOneLine(t *testing.T) {
	for want, env := range map[string]map[string]string{
		"--ipalloc-range 10.0.0.1/8: bits are set beyond /8": {"IPALLOC_RANGE": "10.0.0.1/8"},
		"--ipalloc-range6 10.0.0.0/8: want an IPv6 range":    {"IPALLOC_RANGE6": "10.0.0.0/8"},
		"--conn-limit -1":                              {"CONN_LIMIT": "-1"},
		"--status-addr \"x\"":                          {"METRICS_ADDR": "x"},
		"--mtu 10: want 576":                           {"WEFT_MTU": "10"},
		"environment variable WEFT_MTU: --mtu \"big\"": {"WEFT_MTU": "big"},
		"unknown flag: --bogus":                        {"EXTRA_ARGS": "--bogus"},
		"a password has fewer than":                    {"WEFT_PASSWORD": "short"},
	} {
		_, err := parse(t, env, 3)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v: %v, want %s", env, err, want)
		}
	}
}

// The user's password wins over the generated one. A restarted container gets both from the
// kubelet, without the API server.
func TestGeneratedPasswordIsTheLast(t *testing.T) {
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "weft-generated"}, Data: map[string][]byte{"password": []byte("from the API")},
	}
	generated := map[string]string{"GENERATED_SECRET": "weft-generated"}
	for _, c := range []struct {
		name  string
		env   map[string]string
		files map[string]string
		want  []string
		calls int // of the API server
	}{
		{"none wanted", nil, nil, nil, 0},
		{"the user's", generated, map[string]string{userPassword: "from the user\nand another", generatedPassword: "from the kubelet"}, []string{"from the user", "and another"}, 0},
		{"the user's only", nil, map[string]string{userPassword: "from the user"}, []string{"from the user"}, 0},
		{"the user's, by a variable", map[string]string{"GENERATED_SECRET": "weft-generated", "WEFT_PASSWORD": "by a variable"}, map[string]string{userPassword: "from the user"}, []string{"by a variable"}, 0},
		{"the user's, by a flag", map[string]string{"GENERATED_SECRET": "weft-generated", "EXTRA_ARGS": "--password=by-a-flag"}, nil, []string{"by-a-flag"}, 0},
		{"the kubelet's", generated, map[string]string{generatedPassword: "from the kubelet"}, []string{"from the kubelet"}, 0},
		{"the API server's", generated, nil, []string{"from the API"}, 1},
	} {
		client, dir := fake.NewClientset(secret), t.TempDir()
		for name, text := range c.files {
			write(t, dir, name, text)
		}
		lookup := func(k string) (string, bool) { v, ok := c.env[k]; return v, ok }
		s, err := kube.ReadSettings(lookup)
		if err != nil {
			t.Fatal(err)
		}
		with, _, err := withPassword(t.Context(), s, client, dir, lookup, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		got, err := routerConfig(s, nil, with)
		if err != nil || !slices.Equal(got.Passwords, c.want) || len(client.Actions()) != c.calls {
			t.Errorf("%s: passwords %q, %v, after %d calls", c.name, got.Passwords, err, len(client.Actions()))
		}
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The password follows the Secrets. If the user's is deleted, the last one stays.
func TestPasswordFollowsTheSecrets(t *testing.T) {
	dir := t.TempDir()
	s := &kube.Settings{Namespace: "kube-system", GeneratedSecret: "weft-generated"}
	write(t, dir, generatedPassword, "from the kubelet")
	_, read, err := withPassword(t.Context(), s, fake.NewClientset(), dir, func(string) (string, bool) { return "", false }, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	want := func(when string, lines ...string) {
		t.Helper()
		if got, err := read(); !slices.Equal(got, lines) || err != nil != (lines == nil) {
			t.Errorf("%s: %q, %v", when, got, err)
		}
	}
	want("at first", "from the kubelet")
	write(t, dir, userPassword, "from the user")
	want("with a Secret of the user", "from the user")
	write(t, dir, userPassword, "the second\n")
	want("after a change of it", "the second")
	if err := os.Remove(filepath.Join(dir, userPassword)); err != nil {
		t.Fatal(err)
	}
	want("without it")
}
