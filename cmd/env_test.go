package cmd

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/weft-net/weft/internal/api"
)

// env and env --restore work with any value of DOCKER_HOST.
func TestEnvOfAShell(t *testing.T) {
	const addr = "unix:///run/weft/docker.sock"
	for _, was := range []string{"", "tcp://h:1", "it's $(odd)"} {
		lookup := func(name string) (string, bool) { return was, name == savedHostVar }
		script := "DOCKER_HOST=" + quote(was) + "\n" + saveEnv(addr, was) + "echo \"$DOCKER_HOST\"\n" + restoreEnv(lookup) + "echo \"${DOCKER_HOST-unset}\"\n"
		out, err := exec.Command("sh", "-c", script).Output()
		want := was
		if want == "" {
			want = "unset"
		}
		if err != nil || string(out) != addr+"\n"+want+"\n" {
			t.Errorf("DOCKER_HOST was %q: %v, %q", was, err, out)
		}
	}
	if got := saveEnv(addr, addr); got != "" {
		t.Errorf("a second time it prints %q", got)
	}
	if got := restoreEnv(func(string) (string, bool) { return "", false }); got != "" {
		t.Errorf("with nothing to restore it prints %q", got)
	}
}

func TestProxyAddressOfTheReport(t *testing.T) {
	for _, c := range []struct {
		docker *api.Docker
		env    string
	}{
		{nil, ""},
		{&api.Docker{}, ""},
		{&api.Docker{ProxyAddresses: []string{"tcp://0.0.0.0:12375", "unix:///x"}}, "export DOCKER_HOST=unix:///x ORIG_DOCKER_HOST=''\n"},
		{&api.Docker{ProxyAddresses: []string{"tcp://0.0.0.0:12375"}}, "export DOCKER_HOST=tcp://127.0.0.1:12375 ORIG_DOCKER_HOST=''\n"},
	} {
		t.Setenv("DOCKER_HOST", "")
		r := someReport()
		r.Docker = c.docker
		socket := serve(t, &fakeBackend{report: r})
		if code, out, words := weft("env", "--socket", socket); code != ExitOK || out != c.env || words != "" {
			t.Errorf("env: %d, %q, %q; want %q", code, out, words, c.env)
		}
		want := ""
		if c.env != "" {
			want = "-H=" + strings.Fields(strings.TrimPrefix(c.env, "export DOCKER_HOST="))[0] + "\n"
		}
		if code, out, _ := weft("config", "--socket", socket); code != ExitOK || out != want {
			t.Errorf("config: %d, %q; want %q", code, out, want)
		}
	}
}
