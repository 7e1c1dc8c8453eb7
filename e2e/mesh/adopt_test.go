package mesh

import (
	"regexp"
	"strings"
	"testing"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// Two islands that each made a ring report that on both sides, and one command heals
// them. Addresses in use stay in use.
func TestTwoRingsAreHealedByOneCommand(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 4, Password: "password of the lab"})
	for _, pair := range [][2]int{{1, 2}, {3, 4}} {
		harness.Launch(t, lab, pair[0], "--ipalloc-init", "consensus=2")
		harness.Launch(t, lab, pair[1], "--ipalloc-init", "consensus=2", testbed.Addr4(pair[0]).String())
	}
	a := harness.AddContainer(t, lab, 1, "a")[0]
	harness.AddContainer(t, lab, 4, "b", "10.40.0.9/12")
	harness.Weft(t, lab, 2, "connect", testbed.Addr4(3).String())
	ring := regexp.MustCompile(`run here: weft adopt ([0-9a-f]+)`)
	theirs := func(host int) string {
		m := ring.FindStringSubmatch(strings.Join(harness.Report(t, lab, host).Warnings, "\n"))
		if m == nil {
			return ""
		}
		return m[1]
	}
	for h := 1; h <= 4; h++ {
		harness.Eventually(t, "every host tells of the other ring", func() bool { return theirs(h) != "" })
	}
	if theirs(1) != theirs(2) || theirs(3) != theirs(4) || theirs(1) == theirs(3) {
		t.Fatal("the hosts name other rings than their islands have")
	}
	if code, out := harness.Try(t, lab, 3, "adopt", "nosuchring"); code != cmd.ExitUsage || !strings.Contains(out, "no recently seen peer has a ring with this prefix") {
		t.Errorf("exit code %d, %q", code, out)
	}
	harness.Weft(t, lab, 3, "adopt", theirs(3))
	for h := 1; h <= 4; h++ {
		harness.Eventually(t, "no host tells of another ring", func() bool { return theirs(h) == "" })
	}
	for h := 3; h <= 4; h++ {
		if got := harness.AddContainer(t, lab, h, "c")[0]; got == a {
			t.Errorf("h%d gives %s, which is in use on h1", h, got)
		}
	}
	harness.Reach(t, lab, harness.At(4, "b"), a.Addr())
	if !strings.Contains(harness.Weft(t, lab, 4, "ps"), "10.40.0.9/12") {
		t.Error("an address in use was lost")
	}
}
