package mesh

import (
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// launch puts the router into the background and returns when it is ready. A second
// launch reports the running router, and a router that ends before it is ready makes
// launch report why.
func TestLaunchInBackground(t *testing.T) {
	t.Parallel()
	lab := harness.New(t, testbed.Config{Hosts: 1})
	args := []string{"launch", "--state-dir", lab.StateDir(1), "--nickname", "first", "--password", "password of the lab", "--docker-api", ""}
	out := harness.Weft(t, lab, 1, args...)
	if strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "weft runs as process ") {
		t.Errorf("launch: %q", out)
	}
	r := harness.Report(t, lab, 1)
	if !r.Ready || !r.Router.Encryption || r.Router.NickName != "first" {
		t.Errorf("launched: %+v", r.Router)
	}
	code, out := harness.Try(t, lab, 1, args...)
	if code != cmd.ExitFailed || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "weft is already running") {
		t.Errorf("launch a second time: exit code %d, %q", code, out)
	}
	log, err := os.ReadFile(lab.StateDir(1) + "/weft.log")
	if err != nil || !strings.Contains(string(log), "msg=ready") || strings.Contains(string(log), "password of the lab") {
		t.Errorf("the log: %v %q", err, log)
	}
	harness.Weft(t, lab, 1, "stop")
	code, out = harness.Try(t, lab, 1, append(args, "--host", "192.0.2.99")...)
	if code != cmd.ExitFailed || strings.Count(out, "\n") != 1 || !strings.Contains(out, "192.0.2.99") {
		t.Errorf("launch on an address that is not this host's: exit code %d, %q", code, out)
	}
	harness.Weft(t, lab, 1, args...) // a failure leaves the state that a stop does
	harness.Weft(t, lab, 1, "reset", "--force", "--state-dir", lab.StateDir(1))
}
