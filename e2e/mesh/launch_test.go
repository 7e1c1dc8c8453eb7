package mesh

import (
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// Launch goes to the background and returns when ready; a second
// one says that it runs; what ends it before it is ready is told.
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
	if code != cmd.ExitFailed || strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "weft runs already") {
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
	harness.Weft(t, lab, 1, args...) // after a failure as after a stop
	harness.Weft(t, lab, 1, "reset", "--force", "--state-dir", lab.StateDir(1))
}
