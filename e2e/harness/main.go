package harness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/skel"

	"github.com/weft-net/weft/cmd"
	"github.com/weft-net/weft/cni"
	"github.com/weft-net/weft/internal/leak"
)

// beWeft is set in the environment of every process that a test binary starts.
const beWeft = "BE_THE_WEFT_PROGRAM"

// Main runs the tests of a package, or is weft or one of its CNI plugins when a test
// has started the binary as such: so labs run the code under test. It fails the run
// if tests leave goroutines or descriptors behind.
func Main(m *testing.M) {
	if plugin := filepath.Base(os.Args[0]); strings.HasPrefix(plugin, "weft-") {
		skel.PluginMainFuncs(cni.Verbs(plugin), cni.Versions, "weft CNI plugin")
		return
	}
	if os.Getenv(beWeft) != "" {
		os.Exit(cmd.Main(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Setenv(beWeft, "1")
	os.Exit(leak.Run(m))
}
