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

// timeout is for building weft on a machine that does other things too.
const timeout = 8 * time.Minute

// output runs a program in the root of the repository.
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

// build makes the packages of amd64 and returns where they are.
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

// Issue 5, item 6, in the order that a user meets it.
func TestPackages(t *testing.T) {
	deb, rpm := build(t)
	t.Run("the same again", func(t *testing.T) {
		deb2, rpm2 := build(t)
		for a, b := range map[string]string{deb: deb2, rpm: rpm2} {
			x, err := os.ReadFile(a)
			if err != nil {
				t.Fatal(err)
			}
			y, err := os.ReadFile(b)
			if err != nil || !bytes.Equal(x, y) {
				t.Errorf("%s has other bytes when it is made again, %v", filepath.Base(a), err)
			}
		}
	})
	t.Run("contents", func(t *testing.T) { checkContents(t, deb, rpm) })
	t.Run("install, remove, purge", func(t *testing.T) { checkDpkg(t, deb) })
	t.Run("unit", func(t *testing.T) { checkUnit(t, deb) })
	t.Run("under systemd", func(t *testing.T) { checkSystemd(t, deb) })
	t.Run("rpm scripts", func(t *testing.T) {
		if out := output(t, nil, "rpm", "-qp", "--nosignature", "--scripts", rpm); !strings.Contains(out, "remove | 0)") {
			t.Errorf("its removal would not be told from an upgrade:\n%s", out)
		}
	})
}

// inBoth are files of both packages.
var inBoth = []string{
	"/usr/bin/weft", "/opt/cni/bin/weft-cni", "/opt/cni/bin/weft-ipam", "/usr/lib/systemd/system/weft.service",
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
				t.Errorf("%s has %s, of a command that is hidden", c.name, f)
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

// checkDpkg has dpkg install, upgrade, remove and purge the package in a folder.
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
		// Scripts run outside of the folder, and are told which it is.
		output(t, []string{"DEBIAN_FRONTEND=noninteractive"}, "dpkg", append([]string{"--root=" + root, "--force-script-chrootless", "--force-confdef"}, args...)...)
	}
	there := func(name string, want bool) {
		t.Helper()
		if _, err := os.Lstat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
	dpkg("--install", deb)
	version := strings.TrimSpace(output(t, nil, "dpkg-deb", "--field", deb, "Version"))
	said := output(t, []string{"WEFT_SOCKET=" + filepath.Join(root, "none")}, filepath.Join(root, "usr/bin/weft"), "version")
	if said != "weft "+strings.TrimSuffix(version, "-1")+"\n" {
		t.Errorf("the program says %q in a package of version %s", said, version)
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

	// What the user changed, and what the router keeps, stays over an upgrade.
	const configuration = "WEFT_MTU=1400\n"
	write("etc/default/weft", configuration)
	write("var/lib/weft/weft.db", "state")
	dpkg("--install", deb)
	if b, err := os.ReadFile(filepath.Join(root, "etc/default/weft")); err != nil || string(b) != configuration {
		t.Errorf("after an upgrade the configuration is %q, %v", b, err)
	}
	there("var/lib/weft/weft.db", true)

	dpkg("--remove", "weft")
	there("usr/bin/weft", false)
	there("usr/lib/systemd/system/weft.service", false)
	there("etc/default/weft", true)
	there("var/lib/weft/weft.db", true)
	dpkg("--purge", "weft")
	there("etc/default/weft", false)
	there("var/lib/weft", false)
}

// checkUnit asks systemd whether it takes the unit, and whether it notices what
// it should not take.
func checkUnit(t *testing.T, deb string) {
	root := t.TempDir()
	output(t, nil, "dpkg-deb", "--extract", deb, root)
	b, err := os.ReadFile(filepath.Join(root, "usr/lib/systemd/system/weft.service"))
	if err != nil {
		t.Fatal(err)
	}
	// systemd wants to see the program that it would start.
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
		t.Errorf("systemd does not take it: %v\n%s", err, out)
	}
	if out, _ := verify(unit + "\nNoSuchKey=1\n"); !strings.Contains(out, "NoSuchKey") {
		t.Errorf("systemd takes anything:\n%s", out)
	}
	// Neither may wait for the other for ever: the router is first, and its
	// start has an end.
	for _, line := range []string{"Before=docker.service", "Type=notify", "TimeoutStartSec=30", "EnvironmentFile=-/var/lib/weft/launch.env"} {
		if !regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(line) + `$`).MatchString(unit) {
			t.Errorf("the unit has no line %s", line)
		}
	}
}

// checkStory has a real systemd run the router, in a container of this machine's
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
	// It goes with the test, also when that is killed.
	boot.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM}
	boot.Cancel = func() error { return boot.Process.Signal(syscall.SIGTERM) }
	boot.WaitDelay = 20 * time.Second
	console, err := boot.CombinedOutput()
	said, rerr := os.ReadFile(filepath.Join(shared, "said"))
	if rerr != nil {
		t.Fatalf("the system did not come up: %v\n%s", err, console)
	}
	if !strings.HasSuffix(string(said), "the end\n") || strings.Contains(string(said), "FAILED") {
		t.Errorf("%s\nconsole, %v:\n%s", said, err, console)
	}
}
