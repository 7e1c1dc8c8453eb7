//go:build packages

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// timeout bounds a build of weft on a busy machine.
const timeout = 8 * time.Minute

// output runs a program in the root of the repository and returns its output.
func output(t *testing.T, env []string, program string, args ...string) string {
	t.Helper()
	out, err := try(t, env, program, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", program, args, err, out)
	}
	return out
}

func try(t *testing.T, env []string, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir, cmd.Env = filepath.Join("..", ".."), append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// build builds the packages for amd64 and returns their paths.
func build(t *testing.T) (deb, rpm string) {
	t.Helper()
	dir := t.TempDir()
	output(t, []string{"DIST=" + dir, "ARCHS=amd64"}, filepath.Join("prog", "packages", "build"))
	files := make(map[string]string)
	for _, ext := range []string{".deb", ".rpm"} {
		found, err := filepath.Glob(filepath.Join(dir, "*"+ext))
		if err != nil || len(found) != 1 {
			t.Fatalf("%s: made %q, %v; want one", ext, found, err)
		}
		files[ext] = found[0]
	}
	return files[".deb"], files[".rpm"]
}

// The packages are complete and reproducible, and install, upgrade and remove cleanly.
func TestPackages(t *testing.T) {
	deb, rpm := build(t)
	t.Run("reproducible", func(t *testing.T) {
		deb2, rpm2 := build(t)
		for a, b := range map[string]string{deb: deb2, rpm: rpm2} {
			x, err := os.ReadFile(a)
			if err != nil {
				t.Fatal(err)
			}
			y, err := os.ReadFile(b)
			if err != nil || !bytes.Equal(x, y) {
				t.Errorf("%s has other bytes after a second build, %v", filepath.Base(a), err)
			}
		}
	})
	t.Run("contents", func(t *testing.T) { checkContents(t, deb, rpm) })
	t.Run("install, remove, purge", func(t *testing.T) { checkDpkg(t, deb) })
	t.Run("unit", func(t *testing.T) { checkUnit(t, deb) })
	t.Run("under systemd", func(t *testing.T) { checkSystemd(t, deb) })
	t.Run("rpm scripts", func(t *testing.T) {
		if out := output(t, nil, "rpm", "-qp", "--nosignature", "--scripts", rpm); !strings.Contains(out, "remove | 0)") {
			t.Errorf("its scripts do not distinguish a removal from an upgrade:\n%s", out)
		}
	})
}

// inBoth are files of both packages.
var inBoth = []string{
	"/usr/bin/weft", "/opt/cni/bin/weft-cni", "/opt/cni/bin/weft-ipam", "/usr/lib/systemd/system/weft.service", "/usr/lib/sysctl.d/30-weft.conf",
	"/usr/lib/NetworkManager/conf.d/30-weft.conf", "/usr/lib/systemd/network/05-weft.network",
	"/usr/share/man/man8/weft.8.gz", "/usr/share/man/man8/weft-launch.8.gz", "/usr/share/man/man8/weft-dns-add.8.gz",
	"/usr/share/bash-completion/completions/weft", "/usr/share/fish/vendor_completions.d/weft.fish",
}

func checkContents(t *testing.T, deb, rpm string) {
	var inDeb []string
	for line := range strings.Lines(output(t, nil, "dpkg-deb", "--contents", deb)) {
		fields := strings.Fields(line)
		inDeb = append(inDeb, strings.TrimPrefix(fields[5], "."))
		if fields[1] != "root/root" {
			t.Errorf("%s belongs to %s", fields[5], fields[1])
		}
	}
	inRPM := strings.Split(strings.TrimSpace(output(t, nil, "rpm", "-qlp", "--nosignature", rpm)), "\n")
	for _, c := range []struct {
		name  string
		files []string
		own   []string
	}{
		{"deb", inDeb, []string{"/etc/default/weft", "/usr/share/zsh/vendor-completions/_weft", "/usr/share/doc/weft/copyright"}},
		{"rpm", inRPM, []string{"/etc/sysconfig/weft", "/usr/share/zsh/site-functions/_weft", "/usr/share/licenses/weft/LICENSE"}},
	} {
		for _, f := range slices.Concat(inBoth, c.own) {
			if !slices.Contains(c.files, f) {
				t.Errorf("%s has no %s", c.name, f)
			}
		}
		for _, f := range c.files {
			if strings.Contains(f, "gen-docs") {
				t.Errorf("%s has %s, of a hidden command", c.name, f)
			}
		}
	}
	if got := output(t, nil, "dpkg-deb", "--field", deb, "Package", "Architecture"); got != "Package: weft\nArchitecture: amd64\n" {
		t.Errorf("deb is %q", got)
	}
	if got := output(t, nil, "rpm", "-qp", "--nosignature", "--queryformat", "%{NAME} %{ARCH} %{BUILDHOST}", rpm); got != "weft x86_64 localhost" {
		t.Errorf("rpm is %q", got)
	}
	if got := output(t, nil, "rpm", "-qcp", "--nosignature", rpm); strings.TrimSpace(got) != "/etc/sysconfig/weft" {
		t.Errorf("rpm has configuration %q", got)
	}
}

// checkDpkg installs, upgrades, removes and purges the package with dpkg in a directory.
func checkDpkg(t *testing.T, deb string) {
	root := t.TempDir()
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "var/lib/weft"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("var/lib/dpkg/status", "")
	dpkg := func(args ...string) {
		t.Helper()
		// Scripts run outside the directory, whose path they get as DPKG_ROOT.
		output(t, []string{"DEBIAN_FRONTEND=noninteractive"}, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-confdef"}, args...)...)
	}
	checkExists := func(name string, want bool) {
		t.Helper()
		if _, err := os.Lstat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it to exist: %v", name, err, want)
		}
	}
	dpkg("--install", deb)
	version := strings.TrimSpace(output(t, nil, "dpkg-deb", "--field", deb, "Version"))
	printed := output(t, []string{"WEFT_SOCKET=" + filepath.Join(root, "none")}, filepath.Join(root, "usr/bin/weft"), "version")
	if printed != "weft "+strings.TrimSuffix(version, "-1")+"\n" {
		t.Errorf("the program prints %q in a package of version %s", printed, version)
	}
	if target, err := os.Readlink(filepath.Join(root, "opt/cni/bin/weft-ipam")); err != nil || target != "weft-cni" {
		t.Errorf("weft-ipam is %q, %v", target, err)
	}
	for _, page := range []string{"weft.8.gz", "weft-launch.8.gz"} {
		out := output(t, []string{"MANROFFSEQ=", "MANPAGER=cat", "LC_ALL=C"}, "man", "--warnings", "--local-file", filepath.Join(root, "usr/share/man/man8", page))
		if !strings.Contains(out, "SYNOPSIS") || strings.Contains(out, "warning:") {
			t.Errorf("%s:\n%s", page, out)
		}
	}
	output(t, nil, "bash", "-n", filepath.Join(root, "usr/share/bash-completion/completions/weft"))

	// An upgrade keeps the user's configuration and the router's state.
	const configuration = "WEFT_MTU=1400\n"
	write("etc/default/weft", configuration)
	write("var/lib/weft/weft.db", "state")
	dpkg("--install", deb)
	if b, err := os.ReadFile(filepath.Join(root, "etc/default/weft")); err != nil || string(b) != configuration {
		t.Errorf("after an upgrade the configuration is %q, %v", b, err)
	}
	checkExists("var/lib/weft/weft.db", true)

	dpkg("--remove", "weft")
	checkExists("usr/bin/weft", false)
	checkExists("usr/lib/systemd/system/weft.service", false)
	checkExists("etc/default/weft", true)
	checkExists("var/lib/weft/weft.db", true)
	dpkg("--purge", "weft")
	checkExists("etc/default/weft", false)
	checkExists("var/lib/weft", false)
}

// checkUnit checks that systemd accepts the unit and would reject an invalid one.
func checkUnit(t *testing.T, deb string) {
	root := t.TempDir()
	output(t, nil, "dpkg-deb", "--extract", deb, root)
	b, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/weft.service"))
	if err != nil {
		t.Fatal(err)
	}
	// systemd checks that the program exists.
	unit := strings.ReplaceAll(string(b), "=/usr/bin/weft ", "="+filepath.Join(root, "usr/bin/weft")+" ")
	verify := func(unit string) (string, error) {
		dir := t.TempDir()
		file := filepath.Join(dir, "weft.service")
		if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		return try(t, nil, "systemd-analyze", "verify", "--man=no", file)
	}
	if out, err := verify(unit); err != nil || strings.Contains(out, "weft.service") {
		t.Errorf("systemd rejects the unit: %v\n%s", err, out)
	}
	if out, _ := verify(unit + "\nNoSuchKey=1\n"); !strings.Contains(out, "NoSuchKey") {
		t.Errorf("systemd accepts an invalid unit:\n%s", out)
	}
	// Router and engine must not wait for each other for ever: the router starts first, and
	// its start has a timeout.
	for _, line := range []string{"Before=docker.service", "Type=notify", "TimeoutStartSec=30", "EnvironmentFile=-/var/lib/weft/launch.env"} {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(line) + `$`).MatchString(unit) {
			t.Errorf("the unit has no line %s", line)
		}
	}
}

// checkSystemd runs testdata/story under a real systemd, in a container with this machine's
// own system.
func checkSystemd(t *testing.T, deb string) {
	shared := t.TempDir()
	for name, from := range map[string]string{"weft.deb": deb, "story": filepath.Join("testdata", "story")} {
		b, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(filepath.Join(shared, name), b, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	boot := exec.CommandContext(ctx, "unshare", "--mount", filepath.Join("testdata", "boot"), shared)
	// It ends with the test, even if the test is killed.
	boot.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	boot.Cancel = func() error { return boot.Process.Signal(syscall.SIGTERM) }
	boot.WaitDelay = 20 * time.Second
	console, err := boot.CombinedOutput()
	printed, rerr := os.ReadFile(filepath.Join(shared, "output"))
	if rerr != nil {
		t.Fatalf("the system did not boot: %v\n%s", err, console)
	}
	if !strings.HasSuffix(string(printed), "the end\n") || strings.Contains(string(printed), "FAILED") {
		t.Errorf("%s\nconsole, %v:\n%s", printed, err, console)
	}
}
