package mesh

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/api"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// Two of three operators throw a host out. Within seconds it has no session, link or name,
// its addresses are others', and it stays out when its router starts again.
func TestBan(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 3, Password: "password of the lab"})
	harness.AddContainer(t, lab, 3, "a") // so that h3 owns some addresses
	b := harness.AddContainer(t, lab, 3, "b")[0].Addr()
	harness.AddContainer(t, lab, 1, "a") // so that h3 knows of an owner that it cannot reach
	evil := harness.Report(t, lab, 3).Router.Name

	// One operator alone does not, and hears who is missing. The others see it.
	if code, out := harness.Try(t, lab, 1, "ban", "h3", "--timeout", "1s"); code != cmd.ExitFailed ||
		!strings.Contains(out, "1 of 2 votes") || !strings.Contains(out, "(h1)); 1 missing, of ") || !strings.Contains(out, "'weft unban "+evil+"' takes it back") {
		t.Fatalf("ban by one operator: exit code %d, %q", code, out)
	}
	votes := func() string { return harness.Weft(t, lab, 2, "status", "ipam") }
	harness.Eventually(t, "h2 shows the vote of h1", func() bool {
		return strings.Contains(votes(), "vote: ban of "+evil+"(h3): 1 of 2 votes (")
	})
	if out := harness.Weft(t, lab, 1, "unban", "h3"); !strings.Contains(out, "The vote of this host for the ban of "+evil+"(h3) is taken back.") {
		t.Errorf("the vote is taken back: %q", out)
	}
	harness.Eventually(t, "h2 shows no vote", func() bool { return !strings.Contains(votes(), "vote: ") })
	if out := harness.Weft(t, lab, 2, "ban", "h3", "--timeout", "0"); !strings.Contains(out, "1 of 2 votes") {
		t.Errorf("ban by h2: %q", out)
	}
	if !connected(t, lab, 2, evil) {
		t.Fatal("one operator banned h3")
	}
	begun := time.Now()
	if out := harness.Weft(t, lab, 1, "ban", "h3"); !strings.HasSuffix(out, evil+"(h3) is banned.\n") {
		t.Errorf("ban by the second operator: %q", out)
	}
	gone := func() bool {
		for host := 1; host <= 2; host++ {
			r := harness.Report(t, lab, host)
			owns := slices.ContainsFunc(r.IPAM.Owners, func(o api.Owner) bool { return o.Peer == evil })
			known := slices.ContainsFunc(r.Router.Peers, func(p api.Peer) bool { return p.Name == evil })
			if owns || known || connected(t, lab, host, evil) {
				return false
			}
		}
		return true
	}
	harness.Eventually(t, "h3 is gone", gone)
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the ban took %v", took)
	}
	if out := harness.Weft(t, lab, 1, "status", "ipam"); !strings.Contains(out, "banned: "+evil) {
		t.Errorf("status ipam: %q", out)
	}

	harness.Eventually(t, "h3 says that it is banned", func() bool { return saysBanned(t, lab, evil) })
	if out := advice(t, lab); strings.Contains(out, "rmpeer") {
		t.Errorf("h3 is banned, and gives the advice to remove others: %s", out)
	}
	harness.Reach(t, lab, harness.At(3, "a"), b)

	harness.Weft(t, lab, 3, "stop")
	harness.Launch(t, lab, 3, testbed.Addr4(1).String())
	harness.Eventually(t, "h3 hears that it is banned", func() bool { return saysBanned(t, lab, evil) })
	if out := advice(t, lab); strings.Contains(out, "rmpeer") {
		t.Errorf("after a restart h3 gives the advice to remove others: %s", out)
	}
	if !gone() {
		t.Error("h3 came back")
	}

	done := make(chan string)
	go func() {
		_, out := harness.Try(t, lab, 1, "unban", evil)
		done <- out
	}()
	harness.Weft(t, lab, 2, "unban", evil)
	if out := <-done; !strings.HasSuffix(out, " may be in the mesh again.\n") {
		t.Errorf("unban: %q", out)
	}
	harness.Eventually(t, "h3 is back", func() bool { return connected(t, lab, 1, evil) })
	harness.Eventually(t, "nobody speaks of the ban", func() bool {
		return strings.Contains(harness.Weft(t, lab, 3, "status", "ipam"), ": ready\n") && !slices.ContainsFunc([]int{1, 2, 3}, func(host int) bool {
			return strings.Contains(fmt.Sprint(harness.Report(t, lab, host).Warnings), "ban")
		})
	})
}

// saysBanned reports whether h3 says that it is banned, and what to do.
func saysBanned(t *testing.T, lab *testbed.Lab, name string) bool {
	out := harness.Weft(t, lab, 3, "status", "ipam")
	return strings.Contains(out, ": banned from the mesh") && strings.Contains(out, "this host is banned from the mesh: ") &&
		strings.Contains(out, "(h1)") && strings.Contains(out, "run: weft unban "+name+"\n")
}

// advice returns what h3 tells its user.
func advice(t *testing.T, lab *testbed.Lab) string {
	_, doctor := harness.Try(t, lab, 3, "doctor")
	return harness.Weft(t, lab, 3, "status") + harness.Weft(t, lab, 3, "status", "ipam") + doctor
}

// connected reports whether a host has a link with a peer.
func connected(t *testing.T, lab *testbed.Lab, host int, name string) bool {
	return slices.ContainsFunc(harness.Report(t, lab, host).Router.Connections, func(c api.Connection) bool {
		return c.Name == name && c.State == api.StateEstablished
	})
}
