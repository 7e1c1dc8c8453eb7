package mesh

import (
	"strings"
	"testing"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

const oldPassword = "password of the lab"

// finished reports whether a host accepts only the password to which the mesh changed.
func finished(t *testing.T, lab *testbed.Lab, host int) bool {
	code, out := harness.Try(t, lab, host, "rotate", "--status")
	return code == cmd.ExitOK && strings.Contains(out, "No change is under way") && strings.Contains(out, "finished")
}

// One command changes the password on all hosts while traffic flows. A host that is away holds
// it up and is named. The host on which it began dies, and the change goes on without it. In
// the end all hosts go on with the new password, also those whose configuration has the old
// one, and the old one lets nobody in.
func TestRotate(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 4, Password: oldPassword})
	harness.AddContainer(t, lab, 2, "a")
	b := harness.AddContainer(t, lab, 3, "b")[0].Addr()
	stream := harness.StartStream(t, lab, harness.At(2, "a"), harness.At(3, "b"), b)
	harness.Weft(t, lab, 4, "stop")

	if code, out := harness.Try(t, lab, 1, "rotate", "--timeout", "1s"); code != cmd.ExitFailed || !strings.Contains(out, "nothing was changed") {
		t.Fatalf("rotate without an answer: exit code %d, %q", code, out)
	}
	harness.Eventually(t, "h1 knows that h4 is away", func() bool { return len(harness.Report(t, lab, 1).Router.UnicastRoutes) == 2 })
	code, out := harness.Try(t, lab, 1, "rotate", "--yes", "--timeout", "3s")
	if code != cmd.ExitFailed || !strings.Contains(out, "Away: ") || !strings.Contains(out, "(h4)") {
		t.Fatalf("rotate while h4 is away: exit code %d, %q", code, out)
	}
	if err := lab.Kill(1); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, "the change needs h4", func() bool {
		out := harness.Weft(t, lab, 2, "rotate", "--status")
		return strings.Contains(out, "is being changed") && strings.Contains(out, "says nothing (away)")
	})
	if w := harness.Report(t, lab, 2).Warnings; !strings.Contains(strings.Join(w, "\n"), "the password is being changed, and these have still to follow: ") {
		t.Errorf("warnings of h2: %q", w)
	}
	harness.Launch(t, lab, 4, testbed.Addr4(2).String())
	harness.Launch(t, lab, 1, testbed.Addr4(2).String())
	for host := 1; host <= 4; host++ {
		harness.Eventually(t, "all hosts have only the new password", func() bool { return finished(t, lab, host) })
	}
	stream.Flows(t)
	stream.Whole(t)
	password := strings.TrimSpace(harness.Weft(t, lab, 3, "rotate", "--show"))
	if len(password) < 40 || harness.Weft(t, lab, 1, "rotate", "--show") != password+"\n" {
		t.Errorf("the new password is %q", password)
	}

	// A restart with the old configuration goes on with the new password.
	if err := lab.Kill(3); err != nil {
		t.Fatal(err)
	}
	harness.Launch(t, lab, 3, testbed.Addr4(2).String())
	harness.Converge(t, lab)
	if w := harness.Report(t, lab, 3).Warnings; !strings.Contains(strings.Join(w, "\n"), "the configuration has a former password") {
		t.Errorf("warnings of h3: %q", w)
	}
	// Without its state a host has only the old password, and is not let in.
	harness.Weft(t, lab, 4, "reset", "--force")
	harness.Launch(t, lab, 4, testbed.Addr4(2).String())
	harness.Eventually(t, "the old password is refused", func() bool {
		return strings.Contains(strings.Join(harness.Report(t, lab, 4).Warnings, "\n"), "the passwords differ")
	})
}

// A host that was thrown out comes back under a new name, with the old password. The change of
// the password does not wait for it, does not tell it the new one, and ends its access.
func TestRotateShutsABannedHostOut(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: oldPassword})
	harness.AddContainer(t, lab, 3, "a")
	evil := harness.Report(t, lab, 3).Router.Name
	done := make(chan string)
	go func() {
		_, out := harness.Try(t, lab, 1, "ban", evil)
		done <- out
	}()
	harness.Weft(t, lab, 2, "ban", evil)
	if out := <-done; !strings.HasSuffix(out, "is banned.\n") {
		t.Fatalf("ban: %q", out)
	}
	harness.Eventually(t, "h3 is banned", func() bool { return !connected(t, lab, 1, evil) })
	harness.Weft(t, lab, 3, "reset", "--force")
	harness.Launch(t, lab, 3, testbed.Addr4(1).String())
	again := harness.Report(t, lab, 3).Router.Name
	harness.Eventually(t, "h3 is back under a new name", func() bool { return again != evil && connected(t, lab, 1, again) && connected(t, lab, 2, again) })
	harness.AddContainer(t, lab, 3, "c") // it gets addresses, too

	out := harness.Weft(t, lab, 1, "rotate", "--yes")
	if !strings.Contains(out, "These do not get it:\n    "+again) || !strings.Contains(out, "Done: ") {
		t.Fatalf("rotate: %q", out)
	}
	for host := 1; host <= 2; host++ {
		harness.Eventually(t, "h3 is out", func() bool { return !connected(t, lab, host, again) })
	}
	harness.Eventually(t, "h3 hears why", func() bool {
		return strings.Contains(strings.Join(harness.Report(t, lab, 3).Warnings, "\n"), "the passwords differ")
	})
}
