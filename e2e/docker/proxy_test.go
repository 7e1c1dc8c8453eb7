//go:build docker

package docker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/lab/sandbox"
)

const proxySocket = "unix:///run/weft/docker.sock"

// viaProxy runs docker against the proxy.
func (h *host) viaProxy(t *testing.T, args ...string) string {
	t.Helper()
	return h.must(t, "docker", append([]string{"-H", proxySocket}, args...)...)
}

// showAddresses is a command that prints the addresses that a container has at its start.
var showAddresses = []string{sandbox.Image, "sh", "-c", "ip -o -4 addr | grep ethwe || true"}

// waitAddresses is a command that prints the addresses of a container once it has n of them, or
// after ten seconds: all but the first are added right after the start.
func waitAddresses(n int) []string {
	script := fmt.Sprintf("for i in $(seq 100); do [ $(ip -o -4 addr | grep -c ethwe) -ge %d ] && break; sleep 0.1; done; ip -o -4 addr | grep ethwe", n)
	return []string{sandbox.Image, "sh", "-c", script}
}

// initialAddresses runs a container and returns the addresses that its first process sees
// without waiting.
func (h *host) initialAddresses(t *testing.T, args ...string) []string {
	t.Helper()
	return h.addressesSeen(t, args, showAddresses)
}

func (h *host) addressesSeen(t *testing.T, args, command []string) []string {
	t.Helper()
	out := h.viaProxy(t, append(append([]string{"run", "--rm"}, args...), command...)...)
	var got []string
	for line := range strings.Lines(out) {
		got = append(got, strings.Fields(line)[3])
	}
	return got
}

// A container has its address before its process starts, keeps its own entrypoint, and reaches
// containers on other hosts.
func TestProxyGivesAddressesBeforeTheProcess(t *testing.T) {
	t.Parallel()
	hs := newHosts(t, 2)
	a, b := hs[0], hs[1]
	for _, h := range hs {
		h.waitNetwork(t)
	}
	for range 5 {
		if got := a.initialAddresses(t); len(got) != 1 || !strings.HasPrefix(got[0], "10.") || !strings.HasSuffix(got[0], "/12") {
			t.Fatalf("the first process sees %v", got)
		}
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"-e", "WEFT_CIDR=none"}, nil},
		{[]string{"-e", "WEFT_CIDR=10.40.1.5/24"}, []string{"10.40.1.5/24"}},
		{[]string{"-e", "WEFT_CIDR=ip:10.40.1.5/24 10.40.2.1/30 10.40.1.6/24 10.40.0.9/16"}, []string{"10.40.0.9/16", "10.40.1.5/24", "10.40.1.6/24", "10.40.2.1/30"}},
		{[]string{"-e", "WEAVE_CIDR=10.40.1.7/24"}, []string{"10.40.1.7/24"}},
		{[]string{"--net", "none", "-e", "WEFT_CIDR=10.40.1.8/24"}, []string{"10.40.1.8/24"}},
		{[]string{"--net", "host"}, nil},
		// Outside weft's range the user must make sure that addresses are unique.
		{[]string{"-e", "WEAVE_CIDR=192.168.77.7/24"}, []string{"192.168.77.7/24"}},
	} {
		got := a.initialAddresses(t, c.args...)
		if len(c.want) > 1 {
			if len(got) == 0 || got[0] != "10.40.1.5/24" {
				t.Errorf("docker run %s: the first process sees %v", strings.Join(c.args, " "), got)
			}
			got = a.addressesSeen(t, c.args, waitAddresses(len(c.want)))
		}
		if slices.Sort(got); !slices.Equal(got, c.want) {
			t.Errorf("docker run %s: %v, want %v", strings.Join(c.args, " "), got, c.want)
		}
	}
	if got := a.initialAddresses(t, "-e", "WEFT_CIDR="); len(got) != 1 {
		t.Errorf("with an empty WEFT_CIDR: %v", got)
	}
	if got := a.addressesSeen(t, []string{"-e", "WEFT_CIDR=net:10.40.3.0/24 net:default"}, waitAddresses(2)); len(got) != 2 || !strings.HasPrefix(got[0], "10.40.3.") {
		t.Errorf("with two subnets: %v", got)
	}
	for cidr, words := range map[string]string{"10.40.1.0/24": "names the subnet itself", "net:192.168.78.0/24": "is outside the ranges"} {
		if text := a.mustFail(t, "docker", "-H", proxySocket, "run", "--rm", "-e", "WEFT_CIDR="+cidr, sandbox.Image, "true"); !strings.Contains(text, words) {
			t.Errorf("WEFT_CIDR=%s: %s", cidr, text)
		}
	}
	a.viaProxy(t, "run", "-d", "--name", "out", "-e", "WEFT_CIDR=192.168.77.7/24", sandbox.Image, "sleep", "1000")
	b.viaProxy(t, "run", "-d", "--name", "out", "-e", "WEFT_CIDR=192.168.77.8/24", sandbox.Image, "sleep", "1000")
	b.ping(t, "out", "192.168.77.7")
	if text := a.mustFail(t, "docker", "-H", proxySocket, "run", "--rm", "-e", "WEFT_CIDR=192.168.77.7/24", sandbox.Image, "true"); !strings.Contains(text, "in use") {
		t.Errorf("an address outside the range that this host uses already: %s", text)
	}

	a.viaProxy(t, "run", "-d", "--name", "web", "--restart", "always", sandbox.Image, "sleep", "1000")
	b.viaProxy(t, "run", "-d", "--name", "client", sandbox.Image, "sleep", "1000")
	to := a.address(t, "web", "weft")
	b.ping(t, "client", to)
	b.ping(t, "client", a.Addr.String()) // through docker's own network
	if got := a.docker(t, "inspect", "-f", "{{.Path}} {{.Args}} {{.Config.Hostname}} {{len .Mounts}}", "web"); got != "sleep [1000] web 0" {
		t.Errorf("the container is %s", got)
	}
	if hosts := a.docker(t, "exec", "web", "cat", "/etc/hosts"); !strings.Contains(hosts, to+"\tweb") || strings.Contains(hosts, "172.17.") {
		t.Errorf("hosts: %s", hosts)
	}
	// Docker restarts it without the proxy.
	a.must(t, "sh", "-c", "kill -9 "+a.docker(t, "inspect", "-f", "{{.State.Pid}}", "web"))
	eventually(t, "it has an address after a restart by docker", func() error {
		if got := a.addresses(t, "web", "ethwe0"); len(got) != 1 {
			return fmt.Errorf("it has %v", got)
		}
		return nil
	})
	a.must(t, "sh", "-c", "docker rm -f $(docker ps -aq)")
	a.waitActive(t, 0)
	a.weft(t, "stop")
	if out := a.docker(t, "network", "ls", "--format", "{{.Name}}"); strings.Contains(out, "weft") {
		t.Errorf("networks after stop: %s", out)
	}
}

// The proxy honours its flags.
func TestProxyFlags(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1, "--no-default-ipalloc", "--no-rewrite-hosts", "--rewrite-inspect", "--no-multicast-route",
		"--hostname-from-label", "role", "--hostname-match", "^(.*)-[0-9]+$", "--hostname-replacement", "$1")[0]
	if got := h.initialAddresses(t); got != nil {
		t.Errorf("without WEFT_CIDR it has %v", got)
	}
	h.viaProxy(t, "run", "-d", "--name", "x1", "--label", "role=web-17", "-e", "WEFT_CIDR=10.40.1.5/24", sandbox.Image, "sleep", "1000")
	if got := h.docker(t, "exec", "x1", "hostname"); got != "web" {
		t.Errorf("the hostname is %s", got)
	}
	if got := h.viaProxy(t, "inspect", "-f", "{{.NetworkSettings.IPAddress}}/{{.NetworkSettings.IPPrefixLen}}", "x1"); got != "10.40.1.5/24" {
		t.Errorf("inspect shows %s", got)
	}
	if got := h.docker(t, "exec", "x1", "cat", "/etc/hosts"); !strings.Contains(got, "172.17.") {
		t.Errorf("hosts: %s", got)
	}
	if got := h.docker(t, "exec", "x1", "ip", "route"); strings.Contains(got, "224.") {
		t.Errorf("routes: %s", got)
	}
}

// The first process of a container finds its own name at its address on the switch, also
// after Docker restarted it without the proxy.
func TestProxyEditsHostsBeforeTheProcess(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	for range 5 {
		if got := h.viaProxy(t, "run", "--rm", "-e", "WEFT_CIDR=10.40.1.5/24", sandbox.Image, "cat", "/etc/hosts"); !strings.Contains(got, "10.40.1.5\t") || strings.Contains(got, "172.17.") {
			t.Errorf("the first process sees the hosts file\n%s", got)
		}
	}
	h.viaProxy(t, "run", "-d", "--name", "web", "--restart", "always", sandbox.Image, "sh", "-c", "cat /etc/hosts; sleep 1000")
	h.must(t, "sh", "-c", "kill -9 "+h.docker(t, "inspect", "-f", "{{.State.Pid}}", "web"))
	eventually(t, "it was restarted", func() error {
		if got := h.docker(t, "logs", "web"); strings.Count(got, "127.0.0.1") != 2 || strings.Contains(got, "172.17.") || strings.Count(got, "\tweb") != 2 {
			return fmt.Errorf("its processes saw the hosts files\n%s", got)
		}
		return nil
	})
}

// Names of containers are made of labels where there are some, and found by the part in front
// of the domain, in the container's own domain too.
func TestNamesOfProxiedContainers(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1, "--dns-domain", "foo.bar", "--hostname-from-label", "L", "--hostname-match", "^[^-]+-(?P<a>[^-]*)-[^-]+$", "--hostname-replacement", "$a")[0]
	h.waitNetwork(t)
	run := func(name string, args ...string) {
		h.viaProxy(t, append(append([]string{"run", "-d", "--name", name}, args...), sandbox.Image, "sleep", "1000")...)
	}
	run("x-web-y")
	run("x-a-y", "--label", "L=plain")
	run("cc1", "-h", "foo.sub1.foo.bar")
	run("cc3", "-h", "tre.sub1.foo.bar")
	for _, name := range []string{"web", "plain", "tre", "tre.sub1"} {
		h.ping(t, "cc1", name)
	}
}

// The shell uses the proxy after eval $(weft env), and no longer after eval $(weft env --restore).
func TestEnv(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := `eval $(WEFT env) && docker run --rm IMAGE sh -c 'ip -o -4 addr show dev ethwe0' >/dev/null && echo "$DOCKER_HOST"
eval $(WEFT env --restore) && echo "${DOCKER_HOST-unset}" && docker $(WEFT config) run --rm IMAGE sh -c 'ip -o -4 addr show dev ethwe0' >/dev/null && echo done`
	script = strings.NewReplacer("WEFT", exe, "IMAGE", sandbox.Image).Replace(script)
	if got := h.must(t, "bash", "-c", script); got != proxySocket+"\nunset\ndone" {
		t.Errorf("the shell printed %q", got)
	}
}

// All other requests pass unchanged: streams whose directions end independently, bodies over
// 64 KiB, events, builds and old API versions.
func TestProxyPassesOtherRequests(t *testing.T) {
	t.Parallel()
	h := newHosts(t, 1)[0]
	h.waitNetwork(t)
	big := bytes.Repeat([]byte("0123456789abcdef\n"), 64<<10) // 1 MiB
	sum := sha256.Sum256(big)
	want := hex.EncodeToString(sum[:])
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	pipe := func(args ...string) string {
		t.Helper()
		cmd := h.Command(ctx, "docker", append([]string{"-H", proxySocket}, args...)...)
		cmd.Stdin = bytes.NewReader(big)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("docker %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	// The end of the input must reach the container, and its later output the client.
	if got := pipe("run", "-i", "--rm", sandbox.Image, "sha256sum"); !strings.HasPrefix(got, want) {
		t.Errorf("run -i: %s, want %s", got, want)
	}
	h.run(t, "--name", "box")
	if got := pipe("exec", "-i", "box", "sha256sum"); !strings.HasPrefix(got, want) {
		t.Errorf("exec -i: %s, want %s", got, want)
	}
	if got := pipe("exec", "-i", "box", "cat"); got != string(big) {
		t.Errorf("exec -i cat gave %d bytes back, want %d", len(got), len(big))
	}
	// An archive of 1 MiB and more in a chunked body, both ways.
	h.must(t, "sh", "-c", "head -c 3000000 /dev/urandom >/var/tmp/big && docker -H "+proxySocket+" cp /var/tmp/big box:/big && docker -H "+proxySocket+" cp box:/big /var/tmp/back && cmp /var/tmp/big /var/tmp/back")
	h.must(t, "sh", "-c", "mkdir -p /var/tmp/b && cp /var/tmp/big /var/tmp/b/ && printf 'FROM "+sandbox.Image+"\\nCOPY big /big\\n' >/var/tmp/b/Dockerfile")
	// BuildKit uses gRPC over the connection; the classic builder sends an archive.
	for _, kit := range []string{"0", "1"} {
		h.must(t, "env", "DOCKER_BUILDKIT="+kit, "/usr/bin/docker", "-H", proxySocket, "build", "-q", "-t", "built"+kit, "/var/tmp/b")
		if got := h.viaProxy(t, "run", "--rm", "built"+kit, "sh", "-c", "wc -c </big"); got != "3000000" {
			t.Errorf("what was built with DOCKER_BUILDKIT=%s has %s bytes", kit, got)
		}
	}
	// A client disconnects from a stream that never ends.
	follow, stop := context.WithCancel(ctx)
	logs := h.Command(follow, "docker", "-H", proxySocket, "events")
	var events lockedBuffer
	logs.Stdout = &events
	if err := logs.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "events", func() error {
		h.viaProxy(t, "run", "--rm", sandbox.Image, "true")
		if !strings.Contains(events.String(), "container die") {
			return fmt.Errorf("received %q", events.String())
		}
		return nil
	})
	stop()
	logs.Wait()
	// Heads, versions and errors are the engine's.
	for _, path := range []string{"/_ping", "/v1.24/containers/json", "/v1.41/info", "/v1.12/version", "/containers/nobody/json", "/v9.99/info"} {
		direct, proxied := h.curl(t, "/run/docker.sock", path), h.curl(t, "/run/weft/docker.sock", path)
		if direct != proxied {
			t.Errorf("GET %s: the engine answers\n%s\nthe proxy\n%s", path, direct, proxied)
		}
	}
	oldest := h.docker(t, "version", "-f", "{{.Server.MinAPIVersion}}")
	if oldest == "1.12" {
		oldest = "1.24" // the first version that clients negotiate
	}
	for _, version := range []string{oldest, "1.41"} {
		out := h.must(t, "env", "DOCKER_API_VERSION="+version, "docker", "-H", proxySocket, "run", "--rm", sandbox.Image, "sh", "-c", "ip -o -4 addr show dev ethwe0")
		if !strings.Contains(out, "inet 10.") {
			t.Errorf("with version %s of the API a container sees %s", version, out)
		}
	}
}

// Over TCP the proxy requires client certificates.
func TestProxyOverTLS(t *testing.T) {
	t.Parallel()
	hs := newBareHosts(t, 1)
	h := hs[0]
	h.startEngine(t)
	h.must(t, "bash", "-c", `set -e; mkdir -p /etc/tls; cd /etc/tls
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem 2>/dev/null
for who in server client; do
  openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr 2>/dev/null
  openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out $who.pem -extfile <(printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth') 2>/dev/null
done`)
	h.launch(t, hs, "-H", "tcp://0.0.0.0:12375", "-H", proxySocket, "--tlsverify", "--tlscacert", "/etc/tls/ca.pem", "--tlscert", "/etc/tls/server.pem", "--tlskey", "/etc/tls/server.key")
	h.waitNetwork(t)
	args := []string{"-H", "tcp://127.0.0.1:12375", "--tlsverify", "--tlscacert", "/etc/tls/ca.pem"}
	with := append(slices.Clone(args), "--tlscert", "/etc/tls/client.pem", "--tlskey", "/etc/tls/client.key")
	if got := h.must(t, "bash", "-c", "echo hello | docker "+strings.Join(with, " ")+" run -i --rm "+sandbox.Image+" cat"); got != "hello" {
		t.Errorf("over TLS the container printed %q", got)
	}
	without := h.mustFail(t, "curl", "-sS", "--cacert", "/etc/tls/ca.pem", "https://127.0.0.1:12375/_ping")
	if !strings.Contains(without, "certificate") {
		t.Errorf("without a certificate: %s", without)
	}
	old := h.mustFail(t, "bash", "-c", "openssl s_client -connect 127.0.0.1:12375 -tls1_1 -cert /etc/tls/client.pem -key /etc/tls/client.key </dev/null")
	if old == "" {
		t.Error("TLS 1.1 was accepted")
	}
}

// curl returns head and body of an answer, without the parts that differ between calls.
func (h *host) curl(t *testing.T, socket, path string) string {
	t.Helper()
	out := h.must(t, "curl", "-s", "-i", "--unix-socket", socket, "http://docker"+path)
	head, body, _ := strings.Cut(out, "\r\n\r\n")
	var kept []string
	for line := range strings.Lines(head) {
		if !strings.HasPrefix(line, "Date:") {
			kept = append(kept, strings.TrimSpace(line))
		}
	}
	var info map[string]any
	if json.Unmarshal([]byte(body), &info) == nil && info["SystemTime"] != nil {
		for _, changing := range []string{"SystemTime", "NFd", "NGoroutines", "NEventsListener"} {
			delete(info, changing)
		}
		b, _ := json.Marshal(info)
		body = string(b)
		kept = slices.DeleteFunc(kept, func(s string) bool { return strings.HasPrefix(s, "Content-Length") })
	}
	return strings.Join(kept, "\n") + "\n\n" + body
}
