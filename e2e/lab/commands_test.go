package lab

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
	"github.com/weft-net/weft/internal/netdev"
	"github.com/weft-net/weft/internal/netdev/nstest"
)

// weft runs a command line in this process.
func weft(args ...string) (code int, stdout, stderr string) {
	var out, words strings.Builder
	code = cmd.Main(args, &out, &words)
	return code, out.String(), words.String()
}

// mustWeft runs weft in this process and wants it to succeed.
func mustWeft(t *testing.T, args ...string) string {
	t.Helper()
	code, stdout, stderr := weft(args...)
	if code != cmd.ExitOK {
		t.Fatalf("weft %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return stdout
}

// The lab commands work, and down leaves nothing behind.
func TestLabCommands(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel()
	name := harness.Name()
	lab := func(args ...string) []string { return append([]string{"lab"}, append(args, "--name", name)...) }
	t.Cleanup(func() {
		if code, _, stderr := weft(lab("down")...); code != cmd.ExitOK {
			t.Error(stderr)
		}
	})
	mustWeft(t, lab("up", "--hosts", "2", "--password", "password of the lab")...)
	if code, _, stderr := weft(lab("up")...); code != cmd.ExitFailed || !strings.Contains(stderr, "exists already") {
		t.Errorf("up a second time: exit code %d, %q", code, stderr)
	}
	address := strings.TrimSpace(mustWeft(t, lab("run", "h1", "web")...))
	if _, err := netip.ParseAddr(address); err != nil {
		t.Errorf("run printed %q: %v", address, err)
	}
	listed := func() string {
		t.Helper()
		list := mustWeft(t, "lab", "list") // labs of other tests too
		for line := range strings.Lines(list) {
			if rest, ok := strings.CutPrefix(line, name+": "); ok {
				return rest
			}
		}
		t.Errorf("lab %s is not in the list %q", name, list)
		return ""
	}
	if got := listed(); got != "h1 h2 h1/web\n" {
		t.Errorf("the lab is listed as %q", got)
	}
	if code, _, _ := weft("lab", "exec", "h1/web", "--name", name, "--", "sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exec returned %d, want 7", code)
	}
	if code, _, _ := weft("lab", "run", "h2", "client", "10.32.9.9/24", "--name", name, "--", "sh", "-c", "exit 5"); code != 5 {
		t.Errorf("run returned %d, want 5", code)
	}
	if got := listed(); got != "h1 h2 h1/web\n" {
		t.Errorf("run with a command left its container: %q", got)
	}
	if out := mustWeft(t, "lab", "exec", "h2", "--name", name, "--", "weft", "ps"); out != "" {
		t.Errorf("run with a command left an attachment: %q", out)
	}
	if out := mustWeft(t, "lab", "exec", "h1", "--name", name, "--", "weft", "ps"); !strings.Contains(out, address+"/12") {
		t.Errorf("ps on h1: %q, want %s in it", out, address)
	}
	mustWeft(t, lab("cut", "h1", "h2")...)
	mustWeft(t, lab("cut", "h1", "h2", "--one-way")...)
	mustWeft(t, lab("heal", "h1", "h2")...)
	mustWeft(t, lab("kill", "h2")...)
	if code, _, stderr := weft(lab("kill", "h2")...); code != cmd.ExitFailed || !strings.Contains(stderr, "does not run") {
		t.Errorf("kill a second time: exit code %d, %q", code, stderr)
	}
	mustWeft(t, lab("launch", "h2", "--log-level", "debug")...)
	if code, _, stderr := weft(lab("launch", "h2")...); code != cmd.ExitFailed || !strings.Contains(stderr, "is already running") {
		t.Errorf("launch a second time: exit code %d, %q", code, stderr)
	}
	mustWeft(t, lab("down")...)
	if list := mustWeft(t, "lab", "list"); strings.Contains(list, name) {
		t.Errorf("down left %q", list)
	}
	all, err := netdev.ListNS()
	if err != nil {
		t.Fatal(err)
	}
	for _, ns := range all {
		if strings.HasPrefix(ns, "weft-"+name+"-") {
			t.Errorf("down left namespace %s", ns)
		}
	}
	if _, err := os.Stat("/run/weft/lab/" + name); !os.IsNotExist(err) {
		t.Errorf("down left files: %v", err)
	}
	mustWeft(t, lab("down")...) // twice is harmless
}

func TestLabUpThatFailsLeavesNothing(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel()
	name := harness.Name()
	code, _, stderr := weft("lab", "up", "--name", name, "--hosts", "1", "--", "--host", "192.168.77.200")
	if code != cmd.ExitFailed || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, "launch the router of h1") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if list := mustWeft(t, "lab", "list"); strings.Contains(list, name) {
		t.Errorf("it left %q", list)
	}
}

// down also removes a lab whose up was killed.
func TestDownOfAKilledUp(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel()
	name := harness.Name()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	up := exec.Command(exe, "lab", "up", "--name", name, "--hosts", "4")
	if err := up.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := testbed.Down(name); err != nil {
			t.Error(err)
		}
	})
	socket := "/run/weft/lab/" + name + "/h2/weft.sock"
	harness.Eventually(t, "the second router runs", func() bool { _, err := os.Stat(socket); return err == nil })
	if err := up.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	up.Wait()
	mustWeft(t, "lab", "down", "--name", name)
	if list := mustWeft(t, "lab", "list"); strings.Contains(list, name) {
		t.Errorf("down left %q", list)
	}
	if out, err := exec.Command("pgrep", "-f", "/run/weft/lab/"+name+"/").Output(); err == nil {
		t.Errorf("down left processes %q", out)
	}
}

func TestDemo(t *testing.T) {
	nstest.RequireRoot(t)
	t.Parallel()
	out := mustWeft(t, "lab", "demo", "--hosts", "3", "--name", harness.Name())
	for _, want := range []string{"round trip in ms", "throughput of one TCP stream from h1 to h3", "weft status", "take the lab down ... done"} {
		if !strings.Contains(out, want) {
			t.Errorf("demo does not show %q:\n%s", want, out)
		}
	}
}

func TestTwoLabsAtOnceDoNotSeeEachOther(t *testing.T) {
	t.Parallel()
	a := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	b := harness.Up(t, testbed.Config{Hosts: 2, Password: "password of the lab"})
	if err := testbed.Down(a.Name); err != nil {
		t.Fatal(err)
	}
	if n := len(harness.Report(t, b, 1).Router.Peers); n != 2 {
		t.Errorf("the other lab sees %d peers, want 2", n)
	}
	addr := harness.AddContainer(t, b, 1, "web")[0].Addr()
	harness.AddContainer(t, b, 2, "client")
	harness.Reach(t, b, harness.At(2, "client"), addr)
}
