package mesh

import (
	"os"
	"strings"
	"testing"

	"github.com/weft-net/weft/e2e/harness"
	"github.com/weft-net/weft/internal/lab/testbed"
)

// In weft's own pod there is no CAP_SYS_ADMIN. Where the router runs, doctor does not call that
// a fault, and checks the rest.
func TestDoctorWithoutSysAdmin(t *testing.T) {
	t.Parallel()
	lab := harness.Up(t, testbed.Config{Hosts: 1, Password: "a password"})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	at := testbed.Place{Host: 1}
	c := lab.Command(t.Context(), at, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", exe, "doctor")
	var out strings.Builder
	c.Stdout, c.Stderr = &out, &out
	if err := lab.Run(at, c); err != nil {
		t.Errorf("doctor: %v", err)
	}
	if text := out.String(); strings.Contains(text, "FAIL") || !strings.Contains(text, "CAP_SYS_ADMIN is missing, as in weft's own pod") || !strings.Contains(text, "OK    router: runs") {
		t.Errorf("doctor says\n%s", text)
	}
}
