package cmd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
)

// fakeSystemd answers as systemctl and journalctl do.
type fakeSystemd struct {
	unit               *unit
	load, active       string
	env                []string // files that the unit reads
	enabled            string
	journal            string
	startErr           error
	environmentAtStart string
}

func newFakeSystemd(t *testing.T) *fakeSystemd {
	dir := t.TempDir()
	s := &fakeSystemd{load: "loaded", active: "inactive", enabled: "enabled"}
	s.unit = &unit{booted: dir, file: filepath.Join(dir, "state", "launch.env"), run: s.run}
	s.env = []string{"/etc/default/weft", s.unit.file}
	return s
}

func (s *fakeSystemd) run(_ context.Context, program string, args ...string) ([]byte, error) {
	if program == "journalctl" {
		return []byte(s.journal), nil
	}
	switch args[0] {
	case "show":
		var b bytes.Buffer
		for _, f := range s.env {
			fmt.Fprintf(&b, "EnvironmentFiles=%s (ignore_errors=yes)\n", f)
		}
		fmt.Fprintf(&b, "LoadState=%s\nActiveState=%s\n", s.load, s.active)
		return b.Bytes(), nil
	case "is-enabled":
		return []byte(s.enabled + "\n"), nil
	}
	switch args[0] {
	case "start":
		b, err := os.ReadFile(s.unit.file)
		if err != nil {
			return nil, err
		}
		s.environmentAtStart = string(b)
		if s.startErr != nil {
			s.active = "activating" // as Restart= has it
			return []byte("Job for weft.service failed.\nSee \"journalctl -xeu weft.service\" for details.\n"), s.startErr
		}
		s.active = "active"
	case "stop":
		s.active = "inactive"
	}
	return nil, nil
}

// launchArgs reads a command line of launch, and returns the configuration too.
func launchArgs(t *testing.T, args ...string) (*launchFlags, *pflag.FlagSet, *daemon.Config) {
	t.Helper()
	f, fs := launchLine(t, args...)
	c, err := f.config(fs, fs.Args(), api.DefaultSocket)
	if err != nil {
		t.Fatal(err)
	}
	return f, fs, c
}

// Site, "As a service": who starts the router.
func TestWhetherLaunchUsesTheUnit(t *testing.T) {
	for _, c := range []struct {
		name string
		args string
		set  func(*fakeSystemd)
		want bool
	}{
		{"installed", "--mtu 1300 h1", nil, true},
		{"in the foreground", "--foreground", nil, false},
		{"with a log file", "--log-file /tmp/log", nil, false},
		{"another socket", "--http-addr /tmp/sock", nil, false},
		{"another state", "--state-dir /tmp/state", nil, false},
		{"no systemd", "", func(s *fakeSystemd) { s.unit.booted += "/not" }, false},
		{"no unit", "", func(s *fakeSystemd) { s.load, s.env = "not-found", nil }, false},
		{"masked", "", func(s *fakeSystemd) { s.load, s.env = "masked", nil }, false},
		{"a unit that the user wrote", "", func(s *fakeSystemd) { s.env = s.env[:1] }, false},
		{"no systemctl", "", func(s *fakeSystemd) {
			s.unit.run = func(context.Context, string, ...string) ([]byte, error) { return nil, exec.ErrNotFound }
		}, false},
	} {
		s := newFakeSystemd(t)
		if c.set != nil {
			c.set(s)
		}
		f, _, config := launchArgs(t, strings.Fields(c.args)...)
		if got, err := s.unit.takes(t.Context(), f, config); err != nil || got != c.want {
			t.Errorf("%s: %v, %v; want %v", c.name, got, err, c.want)
		}
	}
	s := newFakeSystemd(t)
	s.unit.run = func(context.Context, string, ...string) ([]byte, error) {
		return []byte("Failed to connect to bus\n"), errors.New("exit status 1")
	}
	f, _, config := launchArgs(t)
	if _, err := s.unit.takes(t.Context(), f, config); err == nil || !strings.Contains(err.Error(), "Failed to connect to bus") {
		t.Errorf("systemd does not answer: %v", err)
	}
}

func TestLaunchStartsTheUnit(t *testing.T) {
	s := newFakeSystemd(t)
	_, fs, c := launchArgs(t, "--mtu=1300", "h1", "h2:7000")
	var out bytes.Buffer
	if err := s.unit.launch(t.Context(), fs, c.Peers, &out); err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{`WEFT_MTU="1300"`, `WEFT_PEERS="h1 h2:7000"`, `WEFT_RESUME="false"`} {
		if !strings.Contains(s.environmentAtStart, line+"\n") {
			t.Errorf("the unit was started without %s:\n%s", line, s.environmentAtStart)
		}
	}
	// Later starts use the targets that the router has stored.
	b, err := os.ReadFile(s.unit.file)
	if err != nil || !strings.Contains(string(b), `WEFT_MTU="1300"`) || strings.Contains(string(b), "WEFT_PEERS") || strings.Contains(string(b), "WEFT_RESUME") {
		t.Errorf("later starts have %v:\n%s", err, b)
	}
	if info, err := os.Stat(s.unit.file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read passwords: %v, %v", info.Mode(), err)
	}
	if got := out.String(); !strings.HasPrefix(got, "weft runs as weft.service") || strings.Contains(got, "systemctl enable") {
		t.Errorf("said %q", got)
	}

	s.enabled = "disabled"
	out.Reset()
	if err := s.unit.launch(t.Context(), fs, nil, &out); err != nil || !strings.Contains(out.String(), "systemctl enable weft") {
		t.Errorf("of a unit that does not start at boot: %q, %v", out.String(), err)
	}
}

// A unit that fails to start is stopped, and its earlier configuration stays.
func TestLaunchOfAUnitThatFails(t *testing.T) {
	for _, before := range []string{"", "WEFT_MTU=\"1400\"\n"} {
		s := newFakeSystemd(t)
		s.startErr = errors.New("exit status 1")
		if before != "" {
			if err := s.unit.write(before); err != nil {
				t.Fatal(err)
			}
		}
		_, fs, _ := launchArgs(t, "--mtu=1300")
		err := s.unit.launch(t.Context(), fs, nil, &bytes.Buffer{})
		if err == nil || !strings.Contains(err.Error(), "Job for weft.service failed") || !strings.Contains(err.Error(), "journalctl -u weft") {
			t.Errorf("if the router logs nothing: %v", err)
		}
		b, _ := os.ReadFile(s.unit.file)
		if s.active != "inactive" || string(b) != before {
			t.Errorf("left %s, with %q; want %q", s.active, b, before)
		}
		s.journal = "level=INFO msg=x\nweft: the port is taken\nweft.service: Failed with result 'exit-code'.\n"
		if err := s.unit.launch(t.Context(), fs, nil, &bytes.Buffer{}); err == nil || err.Error() != "the port is taken" {
			t.Errorf("if the router logs an error: %v", err)
		}
	}
}

// A POSIX shell reads the file as systemd.exec(5) has systemd read it.
func TestUnitEnvironmentSaysTheSame(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "a, b $HOME `id`")
	other := filepath.Join(dir, `o"ther\`)
	for _, name := range []string{secret, other} {
		if err := os.WriteFile(name, []byte("long password\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{
		{},
		{"h1", "h2:7000", "--mtu", "1300", "--no-discovery", "--ipalloc-range=", "--dns-listen-address", "10.0.0.1,docker0:5353", "--dns-fallback-timeout", "2s"},
		{"--password", `p"a $s\s` + "`word`'"},
		{"--password-file", secret, "--accept-password-file", secret, "--accept-password-file", other, "-H", "unix:///a", "-H", "unix:///b"},
		{"--resume", "--proxy=false", "--hostname-match", `^(a|b)\.(.*)$`, "--hostname-replacement", "$2"},
	} {
		_, fs, want := launchArgs(t, args...)
		first, later, err := unitEnv(fs, want.Peers)
		if err != nil {
			t.Fatal(err)
		}
		// An administrator's file that says otherwise comes first.
		const admin = "WEFT_MTU=1400\nWEFT_PASSWORD_FILE=/nowhere\n"
		if len(want.Passwords) > 0 {
			first = admin + first
		}
		got := configOf(t, first)
		if len(want.Passwords) > 0 && !fs.Changed("mtu") {
			want.MTU = 1400
		}
		got.Docker.ProxyConfig.HostnameMatch, want.Docker.ProxyConfig.HostnameMatch = nil, nil // printed as pointers
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%q: started as\n%+v, want\n%+v", args, got, want)
		}
		if c := configOf(t, "WEFT_RESUME=true\n"+later); !c.Resume || len(c.Peers) > 0 {
			t.Errorf("%q: later resume %v, peers %v", args, c.Resume, c.Peers)
		}
	}
	_, fs, _ := launchArgs(t, "--hostname-from-label", "a\x01b")
	if _, _, err := unitEnv(fs, nil); err == nil {
		t.Error("a control character is taken")
	}
}

// configOf is the configuration of a router that is launched with an environment.
func configOf(t *testing.T, text string) *daemon.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	shell := exec.Command("sh", "-c", `set -a; . "$1"; exec env -0`, "sh", file)
	shell.Env = []string{"PATH=" + os.Getenv("PATH")}
	out, err := shell.Output()
	if err != nil {
		t.Fatal(err)
	}
	env := make(map[string]string)
	for _, line := range strings.Split(string(out), "\x00") {
		name, value, _ := strings.Cut(line, "=")
		env[name] = value
	}
	var f launchFlags
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(fs)
	if _, err := setFromEnv(fs, func(k string) (string, bool) { v, ok := env[k]; return v, ok }); err != nil {
		t.Fatal(err)
	}
	f.envPeers = strings.Fields(env[peersVar])
	c, err := f.config(fs, nil, api.DefaultSocket)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return c
}

func TestWhetherTheRouterIsTheUnits(t *testing.T) {
	for _, c := range []struct {
		active, socket string
		want           bool
	}{
		{"active", api.DefaultSocket, true},
		{"activating", api.DefaultSocket, true}, // after a crash, about to be started again
		{"inactive", api.DefaultSocket, false},
		{"failed", api.DefaultSocket, false},
		{"active", "/tmp/other.sock", false},
	} {
		s := newFakeSystemd(t)
		s.active = c.active
		if got, err := s.unit.used(t.Context(), c.socket); err != nil || got != c.want {
			t.Errorf("%s, %s: %v, %v; want %v", c.active, c.socket, got, err, c.want)
		}
	}
}
