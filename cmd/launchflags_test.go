package cmd

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/weft-net/weft/daemon"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/ipam"
)

// launchLine reads a command line of launch.
func launchLine(t *testing.T, args ...string) (*launchFlags, *pflag.FlagSet) {
	t.Helper()
	var f launchFlags
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(fs)
	if err := fs.Parse(args); err != nil {
		t.Fatal(err)
	}
	return &f, fs
}

// parseLaunch reads a command line of launch with an environment.
func parseLaunch(t *testing.T, env map[string]string, args ...string) (*daemon.Config, error) {
	t.Helper()
	f, fs := launchLine(t, args...)
	if _, err := setFromEnv(fs, func(k string) (string, bool) { v, ok := env[k]; return v, ok }); err != nil {
		return nil, err
	}
	return f.config(fs, fs.Args(), api.DefaultSocket)
}

func TestLaunchDefaults(t *testing.T) {
	c, err := parseLaunch(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if c.Port != 6783 || c.MTU != 1376 || c.Mesh.ConnLimit != 200 || c.Range.String() != "10.32.0.0/12" || c.DefaultSubnet != c.Range ||
		c.RangeGiven || c.Range6.IsValid() || c.Init.Mode != ipam.Consensus || c.Init.Expect != 0 || c.StatusAddr != "127.0.0.1:6782" ||
		c.Socket != "/run/weft/weft.sock" || c.StateDir != "/var/lib/weft" || c.Mesh.Nickname == "" || len(c.Passwords) != 0 {
		t.Errorf("%+v", c)
	}
}

// Each flag can be given as an environment variable too, and the flag wins.
func TestEveryLaunchFlagHasAnEnvironmentVariable(t *testing.T) {
	var f launchFlags
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(fs)
	values := map[string]string{ // of flags that do not take any word or number
		"host": "10.0.0.1", "name": "02:00:00:00:00:01", "trusted-subnets": "10.0.0.0/8", "no-express-to": "10.0.0.0/8", "encap": "ipip,vxlan", "encap-to": "10.0.0.0/8=none+ipip", "mtu": "1400", "allow-peers-from": "10.0.0.0/8", "log-level": "warn",
		"ipalloc-init": "consensus=3", "ipalloc-range": "10.0.0.0/8", "ipalloc-default-subnet": "10.1.0.0/16", "ipalloc-range6": "fd00::/64",
		"dns-fallback-timeout": "2s", "protocol-min": "1", "protocol-max": "2",
	}
	env := make(map[string]string)
	fs.VisitAll(func(f *pflag.Flag) {
		switch value, ok := values[f.Name]; {
		case ok:
			env[envName(f.Name)] = value
		case f.Value.Type() == "bool":
			env[envName(f.Name)] = "true"
		case f.Value.Type() == "int":
			env[envName(f.Name)] = "1400"
		default:
			env[envName(f.Name)] = "x"
		}
	})
	set, err := setFromEnv(fs, func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	fs.VisitAll(func(f *pflag.Flag) {
		if f.Name != "foreground" && !slices.Contains(set, f.Name) {
			t.Errorf("%s does not set --%s", envName(f.Name), f.Name)
		}
	})
	c, err := parseLaunch(t, map[string]string{"WEFT_MTU": "1300", "WEFT_NO_DISCOVERY": "1", "WEFT_PORT": "7000"}, "--port", "8000")
	if err != nil || c.MTU != 1300 || c.Mesh.Discover || c.Port != 8000 {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := parseLaunch(t, map[string]string{"WEFT_MTU": "big"}); err == nil || !strings.Contains(err.Error(), `WEFT_MTU: --mtu "big": want a number of bytes`) {
		t.Errorf("a wrong variable: %v", err)
	}
}

func TestDNSFlags(t *testing.T) {
	c, err := parseLaunch(t, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := c.DNS; d.Off || d.Domain != "weft.internal" || d.TTL != 1 || fmt.Sprint(d.Listen) != "[docker0:53 weft:53]" ||
		d.Timeout != 5*time.Second || d.ResolvConf != "/etc/resolv.conf" {
		t.Errorf("defaults: %+v", d)
	}
	c, err = parseLaunch(t, map[string]string{"WEFT_DNS_LISTEN_ADDRESS": "10.0.0.1,docker0:5353", "WEFT_NO_DNS": "1"},
		"--dns-domain", ".Corp.Example.", "--dns-ttl", "30", "--dns-fallback-timeout", "2s", "--resolv-conf", "/x")
	if err != nil {
		t.Fatal(err)
	}
	if d := c.DNS; !d.Off || d.Domain != "corp.example" || d.TTL != 30 || fmt.Sprint(d.Listen) != "[10.0.0.1:53 docker0:5353]" ||
		d.Timeout != 2*time.Second || d.ResolvConf != "/x" {
		t.Errorf("given: %+v", d)
	}
	if c, err = parseLaunch(t, nil, "--bridge", "br7"); err != nil || fmt.Sprint(c.DNS.Listen) != "[docker0:53 br7:53]" {
		t.Errorf("with another bridge: %v, %v", c.DNS.Listen, err)
	}
}

func TestPasswords(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second := write("1", "new password\r\n\nold password\n"), write("2", "older password\nold password\n")
	for _, c := range []struct {
		env  map[string]string
		args []string
		want []string
	}{
		{nil, []string{"--password", "password p"}, []string{"password p"}},
		{map[string]string{"WEFT_PASSWORD": "password e"}, nil, []string{"password e"}},
		{map[string]string{"WEFT_PASSWORD": "password e"}, []string{"--password", "password p"}, []string{"password p"}},
		{map[string]string{"WEFT_PASSWORD": "new password\nold password\n"}, nil, []string{"new password", "old password"}},
		{map[string]string{"WEFT_PASSWORD": "password e"}, []string{"--password-file", first}, []string{"new password", "old password"}},
		{map[string]string{"WEFT_PASSWORD_FILE": first}, []string{"--password", "password p"}, []string{"password p"}},
		{nil, []string{"--password-file", first, "--accept-password-file", second}, []string{"new password", "old password", "older password"}},
	} {
		got, err := parseLaunch(t, c.env, c.args...)
		if err != nil || !slices.Equal(got.Passwords, c.want) {
			t.Errorf("%v %v: %+v, %v; want passwords %q", c.env, c.args, got, err, c.want)
		}
	}
	if _, err := parseLaunch(t, map[string]string{"WEFT_PASSWORD": "\n"}); err == nil {
		t.Error("a password of nothing but a line's end is taken for none")
	}
}

func TestSecretsThatOthersReadAreWarnedOf(t *testing.T) {
	dir, err := os.MkdirTemp("", "weft") // the parents of t.TempDir are closed to others
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "password")
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o640: 1, 0o644: 1} {
		if err := os.WriteFile(file, []byte("long enough\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		c := daemon.DefaultConfig()
		if err := ParseLaunch(c, []string{"--docker-api=", "--password-file", file}, func(string) (string, bool) { return "", false }); err != nil {
			t.Fatal(err)
		}
		if len(c.Warnings) != want || want > 0 && !strings.Contains(c.Warnings[0], "chmod 600 "+file) {
			t.Errorf("mode %v: warnings %q", mode, c.Warnings)
		}
	}
}

func TestChangedArgsSayTheSameAgain(t *testing.T) {
	var f launchFlags
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(fs)
	args := []string{"--mtu=1300", "--no-discovery=true", "--accept-password-file=a,b", "--accept-password-file=c", "--ipalloc-range="}
	if err := fs.Parse(append(args, "--password=p")); err != nil {
		t.Fatal(err)
	}
	got := changedArgs(fs, "password")
	slices.Sort(got)
	slices.Sort(args)
	if !slices.Equal(got, args) {
		t.Errorf("%q, want %q", got, args)
	}
}

// A router in the background works in the root folder.
func TestNamesOfFilesAreMadeAbsolute(t *testing.T) {
	t.Chdir(t.TempDir())
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var f launchFlags
	fs := pflag.NewFlagSet("launch", pflag.ContinueOnError)
	f.register(fs)
	if err := fs.Parse([]string{"--password-file=p", "--accept-password-file=../q", "--accept-password-file=/r", "--tlscert=a/c"}); err != nil {
		t.Fatal(err)
	}
	if err := f.makeAbsolute(); err != nil {
		t.Fatal(err)
	}
	got := changedArgs(fs)
	slices.Sort(got)
	want := []string{
		"--accept-password-file=" + filepath.Join(filepath.Dir(dir), "q"), "--accept-password-file=/r",
		"--password-file=" + filepath.Join(dir, "p"), "--tlscert=" + filepath.Join(dir, "a/c"),
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}
